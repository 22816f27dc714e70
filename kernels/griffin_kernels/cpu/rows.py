"""Rows of activations: RMSNorm, rotary angles, and the form that a matrix product takes them in."""

import math

import numpy as np
from numba import njit

from griffin_kernels.cpu.isa.common import GROUP
from griffin_kernels.cpu.matmul import BFLOAT16, BLOCK_ROWS, FLOAT32, INT8, LINE, TILE, WIDENED
from griffin_kernels.cpu.simd import (
    LANES,
    as_int,
    bits_and,
    broadcast,
    float_from_bits,
    fma,
    lane_max,
    lane_sum,
    load,
    maximum_int,
    store,
    store_bfloat16,
    store_int8,
)

__all__ = ["norm_row", "prepare_group", "prepare_row", "rope_angles", "rotate_head"]

MAGNITUDE = np.int32(0x7FFFFFFF)
ROUND, ROUND_BITS = np.float32(1.5 * 2**23), np.int32(0x4B400000)


@njit(error_model="numpy")
def norm_row(x, xo, scale, D, width, eps, y, yo):
    """``y = x / sqrt(mean(x^2) + eps) * scale`` for one row.

    Parameters
    ----------
    x, y : array, float32
        Rows of ``width`` (D padded with zeros to a multiple of 64) at xo and yo; may be the same.
    scale : array of shape (width,), float32
        What multiplies: 1 plus the stored scale.
    D : int
        Channels that count.
    """
    total = broadcast(np.float32(0))
    for c in range(0, width, LANES):
        v = load(x, xo + c)
        total = fma(v, v, total)
    inverse = np.float32(1) / np.sqrt(lane_sum(total) / np.float32(D) + np.float32(eps))
    for c in range(0, width, LANES):
        store(y, yo + c, load(x, xo + c) * broadcast(inverse) * load(scale, c))


@njit(error_model="numpy")
def prepare_group(kind, a, b, c, d, m, group, K, activations, floats, steps, corrections):
    """Put 64 channels of row m, four vectors, into the form that products take.

    For integer weights they become signed bytes: the largest magnitude is 127, rounding is to
    nearest, ties to even. A group with a NaN or an infinity gets a step that makes its products so.
    """
    if kind in (FLOAT32, WIDENED):
        at = ((m // BLOCK_ROWS * (K // 16) + 4 * group) * TILE + m % BLOCK_ROWS * LINE) // 4
        store(floats, at, a)
        store(floats, at + TILE // 4, b)
        store(floats, at + TILE // 2, c)
        store(floats, at + 3 * TILE // 4, d)
    elif kind == BFLOAT16:
        at = (m // BLOCK_ROWS * (K // 32) + 2 * group) * TILE + m % BLOCK_ROWS * LINE
        store_bfloat16(activations, at, a)
        store_bfloat16(activations, at + 32, b)
        store_bfloat16(activations, at + TILE, c)
        store_bfloat16(activations, at + TILE + 32, d)
    else:
        mask = broadcast(MAGNITUDE)
        # Magnitudes compare as integers, and a NaN is larger than everything.
        largest = maximum_int(
            maximum_int(bits_and(as_int(a), mask), bits_and(as_int(b), mask)),
            maximum_int(bits_and(as_int(c), mask), bits_and(as_int(d), mask)),
        )
        most = np.float32(0)
        top = lane_max(largest)
        if top != 0:
            most = float_from_bits(top)
        inverse = np.float32(127) / most if most > np.float32(1e-36) else np.float32(0)
        step = most / np.float32(127)
        factor, shift = broadcast(inverse), broadcast(ROUND)
        qa, qb = as_int(fma(a, factor, shift)), as_int(fma(b, factor, shift))
        qc, qd = as_int(fma(c, factor, shift)), as_int(fma(d, factor, shift))
        at = (m // BLOCK_ROWS * (K // GROUP) + group) * TILE + m % BLOCK_ROWS * LINE
        zero = broadcast(ROUND_BITS)
        qa, qb, qc, qd = qa - zero, qb - zero, qc - zero, qd - zero
        store_int8(activations, at, qa)
        store_int8(activations, at + 16, qb)
        store_int8(activations, at + 32, qc)
        store_int8(activations, at + 48, qd)
        offset = np.int32(-128) if kind == INT8 else np.int32(-8)
        g = (m // BLOCK_ROWS * (K // GROUP) + group) * BLOCK_ROWS + m % BLOCK_ROWS
        steps[g] = step
        corrections[g] = offset * lane_sum(qa + qb + qc + qd)


@njit(error_model="numpy")
def prepare_row(kind, y, yo, m, K, activations, floats, steps, corrections):
    """All groups of a row of K float32 at yo."""
    for group in range(K // GROUP):
        c = yo + group * GROUP
        prepare_group(
            kind, load(y, c), load(y, c + 16), load(y, c + 32), load(y, c + 48), m, group, K,
            activations, floats, steps, corrections,
        )  # fmt: skip


@njit(error_model="numpy")
def rope_angles(position, half, base, cos, sin, o):
    """Cosines and sines of one position, ``half`` of each; the angle is a float64."""
    for j in range(half):
        angle = position * base ** (-j / half)
        cos[o + j] = math.cos(angle)
        sin[o + j] = math.sin(angle)


@njit(error_model="numpy")
def rotate_head(x, o, half, cos, sin, co, d, factor):
    """Turn channel j with channel j + half, and multiply all d channels by ``factor``."""
    for j in range(half):
        a, b = x[o + j], x[o + half + j]
        x[o + j] = (a * cos[co + j] - b * sin[co + j]) * factor
        x[o + half + j] = (b * cos[co + j] + a * sin[co + j]) * factor
    for j in range(2 * half, d):
        x[o + j] *= factor
