"""Rotary positions in JAX, exact at any position."""

from functools import reduce

import jax.numpy as jnp
import numpy as np
from jax import Array

from griffin_np.inputs import POSITION_LIMIT

__all__ = ["apply_rope", "rotation"]

ROPE_DIGITS = (1, 2**11, 2**22)
"""Units of a position's digits; each digit is below 2^11."""


def rotation(
    positions: Array, base: float, rotary_dim: int, limit: int = POSITION_LIMIT
) -> tuple[Array, Array]:
    """Cosine and sine by which every token's channels are turned.

    Angles are exact to 1e-6 rad: a float32 product of position and frequency would be off by whole
    turns. Positions are split into digits of 11 bits, cosines and sines of each digit's angle come
    from tables made in float64, and the formulas for the sum of two angles join them.

    Parameters
    ----------
    positions : Array of shape (B, T), int32
    base : float
    rotary_dim : int
    limit : int
        No position reaches it; below 2^11 one table is enough.

    Returns
    -------
    cos, sin : Array of shape (B, T, rotary_dim / 2), float32
    """
    half = rotary_dim // 2
    frequency = float(base) ** -(np.arange(half) / max(half, 1))
    positions = jnp.maximum(positions, 0)

    def turn(unit):
        count = min(ROPE_DIGITS[1], -(-limit // unit))
        angle = (np.arange(count) * unit)[:, None] * frequency
        digit = positions // unit % ROPE_DIGITS[1]
        return tuple(jnp.asarray(f(angle), jnp.float32)[digit] for f in (np.cos, np.sin))

    def add(a, b):
        return a[0] * b[0] - a[1] * b[1], a[1] * b[0] + a[0] * b[1]

    units = [unit for unit in ROPE_DIGITS if unit < limit] or [1]
    return reduce(add, map(turn, units))


def apply_rope(x: Array, turn: tuple[Array, Array]) -> Array:
    """Rotate the leading channels of every head, first half against second half.

    Parameters
    ----------
    x : Array of shape (B, T, heads, d)
    turn : pair of Array of shape (B, T, rotary_dim / 2)
        From :func:`rotation`. The channels after the rotated ones pass through.
    """
    cos, sin = (part[:, :, None] for part in turn)
    half = cos.shape[-1]
    first, second = jnp.split(x[..., : 2 * half].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)
