"""Local attention on a CPU: W + 1 keys for each token, from a ring and from the call's own tokens.

Keys are taken in blocks of 64 positions, cut where the position in the document is a multiple of
64, oldest first, with the online softmax of Milakov and Gimelshein (2018): a running maximum, the
sum of weights below it, and the weighted sum of values, both scaled down when the maximum grows. A
query goes through the blocks that hold a key which it sees, and through no others, so it meets the
same operations whether it comes alone or among others, and from whichever memory its keys are read.

A few tokens, with all heads that share a key-value head, go through a block together: sixteen keys
at a time, then a slice of the values at a time stay in the first-level cache, and the loops of
:mod:`.horizontal` keep the sums of four queries in registers.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from griffin_kernels.cpu.compiled import kernel
from griffin_kernels.cpu.elementary import exp
from griffin_kernels.cpu.horizontal import (
    add_weighted,
    address_of,
    between,
    dots,
    fetch,
    highest,
    lane_0,
)
from griffin_kernels.cpu.simd import LANES, broadcast, lane_sum, load, maximum, select, store

__all__ = ["attend", "attention", "scratch_size", "store_ring"]

QUERIES = 80
"""Queries that go through a block together: enough that reading it from memory costs little, few
enough that they and their sums stay in the second-level cache."""

BLOCK = 64
"""Keys of a block: a query's sums are read and written once for each."""

FLOAT_BYTES = 4
SLICE = 64
"""Channels of a block's values that all queries go through before the next: 16 KiB."""

ZERO, HIDDEN = np.float32(0), np.float32(-np.inf)


def attention(q: NDArray, k: NDArray, v: NDArray, positions: NDArray, window: int) -> NDArray:
    """Attention of each token over itself and up to ``window`` tokens before it in its document.

    Parameters
    ----------
    q : array of shape (T, H, d)
    k, v : array of shape (T, Q, d)
        Q divides H; heads share key-value heads in order.
    positions : array of shape (T,)
        The first is 0, every other 0 or one more than the one before it.
    window : int

    Returns
    -------
    array of shape (T, H, d), float32

    Raises
    ------
    ValueError
        If the first token does not start a document.
    """
    (T, H, d), Q = np.shape(q), np.shape(k)[1]
    if T and positions[0] != 0:
        raise ValueError(f"positions start at {positions[0]}, but nothing came before")
    wide = -(-d // LANES) * LANES
    q, k, v = (
        np.pad(np.asarray(z, np.float32), ((0, 0), (0, 0), (0, wide - d))) for z in (q, k, v)
    )
    q *= np.float32(1 / math.sqrt(d))
    y, ring = np.empty_like(q), np.zeros(window * Q * wide, np.float32)
    scratch = np.empty(scratch_size(H, Q, wide), np.float32)
    attend(
        0, 1, q.ravel(), k.ravel(), v.ravel(), y.ravel(), ring, ring, 0,
        np.asarray(positions, np.int64), 0, T, H, Q, wide, window, scratch,
    )  # fmt: skip
    return y[:, :, :d]


def scratch_size(H: int, Q: int, d: int) -> int:
    """Elements of ``scratch`` that :func:`attend` needs."""
    rows = max(QUERIES, H // Q)
    return 2 * BLOCK * d + rows * (2 * d + BLOCK + 2 * LANES) + LANES


@kernel
def attend(
    part, parts, q, k, v, y, ring_k, ring_v, ring_at, positions, first, last, H, Q, d, W, scratch
):
    """One thread's part of the attention of the tokens of one text.

    All arrays have one dimension. The ring is read as it was before token ``first``; token
    ``last - 1`` and those before it are taken from ``k`` and ``v``.

    Parameters
    ----------
    part, parts : int
        Which thread of how many; their results are the same for any number. They share tokens, or
        heads where there are too few tokens.
    q : array, float32
        Rows of H * d, a row for each token of the call, rotated and divided by sqrt(d).
    k, v : array, float32
        Rows of Q * d.
    y : array, float32
        Rows of H * d, written for tokens ``first`` to ``last - 1``.
    ring_k, ring_v : array, float32
        From element ``ring_at`` on, (W, Q, d): position p of the current document in slot p mod W.
    positions : array, int64
        Of each token in its document: 0, or one more than the token before.
    first, last : int
        Tokens of the text.
    H, Q, d, W : int
        Query heads, key-value heads, size of a head (a multiple of 16) and window.
    scratch : array, float32
        This thread's own, :func:`scratch_size` elements, whatever they hold.
    """
    # Numba counts a prange in uint64, and takes what mixes with int64 for float64.
    part, parts = np.int64(part), np.int64(parts)
    length = max(QUERIES * Q // H, 1)
    tiles = (last - first + length - 1) // length
    head, heads, turn, turns = 0, H, part, parts
    # By heads, every thread reads all keys; by tokens, a few tiles keep some threads waiting.
    if -(-tiles // parts) * H > -(-H // parts) * tiles:
        head, heads, turn, turns = H * part // parts, H * (part + 1) // parts, 0, 1
    for tile in range(turn, tiles, turns):
        start = first + tile * length
        end = min(start + length, last)
        while start < end:
            stop = start + 1
            while stop < end and positions[stop] != 0:
                stop += 1
            for group in range(Q):
                low, high = max(head, group * (H // Q)), min(heads, (group + 1) * (H // Q))
                if low < high:
                    _tile(
                        q, k, v, y, ring_k, ring_v, ring_at, first, last, start, stop,
                        positions[start], low, high, group, H, Q, d, W, scratch,
                    )  # fmt: skip
            start = stop


@njit(error_model="numpy")
def _tile(
    q, k, v, y, ring_k, ring_v, ring_at, first, last, start, stop, position, low, high, group,
    H, Q, d, W, scratch,
):  # fmt: skip
    """Tokens of one document, at ``position`` and after, with heads that share keys and values."""
    heads = high - low
    tokens = stop - start
    rows = tokens * heads
    # Vectors that cross a cache line take twice as long to load.
    gathered_k = (-(address_of(scratch, 0) // FLOAT_BYTES)) % LANES
    gathered_v = gathered_k + BLOCK * d
    queries = gathered_v + BLOCK * d
    sums = queries + rows * d
    scores = sums + rows * d
    peaks = scores + rows * BLOCK
    weights = peaks + rows * LANES
    for t in range(tokens):
        source = ((start + t) * H + low) * d
        for c in range(0, heads * d, LANES):
            store(scratch, queries + t * heads * d + c, load(q, source + c))
    for c in range(0, rows * d, LANES):
        store(scratch, sums + c, broadcast(ZERO))
    for c in range(0, rows * LANES, LANES):
        store(scratch, peaks + c, broadcast(HIDDEN))
        store(scratch, weights + c, broadcast(ZERO))

    final = position + tokens - 1
    for block in range(max(position - W, 0) // BLOCK, final // BLOCK + 1):
        base = block * BLOCK
        keys, values, stride = _rows(
            k, v, ring_k, ring_v, ring_at, first, last, start - position, base,
            max(base, position - W), min(base + BLOCK, final + 1), group, Q, d, W,
            scratch, gathered_k, gathered_v,
        )  # fmt: skip
        for at in range(0, BLOCK, LANES):
            some = max(base + at - position, 0)
            end = min(base + at + LANES + W - position, tokens)
            if some < end:
                _score(
                    keys + FLOAT_BYTES * at * stride, values + FLOAT_BYTES * at * stride, stride,
                    address_of(scratch, queries + some * heads * d), d,
                    address_of(scratch, scores + some * heads * BLOCK + at),
                    (end - some) * heads,
                )  # fmt: skip
        # Tokens that see some of the block, and among them those that see all of it.
        t = max(base - position, 0)
        end = min(base + BLOCK + W - position, tokens)
        whole, after = base + BLOCK - 1 - position, base + W + 1 - position
        while t < end:
            seen, before, tally = 1, 0, BLOCK
            if whole <= t < after:
                seen = min(after, end) - t
            else:
                before = max(position + t - W - base, 0)
                tally = min(position + t - base + 1, BLOCK)
            row = t * heads
            for r in range(row, row + seen * heads):
                _soften(
                    scratch, scores + r * BLOCK, peaks + r * LANES, weights + r * LANES,
                    sums + r * d, d, before, tally,
                )  # fmt: skip
            _mix(
                values, stride, address_of(scratch, scores + row * BLOCK), before, tally,
                address_of(scratch, sums + row * d), d, seen * heads,
            )  # fmt: skip
            t += seen

    for t in range(tokens):
        for h in range(heads):
            row = t * heads + h
            weight = broadcast(lane_sum(load(scratch, weights + row * LANES)))
            target = ((start + t) * H + low + h) * d
            for c in range(0, d, LANES):
                store(y, target + c, load(scratch, sums + row * d + c) / weight)


@njit(error_model="numpy")
def _rows(
    k, v, ring_k, ring_v, ring_at, first, last, origin, base, oldest, newest, group, Q, d, W,
    scratch, gathered_k, gathered_v,
):  # fmt: skip
    """Where the rows of a block are: addresses of its keys and values, and the distance of rows.

    Rows ``oldest`` to ``newest - 1`` are needed; others may hold anything, and are not looked at.
    ``origin`` is the token at position 0, before ``first`` where the document began before.
    """
    token, slot = origin + base, base % W
    if token >= first and token + BLOCK <= last:
        at = (token * Q + group) * d
        return address_of(k, at), address_of(v, at), Q * d
    if origin + newest <= first and slot + BLOCK <= W:
        at = ring_at + (slot * Q + group) * d
        return address_of(ring_k, at), address_of(ring_v, at), Q * d
    for p in range(base, base + BLOCK):
        to_k, to_v = gathered_k + (p - base) * d, gathered_v + (p - base) * d
        if not oldest <= p < newest:
            _clear(scratch, scratch, to_k, to_v, d)
        elif origin + p >= first:
            _copy(k, v, ((origin + p) * Q + group) * d, scratch, scratch, to_k, to_v, d)
        else:
            at = ring_at + (p % W * Q + group) * d
            _copy(ring_k, ring_v, at, scratch, scratch, to_k, to_v, d)
    return address_of(scratch, gathered_k), address_of(scratch, gathered_v), d


@njit(error_model="numpy")
def _copy(k, v, at, to_k, to_v, at_k, at_v, n):
    """Copy n numbers of keys and of values."""
    for c in range(0, n, LANES):
        store(to_k, at_k + c, load(k, at + c))
        store(to_v, at_v + c, load(v, at + c))


@njit(error_model="numpy")
def _clear(to_k, to_v, at_k, at_v, n):
    """Write n zeros as keys and as values."""
    for c in range(0, n, LANES):
        store(to_k, at_k + c, broadcast(ZERO))
        store(to_v, at_v + c, broadcast(ZERO))


@njit(error_model="numpy")
def _score(keys, values, stride, queries, d, scores, rows):
    """Scores of queries with sixteen keys, four queries at a time.

    Meanwhile the values of these keys are asked for, and the next sixteen keys: the processor
    does not foresee them, because keys are read four at a time.
    """
    row, asked, row_bytes = 0, 0, FLOAT_BYTES * stride
    while row < rows:
        share = 2 * LANES * min(row + 4, rows) // rows
        for i in range(asked, share):
            ahead = values + i // 2 * row_bytes if i % 2 else keys + (LANES + i // 2) * row_bytes
            fetch(ahead, FLOAT_BYTES * d)
        asked = share
        query, score = queries + FLOAT_BYTES * row * d, scores + FLOAT_BYTES * row * BLOCK
        if row + 4 <= rows:
            dots(4, keys, stride, query, d, score, BLOCK)
            row += 4
        elif row + 2 <= rows:
            dots(2, keys, stride, query, d, score, BLOCK)
            row += 2
        else:
            dots(1, keys, stride, query, d, score, BLOCK)
            row += 1


@njit(error_model="numpy")
def _soften(scratch, score, peak, weight, sums, d, before, tally):
    """Scores of one query as weights relative to the largest score so far."""
    if tally - before < BLOCK:
        for i in range(0, BLOCK, LANES):
            seen = between(before - i, tally - i)
            store(scratch, score + i, select(seen, load(scratch, score + i), broadcast(HIDDEN)))
    a, b = load(scratch, score), load(scratch, score + LANES)
    c, e = load(scratch, score + 2 * LANES), load(scratch, score + 3 * LANES)
    old, mine = load(scratch, peak), load(scratch, weight)
    new = maximum(old, highest(maximum(maximum(a, b), maximum(c, e))))
    if lane_0(old) != lane_0(new):
        # Where the maximum stays, the factor would be 1: leaving it out changes no bit.
        factor = exp(old - new)
        mine = mine * factor
        for i in range(0, d, LANES):
            store(scratch, sums + i, load(scratch, sums + i) * factor)
        store(scratch, peak, new)
    a, b, c, e = exp(a - new), exp(b - new), exp(c - new), exp(e - new)
    store(scratch, score, a)
    store(scratch, score + LANES, b)
    store(scratch, score + 2 * LANES, c)
    store(scratch, score + 3 * LANES, e)
    store(scratch, weight, mine + ((a + b) + (c + e)))


@njit(error_model="numpy")
def _mix(values, stride, weights, before, tally, sums, d, rows):
    """Add a block's values ``before`` to ``tally - 1`` by their weights, four queries at a time."""
    # A slice pays when it is read again and again; alone, a query wants all its sums at once.
    width = SLICE if rows >= 16 else d
    for c in range(0, d, width):
        n, value, row = min(width, d - c), values + FLOAT_BYTES * c, 0
        while row < rows:
            weight = weights + FLOAT_BYTES * row * BLOCK
            mixed = sums + FLOAT_BYTES * (row * d + c)
            if row + 4 <= rows:
                add_weighted(4, value, stride, weight, BLOCK, before, tally, mixed, d, n)
                row += 4
            elif row + 2 <= rows:
                add_weighted(2, value, stride, weight, BLOCK, before, tally, mixed, d, n)
                row += 2
            else:
                add_weighted(1, value, stride, weight, BLOCK, before, tally, mixed, d, n)
                row += 1


@kernel
def store_ring(part, parts, k, v, ring_k, ring_v, ring_at, positions, first, last, Q, d, W):
    """One thread's part of writing a text's tokens into its ring, after all threads have attended.

    The last W tokens of the current document are kept. If it starts among the tokens, slots that
    it has not reached become zero. Threads share the slots; parameters are :func:`attend`'s.
    """
    if first >= last:
        return
    part, parts = np.int64(part), np.int64(parts)
    seen, n = positions[last - 1] + 1, Q * d
    origin = last - seen  # the token at position 0, before ``first`` where the ring continues
    low, high = W * part // parts, W * (part + 1) // parts
    for p in range(max(seen - min(W, last - first), 0), seen):
        if low <= p % W < high:
            slot = ring_at + p % W * n
            _copy(k, v, (origin + p) * n, ring_k, ring_v, slot, slot, n)
    empty = max(low, seen)
    if origin >= first and empty < high:
        _clear(ring_k, ring_v, ring_at + empty * n, ring_at + empty * n, (high - empty) * n)
