"""Documents into rows of equal length, with as little padding as best-fit packing leaves.

Letters: B rows, T tokens of a row. A document is BOS + tokens + EOS. One longer than a row is cut; each further piece
begins with the last token of the piece before it, as context only, so that every token but BOS is predicted once.

Rows hold `tokens`, `segment_ids` (from 1 in each row, 0 for padding) and a loss mask; positions follow.
"""

from typing import NamedTuple

import numpy as np


class Pieces(NamedTuple):
    """Slices of the concatenated documents, each to be placed in one row. Arrays of equal length."""

    start: np.ndarray
    length: np.ndarray


def cut(document_lengths: np.ndarray, row_length: int) -> Pieces:
    """The pieces of documents (lengths with BOS and EOS, at least 2) of at most `row_length` tokens, in order."""
    stride = row_length - 1
    n = np.asarray(document_lengths, np.int64)
    n_pieces = np.maximum(1, -(-(n - 1) // stride))
    first = np.cumsum(n_pieces) - n_pieces
    offset = stride * (np.arange(n_pieces.sum()) - np.repeat(first, n_pieces))
    start = np.repeat(np.cumsum(n) - n, n_pieces) + offset
    return Pieces(start, np.minimum(np.repeat(n, n_pieces) - offset, row_length))


def best_fit(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit decreasing: long pieces first, each into the row that it fills best.

    Returns:
      row and place: int64 arrays; piece i starts at `place[i]` of `row[i]`.
    """
    open_rows: list[list[int]] = [[] for _ in range(row_length + 1)]  # by space left
    spaces = 0  # bit s is set where open_rows[s] has any: the best fit is the lowest bit not below the length
    row, place = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    n_rows = 0
    for i in np.argsort(-np.asarray(lengths), kind="stable"):
        length = int(lengths[i])
        fitting = spaces >> length << length
        if fitting:
            space = (fitting & -fitting).bit_length() - 1
            row[i] = open_rows[space].pop()
            if not open_rows[space]:
                spaces &= ~(1 << space)
        else:
            space, row[i], n_rows = row_length, n_rows, n_rows + 1
        place[i] = row_length - space
        if left := space - length:
            open_rows[left].append(int(row[i]))
            spaces |= 1 << left
    return row, place


def pack(
    tokens: np.ndarray, document_lengths: np.ndarray, row_length: int, *, together: bool = True, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of whole documents, or of pieces of long ones.

    Args:
      tokens: all documents, one after the other, BOS and EOS included.
      document_lengths: how many of them are each document's.
      row_length: T, at least 2.
      together: whether a row may hold several.
      seed: of the order of the rows; best fit would put the long pieces first, and the first rows of a split would
        be no sample of it.

    Returns:
      tokens_BT in the dtype of `tokens` (0 where padded) and segment_ids_BT uint16, uint32 where a
      row is so long that it could hold more documents than those count.
    """
    if row_length < 2:
        raise ValueError(f"a row needs at least 2 tokens to predict one, not {row_length}")
    pieces = cut(document_lengths, row_length)
    n = len(pieces.length)
    row, place = best_fit(pieces.length, row_length) if together else (np.arange(n), np.zeros(n, np.int64))
    n_rows = int(row.max(initial=-1)) + 1
    order = np.random.default_rng(seed).permutation(n_rows)
    tokens_BT = np.zeros((n_rows, row_length), tokens.dtype)
    counts = np.uint16 if row_length < 2**16 else np.uint32
    segment_ids_BT = np.zeros((n_rows, row_length), counts)
    n_segments = np.zeros(n_rows, counts)
    for i in np.lexsort((place, row)):
        r, here = order[row[i]], slice(place[i], place[i] + pieces.length[i])
        n_segments[r] += 1
        tokens_BT[r, here] = tokens[pieces.start[i] : pieces.start[i] + pieces.length[i]]
        segment_ids_BT[r, here] = n_segments[r]
    return tokens_BT, segment_ids_BT


def positions(segment_ids_BT: np.ndarray) -> np.ndarray:
    """int32 [B, T]: the distance from the start of the segment; 0 for padding."""
    t_T = np.arange(segment_ids_BT.shape[1], dtype=np.int32)
    begins_BT = np.ones_like(segment_ids_BT, bool)
    begins_BT[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    start_BT = np.maximum.accumulate(np.where(begins_BT, t_T, np.int32(0)), axis=1)
    return np.where(segment_ids_BT > 0, t_T - start_BT, np.int32(0))


def loss_mask(segment_ids_BT: np.ndarray) -> np.ndarray:
    """uint8 [B, T]: 1 where the next token belongs to the same segment and is to be predicted here."""
    mask_BT = np.zeros(segment_ids_BT.shape, np.uint8)
    mask_BT[:, :-1] = (segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1]) & (segment_ids_BT[:, 1:] > 0)
    return mask_BT


def target_bytes(tokens_BT: np.ndarray, loss_mask_BT: np.ndarray, token_bytes: np.ndarray) -> np.ndarray:
    """int32 [B, T]: the bytes of text that the prediction at each place stands for; 0 where nothing is predicted."""
    found_BT = np.zeros(tokens_BT.shape, np.int32)
    found_BT[:, :-1] = np.asarray(token_bytes, np.int32)[tokens_BT[:, 1:]]
    return np.where(loss_mask_BT > 0, found_BT, np.int32(0))


def batch(
    tokens_BT: np.ndarray,
    segment_ids_BT: np.ndarray,
    loss_mask_BT: np.ndarray,
    targets_BT: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """What a model is given: int32 tokens, segment_ids, positions and float32 loss_mask, all [B, T]; int32 targets where given."""
    found = {
        "tokens": tokens_BT.astype(np.int32),
        "segment_ids": segment_ids_BT.astype(np.int32),
        "positions": positions(segment_ids_BT),
        "loss_mask": loss_mask_BT.astype(np.float32),
    }
    return found if targets_BT is None else found | {"targets": targets_BT.astype(np.int32)}
