"""What a workdir keeps of its text, so that it can be evaluated and generate where neither the corpus nor the cache is.

DIR/data/tokenizer/              the tokenizer's files
DIR/data/{validation,test}.npz   the rows of these splits, where they are small
DIR/data/data.json               fingerprint, statistics, and checksums of the files above; written last
"""

import json
import shutil
from pathlib import Path

import numpy as np

from jaxeff.core.files import refusals, write_json
from jaxeff.data.base import Prepared
from jaxeff.data.cache import checksums
from jaxeff.data.rows import Rows
from jaxeff.data.text import TextData
from jaxeff.train.storage import local

FOLDER, RECORD = "data", "data.json"
SPLITS = ("validation", "test")
LARGEST_BYTES = 64 << 20  # of all rows together, before compression; of larger ones only the tokenizer is kept


def keep(workdir, prepared: Prepared) -> None:
    """Writes it, unless it is there. Of data that are no text nothing needs to be kept.

    Raises UserError where the file system refuses.
    """
    if not isinstance(prepared.data, TextData) or kept(workdir, prepared.data, prepared.fingerprint) is not None:
        return
    folder = local(workdir) / FOLDER
    with refusals(folder):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tokenizer").mkdir(parents=True)
        prepared.tokenizer.save(folder / "tokenizer")
        for split in _small(prepared):
            np.savez_compressed(folder / f"{split}.npz", *prepared.splits[split].arrays)
        record = {
            "fingerprint": prepared.fingerprint,
            "vocab_size": prepared.vocab_size,
            "statistics": prepared.statistics,
            "checksums": checksums(folder),
        }
        write_json(folder / RECORD, record)


def _small(prepared: Prepared) -> list[str]:
    """The splits to keep."""
    names = [split for split in SPLITS if split in prepared.splits]
    total = sum(array.nbytes for split in names for array in prepared.splits[split].arrays)
    return names if total <= LARGEST_BYTES else []


def kept(workdir, data: TextData, fingerprint: str) -> Prepared | None:
    """What `keep` wrote for the data of this fingerprint; None where it is not there, or not as it was written."""
    folder = local(workdir) / FOLDER
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        found = {name: value for name, value in checksums(folder).items() if name != RECORD}
        if record["fingerprint"] != fingerprint or record["checksums"] != found:
            return None
        vocab_size, statistics = record["vocab_size"], record["statistics"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    tokenizer = data.restored(folder / "tokenizer")
    splits = {split: _rows(folder / f"{split}.npz") for split in SPLITS if f"{split}.npz" in found}
    return Prepared(data, splits, vocab_size, fingerprint, statistics, tokenizer, tokenizer.token_bytes)


def _rows(path: Path) -> Rows:
    with np.load(path) as arrays:
        return Rows(*(arrays[f"arr_{i}"] for i in range(len(arrays.files))))
