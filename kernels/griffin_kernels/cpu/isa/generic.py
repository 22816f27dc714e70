"""Any processor: bytes are cut out of the lanes with shifts, multiplied and added in 32 bits."""

from griffin_kernels.cpu.isa.common import QUADS, Words

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
    totals = [w.splat(c) for c in corrections for _ in range(2)]
    for q in range(QUADS):
        halves = [w.load(weights, 128 * q), w.load(weights, 128 * q + 64)]
        for r, row in enumerate(rows):
            a = w.quad(row, q)
            for i, half in enumerate(halves):
                totals[2 * r + i] = dot(w, totals[2 * r + i], half, a)
    return totals


def emit_int4(builder, weights, rows, corrections):
    """Products of one group of int4 weights."""
    w = Words(builder, 16)
    totals = [w.splat(c) for c in corrections for _ in range(2)]
    for q in range(QUADS):
        packed = w.load(weights, 64 * q)
        halves = [w.nibbles(packed, high) for high in (False, True)]
        for r, row in enumerate(rows):
            a = w.quad(row, q)
            for i, half in enumerate(halves):
                totals[2 * r + i] = dot(w, totals[2 * r + i], half, a)
    return totals
