import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxeff.ops.segments import Row, tokens, zero_padding

T = 8


def by_hand(row, last, position):
    """What `tokens` gives for one row, token by token."""
    valid, start, positions = [], [], []
    for segment in row:
        valid.append(segment != 0)
        start.append(segment != 0 and last != 0 and segment != last)
        position += segment != 0
        positions.append(position - 1)
        last = segment or last
    return valid, start, positions, last, position


@given(st.lists(st.integers(0, 3), min_size=1, max_size=T), st.integers(0, 3), st.integers(0, 50))
def test_agree_with_a_loop(row, last, position):
    row += [0] * (T - len(row))
    found, after = tokens((1, T), jnp.array([row]), None, Row(jnp.array([last]), jnp.array([position])))
    found = [found.valid[0].tolist(), found.start[0].tolist(), found.position[0].tolist()]
    assert (*found, int(after.segment[0]), int(after.position[0])) == by_hand(row, last, position)


def test_given_positions_go_on_after_the_last_valid_token():
    ids = jnp.array([[1, 1, 0], [0, 0, 0], [2, 0, 3]])
    given_BT = jnp.array([[5, 6, 7], [5, 6, 7], [5, 6, 7]])
    found, after = tokens((3, 3), ids, given_BT, Row(jnp.array([0, 4, 1]), jnp.array([1, 2, 3])))
    assert found.position is given_BT
    np.testing.assert_array_equal(after.position, [7, 2, 8])
    np.testing.assert_array_equal(after.segment, [1, 4, 3])


def test_without_ids_the_segment_of_the_row_goes_on():
    found, after = tokens((2, 3), None, None, Row(jnp.array([0, 4]), jnp.array([0, 7])))
    assert found.valid is None and found.start is None
    np.testing.assert_array_equal(found.segment, [[1, 1, 1], [4, 4, 4]])
    np.testing.assert_array_equal(found.position, [[0, 1, 2], [7, 8, 9]])
    np.testing.assert_array_equal(after.segment, [1, 4])
    np.testing.assert_array_equal(after.position, [3, 10])


@pytest.mark.parametrize("ids", [None, jnp.array([[0, 1, 2]])])
def test_without_a_row_positions_are_indices(ids):
    found, after = tokens((1, 3), ids)
    assert after is None
    np.testing.assert_array_equal(found.position, [[0, 1, 2]])


def test_zero_padding():
    x = jnp.full((1, 2, 3), jnp.nan).at[:, 0].set(1.0)
    np.testing.assert_array_equal(zero_padding(x, jnp.array([[True, False]])), [[[1, 1, 1], [0, 0, 0]]])
    assert zero_padding(x, None) is x
