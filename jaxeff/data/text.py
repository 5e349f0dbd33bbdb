"""`TextData`: text to train on, as a config."""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxeff.core.errors import UserError
from jaxeff.data.base import Prepared
from jaxeff.data.cache import Report, cache_root, digest, publish, silent
from jaxeff.data.corpus import corpus_fingerprint, prepare_corpus
from jaxeff.data.grammar import Grammar
from jaxeff.data.public_tokenizer import Published, read
from jaxeff.data.python_sources import PythonCode, PythonDocs
from jaxeff.data.rows import prepare_rows
from jaxeff.data.text_files import Text
from jaxeff.data.tokenizers import Bytes, SentencePiece, Tokenizer


@dataclass(frozen=True)
class TextData:
    """A corpus, how it is split, tokenized, packed and batched.

    Args:
      source: where the documents come from.
      tokenizer: how text becomes ids; learnt from the training split alone. Or that of a public checkpoint; or other data,
        whose tokenizer is taken: a run that goes on from another one has to read text as that one did.
      seq_len: T, tokens of a row.
      batch_size: rows of the global batch, over all processes.
      seed: of the order of the training rows.
      valid_fraction, test_fraction: shares of the documents; 0 leaves the split out.
      max_bytes: use no more text than this, the documents chosen by a hash; for corpora of equal size.
      packed: whether a row may hold several documents; without, short ones are padded.

    Raises:
      UserError: a value is out of range; the message names the field.
    """

    source: PythonDocs | PythonCode | Text | Grammar = PythonDocs()
    tokenizer: "SentencePiece | Bytes | Published | TextData" = SentencePiece()
    seq_len: int = 256
    batch_size: int = 8
    seed: int = 0
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    max_bytes: int | None = None
    packed: bool = True

    def __post_init__(self):
        for name, least in (("seq_len", 2), ("batch_size", 1), ("seed", 0), ("max_bytes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"data.{name} must be at least {least}, not {value}")
        for name in ("valid_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"data.{name} must be in [0, 1), not {getattr(self, name)}")
        if self.valid_fraction + self.test_fraction >= 1:
            raise UserError("data.valid_fraction + data.test_fraction leave nothing to train on")

    def prepare(self, cache: str | os.PathLike | None = None, report: Report | None = None) -> Prepared:
        """Reads, splits, tokenizes and packs the corpus, or finds all this done in the cache.

        Args:
          cache: folder; default `$JAXEFF_CACHE`, `$XDG_CACHE_HOME/jaxeff` or `~/.cache/jaxeff`.
          report: called as `report(stage, done, total)` while it goes on.

        Raises:
          UserError: there is no text, it cannot be read, the vocabulary does not fit it, or the cache is not writable.
        """
        begin = time.perf_counter()
        report, root = report or silent, cache_root(cache)
        fingerprint = corpus_fingerprint(self.source, self.valid_fraction, self.test_fraction, self.max_bytes)
        corpus = self._corpus(root, report, fingerprint)
        tokenizer = self._tokenizer(corpus, root, report)
        packed = prepare_rows(corpus, tokenizer, self.seq_len, root, report, self.packed)
        identity = digest(fingerprint, tokenizer.identity)
        statistics = {
            **{name: corpus.statistics[name] for name in ("source", "documents", "bytes")},
            "fingerprint": identity,
            "corpus_fingerprint": fingerprint,
            "tokenizer": tokenizer.identity,
            "vocab_size": tokenizer.vocab_size,
            "seq_len": self.seq_len,
            **{
                name: {split: values[name] for split, values in packed.statistics.items()}
                for name in ("tokens", "targets", "rows", "padding")
            },
        }
        statistics["bytes_per_token"] = sum(statistics["bytes"].values()) / sum(statistics["tokens"].values())
        statistics["seconds"] = time.perf_counter() - begin
        return Prepared(
            self, packed.splits, tokenizer.vocab_size, identity, statistics, tokenizer, tokenizer.token_bytes
        )

    def restored(self, folder: Path) -> Tokenizer:
        """The tokenizer that `Tokenizer.save` wrote to `folder`, where the data are of this config."""
        if isinstance(self.tokenizer, TextData):
            return self.tokenizer.restored(folder)
        return read(folder) if isinstance(self.tokenizer, Published) else self.tokenizer.load(folder)

    def _corpus(self, root, report: Report, fingerprint: str | None = None):
        return prepare_corpus(
            self.source,
            root,
            valid_fraction=self.valid_fraction,
            test_fraction=self.test_fraction,
            max_bytes=self.max_bytes,
            report=report,
            fingerprint=fingerprint,
        )

    def _tokenizer(self, corpus, root, report: Report) -> Tokenizer:
        if isinstance(self.tokenizer, Published):
            return self.tokenizer.load()
        if isinstance(self.tokenizer, TextData):
            return self.tokenizer._tokenizer(self.tokenizer._corpus(root, report), root, report)
        recipe = [type(self.tokenizer).__name__, asdict(self.tokenizer)]
        name = digest("tokenizer", corpus.fingerprint, recipe)

        def write(folder):
            report("training the tokenizer", 0, 1)
            self.tokenizer.train(corpus.texts("train"), folder)
            report("training the tokenizer", 1, 1)

        return self.tokenizer.load(publish(root / "tokenizers" / name[:32], write))
