"""The recurrent block's channels: causal convolution, and the RG-LRU fused with its gates.

Channels never meet, so 64 of them go through all tokens of a text in one piece of work, their state
in registers or in the first level of the cache.
"""

import numpy as np
from numba import njit

from griffin_kernels.cpu.matmul import BLOCK_ROWS, LINE, TILE
from griffin_kernels.cpu.scan import _step
from griffin_kernels.cpu.simd import LANES, broadcast, fma, load, store

__all__ = ["CHANNELS", "convolve", "line_at", "recur"]

CHANNELS = 64
"""Channels of one piece of work."""


@njit(error_model="numpy")
def line_at(m, c, G):
    """Where channel c (a multiple of 16) of row m stands among lines of heads of G channels.

    Lines are as :func:`griffin_kernels.cpu.matmul.product` takes them, head after head.
    """
    return (m // BLOCK_ROWS * (G // LANES) + c // LANES) * (TILE // 4) + m % BLOCK_ROWS * (
        LINE // 4
    )


@njit(error_model="numpy")
def convolve(x, u, uo, c, ld, G, weight, bias, K, wide, state, so, positions, first, last):
    """Causal convolution of sixteen channels over the tokens of one text, and its new state.

    Parameters
    ----------
    x : array, float32
        Raw inputs, rows of ``ld``, channels c to c + 15.
    u : array, float32
        Output, lines of a head that starts at uo; channel ``c % G`` of the head.
    weight, bias : array, float32
        (K, wide) and (wide,).
    state : array, float32
        K - 1 rows of ``wide`` from so on, oldest first; replaced by the inputs to carry on with.
    positions : array, int64
    first, last : int
        Tokens of this text.
    """
    for t in range(first, last):
        y = broadcast(np.float32(0))
        for s in range(K):
            if positions[t] < s:
                break
            if t - s >= first:
                past = load(x, (t - s) * ld + c)
            else:
                past = load(state, so + (K - 1 + t - s - first) * wide + c)
            y = fma(past, load(weight, (K - 1 - s) * wide + c), y)
        store(u, uo + line_at(t, c % G, G), y + load(bias, c))
    # The inputs before token `last`, oldest first; older rows are read before they are replaced.
    for i in range(K - 1):
        back = K - 1 - i
        kept = broadcast(np.float32(0))
        if positions[last - 1] + 1 >= back:
            if last - back >= first:
                kept = load(x, (last - back) * ld + c)
            else:
                kept = load(state, so + (K - 1 + last - back - first) * wide + c)
        store(state, so + i * wide + c, kept)


@njit(error_model="numpy")
def recur(u, uo, c, G, z_r, z_i, b_r, b_i, rate, h, ho, y, o, ld, positions, first, last):
    """Equations (1) to (4) for sixteen channels over the tokens of one text.

    Parameters
    ----------
    u : array, float32
        Output of the convolution, as :func:`convolve` leaves it.
    c : int
        First channel, of all heads.
    z_r, z_i : array, float32
        ``W u`` of both gates, rows of ``ld``, this channel at ``o``.
    b_r, b_i, rate : array, float32
    h : array, float32
        State at ho + c, replaced by the last one.
    y : array, float32
        Output, rows and places as those of ``z_r``.
    """
    bias_r, bias_i, speed = load(b_r, c), load(b_i, c), load(rate, c)
    state = load(h, ho + c)
    for t in range(first, last):
        at = t * ld + o
        state = _step(
            load(u, uo + line_at(t, c % G, G)), load(z_r, at) + bias_r, load(z_i, at) + bias_i,
            speed, state, positions[t] == 0,
        )  # fmt: skip
        store(y, at, state)
    store(h, ho + c, state)
