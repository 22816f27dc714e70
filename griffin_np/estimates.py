"""Means, ratios and quantiles from running sums; standard errors take documents as drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Means", "Quantiles", "exp", "times"]


class Means:
    r"""Means over tokens of several values, and their standard errors, from running sums.

    Tokens of one document are not independent: a text that is hard to predict is hard all along.
    Taking them for independent would make the error too small, so documents are the units that are
    drawn, and the mean is the ratio of two sums over them, of values :math:`S_d` and of tokens
    :math:`n_d`. With D documents, its variance is estimated by that of a ratio of clusters
    (Cochran, Sampling Techniques, 1977, section 6.3 and chapter 9)

    .. math:: \frac{D}{D - 1} \frac{\sum_d (S_d - m n_d)^2}{(\sum_d n_d)^2}

    which supposes nothing about how tokens of a document hang together. One document tells nothing
    of how documents differ, so there is no error then, and with few it is rough.
    """

    def __init__(self) -> None:
        self.documents = 0
        self._open: dict[int, tuple[NDArray, int]] = {}  # sums and tokens of unfinished documents
        self._total: NDArray | float = 0.0
        self.tokens = 0
        # Sums over finished documents of r^2, r n and n^2, where r = S - c n, and c is the first
        # document's mean: so close to m that little cancels when m takes its place.
        self._center: NDArray | None = None
        self._rr: NDArray | float = 0.0
        self._rn: NDArray | float = 0.0
        self._nn = 0

    def add(self, documents: NDArray, values: NDArray) -> None:
        """Values (M, n) of n tokens, and the document of each."""
        if not len(documents):
            return
        self._total = self._total + values.sum(axis=1)
        self.tokens += len(documents)
        # The tokens of a document stand together.
        starts = np.flatnonzero(np.diff(documents, prepend=-1))
        ends = [*starts[1:].tolist(), len(documents)]
        for start, end in zip(starts.tolist(), ends, strict=True):
            document = int(documents[start])
            before, n = self._open.get(document, (0, 0))
            self._open[document] = before + values[:, start:end].sum(axis=1), n + end - start

    def close(self, documents: Sequence[int] | None = None) -> None:
        """These documents, or all, are complete."""
        for document in list(self._open) if documents is None else documents:
            if document not in self._open:  # it had no token
                continue
            total, n = self._open.pop(document)
            if self._center is None:
                self._center = total / n
            r = total - self._center * n
            self._rr = self._rr + r * r
            self._rn = self._rn + r * n
            self._nn += n * n
            self.documents += 1

    def mean(self) -> list[float]:
        return np.divide(self._total, self.tokens).tolist()

    def standard_error(self) -> list[float | None]:
        if self.documents < 2 or self._center is None:
            return [None] * np.size(self._total)
        shift = self._total / self.tokens - self._center
        spread = self._rr - 2 * shift * self._rn + shift**2 * self._nn
        correction = self.documents / (self.documents - 1)
        variance = correction * np.maximum(spread, 0) / self.tokens**2
        return np.sqrt(variance).tolist()


class Quantiles:
    """Quantiles of values of at least 0, from a histogram whose bins are 0.23 % wide."""

    LOW, HIGH, BINS = -12, 4, 1000  # powers of ten, and bins in each; below there is only 0

    def __init__(self) -> None:
        self._counts = np.zeros(1 + (self.HIGH - self.LOW) * self.BINS, np.int64)
        self.largest = 0.0

    def add(self, values: NDArray) -> None:
        self.largest = max(self.largest, float(values.max(initial=0)))
        power = np.log10(np.maximum(values, 10.0 ** (self.LOW - 1)))
        bins = np.floor((power - self.LOW) * self.BINS).astype(np.int64) + 1
        bins = np.clip(bins, 0, len(self._counts) - 1)
        self._counts += np.bincount(bins, minlength=len(self._counts))

    def quantile(self, share: float) -> float:
        """The middle of the bin up to which there is this share of all values."""
        cumulative = np.cumsum(self._counts)
        bin_ = int(np.searchsorted(cumulative, share * cumulative[-1]))
        middle = 10 ** (self.LOW + (bin_ - 0.5) / self.BINS) if bin_ else 0.0
        return float(min(middle, self.largest))


def exp(value: float) -> float:
    """``e^value``; infinite where it is too large for a float."""
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def times(factor: float, error: float | None) -> float | None:
    """A standard error times a factor; None stays."""
    return None if error is None else factor * error
