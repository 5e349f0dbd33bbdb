"""Packing: every token but BOS is predicted exactly once, whatever the lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxeff.data.packing import batch, best_fit, cut, loss_mask, pack, positions, target_bytes

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=30)
ROW = st.integers(2, 17)


def documents(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Documents of distinct tokens, from 1."""
    return np.arange(1, sum(lengths) + 1, dtype=np.uint16), np.array(lengths)


@given(LENGTHS, ROW)
def test_every_token_but_the_first_of_a_document_is_predicted_once_after_its_own_predecessor(lengths, row_length):
    tokens, n = documents(lengths)
    tokens_BT, ids_BT = pack(tokens, n, row_length)
    packed = batch(tokens_BT, ids_BT, loss_mask(ids_BT))
    at = np.argwhere(packed["loss_mask"] > 0)
    context, target = packed["tokens"][tuple(at.T)], packed["tokens"][at[:, 0], at[:, 1] + 1]
    firsts = tokens[np.cumsum(n) - n]
    assert sorted(target) == sorted(set(tokens.tolist()) - set(firsts.tolist()))
    assert np.array_equal(context + 1, target)


@given(LENGTHS, ROW)
def test_segments_are_contiguous_numbered_from_one_and_padded_at_the_end(lengths, row_length):
    _, segment_ids_BT = pack(*documents(lengths), row_length)
    for row_T in segment_ids_BT.astype(int):
        used = row_T[row_T > 0]
        assert np.array_equal(row_T[: len(used)], used)
        assert used[0] == 1 and set(np.diff(used)) <= {0, 1}


@given(LENGTHS, ROW)
def test_positions_restart_and_the_mask_ends_with_each_segment(lengths, row_length):
    _, segment_ids_BT = pack(*documents(lengths), row_length)
    positions_BT, mask_BT = positions(segment_ids_BT), loss_mask(segment_ids_BT)
    for ids_T, positions_T, mask_T in zip(segment_ids_BT, positions_BT, mask_BT):
        for segment in set(ids_T.tolist()) - {0}:
            n = int((ids_T == segment).sum())
            assert positions_T[ids_T == segment].tolist() == list(range(n))
            assert mask_T[ids_T == segment].tolist() == [1.0] * (n - 1) + [0.0]
        assert not positions_T[ids_T == 0].any() and not mask_T[ids_T == 0].any()
    assert not mask_BT[:, -1].any()


@given(LENGTHS, ROW)
def test_any_two_rows_hold_more_than_one_row_could(lengths, row_length):
    """What makes it a fit: hence fewer than half of the tokens are padding, one row aside. In next fit only neighbours do."""
    pieces = cut(np.array(lengths), row_length)
    assert pieces.length.min() >= 2 and pieces.length.max() <= row_length
    row, place = best_fit(pieces.length, row_length)
    used = np.bincount(row, weights=pieces.length)
    assert used.max() <= row_length
    if len(used) > 1:
        assert np.sort(used)[:2].sum() > row_length
    for r in range(len(used)):
        mine = np.flatnonzero(row == r)
        mine = mine[np.argsort(place[mine])]
        ends = np.cumsum(pieces.length[mine])
        assert np.array_equal(place[mine], [0, *ends[:-1]]), "side by side, from the start of the row"


@given(LENGTHS, ROW)
def test_each_piece_goes_where_it_leaves_least_space(lengths, row_length):
    pieces = cut(np.array(lengths), row_length)
    spaces: list[int] = []
    for length in sorted(pieces.length.tolist(), reverse=True):
        fitting = [i for i, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=spaces.__getitem__)] -= length
        else:
            spaces.append(row_length - length)
    row, _ = best_fit(pieces.length, row_length)
    assert sorted(row_length - np.bincount(row, weights=pieces.length)) == sorted(spaces)


def test_padding_is_least_on_documents_of_many_lengths():
    """Next fit needs 1033 rows of these, best fit without the long ones first 806."""
    lengths = np.random.default_rng(0).geometric(1 / 100, 2000) + 1
    _, segment_ids_BT = pack(*documents(lengths.tolist()), 256)
    least = -(-cut(lengths, 256).length.sum() // 256)
    assert len(segment_ids_BT) == least == 800


def test_a_long_document_goes_on_with_one_token_of_context():
    tokens_BT, segment_ids_BT = pack(np.arange(1, 10, dtype=np.uint16), np.array([9]), 4)
    assert sorted(tokens_BT.tolist()) == [[1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9, 0]]
    assert sorted(segment_ids_BT.tolist()) == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_an_example_by_hand():
    tokens_BT, ids_BT = np.array([[5, 6, 7, 8, 9, 0]], np.uint16), np.array([[1, 1, 1, 2, 2, 0]], np.uint16)
    packed = batch(tokens_BT, ids_BT, loss_mask(ids_BT))
    stands_for = target_bytes(packed["tokens"], packed["loss_mask"], np.arange(10) * 10)
    assert stands_for.tolist() == [[60, 70, 0, 90, 0, 0]] and stands_for.dtype == np.int32
    assert packed["positions"].tolist() == [[0, 1, 2, 0, 1, 0]]
    assert packed["loss_mask"].tolist() == [[1, 1, 0, 1, 0, 0]]
    assert {name: x.dtype for name, x in packed.items()} == {
        "tokens": np.int32,
        "segment_ids": np.int32,
        "positions": np.int32,
        "loss_mask": np.float32,
    }


def test_the_order_of_rows_depends_on_the_seed_alone():
    arguments = documents(list(range(2, 40)))
    first, again, other = (pack(*arguments, 16, seed=seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert sorted(first.tolist()) == sorted(other.tolist())


def test_a_row_of_one_token_is_refused():
    with pytest.raises(ValueError, match="at least 2 tokens"):
        pack(*documents([3]), 1)
