"""Tasks whose rows are drawn, not read: what a model can do, apart from any text. B rows, T tokens of a row."""

import itertools
import os
from dataclasses import asdict, dataclass

import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.data.base import SPLITS, Prepared, row_statistics
from jaxeff.data.cache import Report, digest
from jaxeff.data.rows import Rows


@dataclass(frozen=True)
class Task:
    """What the tasks share.

    n_rows: rows of the training split; the others have a quarter; no row is in two splits but by chance. task_seed: of the rows.
    """

    n_rows: int = 4096
    task_seed: int = 0
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self):
        self._at_least(n_rows=8, task_seed=0, batch_size=1, seed=0)

    def _at_least(self, **least: int) -> None:
        for name, n in least.items():
            if getattr(self, name) < n:
                raise UserError(f"data.{name} must be at least {n}, not {getattr(self, name)}")

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        raise NotImplementedError

    def rows(self, r: np.random.Generator, n: int, train: bool) -> Rows:
        """n rows of a split, drawn by r."""
        raise NotImplementedError

    def prepare(self, cache: str | os.PathLike | None = None, report: Report | None = None) -> Prepared:
        """Draws all rows; nothing is kept on disk."""
        splits = {
            name: self.rows(np.random.default_rng((self.task_seed, i)), self.n_rows // (1 if i == 0 else 4), i == 0)
            for i, name in enumerate(SPLITS)
        }
        recipe = {name: value for name, value in asdict(self).items() if name not in ("batch_size", "seed")}
        name = type(self).__name__.lower()
        return Prepared(self, splits, self.vocab_size, digest(name, recipe), row_statistics(splits))


@dataclass(frozen=True)
class Copy(Task):
    """Random symbols, a separator, and the same symbols again: only these last are to be predicted (Graves et al. 2014).

    n_symbols: size of the alphabet; token 0 is the separator. length: how many symbols are to be copied.
    """

    n_symbols: int = 16
    length: int = 12

    def __post_init__(self):
        super().__post_init__()
        self._at_least(n_symbols=2, length=1)

    @property
    def seq_len(self) -> int:
        """T: the symbols twice, and the separator between."""
        return 2 * self.length + 1

    @property
    def vocab_size(self) -> int:
        """The symbols and the separator."""
        return self.n_symbols + 1

    def rows(self, r: np.random.Generator, n: int, train: bool) -> Rows:
        """See `Task`."""
        symbols = r.integers(1, self.n_symbols + 1, (n, self.length), np.int32)
        tokens_BT = np.concatenate([symbols, np.zeros((n, 1), np.int32), symbols], axis=1).astype(np.uint16)
        mask_BT = np.zeros(tokens_BT.shape, np.uint8)
        mask_BT[:, self.length : -1] = 1  # from the separator on, each place predicts the next symbol
        return Rows(tokens_BT, np.ones_like(tokens_BT), mask_BT)


@dataclass(frozen=True)
class Recall(Task):
    """Pairs of a key and a value, then every key again in another order: its value is to be predicted (multi-query associative
    recall; Arora et al. 2023, "Zoology").

    n_keys, n_values: sizes of the two alphabets. n_pairs: of a row, whose keys are all different. joined: a pair is one token,
    which its key is to predict, so that nothing but memory is needed; else two, which a model has to bring together first.
    """

    n_keys: int = 64
    n_values: int = 64
    n_pairs: int = 16
    joined: bool = False

    def __post_init__(self):
        super().__post_init__()
        self._at_least(n_keys=1, n_values=2, n_pairs=1)
        if self.n_pairs > self.n_keys:
            raise UserError(f"data.n_pairs={self.n_pairs} needs as many different keys, and data.n_keys={self.n_keys}")
        if self.vocab_size > 1 << 16:
            raise UserError(
                f"data.n_keys={self.n_keys} and data.n_values={self.n_values} need {self.vocab_size:,} tokens, and rows hold 65,536"
            )

    @property
    def seq_len(self) -> int:
        """T: every pair twice; of a joined one the key alone is asked for."""
        return 2 * self.n_pairs if self.joined else 4 * self.n_pairs

    @property
    def vocab_size(self) -> int:
        """Keys, then values, or pairs."""
        return self.n_keys + self.n_values * (self.n_keys if self.joined else 1)

    def rows(self, r: np.random.Generator, n: int, train: bool) -> Rows:
        """See `Task`."""
        keys = np.argsort(r.random((n, self.n_keys)), axis=1)[:, : self.n_pairs]
        values = r.integers(self.n_keys, self.n_keys + self.n_values, (n, self.n_pairs))
        order = np.argsort(r.random((n, self.n_pairs)), axis=1)
        again = lambda x: np.take_along_axis(x, order, axis=1)
        pairs, targets_BT = np.stack([keys, values], axis=-1), None
        tokens_BT = np.concatenate([pairs, np.stack([again(keys), again(values)], axis=-1)], axis=1)
        if self.joined:
            pairs = values + self.n_values * keys
            tokens_BT = np.concatenate([pairs, again(keys)], axis=1)
            targets_BT = np.concatenate([pairs, again(pairs)], axis=1).astype(np.uint16)
        tokens_BT = tokens_BT.reshape(n, self.seq_len).astype(np.uint16)
        mask_BT = np.zeros(tokens_BT.shape, np.uint8)
        half = self.seq_len // 2
        mask_BT[:, half :: 1 if self.joined else 2] = 1  # each key of the second half predicts
        return Rows(tokens_BT, np.ones_like(tokens_BT), mask_BT, targets_BT)


@dataclass(frozen=True)
class StateTracking(Task):
    """Permutations one after the other; at every place their product so far is to be told (the word problem of a group; Merrill
    et al. 2024, "The illusion of state in state-space models"). Of two objects: the parity of the bits so far.

    n_objects: they are permutations of, 2 to 5. length: T of training rows. eval_length: of the rows of the other splits, whose
    places beyond `length` alone count where it is longer: whether what was learned holds on longer texts.
    """

    n_objects: int = 2
    length: int = 32
    eval_length: int = 64

    def __post_init__(self):
        super().__post_init__()
        self._at_least(n_objects=2, length=1, eval_length=1)
        if self.n_objects > 5:
            raise UserError(f"data.n_objects must be at most 5, not {self.n_objects}: there are n! permutations")

    @property
    def seq_len(self) -> int:
        """T in training."""
        return self.length

    @property
    def vocab_size(self) -> int:
        """The permutations."""
        return len(self._permutations)

    @property
    def _permutations(self) -> np.ndarray:
        return np.array(list(itertools.permutations(range(self.n_objects))))

    def rows(self, r: np.random.Generator, n: int, train: bool) -> Rows:
        """See `Task`."""
        permutations = self._permutations
        ids = {tuple(p): i for i, p in enumerate(permutations)}
        product = np.array([[ids[tuple(q[p])] for p in permutations] for q in permutations])  # [new, so far]
        T = self.length if train else self.eval_length
        tokens_BT = r.integers(0, len(permutations), (n, T), np.int32)
        targets_BT = np.empty_like(tokens_BT)
        so_far_B = np.zeros(n, np.int32)  # the identity comes first
        for t in range(T):
            targets_BT[:, t] = so_far_B = product[tokens_BT[:, t], so_far_B]
        mask_BT = np.ones(tokens_BT.shape, np.uint8)
        if not train and T > self.length:
            mask_BT[:, : self.length] = 0
        small = lambda x_BT: x_BT.astype(np.uint16)
        return Rows(small(tokens_BT), np.ones_like(small(tokens_BT)), mask_BT, small(targets_BT))
