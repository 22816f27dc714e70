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

    The high halves of the bytes stay where they are, sixteen times too large, and the products are
    shifted back: exact, and a shift less for every sixty-four weights.
    """
    w = Words(builder, 16)
    low, high, four = w.const(0x0F0F0F0F), w.const(0xF0F0F0F0 - (1 << 32)), w.const(4)

    def halves(pointer, q):
        packed = w.load(pointer, 64 * q)
        return [builder.and_(packed, low), builder.and_(packed, high)]

    zero = [ir.Constant(I32, 0) for _ in corrections]
    totals = w.products(dot, halves, weights, rows, zero)
    result = []
    for i, total in enumerate(totals):
        exact = builder.ashr(total, four) if i % 2 else total
        result.append(builder.add(exact, w.splat(corrections[i // 2])))
    return result
