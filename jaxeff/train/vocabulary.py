"""How many tokens there are, said once: the model's number follows the data's, and where nobody asked for one, the text's.

agreeing    a model that had as many tokens as its data has as many as the new data
fitting     a run on a text that cannot give as many tokens as the config names
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from jaxeff.data import Bytes, SentencePiece, TextData
from jaxeff.data.tokenizers import ByteTokenizer, VocabularyMisfit
from jaxeff.train.config_json import diff, to_json
from jaxeff.train.experiment import FREE, Experiment
from jaxeff.train.progress import Silent
from jaxeff.train.workdir import read_run

MODEL, TOKENIZER = "model.vocab_size", "data.tokenizer.vocab_size"
T = TypeVar("T")


def declared(data: Any) -> int | None:
    """How many tokens data of this config have, None where only reading them tells."""
    if not isinstance(data, TextData):
        return getattr(data, "vocab_size", None)
    tokenizer = data.tokenizer
    if isinstance(tokenizer, TextData):
        return declared(tokenizer)
    if isinstance(tokenizer, Bytes):
        return ByteTokenizer().vocab_size
    return getattr(tokenizer, "vocab_size", None)


def agreeing(before: Experiment, after: Experiment) -> Experiment:
    """`after`, changed from `before` without naming model.vocab_size: what agreed with the data still does, and no model is too
    small for them. A model that had more tokens than its data keeps them."""
    old, new, model = declared(before.data), declared(after.data), after.model
    if new is None or new == old or (model.vocab_size != old and model.vocab_size >= new):
        return after
    return dataclasses.replace(after, model=dataclasses.replace(model, vocab_size=new))


def fitting(
    experiment: Experiment,
    workdir,
    assignments: Iterable[str],
    run: Callable[[Experiment], T],
    report: Silent | None = None,
) -> T:
    """`run(experiment)`; where the text cannot give the tokenizer that size, with the nearest that it can give, which is said.

    assignments: as for --set; a size that they name is not changed.

    Raises UserError as `run` does.
    """
    report = report or Silent()
    asked = {assignment.partition("=")[0].strip() for assignment in assignments}
    if TOKENIZER in asked or not isinstance(getattr(experiment.data, "tokenizer", None), SentencePiece):
        return run(experiment)
    try:
        if _begun_with_other_sizes(experiment, workdir):
            experiment.data.prepare(report=report.stage)
        return run(experiment)
    except VocabularyMisfit as misfit:
        wanted, possible = experiment.data.tokenizer.vocab_size, misfit.possible
    report.say(f"{TOKENIZER}: {possible}, the nearest to {wanted} that this text can give")
    return run(_sized(experiment, possible, MODEL in asked))


def _begun_with_other_sizes(experiment: Experiment, workdir) -> bool:
    """Whether the workdir's run differs in nothing but its numbers of tokens."""
    there = read_run(workdir)
    if there is None:
        return False
    changed = {path for path, _, _ in diff(there["config"], to_json(experiment)) if not path.startswith(FREE)}
    return bool(changed) and changed <= {MODEL, TOKENIZER}


def _sized(experiment: Experiment, n: int, keep_model: bool) -> Experiment:
    data = experiment.data
    after = dataclasses.replace(
        experiment, data=dataclasses.replace(data, tokenizer=dataclasses.replace(data.tokenizer, vocab_size=n))
    )
    return after if keep_model else agreeing(experiment, after)
