"""AVX-512 VNNI: sixty-four products of unsigned weights and signed activations at a time."""

from griffin_kernels.cpu.isa.common import QUADS, Words

__all__ = ["TILE_ROWS", "emit_int4", "emit_int8"]

TILE_ROWS = 8


def dot(w: Words, total, weights, activations):
    """``vpdpbusd``: four products for every lane, added to ``total``."""
    return w.call("llvm.x86.avx512.vpdpbusd.512", w.ints, total, weights, activations)


def emit_int8(builder, weights, rows, corrections):
    """Products of one group of int8 weights."""
    w = Words(builder, 16)
    totals = [w.splat(c) for c in corrections for _ in range(2)]
    for q in range(QUADS):
        halves = [w.load(weights, 128 * q), w.load(weights, 128 * q + 64)]
        for r, row in enumerate(rows):
            a = w.quad(row, q)
            for i, half in enumerate(halves):
                totals[2 * r + i] = dot(w, totals[2 * r + i], half, a)
    return totals


def emit_int4(builder, weights, rows, corrections):
    """Products of one group of int4 weights.

    The high halves of the bytes stay where they are, sixteen times too large, and the products are
    shifted back: exact, and a shift less for every sixty-four weights.
    """
    w = Words(builder, 16)
    totals = []
    for c in corrections:
        splat = w.splat(c)
        totals += [splat, builder.shl(splat, w.const(4))]
    low, high = w.const(0x0F0F0F0F), w.const(0xF0F0F0F0 - (1 << 32))
    for q in range(QUADS):
        packed = w.load(weights, 64 * q)
        halves = [builder.and_(packed, low), builder.and_(packed, high)]
        for r, row in enumerate(rows):
            a = w.quad(row, q)
            for i, half in enumerate(halves):
                totals[2 * r + i] = dot(w, totals[2 * r + i], half, a)
    return [builder.ashr(t, w.const(4)) if i % 2 else t for i, t in enumerate(totals)]
