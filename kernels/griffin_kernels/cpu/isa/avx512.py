"""AVX-512 VNNI: sixty-four products of unsigned weights and signed activations at a time."""

from llvmlite import ir

from griffin_kernels.cpu.isa.common import I32, Words

__all__ = ["TILE_ROWS", "emit_int4", "emit_int8"]

TILE_ROWS = 8


def dot(w: Words, total, weights, activations):
    """``vpdpbusd``: four products for every lane, added to ``total``."""
    return w.call("llvm.x86.avx512.vpdpbusd.512", w.ints, total, weights, activations)


def emit_int8(builder, weights, rows, corrections):
    """Products of one group of int8 weights."""
    w = Words(builder, 16)
    return w.products(dot, w.int8_parts, weights, rows, corrections)


def emit_int4(builder, weights, rows, corrections):
    """Products of one group of int4 weights.

    A whole byte is its low half plus sixteen times its high half, so products of whole bytes, less
    those of the low halves, are sixteen times those of the high halves: all exact, and the high
    halves need never be taken out.
    """
    w = Words(builder, 16)
    low, four = w.const(0x0F0F0F0F), w.const(4)

    def low_and_whole(pointer, q):
        whole = w.load(pointer, 64 * q)
        return [builder.and_(whole, low), whole]

    totals = w.products(dot, low_and_whole, weights, rows, [ir.Constant(I32, 0) for _ in rows])
    result = []
    for r, correction in enumerate(corrections):
        of_low, of_whole = totals[2 * r : 2 * r + 2]
        of_high = builder.ashr(builder.sub(of_whole, of_low), four)
        result += [builder.add(total, w.splat(correction)) for total in (of_low, of_high)]
    return result
