"""Weights in the layout that the kernels read: panels of 32 outputs, four inputs side by side.

======== ============================== =============================================
kind     layout                         bytes
======== ============================== =============================================
float32  ``[N/32][K][32]``              float32
widened  ``[N/32][K][32]``              bfloat16, computed with as float32
bfloat16 ``[N/32][K/2][32][2]``         bfloat16
int8     ``[N/32][K/64][16][32][4]``    q + 128, and 32 scales after each ``[16][32][4]``
int4     ``[N/32][K/64][16][16][4]``    q + 8, low halves outputs 0 to 15, high halves 16 to 31;
                                        32 scales after each ``[16][16][4]``
======== ============================== =============================================

Scales are bfloat16, one for each output and 64 inputs. N is padded with zeros to a multiple of 64
and K too.
"""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from griffin_kernels.cpu.isa.common import GROUP, PANEL
from griffin_kernels.cpu.matmul import BFLOAT16, BITS, FLOAT32, GROUP_BYTES, INT4, INT8, WIDENED
from griffin_kernels.cpu.quantise import dequantise, quantise

__all__ = ["aligned", "pack", "padded", "unpack"]

SLAB = 4096
"""Outputs that are packed at a time."""

SCALE_BYTES = 2 * PANEL


def aligned(size: int, dtype=np.uint8) -> NDArray:
    """Uninitialised memory that starts on a cache line."""
    dtype = np.dtype(dtype)
    raw = np.empty(size * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * dtype.itemsize].view(dtype)


def padded(weights: NDArray, outputs: NDArray | None, inputs: NDArray | None) -> NDArray:
    """Weights (N, K) with rows and columns taken from the given places; -1 is a zero."""
    for axis, places in enumerate((outputs, inputs)):
        if places is None:
            continue
        taken = np.take(weights, np.maximum(places, 0), axis=axis)
        taken[places < 0 if axis == 0 else (slice(None), places < 0)] = 0
        weights = taken
    return weights


def pack(
    weights: NDArray, kind: int, outputs: NDArray | None = None, inputs: NDArray | None = None
) -> NDArray:
    """Pack a matrix.

    Parameters
    ----------
    weights : array of shape (N, K), float32 or bfloat16
        Outputs first; any strides.
    kind : int
        Of :mod:`griffin_kernels.cpu.matmul`.
    outputs, inputs : array of int, optional
        Which output, or input, stands at each place of the packed matrix, -1 for none. Their
        lengths are multiples of 64. By default all in order.

    Returns
    -------
    array, uint8

    Raises
    ------
    ParameterError
        If weights that are to be quantised are not finite.
    """
    places = np.arange(len(weights)) if outputs is None else outputs
    N, K = len(places), weights.shape[1] if inputs is None else len(inputs)
    size = K // GROUP * GROUP_BYTES[kind]  # of a panel
    data = aligned(N // PANEL * size)
    for first in range(0, N, SLAB):
        last = min(first + SLAB, N)
        part = slice(first, last)
        rows = places[part]
        whole = rows[0] >= 0 and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
        slab = (
            padded(weights[rows[0] : rows[0] + len(rows)], None, inputs)
            if whole
            else padded(weights, rows, inputs)
        )
        to = data[first // PANEL * size : last // PANEL * size]
        if kind not in (INT8, INT4):
            to[:] = _laid_out(slab, kind)
            continue
        codes, scales = quantise(_real(slab), BITS[kind])
        groups = to.reshape(-1, K // GROUP, GROUP_BYTES[kind])
        groups[:, :, :-SCALE_BYTES] = _laid_out(codes, kind).reshape(*groups.shape[:2], -1)
        bits = scales.view(np.uint16).reshape(-1, PANEL, K // GROUP).transpose(0, 2, 1)
        groups[:, :, -SCALE_BYTES:] = np.ascontiguousarray(bits).view(np.uint8)
    return data


def _real(weights: NDArray) -> NDArray:
    known = weights.dtype in (np.float32, ml_dtypes.bfloat16)
    return weights if known else weights.astype(np.float32)


def _laid_out(slab: NDArray, kind: int) -> NDArray:
    """Bytes of a slab (N, K) of weights or codes."""
    words: NDArray
    K = slab.shape[1]
    if kind == FLOAT32:
        words = np.asarray(slab, np.float32).view(np.uint32).reshape(-1, PANEL, K)
    elif kind == WIDENED:
        words = _bfloat16(slab).view(np.uint16).reshape(-1, PANEL, K)
    elif kind == BFLOAT16:
        words = np.ascontiguousarray(_bfloat16(slab)).view(np.uint32).reshape(-1, PANEL, K // 2)
    else:
        words = np.ascontiguousarray(slab).view(np.uint32).reshape(-1, PANEL, K // 4)
        if kind == INT4:
            words = words[:, : PANEL // 2] | (words[:, PANEL // 2 :] << np.uint32(4))
    return np.ascontiguousarray(words.transpose(0, 2, 1)).reshape(-1).view(np.uint8)


def _bfloat16(slab: NDArray) -> NDArray:
    return slab.astype(ml_dtypes.bfloat16, copy=False)


def unpack(data: NDArray, kind: int, N: int, K: int) -> NDArray:
    """The weights (N, K) that a packed matrix stands for, padding included, as float32."""
    if kind == FLOAT32:
        return data.view(np.float32).reshape(-1, K, PANEL).transpose(0, 2, 1).reshape(N, K).copy()
    if kind == WIDENED:
        halves = data.view(ml_dtypes.bfloat16).reshape(-1, K, PANEL)
        return halves.transpose(0, 2, 1).reshape(N, K).astype(np.float32)
    if kind == BFLOAT16:
        pairs = data.view(np.uint32).reshape(-1, K // 2, PANEL).transpose(0, 2, 1)
        halves = np.ascontiguousarray(pairs).view(ml_dtypes.bfloat16)
        return halves.reshape(N, K).astype(np.float32)
    groups = data.reshape(N // PANEL, K // GROUP, GROUP_BYTES[kind])
    data = np.ascontiguousarray(groups[:, :, :-SCALE_BYTES]).reshape(-1)
    bits = np.ascontiguousarray(groups[:, :, -SCALE_BYTES:]).view(np.uint16).transpose(0, 2, 1)
    scales = np.ascontiguousarray(bits).reshape(N, K // GROUP).view(ml_dtypes.bfloat16)
    if kind == INT8:
        words = data.view(np.uint32).reshape(-1, K // 4, PANEL).transpose(0, 2, 1)
    else:
        both = data.view(np.uint32).reshape(-1, K // 4, PANEL // 2).transpose(0, 2, 1)
        low = np.uint32(0x0F0F0F0F)
        words = np.concatenate([both & low, (both >> np.uint32(4)) & low], axis=1)
    codes = np.ascontiguousarray(words).reshape(-1).view(np.uint8).reshape(N, K)
    return dequantise(codes, scales, BITS[kind])
