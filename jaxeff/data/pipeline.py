"""Batches: endless and shuffled for training, once and in order for evaluation.

Rows are shuffled, then sliced by process, then batched. Hence the global batch (the batches of all processes, row i of
it on process i % process_count) is the same for any number of processes, and batch n is a function of (seed, n): the
position in the data is one integer. An epoch follows the one before it within a batch where rows are left over, so
that every row is seen once in every epoch.
"""

from collections.abc import Iterator

import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.data.packing import batch, target_bytes
from jaxeff.data.rows import Rows

_THREADS = 2
_BATCHES_AHEAD = 8
_EPOCHS = 2**30
_STATE = ("fingerprint", "seed", "seq_len", "batch_size")


class TrainBatches(Iterator[dict[str, np.ndarray]]):
    """The endless training batches of one process, fetched ahead by threads.

    Args:
      rows: the training split.
      batch_size: rows of the global batch.
      seed: of the order of rows; every epoch has its own.
      fingerprint: of the data, kept in the state.

    Yields:
      {"tokens", "segment_ids", "positions": int32, "loss_mask": float32}, each [batch_size / process_count, T], and int32 "targets"
      where they are not the next tokens.

    Raises:
      UserError: fewer rows than a batch; a batch that the processes cannot share equally.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        seed: int,
        fingerprint: str,
        process_index: int = 0,
        process_count: int = 1,
    ):
        _check(rows, batch_size, process_index, process_count)
        import grain

        # Not endless: Grain counts the batches of an endless data set in a C integer, which batches of one row overflow.
        dataset = (
            grain.MapDataset.range(len(rows))
            .seed(seed)
            .shuffle()
            .repeat(_EPOCHS)[process_index::process_count]
            .batch(batch_size // process_count)
            .map(lambda i_B: batch(*(x_BT[i_B] for x_BT in rows.arrays)))
        )
        ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
        self._batches = iter(dataset.to_iter_dataset(ahead))
        self._identity = dict(zip(_STATE, (fingerprint, seed, rows.tokens_BT.shape[1], batch_size)))

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def get_state(self) -> dict:
        """The position, JSON-able and the same on every process whatever their number, with all that it would be meaningless
        without."""
        return {"next_batch": int(self._batches.get_state()["next_index"]), **self._identity}

    def set_state(self, state: dict) -> None:
        """Goes on behind the last batch before `get_state`.

        Raises:
          UserError: the state belongs to other data or another batching; the message names the field.
        """
        for field in ("next_batch", *_STATE):
            if field not in state:
                raise UserError(f"the saved position in the data lacks {field!r}")
        for field, here in self._identity.items():
            if state[field] != here:
                raise UserError(
                    f"the saved position in the data has {field} = {state[field]!r}, this run has "
                    f"{here!r}; going on would skip or repeat text"
                )
        self._batches.set_state({"next_index": state["next_batch"]})

    def close(self) -> None:
        """Ends the threads. The iterator is of no use afterwards."""
        self._batches.close()


class EvalBatches:
    """One pass over a split, in order: `len(batches)` batches, the rows that are lacking in the last one all padding.

    Where `token_bytes` [V] are given, batches also hold `target_bytes` int32 [B, T].
    The processes take turns with the rows and all have the same number of batches. Can be iterated over again.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        token_bytes: np.ndarray | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        _check_processes(batch_size, process_index, process_count)
        self._rows, self._token_bytes = rows, token_bytes
        self._batch_size, self._process_index, self._process_count = batch_size, process_index, process_count

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for n in range(len(self)):
            first = n * self._batch_size
            mine = slice(first + self._process_index, first + self._batch_size, self._process_count)
            found = batch(*(self._filled(x_BT[mine]) for x_BT in self._rows.arrays))
            if self._token_bytes is not None:
                found["target_bytes"] = target_bytes(found["tokens"], found["loss_mask"], self._token_bytes)
            yield found

    def _filled(self, x_BT: np.ndarray) -> np.ndarray:
        return np.pad(x_BT, ((0, self._batch_size // self._process_count - len(x_BT)), (0, 0)))


def _check(rows: Rows, batch_size: int, process_index: int, process_count: int) -> None:
    _check_processes(batch_size, process_index, process_count)
    if len(rows) < batch_size:
        raise UserError(
            f"the training split has {len(rows)} rows of {rows.tokens_BT.shape[1]} tokens, fewer than "
            f"batch_size = {batch_size}; use a smaller batch_size or seq_len, or more text"
        )


def _check_processes(batch_size: int, process_index: int, process_count: int) -> None:
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in [0, {process_count}), not {process_index}")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch_size = {batch_size} cannot be shared equally by {process_count} process(es)")
