"""Rounding to few bits in a chosen direction: the grain of the envelope's simulated arithmetic."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BFLOAT16", "FLOAT32", "FLOAT64", "PROFILES", "Profile", "round_to"]


@dataclass(frozen=True)
class Profile:
    """Which precision each kind of intermediate result has, in significant bits.

    Attributes
    ----------
    name : str
    activations : int
        What passes between operations: projections, products, the residual stream, keys, values.
    accumulators : int
        Partial sums of dot products and means, softmax, gates and logits.
    state : int
        The recurrent state and what enters it.
    """

    name: str
    activations: int
    accumulators: int
    state: int

    @property
    def unit(self) -> float:
        """Unit roundoff of the activations."""
        return 2.0**-self.activations


FLOAT64 = Profile("float64", 53, 53, 53)
FLOAT32 = Profile("float32", 24, 24, 24)
BFLOAT16 = Profile("bfloat16", 8, 24, 24)
PROFILES = {p.name: p for p in (FLOAT64, FLOAT32, BFLOAT16)}


def round_to(x: NDArray, bits: int, direction: NDArray | int) -> NDArray:
    """``x`` with ``bits`` significant bits, rounded where each ``direction`` says.

    Parameters
    ----------
    x : array, float64
    bits : int
        With 53 there is nothing to round in float64: up and down then move to the neighbour.
    direction : array of {-1, 0, 1}, broadcast against ``x``
        Down, to nearest, up.
    """
    if bits >= 53:
        neighbour = np.nextafter(x, np.where(np.asarray(direction) > 0, np.inf, -np.inf))
        return np.where(np.asarray(direction) == 0, x, neighbour)
    mantissa, exponent = np.frexp(x)
    scaled = np.ldexp(mantissa, bits)
    down = np.floor(scaled)
    nearest = np.rint(scaled)
    up = np.ceil(scaled)
    chosen = np.where(
        np.asarray(direction) == 0, nearest, np.where(np.asarray(direction) > 0, up, down)
    )
    return np.ldexp(chosen, exponent - bits)
