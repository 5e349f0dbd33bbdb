"""Tasks whose rows are drawn, not read: what a model can do, apart from any text. B rows, T tokens of a row."""

import os
from dataclasses import asdict, dataclass

import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.data.base import SPLITS, Prepared, row_statistics
from jaxeff.data.cache import Report, digest
from jaxeff.data.rows import Rows


@dataclass(frozen=True)
class Copy:
    """Random symbols, a separator, and the same symbols again: only these last are to be predicted (Graves et al. 2014).

    n_symbols: size of the alphabet; token 0 is the separator. length: how many symbols are to be copied. n_rows: rows of the
    training split, and four times those of the others; no row is in two splits but by chance. task_seed: of the rows.
    """

    n_symbols: int = 16
    length: int = 12
    n_rows: int = 4096
    task_seed: int = 0
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self):
        for name, least in (("n_symbols", 2), ("length", 1), ("n_rows", 8), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"data.{name} must be at least {least}, not {getattr(self, name)}")

    @property
    def seq_len(self) -> int:
        """T: the symbols twice, and the separator between."""
        return 2 * self.length + 1

    def prepare(self, cache: str | os.PathLike | None = None, report: Report | None = None) -> Prepared:
        """Draws all rows; nothing is kept on disk."""
        splits = {name: self._rows(i, self.n_rows // (1 if name == "train" else 4)) for i, name in enumerate(SPLITS)}
        recipe = {name: value for name, value in asdict(self).items() if name not in ("batch_size", "seed")}
        return Prepared(self, splits, self.n_symbols + 1, digest("copy", recipe), row_statistics(splits))

    def _rows(self, split: int, n: int) -> Rows:
        r = np.random.default_rng((self.task_seed, split))
        symbols = r.integers(1, self.n_symbols + 1, (n, self.length), np.int32)
        tokens_BT = np.concatenate([symbols, np.zeros((n, 1), np.int32), symbols], axis=1).astype(np.uint16)
        mask_BT = np.zeros(tokens_BT.shape, np.uint8)
        mask_BT[:, self.length : -1] = 1  # from the separator on, each place predicts the next symbol
        return Rows(tokens_BT, np.ones_like(tokens_BT), mask_BT)
