"""Batches of any form in one of few shapes, because XLA compiles a program for each."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Layout", "bucket", "padded_rows"]


class Layout:
    """Where the real tokens of a batch stand, and where they go: to the left of padded rows.

    Parameters
    ----------
    positions : array of shape (B, T)
        -1 is padding, anywhere.
    data, sequence : int
        Devices that share rows, and that share tokens.

    Attributes
    ----------
    count : array of shape (B,)
        Real tokens of each row.
    shape : tuple of int
        Rows and tokens of the padded batch: powers of two, or multiples of the devices that share
        them. One token is not shared.
    """

    def __init__(self, positions: NDArray, data: int = 1, sequence: int = 1):
        real = positions >= 0
        self.count = real.sum(axis=1)
        longest = int(self.count.max(initial=0))
        tokens = _multiple(bucket(longest), sequence) if longest > 1 else 1
        self.shape = (padded_rows(len(positions), data), tokens)
        self._given = positions.shape
        self._rows, self._columns = np.nonzero(real)  # row by row, so ranks count up within each
        first = np.cumsum(self.count) - self.count
        self._ranks = np.arange(len(self._rows)) - first[self._rows]

    def gather(self, array: NDArray, fill: int) -> NDArray:
        """(B, T, ...) to the padded batch."""
        padded = np.full((*self.shape, *array.shape[2:]), fill, array.dtype)
        padded[self._rows, self._ranks] = array[self._rows, self._columns]
        return padded

    def scatter(self, padded: NDArray) -> NDArray:
        """Inverse of :meth:`gather`; padding becomes 0."""
        array = np.zeros((*self._given, *padded.shape[2:]), padded.dtype)
        array[self._rows, self._columns] = padded[self._rows, self._ranks]
        return array


def padded_rows(batch: int, data: int = 1) -> int:
    """Rows of a batch that ``data`` devices share."""
    return _multiple(bucket(batch), data)


def bucket(size: int) -> int:
    """The power of two that is at least ``size`` and 1."""
    return 1 << max(size - 1, 0).bit_length()


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of
