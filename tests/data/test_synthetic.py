"""Tasks whose rows are drawn: what their rows hold, against plain loops."""

import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.data import Copy, Recall, StateTracking

TASKS = {
    "copy": Copy(n_symbols=5, length=3, n_rows=16, batch_size=4),
    "recall": Recall(n_keys=9, n_values=5, n_pairs=4, n_rows=16, batch_size=4),
    "joined recall": Recall(n_keys=9, n_values=5, n_pairs=4, joined=True, n_rows=16, batch_size=4),
    "parity": StateTracking(length=5, eval_length=8, n_rows=16, batch_size=4),
    "s3": StateTracking(n_objects=3, length=5, eval_length=5, n_rows=16, batch_size=4),
}


TOLD = ("joined recall", "parity", "s3")  # what is predicted is not the next token


@pytest.mark.parametrize("name", TASKS)
def test_rows_follow_the_task_seed_and_batches_hold_them(name):
    task = TASKS[name]
    prepared, again = task.prepare(), task.prepare()
    for split, rows in prepared.splits.items():
        assert all(map(np.array_equal, rows.arrays, again.splits[split].arrays))
        assert rows.tokens_BT.max() < prepared.vocab_size
    assert prepared.splits["train"].tokens_BT.shape == (16, task.seq_len)
    assert not np.array_equal(*(prepared.splits[split].tokens_BT[:4, :3] for split in ("validation", "test")))
    batch = prepared.first()
    assert batch["tokens"].shape == (4, task.seq_len) and ("targets" in batch) == (name in TOLD)


def test_recall_asks_for_every_value_once():
    rows = TASKS["recall"].prepare().splits["train"]
    for tokens, mask in zip(rows.tokens_BT, rows.loss_mask_BT, strict=True):
        pairs = dict(zip(tokens[:8:2], tokens[1:8:2], strict=True))
        assert len(pairs) == 4 and all(key < 9 <= value < 14 for key, value in pairs.items())
        asked = np.flatnonzero(mask)
        assert sorted(tokens[asked]) == sorted(pairs) and min(asked) == 8
        assert all(tokens[t + 1] == pairs[tokens[t]] for t in asked)
    assert any(list(t[:8:2]) != list(t[8::2]) for t in rows.tokens_BT), "asked in another order"


def test_recall_of_joined_pairs_asks_for_every_pair_by_its_key():
    rows = TASKS["joined recall"].prepare().splits["train"]
    for tokens, mask, targets in zip(rows.tokens_BT, rows.loss_mask_BT, rows.targets_BT, strict=True):
        assert list(mask) == [0] * 4 + [1] * 4 and all(9 <= pair < 54 for pair in tokens[:4])
        by_key = {(pair - 9) // 5: pair for pair in tokens[:4]}
        assert sorted(tokens[4:]) == sorted(by_key)
        assert all(target == by_key[key] for key, target in zip(tokens[4:], targets[4:], strict=True))
    assert len({pair % 5 for pair in rows.tokens_BT[:, :4].ravel()}) == 5


def test_state_tracking_of_two_objects_is_parity_beyond_the_training_length():
    splits = TASKS["parity"].prepare().splits
    assert splits["train"].tokens_BT.shape == (16, 5) and splits["test"].tokens_BT.shape == (4, 8)
    for rows in splits.values():
        assert np.array_equal(rows.targets_BT, np.cumsum(rows.tokens_BT, axis=1) % 2)
    assert splits["train"].loss_mask_BT.all()
    assert np.array_equal(splits["test"].loss_mask_BT[0], [0, 0, 0, 0, 0, 1, 1, 1])


def test_state_tracking_multiplies_permutations_in_order():
    rows = TASKS["s3"].prepare().splits["train"]
    objects = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    for tokens, targets in zip(rows.tokens_BT, rows.targets_BT, strict=True):
        state = (0, 1, 2)
        for token, target in zip(tokens, targets, strict=True):
            state = tuple(objects[token][i] for i in state)
            assert objects[target] == state
    assert len(np.unique(rows.targets_BT)) == 6


def test_impossible_tasks_are_refused():
    for make, message in (
        (lambda: Recall(n_keys=3, n_pairs=4), "n_pairs=4 needs as many different keys"),
        (lambda: Recall(n_keys=256, n_values=256, joined=True), "need 65,792 tokens, and rows hold 65,536"),
        (lambda: StateTracking(n_objects=6), "at most 5"),
        (lambda: StateTracking(length=0), "data.length must be at least 1"),
        (lambda: Copy(n_rows=7), "data.n_rows must be at least 8"),
    ):
        with pytest.raises(UserError, match=message):
            make()
