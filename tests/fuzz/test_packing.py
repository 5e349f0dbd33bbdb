"""Packing compared with a slow one that is plain to see."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxeff.data.packing import loss_mask, pack

LENGTHS = st.lists(st.integers(2, 12) | st.integers(2, 200), max_size=60)
ROW = st.integers(2, 10) | st.integers(2, 300)
DTYPES = st.sampled_from((np.uint16, np.uint32))


def slow_pieces(documents: list[list[int]], row_length: int) -> list[list[int]]:
    """Documents cut where they are too long, each further piece after the last token of the one before."""
    found = []
    for document in documents:
        found.append(document[:row_length])
        while len(document) > row_length:
            document = document[row_length - 1 :]
            found.append(document[:row_length])
    return found


def slow_rows(pieces: list[list[int]], row_length: int, together: bool) -> list[list[list[int]]]:
    """Long pieces first, each into the row with the least space that suffices; of equal ones the row used last."""
    if not together:
        return [[piece] for piece in pieces]
    rows, used = [], []
    for turn, piece in enumerate(sorted(pieces, key=len, reverse=True)):
        spaces = [(row_length - sum(map(len, row)), -last, i) for i, (row, last) in enumerate(zip(rows, used))]
        fitting = [space for space in spaces if space[0] >= len(piece)]
        i = min(fitting)[2] if fitting else len(rows)
        if not fitting:
            rows.append([])
            used.append(turn)
        rows[i].append(piece)
        used[i] = turn
    return rows


def read(tokens_BT: np.ndarray, segment_ids_BT: np.ndarray) -> list[list[list[int]]]:
    """The pieces in each row, in order; padding must be zeros at the end."""
    found = []
    for tokens_T, ids_T in zip(tokens_BT, segment_ids_BT):
        n = int((ids_T > 0).sum())
        assert not tokens_T[n:].any() and not ids_T[n:].any()
        assert (
            set(ids_T[:n].tolist()) == set(range(1, int(ids_T.max(initial=0)) + 1))
            and (np.diff(ids_T[:n].astype(int)) >= 0).all()
        )
        found.append([tokens_T[ids_T == i].tolist() for i in range(1, int(ids_T.max(initial=0)) + 1)])
    return found


@given(LENGTHS, ROW, DTYPES, st.booleans(), st.integers(0, 2**32))
def test_as_the_slow_one(lengths, row_length, dtype, together, seed):
    tokens = np.arange(1, sum(lengths) + 1, dtype=dtype)
    documents = [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])] if lengths else []
    tokens_BT, segment_ids_BT = pack(tokens, np.array(lengths, np.int64), row_length, together=together, seed=seed)
    assert tokens_BT.shape == segment_ids_BT.shape and tokens_BT.shape[1] == row_length
    assert tokens_BT.dtype == dtype and segment_ids_BT.dtype == np.uint16
    expected = slow_rows(slow_pieces(documents, row_length), row_length, together)
    order = np.random.default_rng(seed).permutation(len(expected))
    found = read(tokens_BT, segment_ids_BT)
    assert [found[i] for i in order] == expected
    predicted = tokens_BT[:, 1:][loss_mask(segment_ids_BT)[:, :-1] > 0]
    assert sorted(predicted.tolist()) == sorted(token for document in documents for token in document[1:]), "each once"


def test_more_documents_in_a_row_than_16_bits_count():
    n = 2**16
    _, segment_ids_BT = pack(np.arange(2 * n, dtype=np.uint32), np.full(n, 2), 2 * n)
    assert int(loss_mask(segment_ids_BT).sum()) == n
