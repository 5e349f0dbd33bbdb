"""The packed rows of a corpus on disk, memory-mapped: random access for the loader, whatever their number.

Letters: B rows, T tokens of a row.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxeff.core.files import write_json
from jaxeff.data.cache import Report, damaged, digest, publish, read_json, silent
from jaxeff.data.corpus import Corpus
from jaxeff.data.packing import loss_mask, pack
from jaxeff.data.tokenizers import Tokenizer

_LAYOUT = 2  # of the files in the cache and of the packing; raise it when they change
_ENCODE_AT_ONCE = 64  # documents


@dataclass(frozen=True)
class Rows:
    """The rows of one split: tokens_BT (unsigned), segment_ids_BT (from 1, 0 for padding), loss_mask_BT, the weight of each place's
    prediction, and targets_BT, what is to be predicted there; None is the next token."""

    tokens_BT: np.ndarray
    segment_ids_BT: np.ndarray
    loss_mask_BT: np.ndarray
    targets_BT: np.ndarray | None = None

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Those that are there, in this order."""
        arrays = (self.tokens_BT, self.segment_ids_BT, self.loss_mask_BT)
        return arrays if self.targets_BT is None else (*arrays, self.targets_BT)

    def __len__(self) -> int:
        return len(self.tokens_BT)


@dataclass(frozen=True)
class PackedCorpus:
    """Rows by split, with `statistics`: split -> {"tokens", "targets", "rows", "padding"}."""

    splits: dict[str, Rows]
    statistics: dict


def prepare_rows(
    corpus: Corpus, tokenizer: Tokenizer, row_length: int, root: Path, report: Report = silent, together: bool = True
) -> PackedCorpus:
    """Every split tokenized and packed below the folder `root`, written now unless it is there. together: whether a row may hold
    several documents."""

    def write(folder: Path) -> None:
        statistics = {}
        for split in corpus.splits:
            total = corpus.statistics["documents"][split]
            tokens, lengths = tokenize(corpus.texts(split), tokenizer, report, split, total)
            report(f"packing {split}", 0, len(lengths))
            rows = _packed(tokens, lengths, row_length, together)
            tokens_BT, segment_ids_BT, loss_mask_BT = rows.arrays
            np.save(folder / f"{split}.tokens.npy", tokens_BT)
            np.save(folder / f"{split}.segment_ids.npy", segment_ids_BT)
            np.save(folder / f"{split}.loss_mask.npy", loss_mask_BT)
            report(f"packing {split}", len(lengths), len(lengths))
            statistics[split] = {
                "tokens": len(tokens) - 2 * len(lengths),
                "targets": len(tokens) - len(lengths),
                "rows": len(tokens_BT),
                "padding": float(np.mean(segment_ids_BT == 0)),
            }
        write_json(folder / "statistics.json", statistics)

    name = digest(
        "rows", _LAYOUT, corpus.fingerprint, tokenizer.identity, row_length, *(() if together else ("apart",))
    )
    folder = publish(root / "rows" / name[:32], write)
    statistics = read_json(folder / "statistics.json")
    return PackedCorpus({split: _open(folder, split) for split in statistics}, statistics)


def rows_of(
    texts: Collection[str],
    tokenizer: Tokenizer,
    row_length: int,
    name: str,
    report: Report = silent,
    together: bool = True,
) -> Rows:
    """The rows of texts that belong to no split, in memory. name: of the whole, for the report."""
    return _packed(*tokenize(texts, tokenizer, report, name, len(texts)), row_length, together)


def _packed(tokens: np.ndarray, lengths: np.ndarray, row_length: int, together: bool) -> Rows:
    tokens_BT, segment_ids_BT = pack(tokens, lengths, row_length, together=together)
    return Rows(tokens_BT, segment_ids_BT, loss_mask(segment_ids_BT))


def tokenize(
    documents: Iterable[str], tokenizer: Tokenizer, report: Report, name: str, total: int
) -> tuple[np.ndarray, np.ndarray]:
    """All documents, BOS + tokens + EOS one after the other, and the int64 length of each. name, total: for the report."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    bos, eos = np.array([tokenizer.bos_id], dtype), np.array([tokenizer.eos_id], dtype)
    parts, lengths, texts = [], [], []

    def encode() -> None:
        for ids in tokenizer.encode_many(texts):
            parts.extend((bos, ids.astype(dtype), eos))
            lengths.append(len(ids) + 2)
        texts.clear()
        report(f"tokenizing {name}", len(lengths), total)

    for text in documents:
        texts.append(text)
        if len(texts) == _ENCODE_AT_ONCE:
            encode()
    encode()
    return np.concatenate(parts), np.array(lengths, np.int64)


def _open(folder: Path, split: str) -> Rows:
    try:
        return Rows(
            *(np.load(folder / f"{split}.{name}.npy", mmap_mode="r") for name in ("tokens", "segment_ids", "loss_mask"))
        )
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from error
