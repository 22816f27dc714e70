"""AVX-VNNI: the dot instruction on 256 bits, as laptops since Alder Lake have it."""

from griffin_kernels.cpu.isa.common import QUADS, Words

__all__ = ["TILE_ROWS", "emit_int4", "emit_int8"]

TILE_ROWS = 2


def dot(w: Words, total, weights, activations):
    """``vpdpbusd``: four products for every lane, added to ``total``."""
    return w.call("llvm.x86.avx512.vpdpbusd.256", w.ints, total, weights, activations)


def emit_int8(builder, weights, rows, corrections):
    """Products of one group of int8 weights."""
    w = Words(builder, 8)
    totals = [w.splat(c) for c in corrections for _ in range(4)]
    for q in range(QUADS):
        quarters = [w.load(weights, 128 * q + 32 * i) for i in range(4)]
        for r, row in enumerate(rows):
            a = w.quad(row, q)
            for i, quarter in enumerate(quarters):
                totals[4 * r + i] = dot(w, totals[4 * r + i], quarter, a)
    return [w.joined(*totals[i : i + 2]) for i in range(0, len(totals), 2)]


def emit_int4(builder, weights, rows, corrections):
    """Products of one group of int4 weights."""
    w = Words(builder, 8)
    totals = [w.splat(c) for c in corrections for _ in range(4)]
    for q in range(QUADS):
        packed = [w.load(weights, 64 * q + 32 * i) for i in range(2)]
        quarters = [w.nibbles(p, high) for high in (False, True) for p in packed]
        for r, row in enumerate(rows):
            a = w.quad(row, q)
            for i, quarter in enumerate(quarters):
                totals[4 * r + i] = dot(w, totals[4 * r + i], quarter, a)
    return [w.joined(*totals[i : i + 2]) for i in range(0, len(totals), 2)]
