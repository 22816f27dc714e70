"""The RG-LRU on a CPU: equations (1) to (4) in one pass over memory.

A recurrence does two operations for every number it reads, so memory decides its speed. Fused
with the gates' nonlinearities it reads the convolution's output and two pre-activations, writes the
state, and keeps everything in between in registers. Threads share out the channels, which never
meet; within a thread time runs outermost, so that memory is read in long rows.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from griffin_kernels.cpu.compiled import kernel
from griffin_kernels.cpu.elementary import exp, expm1, sigmoid
from griffin_kernels.cpu.pack import aligned
from griffin_kernels.cpu.pool import pool
from griffin_kernels.cpu.simd import (
    LANES,
    broadcast,
    fma,
    load,
    load_first,
    prefetch,
    sqrt,
    store,
    store_around_cache,
    store_first,
)

__all__ = ["decay", "rg_lru", "scan", "softplus_8"]

ROWS = 4
"""Time steps that a vector of channels goes through before the next vector: its state stays in a
register, and memory is read in as many streams."""

LARGE = 1 << 25
"""Bytes of a result that no cache holds, so that it is written around the caches."""

AHEAD = 8
"""Rows that are asked for in advance: the processor does not see where a share goes on."""


def softplus_8(a_param: NDArray) -> NDArray:
    """``8 softplus(a_param)``, (R,) float32, computed once for a model: -log a = r times it."""
    z = np.asarray(a_param, np.float64)
    return (8 * (np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))))).astype(np.float32)


def scan(a: NDArray, x: NDArray, h: NDArray, out: NDArray | None = None) -> NDArray:
    """Equation (4): ``h_t = a_t * h_(t-1) + x_t``, with one rounding a step.

    Parameters
    ----------
    a, x : array of shape (T, R), float32
    h : array of shape (R,), float32
        State before the first step.
    out : array of shape (T, R), float32, contiguous, optional
        Where to put the result; a new array costs as much time as the scan itself. Large ones are
        fastest on a cache line's start.

    Returns
    -------
    array of shape (T, R), float32
        State after every step.
    """
    a, x = np.ascontiguousarray(a), np.ascontiguousarray(x)
    states = aligned(x.size, np.float32).reshape(x.shape) if out is None else out
    on_lines = states.ctypes.data % 64 == 0 and x.shape[1] % LANES == 0
    around = on_lines and states.nbytes >= LARGE
    pool().run(_scan, a.ravel(), x.ravel(), h.copy(), states.ravel(), *x.shape, around)
    return states


def rg_lru(
    u: NDArray, z_r: NDArray, z_i: NDArray, rate: NDArray, positions: NDArray, h: NDArray
) -> tuple[NDArray, NDArray]:
    """Equations (1) to (4), from the gates' pre-activations.

    Parameters
    ----------
    u : array of shape (T, R), float32
        Output of the convolution.
    z_r, z_i : array of shape (T, R), float32
        ``W_a u + b_a`` and ``W_x u + b_x``.
    rate : array of shape (R,), float32
        From :func:`softplus_8`.
    positions : array of shape (T,), int64
        0 starts a document, which forgets the state and enters undamped.
    h : array of shape (R,), float32

    Returns
    -------
    y : array of shape (T, R), float32
        The state after every token.
    h : array of shape (R,), float32
        The state after the last.
    """
    u, z_r, z_i = (np.ascontiguousarray(z) for z in (u, z_r, z_i))
    y, after = np.empty_like(u), h.copy()
    pool().run(
        _rg_lru, u.ravel(), z_r.ravel(), z_i.ravel(), rate, positions, after, y.ravel(), *u.shape
    )
    return y, after


def decay(r: NDArray, rate: NDArray) -> tuple[NDArray, NDArray]:
    """Equation (3): ``a`` and ``sqrt(1 - a^2)``, (T, R) float32 each."""
    r = np.ascontiguousarray(r)
    a, multiplier = np.empty_like(r), np.empty_like(r)
    pool().run(_decay, r.ravel(), rate, a.ravel(), multiplier.ravel(), *r.shape)
    return a, multiplier


@njit(error_model="numpy")
def _share(part, parts, R):
    """Channels of one thread: whole vectors, but for the last of all.

    Wide shares keep memory streaming: rows in stripes of a few hundred channels were half as fast.
    """
    width = ((R + LANES - 1) // LANES + parts - 1) // parts * LANES
    return min(part * width, R), min((part + 1) * width, R)


@kernel
def _scan(part, parts, sync, a, x, h, y, T, R, around):
    first, last = _share(part, parts, R)
    for t in range(0, T, ROWS):
        rows = min(ROWS, T - t)
        for c in range(first, last, LANES):
            n, o = min(LANES, last - c), t * R + c
            state = load_first(h, c, n)
            for _ in range(rows):
                prefetch(a, o + AHEAD * R)
                prefetch(x, o + AHEAD * R)
                if around:
                    state = fma(load(a, o), state, load(x, o))
                    store_around_cache(y, o, state)
                elif n == LANES:
                    state = fma(load(a, o), state, load(x, o))
                    store(y, o, state)
                else:
                    state = fma(load_first(a, o, n), state, load_first(x, o, n))
                    store_first(y, o, n, state)
                o += R
            store_first(h, c, n, state)


@njit(error_model="numpy")
def _decayed(r, rate):
    """Decay and multiplier of one vector of gates."""
    log_a = broadcast(np.float32(0)) - r * rate
    return exp(log_a), sqrt(broadcast(np.float32(0)) - expm1(log_a + log_a))


@njit(error_model="numpy")
def _step(u, z_r, z_i, rate, h, starts):
    """One vector of channels at one token."""
    gated = sigmoid(z_i) * u
    if starts:
        return gated
    a, multiplier = _decayed(sigmoid(z_r), rate)
    return fma(a, h, multiplier * gated)


@kernel
def _rg_lru(part, parts, sync, u, z_r, z_i, rate, positions, h, y, T, R):
    first, last = _share(part, parts, R)
    whole = first + (last - first) // LANES * LANES
    for t in range(T):
        row, starts = t * R, positions[t] == 0
        for c in range(first, whole, LANES):
            state = _step(load(u, row + c), load(z_r, row + c), load(z_i, row + c),
                          load(rate, c), load(h, c), starts)  # fmt: skip
            store(h, c, state)
            store(y, row + c, state)
        if whole < last:
            n, o = last - whole, row + whole
            state = _step(
                load_first(u, o, n), load_first(z_r, o, n), load_first(z_i, o, n),
                load_first(rate, whole, n), load_first(h, whole, n), starts,
            )  # fmt: skip
            store_first(h, whole, n, state)
            store_first(y, o, n, state)


@kernel
def _decay(part, parts, sync, r, rate, a, multiplier, T, R):
    first, last = _share(part, parts, R)
    for t in range(T):
        for c in range(first, last, LANES):
            n = min(LANES, last - c)
            one, other = _decayed(load_first(r, t * R + c, n), load_first(rate, c, n))
            store_first(a, t * R + c, n, one)
            store_first(multiplier, t * R + c, n, other)
