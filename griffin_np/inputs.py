"""What a call may pass: tokens, positions and labels, checked before any engine sees them."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from griffin_np.errors import PositionError

__all__ = ["POSITION_LIMIT", "check_positions", "check_tokens", "integers"]

POSITION_LIMIT = 2**31


def check_positions(positions: NDArray, start: NDArray) -> None:
    """Refuse positions that no text can have.

    Parameters
    ----------
    positions : array of shape (B, T)
    start : array of shape (B,)
        Each row's next position.

    Raises
    ------
    PositionError
        Naming the first wrong row and column, and what was expected there.
    """
    for row, (steps, follow) in enumerate(zip(positions, start, strict=True)):
        columns = np.flatnonzero(steps != -1)
        real = steps[columns]
        expected = np.concatenate([[follow], real[:-1] + 1]) if len(real) else real
        wrong = np.flatnonzero(((real != 0) & (real != expected)) | (real >= POSITION_LIMIT))
        if wrong.size:
            i = wrong[0]
            if real[i] >= POSITION_LIMIT and real[i] == expected[i]:
                raise PositionError(
                    f"position {real[i]} in row {row}, column {columns[i]}: "
                    f"positions must be below 2^31 = {POSITION_LIMIT}"
                )
            raise PositionError(
                f"position {real[i]} in row {row}, column {columns[i]}: expected {expected[i]} to "
                f"continue, 0 to start a document, or -1 for padding"
            )


def check_tokens(tokens: NDArray, positions: NDArray, vocab_size: int) -> NDArray:
    """Tokens with 0 at padding, where ids are never read.

    Raises
    ------
    PositionError
        If a real token is outside the vocabulary; names row and column.
    """
    wrong = (positions >= 0) & ((tokens < 0) | (tokens >= vocab_size))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise PositionError(
            f"token {tokens[row, column]} in row {row}, column {column} is outside the vocabulary "
            f"[0, {vocab_size})"
        )
    return np.where(positions >= 0, tokens, 0)


def integers(values: ArrayLike, what: str) -> NDArray:
    """``values`` as an int64 array of shape (B, T), always a copy.

    Raises
    ------
    PositionError
        If they are no integers or have another number of dimensions.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        raise PositionError(
            f"{what} must be rows of one length; pad shorter ones and give padding position -1"
        ) from None
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise PositionError(f"{what} must fit into 64 signed bits, got {array.max()}")
    if array.ndim == 2 and array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise PositionError(f"{what} must be integers, got {array.dtype}")
    if array.ndim != 2:
        raise PositionError(
            f"{what} must have shape (B, T), got {array.shape}; a single row is [[...]]"
        )
    return array.astype(np.int64)
