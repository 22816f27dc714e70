"""NEON with dot products (Apple's processors, and ARMv8.2 and later): ``sdot`` on 128 bits."""

from griffin_kernels.cpu.isa.common import QUADS, Words

__all__ = ["TILE_ROWS", "emit_int4", "emit_int8"]

TILE_ROWS = 2
PARTS = 8
"""Vectors of four lanes in a panel."""


def dot(w: Words, total, weights, activations):
    """``sdot``: four products for every lane, added to ``total``."""
    arguments = [w.b.bitcast(x, w.bytes) for x in (weights, activations)]
    return w.call("llvm.aarch64.neon.sdot.v4i32.v16i8", w.ints, total, *arguments)


def sixteen(w: Words, parts):
    """Vectors of four lanes as vectors of sixteen."""
    wide = Words(w.b, 8)
    joined = [w.joined(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return [wide.joined(*joined[i : i + 2]) for i in range(0, len(joined), 2)]


def emit_int8(builder, weights, rows, corrections):
    """Products of one group of int8 weights, made signed: nothing is to be corrected."""
    del corrections
    w = Words(builder, 4)
    totals = [w.zero() for _ in range(PARTS * len(rows))]
    flip = w.const(0x80808080 - (1 << 32))
    for q in range(QUADS):
        parts = [builder.xor(w.load(weights, 128 * q + 16 * i), flip) for i in range(PARTS)]
        for r, row in enumerate(rows):
            a = w.quad(row, q)
            for i, part in enumerate(parts):
                totals[PARTS * r + i] = dot(w, totals[PARTS * r + i], part, a)
    return sixteen(w, totals)


def emit_int4(builder, weights, rows, corrections):
    """Products of one group of int4 weights, which have no sign but fit into signed bytes."""
    w = Words(builder, 4)
    totals = [w.splat(c) for c in corrections for _ in range(PARTS)]
    for q in range(QUADS):
        packed = [w.load(weights, 64 * q + 16 * i) for i in range(PARTS // 2)]
        parts = [w.nibbles(p, high) for high in (False, True) for p in packed]
        for r, row in enumerate(rows):
            a = w.quad(row, q)
            for i, part in enumerate(parts):
                totals[PARTS * r + i] = dot(w, totals[PARTS * r + i], part, a)
    return sixteen(w, totals)
