"""How far from the truth may a correct implementation be?

The computation is repeated with every intermediate result rounded to the precision that a profile
gives it (:mod:`griffin_conformance.simulation`). A correct program of that precision is one such
computation; many of them, with rounding directions drawn at random, show how far apart correct
programs are. What lies further from the oracle than a fixed multiple of that is wrong.
"""

import contextlib
import contextvars
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.rounding import PROFILES, Profile

__all__ = ["EDGES", "FACTOR", "Comparison", "Envelope", "Series", "Ulps", "chain_bound",
           "longest_chain", "norms", "the_spread_alone_counts"]  # fmt: skip

FACTOR = 4.0
"""Allowed over the largest deviation among samples; one number for the whole project.

``python -m griffin_conformance.calibration`` shows what it was chosen from.
"""


EDGES = (0.0, *(2.0**k for k in range(-2, 25)))
"""Upper edges of the classes in which errors in ULP are counted; a last class is beyond."""

_spread_alone = contextvars.ContextVar("spread_alone", default=False)


@contextlib.contextmanager
def the_spread_alone_counts():
    """Within it, what is allowed follows from how far samples lie apart, and not from the truth.

    So a backend can be held against another truth than the samples' own.
    """
    token = _spread_alone.set(True)
    try:
        yield
    finally:
        _spread_alone.reset(token)


def norms(x: NDArray) -> NDArray:
    """Euclidean norm over the last axis of x (..., T, N): one number per position."""
    # Scaled, because squares of very large or small numbers leave the range of float64.
    largest = np.abs(x).max(axis=-1, initial=0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)
    return scale * np.sqrt(np.sum(np.square(x / scale[..., None]), axis=-1))


@dataclass(frozen=True)
class Series:
    """The channel of a wrong array that is farthest off, over its first axis.

    Attributes
    ----------
    name : str
    channel : int
    truth, found, allowed : array of shape (T,)
    """

    name: str
    channel: int
    truth: NDArray
    found: NDArray
    allowed: NDArray


@dataclass(frozen=True)
class Comparison:
    """One array of a backend against what it should be.

    Attributes
    ----------
    name : str
    ratio : float
        Largest observed / allowed over positions; above 1 is wrong. Infinite for NaN.
    position : int
        Entry of the first axis where that is.
    observed, allowed : float
        Distances there.
    ulps : tuple of float
        50th, 99th, 99.9th percentile and maximum of the error of single values, in units in the
        last place of the profile at the scale of the largest value in that position.
    compared : bool
        Otherwise there was nothing to compare, and the name says what is missing.
    counts : tuple of int
        Single values by their error in ULP, in the classes of :data:`EDGES`.
    series : Series, optional
        Where it is wrong: how that came about.
    clause : str
        The clause that is violated if it is wrong, where the check knows.
    """

    name: str
    ratio: float
    position: int
    observed: float = 0.0
    allowed: float = 0.0
    ulps: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    compared: bool = True
    counts: tuple[int, ...] = ()
    series: Series | None = None
    clause: str = ""

    @property
    def passed(self) -> bool:
        return self.ratio <= 1

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.ratio:.3g} x the allowed difference at entry {self.position} "
            f"(observed {self.observed:.3g}, allowed {self.allowed:.3g}; "
            f"errors in ULP: median {self.ulps[0]:.2g}, 99 % {self.ulps[1]:.2g}, "
            f"99.9 % {self.ulps[2]:.2g}, largest {self.ulps[3]:.2g})"
        )


@dataclass
class Ulps:
    """A histogram of errors in units in the last place, and the largest.

    Attributes
    ----------
    counts : tuple of int
        Values in each class of :data:`EDGES`.
    most : float
    """

    counts: tuple[int, ...] = (0,) * (len(EDGES) + 1)
    most: float = 0.0

    def add(self, other: "Comparison | Ulps") -> None:
        """Count the values of a comparison or another histogram too."""
        self.counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        self.most = max(self.most, other.ulps[3] if isinstance(other, Comparison) else other.most)

    def percentile(self, percent: float) -> float:
        """Upper edge of the class that this share of values does not go beyond."""
        within = np.cumsum(self.counts) >= percent / 100 * sum(self.counts)
        place = int(np.argmax(within))
        return min(EDGES[place], self.most) if place < len(EDGES) else self.most

    def to_dict(self) -> dict:
        """As JSON values; the histogram has upper edge and number of each class that has any."""
        edges = [*EDGES, float("inf")]
        sizes = (self.percentile(99.9), self.most)
        percentile, most = (s if math.isfinite(s) else str(s) for s in sizes)
        return {
            "values": sum(self.counts),
            "99.9": percentile,
            "max": most,
            "histogram": [[str(e), n] for e, n in zip(edges, self.counts, strict=True) if n],
        }


@dataclass(frozen=True)
class Envelope:
    """The truth about one array, and how far from it is right.

    Attributes
    ----------
    truth : array of shape (T, N)
    allowed : array of shape (T,)
        Largest admitted distance from the truth at each position, as a Euclidean norm.
    strict : array of shape (T,)
        The same without algorithms that are admitted although they lose accuracy.
    unit : float
        Unit roundoff of the array's precision.
    tiny : float
        Its smallest normal number.
    """

    truth: NDArray
    allowed: NDArray
    strict: NDArray
    unit: float
    tiny: float

    @classmethod
    def of(
        cls,
        truth: NDArray,
        samples: NDArray,
        profile: Profile,
        unit: float | None = None,
        lossy: NDArray | None = None,
    ) -> "Envelope":
        """From the truth (T, ...) and samples (S, T, ...) of it.

        Results are never held to less than the unit roundoff times the truth's norm, nor to less
        than the smallest normal number. The unit is that of the profile's activations by default;
        ``lossy`` (S,) says which samples lose accuracy by their algorithm.
        """
        unit = unit or profile.unit
        truth = np.asarray(truth, np.float64)
        truth = truth.reshape(len(truth), math.prod(truth.shape[1:]))
        samples = samples.reshape(len(samples), *truth.shape)
        spread = norms(samples - (samples.mean(axis=0) if _spread_alone.get() else truth))
        exact = spread if lossy is None else spread[~lossy]
        spread, exact = (s.max(axis=0) * profile.shrink for s in (spread, exact))
        floor = np.maximum(unit * norms(truth), profile.tiny * max(truth.shape[-1], 1) ** 0.5)
        allowed, strict = (FACTOR * np.maximum(s, floor) for s in (spread, exact))
        return cls(truth, allowed, strict, unit, profile.tiny)

    def compare(self, name: str, found: NDArray) -> Comparison:
        """Hold an array (T, ...) against truth and allowance.

        Raises
        ------
        ValueError
            If its shape is another one.
        """
        return self._hold(name, self._shaped(name, found), self.truth, self.allowed)

    def between(self, name: str, found: NDArray, expected: NDArray) -> Comparison:
        """Hold two arrays that should be one against each other.

        Used by laws that compare a backend with itself. Both may differ from the truth by what is
        allowed, but in a correct program they do so by nearly the same rounding. A backend that
        keeps its digits is held to the strict allowance; one that loses some by its algorithm may
        lose them here and there as well, but not more than it is seen to lose in ``expected``.
        """
        found, expected = self._shaped(name, found), self._shaped(name, expected)
        own = norms(expected - self.truth) / self.allowed
        own = np.where(np.isfinite(own), own, 1.0)
        share = min(1.0, 2 * float(own.max(initial=0)))
        return self._hold(name, found, expected, np.maximum(self.strict, share * self.allowed))

    def _shaped(self, name: str, array: NDArray) -> NDArray:
        array = np.asarray(array, np.float64)
        if array.size != self.truth.size or array.shape[:1] != self.truth.shape[:1]:
            raise ValueError(f"{name} has shape {array.shape}, expected {self.truth.shape}")
        return array.reshape(self.truth.shape)

    def _hold(self, name: str, found: NDArray, expected: NDArray, allowed: NDArray) -> Comparison:
        if not found.size:
            return Comparison(name, 0.0, 0)
        with np.errstate(invalid="ignore"):
            error = found - expected
        observed = norms(error)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(observed == 0, 0.0, observed / allowed)
        ratios = np.where(np.isfinite(observed), ratios, np.inf)
        worst = int(np.argmax(ratios))
        scale = np.maximum(np.abs(self.truth).max(axis=-1, keepdims=True, initial=0), self.tiny)
        ulps = np.nan_to_num(np.abs(error) / (scale * 2 * self.unit), nan=np.inf)
        p50, p99, p999, most = np.percentile(ulps, [50, 99, 99.9, 100], method="lower").tolist()
        classes = np.searchsorted(EDGES, ulps.ravel())
        counts = np.bincount(classes, minlength=len(EDGES) + 1)
        series = None
        if not ratios[worst] <= 1:
            wrong = np.nan_to_num(np.abs(error[worst]), nan=np.inf)
            channel = int(np.argmax(wrong))
            series = Series(name, channel, expected[:, channel], found[:, channel], allowed)
        return Comparison(
            name, float(ratios[worst]), worst, float(observed[worst]),
            float(allowed[worst]), (p50, p99, p999, most), counts=tuple(counts.tolist()),
            series=series,
        )  # fmt: skip

    def argmax_is_clear(self) -> NDArray:
        """Positions (T,) where every correct program finds the same largest value.

        Two values can move towards each other by what is allowed for the whole position.
        """
        if self.truth.shape[1] < 2:
            return np.ones(len(self.truth), bool)
        best = np.partition(self.truth, -2, axis=-1)
        return best[:, -1] - best[:, -2] > 2 * self.allowed

    def rows(self, index) -> "Envelope":
        """The same for some positions."""
        return replace(
            self,
            truth=self.truth[index],
            allowed=self.allowed[index],
            strict=self.strict[index],
        )


def chain_bound(chain: int, dtype: str) -> float:
    """The textbook bound on the relative error of ``chain`` roundings in a row.

    ``n u / (1 - n u)`` (Higham 2002, lemma 3.1): for comparisons of single formulas in tests,
    where nothing need be sampled.

    Parameters
    ----------
    chain : int
        Roundings that any one result goes through.
    dtype : {"float32", "float64", "bfloat16"}
    """
    total = chain * PROFILES[dtype].unit
    return total / (1 - total)


def longest_chain(config, tokens: int = 1) -> int:
    """Roundings that a logit may go through, one after the other, in a model of this configuration.

    Sums of n terms count n, elementary functions 2, and the recurrence once for every token.

    Parameters
    ----------
    config : object
        Anything with the fields of a ``GriffinConfig``.
    tokens : int
        Of the longest document.
    """
    D, R, E = config.width, config.lru_width, config.mlp_width
    d, G = config.width // config.num_heads, config.lru_width // config.num_heads
    norm = D + 6
    mlp = norm + (D + 1) + 12 + (E + 2)
    kinds = {
        "recurrent": norm + (D + 1) + (config.conv_width + 1) + (G + 6) + 12 + 2 * tokens + R + 2,
        "attention": norm + D + 6 + d + 4 + 2 * min(tokens, config.window + 1) + 2 + D + 2,
    }
    return 1 + sum(kinds[kind] + mlp for kind in config.block_types) + norm + D + 5
