"""AVX-VNNI: the dot instruction on 256 bits, as laptops since Alder Lake have it."""

from griffin_kernels.cpu.isa.common import Words

__all__ = ["TILE_ROWS", "emit_int4", "emit_int8"]

TILE_ROWS = 2


def dot(w: Words, total, weights, activations):
    """``vpdpbusd``: four products for every lane, added to ``total``."""
    return w.call("llvm.x86.avx512.vpdpbusd.256", w.ints, total, weights, activations)


def emit_int8(builder, weights, rows, corrections):
    """Products of one group of int8 weights."""
    w = Words(builder, 8)
    return w.products(dot, w.int8_parts, weights, rows, corrections)


def emit_int4(builder, weights, rows, corrections):
    """Products of one group of int4 weights."""
    w = Words(builder, 8)
    return w.products(dot, w.int4_parts, weights, rows, corrections)
