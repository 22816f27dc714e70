"""Any processor: bytes are cut out of the lanes with shifts, multiplied and added in 32 bits."""

from griffin_kernels.cpu.isa.common import Words

__all__ = ["TILE_ROWS", "emit_int4", "emit_int8"]

TILE_ROWS = 2


def byte_of(w: Words, x, number: int, signed: bool):
    """Byte ``number`` of every lane."""
    top = w.b.shl(x, w.const(24 - 8 * number)) if number < 3 else x
    return (w.b.ashr if signed else w.b.lshr)(top, w.const(24))


def dot(w: Words, total, weights, activations):
    """Four products for every lane, weights unsigned and activations signed, added to ``total``."""
    for i in range(4):
        u, a = byte_of(w, weights, i, signed=False), byte_of(w, activations, i, signed=True)
        total = w.b.add(total, w.b.mul(u, a))
    return total


def emit_int8(builder, weights, rows, corrections):
    """Products of one group of int8 weights."""
    w = Words(builder, 16)
    return w.products(dot, w.int8_parts, weights, rows, corrections)


def emit_int4(builder, weights, rows, corrections):
    """Products of one group of int4 weights."""
    w = Words(builder, 16)
    return w.products(dot, w.int4_parts, weights, rows, corrections)
