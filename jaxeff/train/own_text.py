"""An experiment on the user's own files."""

import dataclasses
import os
from collections.abc import Sequence

from jaxeff.core.errors import UserError
from jaxeff.data import SentencePiece, Text, TextData
from jaxeff.train.experiment import Experiment
from jaxeff.train.vocabulary import agreeing

BYTES_PER_TOKEN = 200  # of text, for each token of the vocabulary: enough to see it some dozens of times
LEAST_TOKENS = 512


def on_text(experiment: Experiment, paths: Sequence[str], field: str | None = None) -> Experiment:
    """The experiment with files or folders as its text. Short texts are cut finer, see `Text.finer`, and get fewer tokens than the
    experiment has, see `tokens_for`, model and tokenizer alike.

    field: of JSON lines, the one that holds their text.

    Raises UserError where the experiment is not on text, or there is no such file or folder.
    """
    data = experiment.data
    if not isinstance(data, TextData):
        raise UserError(f"--data: this config trains on {type(data).__name__}, not on text")
    if not paths:
        raise UserError(f"--field {field}: of which text? give --data FILE as well")
    source = Text(tuple(os.path.abspath(os.path.expanduser(path)) for path in paths), field).finer()
    tokenizer = data.tokenizer
    if isinstance(tokenizer, SentencePiece):
        fewer = min(tokenizer.vocab_size, tokens_for(source.n_bytes()))
        tokenizer = dataclasses.replace(tokenizer, vocab_size=fewer)
    after = dataclasses.replace(experiment, data=dataclasses.replace(data, source=source, tokenizer=tokenizer))
    return agreeing(experiment, after)


def tokens_for(n_bytes: int) -> int:
    """How many tokens so much text can teach: a power of two, one for 200 to 400 bytes, at least 512."""
    return max(LEAST_TOKENS, 1 << (n_bytes // BYTES_PER_TOKEN).bit_length() >> 1)
