"""Batches: the same for any number of processes, every row once an epoch, exact to resume."""

import json
import threading

import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.data.packing import loss_mask
from jaxeff.data.pipeline import EvalBatches, TrainBatches
from jaxeff.data.rows import Rows

N_ROWS, T = 22, 4
PINNED = [[21, 2, 13, 14], [9, 7, 17, 6]]
ONES = np.ones((N_ROWS, T), np.uint16)
ROWS = Rows(np.arange(N_ROWS * T, dtype=np.uint16).reshape(N_ROWS, T), ONES, loss_mask(ONES))


def train(rows=ROWS, **changed) -> TrainBatches:
    return TrainBatches(rows, **{"batch_size": 4, "seed": 0, "fingerprint": "f", **changed})


def ids(batch) -> list[int]:
    return (batch["tokens"][:, 0] // T).tolist()


def take(batches, n: int) -> list[list[int]]:
    return [ids(next(batches)) for _ in range(n)]


def equal(a: dict, b: dict) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in {*a, *b})


def test_a_batch_is_what_the_model_is_given():
    batch = next(train())
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        "tokens": ((4, T), np.int32),
        "segment_ids": ((4, T), np.int32),
        "positions": ((4, T), np.int32),
        "loss_mask": ((4, T), np.float32),
    }


def test_every_row_once_an_epoch_in_another_order_each_time():
    stream = sum(take(train(), 33), [])
    epochs = [stream[i * N_ROWS : (i + 1) * N_ROWS] for i in range(6)]
    assert all(sorted(epoch) == list(range(N_ROWS)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 6


def test_the_order_is_a_function_of_the_seed():
    assert take(train(seed=3), 8) == take(train(seed=3), 8) != take(train(seed=4), 8)


def test_the_order_is_pinned():
    """A change of the loader that silently reorders the data would break resuming: this must not change."""
    assert take(train(seed=0), 2) == PINNED


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(process_count):
    parts = [train(process_index=p, process_count=process_count) for p in range(process_count)]
    whole = train()
    for _ in range(15):
        together = np.stack([ids(next(part)) for part in parts], axis=1).reshape(-1)
        assert together.tolist() == ids(next(whole))


def test_other_numbers_of_processes_go_on_where_the_ones_before_ended():
    """22 rows in batches of 4: epochs end within batches, and no row is lost or repeated in one."""
    state, seen = train().get_state(), []
    for process_count in (1, 2, 4, 1, 4, 2):
        parts = [train(process_index=p, process_count=process_count) for p in range(process_count)]
        for part in parts:
            part.set_state(json.loads(json.dumps(state)))
        for _ in range(3):
            seen += np.stack([ids(next(part)) for part in parts], axis=1).reshape(-1).tolist()
        states = [part.get_state() for part in parts]
        state = states[0]
        assert all(other == state for other in states)
    whole = train()
    assert seen == [row for _ in range(18) for row in ids(next(whole))]
    epochs = [sorted(seen[i : i + 22]) for i in range(0, 66, 22)]
    assert len(set(epochs[0])) == 22 and epochs == [epochs[0]] * 3


def test_a_state_that_names_a_number_of_processes_is_read():
    """As checkpoints of earlier versions do: it says nothing of the position."""
    state, again = train().get_state(), train()
    again.set_state(state | {"process_count": 2})
    assert again.get_state() == state


def test_resuming_anywhere_gives_the_same_batches_across_epochs():
    batches, states, seen = train(), [], []
    for _ in range(14):
        states.append(json.loads(json.dumps(batches.get_state())))
        seen.append(next(batches))
    for n, state in enumerate(states):
        again = train()
        next(again)
        again.set_state(state)
        assert again.get_state() == state
        assert all(equal(next(again), batch) for batch in seen[n:])


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("batch_size", {"batch_size": 8}),
        ("seed", {"seed": 1}),
        ("fingerprint", {"fingerprint": "g"}),
        ("seq_len", {"rows": Rows(ROWS.tokens_BT[:, :2], ROWS.segment_ids_BT[:, :2], ROWS.loss_mask_BT[:, :2])}),
    ],
)
def test_a_state_of_other_data_is_refused(field, changed):
    state = train().get_state()
    other = train(**changed)
    with pytest.raises(UserError, match=f"{field} = {state[field]!r}, this run has {other.get_state()[field]!r}"):
        other.set_state(state)


def test_a_state_that_lacks_something_is_refused():
    with pytest.raises(UserError, match="lacks 'next_batch'"):
        train().set_state({})


def test_fewer_rows_than_a_batch_is_an_error():
    with pytest.raises(UserError, match="22 rows of 4 tokens, fewer than batch_size = 23"):
        train(batch_size=23)


def test_a_batch_that_cannot_be_shared_is_an_error():
    with pytest.raises(UserError, match="batch_size = 4 cannot be shared equally by 3"):
        train(process_count=3)
    with pytest.raises(ValueError, match="process_index"):
        train(process_index=2, process_count=2)


def test_closing_ends_the_threads():
    before = set(threading.enumerate())
    batches = train()
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_an_error_while_reading_reaches_the_caller():
    class Broken(Rows):
        def __len__(self):
            return N_ROWS + 100  # beyond the arrays

    with pytest.raises(IndexError):
        take(train(Broken(ROWS.tokens_BT, ROWS.segment_ids_BT, ROWS.loss_mask_BT)), 30)


def test_evaluation_is_one_pass_in_order_and_can_be_repeated():
    batches = EvalBatches(ROWS, batch_size=4)
    first, again = list(batches), list(batches)
    assert len(first) == len(batches) == 6 and all(map(equal, first, again))
    assert sum(map(ids, first), [])[:N_ROWS] == list(range(N_ROWS))
    last = first[-1]
    assert last["tokens"].shape == (4, T)
    assert not any(x[2:].any() for x in last.values()) and last["loss_mask"][:2].any()


def test_processes_share_an_evaluation():
    parts = [list(EvalBatches(ROWS, batch_size=4, process_index=p, process_count=2)) for p in range(2)]
    rows = [i for part in parts for batch in part for i, used in zip(ids(batch), batch["segment_ids"][:, 0]) if used]
    assert sorted(rows) == list(range(N_ROWS))
    assert [len(part) for part in parts] == [6, 6] and parts[0][0]["tokens"].shape == (2, T)
