"""Elementary functions on vectors: the same bits in every lane, on every processor with an fma.

Range reduction and polynomials in float32 with fused multiply-adds. ``tests/test_cpu_kernels.py``
holds them to the errors told below, over a million arguments each.
"""

import math

from numba import float32, int32, njit

from griffin_kernels.cpu.simd import (
    as_float,
    as_int,
    broadcast,
    fma,
    less,
    maximum,
    minimum,
    select,
    shift_left,
    shift_right,
)

__all__ = ["exp", "expm1", "gelu", "sigmoid", "tanh"]

ZERO, ONE, TWO = float32(0), float32(1), float32(2)
GELU_CUBE, GELU_SCALE = float32(0.044715), float32(2 * math.sqrt(2 / math.pi))
LOG2_E = float32(1 / math.log(2))
# ln 2 in two parts; the first has few enough bits that a whole multiple of it is exact.
LN2_HIGH = float32(0.693145751953125)
LN2_LOW = float32(math.log(2) - 0.693145751953125)
SMALLEST = float32(-87.33654)
"""The logarithm of the smallest normal number; exp of less is 0 here."""
LARGEST = float32(89)
"""exp of more than this is infinite."""
ROUND = float32(1.5 * 2**23)
"""Added to a float32 below 2^22, it leaves the nearest whole number in the last bits."""
ROUND_BITS = int32(0x4B400000)
BIAS, MANTISSA, HALF = int32(127), int32(23), int32(1)

P = tuple(float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
                               4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1))  # fmt: skip
"""Minimax polynomial of ``(exp(r) - 1 - r) / r^2`` on ``|r| <= ln(2) / 2``."""


@njit(error_model="numpy")
def reduced(x):
    """``(n, p)`` with ``exp(x) = 2^n (1 + p)``: n whole, and p = expm1 of what is left of x."""
    shifted = fma(x, broadcast(LOG2_E), broadcast(ROUND))
    n = shifted - broadcast(ROUND)
    r = fma(n, broadcast(-LN2_HIGH), x)
    r = fma(n, broadcast(-LN2_LOW), r)
    q = broadcast(P[0])
    for c in P[1:]:
        q = fma(q, r, broadcast(c))
    return as_int(shifted) - broadcast(ROUND_BITS), fma(q * r, r, r)


@njit(error_model="numpy")
def power_of_two(n):
    """``2^n`` for n from -126 to 127."""
    return as_float(shift_left(n + broadcast(BIAS), broadcast(MANTISSA)))


@njit(error_model="numpy")
def exp(x):
    """Exponential to 1.1 units in the last place; 0 where it is below the normal numbers."""
    n, p = reduced(maximum(minimum(x, broadcast(LARGEST)), broadcast(SMALLEST)))
    # 2^128 is no float32, so the power is multiplied in by halves.
    half = shift_right(n, broadcast(HALF))
    scale = power_of_two(half)
    y = fma(scale, p, scale) * power_of_two(n - half)
    return select(less(x, broadcast(SMALLEST)), broadcast(ZERO), y)


@njit(error_model="numpy")
def expm1(x):
    """``exp(x) - 1`` without cancellation, to 1.1 units in the last place, for x of at most 0."""
    n, p = reduced(maximum(x, broadcast(SMALLEST)))
    scale = power_of_two(n)
    return fma(scale, p, scale - broadcast(ONE))


@njit(error_model="numpy")
def sigmoid(x):
    """``1 / (1 + exp(-x))`` to 2.5 units in the last place, in both tails."""
    negative = less(x, broadcast(ZERO))
    e = exp(select(negative, x, broadcast(ZERO) - x))
    return select(negative, e, broadcast(ONE)) / (broadcast(ONE) + e)


@njit(error_model="numpy")
def tanh(x):
    """Hyperbolic tangent to 3 units in the last place."""
    negative = less(x, broadcast(ZERO))
    size = select(negative, broadcast(ZERO) - x, x)
    t = expm1(broadcast(ZERO) - size - size)
    y = (broadcast(ZERO) - t) / (broadcast(TWO) + t)
    return select(negative, broadcast(ZERO) - y, y)


@njit(error_model="numpy")
def gelu(z):
    """GeLU in its tanh form, as ``z * sigmoid(2 * inner)``: the same, and accurate in both tails.

    ``(1 + tanh(y)) / 2`` is ``sigmoid(2 y)``; adding 1 to a tanh near -1 would lose all digits.
    """
    inner = fma(z * z * z, broadcast(GELU_CUBE), z) * broadcast(GELU_SCALE)
    return z * sigmoid(inner)
