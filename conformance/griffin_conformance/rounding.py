"""Rounding to few bits in a chosen direction, and arithmetic made of it.

The grain of the envelope: many samples of a computation at once, each with its own rounding
directions, which are drawn per operation and channel and then kept for all time steps.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BFLOAT16", "FLOAT32", "FLOAT64", "PROFILES", "SAMPLES", "Arithmetic", "Profile",
           "round_to"]  # fmt: skip

SAMPLES = 16
"""Computations that an envelope is made of."""


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
    tiny : float
        Smallest normal number: differences of its size are always allowed.
    angle : float
        Error of a rotary angle, in radians, that a sample is given at most; multiplied by the
        envelope's factor it is what the specification allows.
    coarsening : int
        Bits by which the simulation is coarser than the profile. Errors are proportional to the
        unit roundoff, so deviations seen with fewer bits are scaled down by as many. Without it,
        float64 samples would need arithmetic of more than 53 bits.
    """

    name: str
    activations: int
    accumulators: int
    state: int
    tiny: float
    angle: float
    coarsening: int = 0

    @property
    def unit(self) -> float:
        """Unit roundoff of the activations."""
        return 2.0**-self.activations

    @property
    def state_unit(self) -> float:
        """Unit roundoff of the recurrent state and its gates."""
        return 2.0**-self.state

    @property
    def shrink(self) -> float:
        """Factor from deviations of the simulation to deviations of the profile."""
        return 2.0**-self.coarsening

    def given(self, x: ArrayLike) -> NDArray:
        """Float64 values that a backend of this precision can be given without rounding them.

        They are float32 values, whatever the precision, or those of the activations if these have
        fewer bits.
        """
        single = np.asarray(x, np.float32).astype(np.float64)
        return single if self.activations >= 24 else round_to(single, self.activations, 0)


FLOAT64 = Profile("float64", 53, 53, 53, 2.0**-1022, 0.0, coarsening=12)
FLOAT32 = Profile("float32", 24, 24, 24, 2.0**-126, 2.5e-7)
BFLOAT16 = Profile("bfloat16", 8, 24, 24, 2.0**-126, 2.5e-7)
PROFILES = {p.name: p for p in (FLOAT64, FLOAT32, BFLOAT16)}


def round_to(x: NDArray, bits: int, direction: NDArray | int) -> NDArray:
    """``x`` with ``bits`` significant bits, rounded where each ``direction`` says.

    Values that have no more bits than that stay as they are. The exponent is not bounded.

    Parameters
    ----------
    x : array, float64
    bits : int
        At most 52.
    direction : array of {-1, 0, 1}, broadcast against ``x``
        Down, to nearest (ties to even), up.
    """
    direction = np.asarray(direction, np.int8)
    return _rounding()(np.asarray(x, np.float64), np.int64(53 - bits), direction)


@functools.cache
def _rounding():
    """The ufunc behind :func:`round_to`: a compiled one where Numba can be installed."""

    def rounded(x, cut, direction):
        # Working on the 64 bits themselves: adding to the magnitude and cutting the low bits off
        # rounds, and what is added decides the direction. A carry goes into the exponent, as it
        # must.
        pattern = np.float64(x).view(np.int64)
        low = (np.int64(1) << cut) - 1
        if direction == 0:
            pattern += (low >> 1) + ((pattern >> cut) & 1)
        elif (direction > 0) == (pattern >= 0):
            pattern += low
        return np.int64(pattern & ~low).view(np.float64)

    try:
        from numba import vectorize
    except ImportError:
        return np.vectorize(rounded, otypes=[np.float64])
    return vectorize(["float64(float64, int64, int8)"])(rounded)


class Arithmetic:
    """Many rounded computations at once; arrays are of shape (S, T, ...channels).

    Parameters
    ----------
    profile : Profile
    samples : int
        S.
    seed : int
    """

    def __init__(self, profile: Profile, samples: int = SAMPLES, seed: int = 0):
        self.profile = profile
        self.S = samples
        # What is computed with as many bits in two profiles is allowed the same in both.
        self.rng = np.random.default_rng([seed, profile.state])
        self.activations = profile.activations - profile.coarsening
        self.accumulators = profile.accumulators - profile.coarsening
        self.state = profile.state - profile.coarsening

    def directions(self, *channels: int) -> NDArray:
        """Directions (S, 1, ...channels): one per sample and channel, the same at every time."""
        return self.draw(self.S, 1, *channels)

    def draw(self, *shape: int) -> NDArray:
        """Directions of any shape."""
        return self.rng.integers(-1, 2, shape, np.int8)

    def rounded(self, x: NDArray, bits: int | None = None) -> NDArray:
        """``x`` of shape (S, T, ...) rounded; to the activations' bits by default."""
        return round_to(x, bits or self.activations, self.directions(*x.shape[2:]))

    def function(self, f: Callable[[NDArray], NDArray], x: NDArray, bits: int) -> NDArray:
        """An elementary function, wrong by up to two units in the last place.

        That is what good vectorised libraries promise for exp and tanh in single precision.
        """
        return self.rounded(f(x), bits - 1)

    def orders(self, terms: int) -> NDArray:
        """An order of summation for each sample, (S, terms): correct programs have their own."""
        return self.rng.permuted(np.tile(np.arange(terms), (self.S, 1)), axis=1)

    def dot(self, x: NDArray, w: NDArray, bits: int | None = None) -> NDArray:
        """``x @ w`` for x (S, T, K) and w (K, N), partial sums rounded, in an order of each sample.

        Half of the samples have no fused multiply-add and round every product as well.
        """
        bits = bits or self.accumulators
        (K, N), half = w.shape, self.S // 2
        orders = self.orders(K)
        x, w = np.take_along_axis(x, orders[:, None], axis=2), w[orders]
        total = np.zeros((*x.shape[:2], N))
        for k in range(K):
            term = x[:, :, k, None] * w[:, None, k]
            term[:half] = round_to(term[:half], bits, self.draw(half, 1, N))
            total = self.rounded(total + term, bits)
        return total
