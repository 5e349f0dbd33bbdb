import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxeff.ops.segments import last_valid, segment_starts


def by_hand(row, last):
    valid, start = [], []
    for segment in row:
        valid.append(segment != 0)
        start.append(segment != 0 and last != 0 and segment != last)
        last = segment or last
    return valid, start, last


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 3))
def test_starts_agree_with_a_loop(row, last):
    row += [0] * (8 - len(row))
    valid, start, end = segment_starts(jnp.array([row]), jnp.array([last]))
    expected = by_hand(row, last)
    assert (valid[0].tolist(), start[0].tolist(), int(end[0])) == expected


def test_last_valid():
    values = jnp.array([[5, 6, 7], [5, 6, 7], [5, 6, 7]])
    valid = jnp.array([[True, True, False], [False, False, False], [True, False, True]])
    np.testing.assert_array_equal(last_valid(values, valid, jnp.array([1, 2, 3])), [6, 2, 7])
