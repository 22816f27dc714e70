"""Products of activations with packed weights: one layout, one order of sums, any number of rows.

A panel holds 32 outputs. Its sums grow in ascending order of inputs, a group of 64 at a time for
integers: exact int32 products inside a group, then one fused multiply-add with the product of the
two scales. The sums of a row do not depend on how many rows there are, so decoding (one row)
and prefill (many) give the same bits.
"""

import numpy as np
from numba import njit

from griffin_kernels.cpu.isa import amx
from griffin_kernels.cpu.isa.common import GROUP, PANEL
from griffin_kernels.cpu.simd import (
    bits_and,
    bits_or,
    bits_xor,
    broadcast,
    load_bytes,
    shift_right,
    store_bytes,
)
from griffin_kernels.cpu.tiles import (
    TILE_ROWS,
    add_bfloat16,
    add_float32,
    add_int4,
    add_int8,
    add_widened,
    block_zeros,
    scale_block,
    store_block,
    store_tile,
    tile_config,
    tile_dot_bfloat16,
    tile_dot_int8,
    tile_load,
    tile_release,
    tile_store,
    tile_zero,
    zeros_of_one,
    zeros_of_rows,
)

__all__ = [
    "BFLOAT16",
    "BITS",
    "BLOCK_ROWS",
    "BYTES_PER_INPUT",
    "FLOAT32",
    "GROUP_BYTES",
    "INT4",
    "INT8",
    "TILE_LAYOUT",
    "WIDENED",
    "product",
    "scratch_bytes",
]

FLOAT32, BFLOAT16, INT8, INT4, WIDENED = range(5)
"""Kinds of weights; WIDENED are bfloat16 that are computed with as float32, activations too."""

BITS = (32, 16, 8, 4, 16)
"""Bits of a weight, by kind."""

GROUP_BYTES = (8192, 4096, 2048 + 64, 1024 + 64, 4096)
"""Bytes of 64 inputs of a panel, by kind. Those of integers end with their 32 scales, so that one
stream of memory is read and not two: that is 7 % faster where memory is what limits."""

BYTES_PER_INPUT = (4, 2, 1, 1, 4)
"""Bytes of an activation, by kind of the weights that it meets."""

BLOCK_ROWS = 16
"""Rows whose scales stand side by side; buffers of rows are padded to a multiple of it."""

SIGNS, LOW_HALVES, EIGHTS = np.int32(-0x7F7F7F80), np.int32(0x0F0F0F0F), np.int32(0x08080808)
"""Words of four equal bytes: 128, 15 and 8."""

LINE = 64
"""Bytes of a row of activations that lie together; those of sixteen rows are a tile."""

TILE = BLOCK_ROWS * LINE

STRIP = TILE
"""Bytes of sixteen outputs of a group, as a tile holds them."""

TILE_LAYOUT = np.zeros(64, np.uint8)
"""Palette 1; eight tiles of sixteen rows of 64 bytes."""
TILE_LAYOUT[0] = 1
TILE_LAYOUT[16:32:2] = 64
TILE_LAYOUT[48:56] = 16


def scratch_bytes(inputs: int) -> int:
    """Bytes that :func:`product` needs for itself."""
    return 2 * STRIP + PANEL * inputs


@njit(error_model="numpy")
def line_of(row, lines):
    """Byte where a row of activations of that many lines starts."""
    return (row // BLOCK_ROWS * lines * BLOCK_ROWS + row % BLOCK_ROWS) * LINE


@njit(error_model="numpy")
def sum_floats(tile, kind, weights, w, activations, at, lines):
    """All inputs of a panel added to a tile: float32 or bfloat16 weights."""
    if kind == FLOAT32:
        for i in range(lines):
            tile = add_float32(tile, weights, w + i * 2048, activations, at + i * TILE)
    elif kind == WIDENED:
        for i in range(lines):
            tile = add_widened(tile, weights, w + i * 1024, activations, at + i * TILE)
    else:
        for i in range(lines):
            tile = add_bfloat16(tile, weights, w + i * 2048, activations, at + i * TILE)
    return tile


@njit(error_model="numpy")
def sum_integers(tile, kind, weights, w, activations, at, steps, corrections, g, groups):
    """All inputs of a panel added to a tile: int8 or int4 weights."""
    if kind == INT8:
        for i in range(groups):
            tile = add_int8(
                tile, weights, w + i * GROUP_BYTES[INT8], activations, at + i * TILE, steps,
                corrections, g + i * BLOCK_ROWS,
            )  # fmt: skip
    else:
        for i in range(groups):
            tile = add_int4(
                tile, weights, w + i * GROUP_BYTES[INT4], activations, at + i * TILE, steps,
                corrections, g + i * BLOCK_ROWS,
            )  # fmt: skip
    return tile


@njit(error_model="numpy")
def panel_in_registers(kind, weights, w, activations, steps, corrections, rows, K, out, o, ld):
    """One panel for all rows: a single row by itself, or TILE_ROWS at a time."""
    groups = K // GROUP
    lines = groups * BYTES_PER_INPUT[kind]
    integers = kind in (INT8, INT4)
    row = 0
    while row < rows:
        at, put = line_of(row, lines), o + row * ld
        g = row // BLOCK_ROWS * groups * BLOCK_ROWS + row % BLOCK_ROWS
        if rows == 1:
            one = zeros_of_one()
            if integers:
                one = sum_integers(one, kind, weights, w, activations, at, steps, corrections, g,
                                   groups)  # fmt: skip
            else:
                one = sum_floats(one, kind, weights, w, activations, at, lines)
            store_tile(one, out, put, ld)
            return
        many = zeros_of_rows()
        if integers:
            many = sum_integers(many, kind, weights, w, activations, at, steps, corrections, g,
                                groups)  # fmt: skip
        else:
            many = sum_floats(many, kind, weights, w, activations, at, lines)
        store_tile(many, out, put, ld)
        row += TILE_ROWS


@njit(error_model="numpy")
def unpack_panel(kind, weights, w, K, strips, at):
    """Weights of a panel as signed bytes, in two strips of tiles."""
    groups = K // GROUP
    sign, low = broadcast(SIGNS), broadcast(LOW_HALVES)
    for g in range(groups):
        for q in range(GROUP // 4):
            to = at + g * STRIP + q * 64
            if kind == INT8:
                source = w + g * GROUP_BYTES[INT8] + q * 128
                store_bytes(strips, to, bits_xor(load_bytes(weights, source), sign))
                store_bytes(
                    strips, to + groups * STRIP, bits_xor(load_bytes(weights, source + 64), sign)
                )
            else:
                both = load_bytes(weights, w + g * GROUP_BYTES[INT4] + q * 64)
                half = bits_and(both, low)
                store_bytes(strips, to, bits_xor(bits_or(half, sign) - broadcast(EIGHTS), sign))
                half = bits_and(shift_right(both, broadcast(np.int32(4))), low)
                store_bytes(
                    strips, to + groups * STRIP,
                    bits_xor(bits_or(half, sign) - broadcast(EIGHTS), sign),
                )  # fmt: skip


@njit(error_model="numpy")
def panel_of_integers_in_tiles(kind, weights, w, activations, steps, rows, K, out, o, ld, scratch):
    """Integer weights, sixteen rows at a time on AMX; the same exact products, the same sums."""
    groups = K // GROUP
    unpack_panel(kind, weights, w, K, scratch, 2 * STRIP)
    for row in range(0, rows, BLOCK_ROWS):
        g = row * groups
        for half in range(2):
            strip = 2 * STRIP + half * groups * STRIP
            block = block_zeros()
            for i in range(groups):
                spare = (i & 1) * STRIP
                tile_load(6, activations, row * K + i * TILE, LINE)
                tile_load(7, scratch, strip + i * STRIP, LINE)
                if i & 1:
                    tile_zero(1)
                    tile_dot_int8(1, 6, 7)
                    tile_store(1, scratch, spare, LINE)
                else:
                    tile_zero(0)
                    tile_dot_int8(0, 6, 7)
                    tile_store(0, scratch, spare, LINE)
                scales = w + (i + 1) * GROUP_BYTES[kind] - 64 + 32 * half
                block = scale_block(
                    block, scratch, spare, weights, scales, steps, g + i * BLOCK_ROWS
                )
            store_block(block, out, o + row * ld + 16 * half, ld)


@njit(error_model="numpy")
def panel_of_bfloat16_in_tiles(weights, w, activations, rows, K, out, o, ld):
    """bfloat16 weights on AMX; also for a single row, so that sums have one order."""
    lines = K // 32
    for row in range(0, rows, 2 * BLOCK_ROWS):
        at, put = row * 2 * K, o + row * ld
        tile_zero(0)
        tile_zero(1)
        if row + BLOCK_ROWS < rows:
            tile_zero(2)
            tile_zero(3)
            below = at + lines * TILE
            for i in range(lines):
                tile_load(4, activations, at + i * TILE, LINE)
                tile_load(6, weights, w + i * 2048, 128)
                tile_load(7, weights, w + i * 2048 + 64, 128)
                tile_load(5, activations, below + i * TILE, LINE)
                tile_dot_bfloat16(0, 4, 6)
                tile_dot_bfloat16(1, 4, 7)
                tile_dot_bfloat16(2, 5, 6)
                tile_dot_bfloat16(3, 5, 7)
            tile_store(2, out, put + BLOCK_ROWS * ld, 4 * ld)
            tile_store(3, out, put + BLOCK_ROWS * ld + 16, 4 * ld)
        else:
            for i in range(lines):
                tile_load(4, activations, at + i * TILE, LINE)
                tile_load(6, weights, w + i * 2048, 128)
                tile_load(7, weights, w + i * 2048 + 64, 128)
                tile_dot_bfloat16(0, 4, 6)
                tile_dot_bfloat16(1, 4, 7)
        tile_store(0, out, put, 4 * ld)
        tile_store(1, out, put + 16, 4 * ld)


@njit(error_model="numpy")
def product(
    kind, tiles, weights, first, last, K, activations, steps, corrections, rows, out, ld, layout,
    scratch,
):  # fmt: skip
    """Panels first to last - 1 of ``activations @ weights``, for all rows.

    Parameters
    ----------
    kind : int
        FLOAT32, BFLOAT16, INT8, INT4 or WIDENED.
    tiles : bool
        Use AMX; the same for all calls of a process.
    weights : array, uint8
        Packed by :mod:`griffin_kernels.cpu.pack`.
    first, last : int
        Panels of 32 outputs.
    K : int
        Inputs, a multiple of 64.
    activations : array, uint8
        Rows of K numbers in the type that the kind asks for, sixteen rows in turn, 64 bytes of
        each: byte b of row m stands at
        ``((m // 16 * lines + b // 64) * 16 + m % 16) * 64 + b % 64``, where ``lines`` is the
        number of 64 bytes in a row.
    steps, corrections : array, float32 and int32
        Of row m and group g at ``(m // 16 * groups + g) * 16 + m % 16``.
    rows : int
    out : array, float32
        ``out[m * ld + n]`` takes output ``32 * first + n`` of row m, with as many rows of padding.
    ld : int
    layout : array of shape (64,), uint8
        TILE_LAYOUT.
    scratch : array, uint8
        Of this thread, :func:`scratch_bytes` long.
    """
    size = K // GROUP * GROUP_BYTES[kind]
    integers = kind in (INT8, INT4)
    # Integer sums are the same everywhere; those of bfloat16 are AMX's own, for any number of rows.
    in_tiles = amx.COMPILED and tiles and (kind == BFLOAT16 or (integers and rows > TILE_ROWS))
    if in_tiles:
        tile_config(layout)
    for panel in range(first, last):
        w, o = panel * size, (panel - first) * PANEL
        if in_tiles and integers:
            panel_of_integers_in_tiles(
                kind, weights, w, activations, steps, rows, K, out, o, ld, scratch
            )
        elif in_tiles:
            panel_of_bfloat16_in_tiles(weights, w, activations, rows, K, out, o, ld)
        else:
            panel_in_registers(
                kind, weights, w, activations, steps, corrections, rows, K, out, o, ld
            )
    if in_tiles:
        tile_release()
