"""The contract of data: a config that prepares rows, and what is then read from them.

A kind of data is a frozen dataclass with `seq_len`, `batch_size` and `seed`, whose `prepare` returns a `Prepared`. What is to be
predicted is part of the rows (their loss mask): a prompt, padding, or a synthetic task's noise is data, not code.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from jaxeff.core.errors import UserError, lookup
from jaxeff.data.cache import Report
from jaxeff.data.pipeline import EvalBatches, TrainBatches
from jaxeff.data.rows import Rows

SPLITS = ("train", "validation", "test")


class Data(Protocol):
    """seq_len: T, tokens of a row. batch_size: rows of the global batch, over all processes. seed: of the order of training
    rows, and of nothing else."""

    seq_len: int
    batch_size: int
    seed: int

    def prepare(self, cache: str | os.PathLike | None = None, report: Report | None = None) -> "Prepared":
        """Everything ready to be read. cache: a folder for what is worth keeping. report: `report(stage, done, total)`.
        Raises UserError for what the user can put right."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Data that are ready.

    Attributes:
      data: the config they come from.
      splits: rows by split; "train" is always there, "validation" and "test" where they exist.
      vocab_size: token ids are below it.
      fingerprint: hex digest of all that decides the rows; results compare only where it is equal.
      statistics: JSON-able: rows, targets and padding by split, and whatever else is worth a line in a report.
      tokenizer: for text, `encode`, `decode`, `bos_id`, `eos_id`; None where tokens stand for no text.
      token_bytes: int [V], UTF-8 bytes that each token stands for, or None.
    """

    data: Data
    splits: Mapping[str, Rows] = field(repr=False)
    vocab_size: int
    fingerprint: str
    statistics: dict[str, Any]
    tokenizer: Any = None
    token_bytes: np.ndarray | None = None

    def reseeded(self, seed: int) -> "Prepared":
        """The same rows in the order of another seed."""
        return replace(self, data=replace(self.data, seed=seed))

    def train(self, process_index: int = 0, process_count: int = 1) -> TrainBatches:
        """Endless batches of this process, reshuffled every epoch."""
        return TrainBatches(
            self.splits["train"],
            batch_size=self.data.batch_size,
            seed=self.data.seed,
            fingerprint=self.fingerprint,
            process_index=process_index,
            process_count=process_count,
        )

    def first(self) -> dict[str, np.ndarray]:
        """The first training batch."""
        batches = self.train()
        try:
            return next(batches)
        finally:
            batches.close()

    def eval(
        self, split: str, batch_size: int | None = None, *, process_index: int = 0, process_count: int = 1
    ) -> EvalBatches:
        """One pass over a split, in order; the last batch is filled up with padding.

        Raises UserError for a split that is not there.
        """
        if split in SPLITS and split not in self.splits:
            raise UserError(f"there is no {split} split; its fraction of the data was set to 0")
        return EvalBatches(
            lookup(dict(self.splits), split, "split of the data"),
            batch_size=batch_size or self.data.batch_size,
            token_bytes=self.token_bytes,
            process_index=process_index,
            process_count=process_count,
        )


def row_statistics(splits: Mapping[str, Rows]) -> dict[str, dict[str, float]]:
    """Rows, targets and the share of padding, each by split."""
    return {
        "rows": {name: len(rows) for name, rows in splits.items()},
        "targets": {name: int(np.count_nonzero(rows.loss_mask_BT)) for name, rows in splits.items()},
        "padding": {name: float(np.mean(rows.segment_ids_BT == 0)) for name, rows in splits.items()},
    }
