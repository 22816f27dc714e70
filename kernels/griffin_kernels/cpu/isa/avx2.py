"""AVX2: ``vpmaddubsw``, which multiplies unsigned by signed bytes and adds pairs in 16 bits.

Its sums saturate at 32767. With weights and activations of at most 127 in size a pair comes to
32258 at most, so int8 weights are made signed and their sign is moved to the other factor. Weights
of four bits come to 2 * 15 * 127 = 3810: eight such sums fit into 16 bits before they are widened.
"""

from griffin_kernels.cpu.isa.common import QUADS, Words

__all__ = ["TILE_ROWS", "emit_int4", "emit_int8"]

TILE_ROWS = 2
SUMS = 8
"""Products of four-bit weights that are added in 16 bits."""


def pairs(w: Words, unsigned, signed):
    """``vpmaddubsw``."""
    arguments = [w.b.bitcast(x, w.bytes) for x in (unsigned, signed)]
    return w.call("llvm.x86.avx2.pmadd.ub.sw", w.shorts, *arguments)


def widened(w: Words, shorts):
    """Neighbouring 16-bit numbers added in 32 bits: ``vpmaddwd`` with ones."""
    return w.call("llvm.x86.avx2.pmadd.wd", w.ints, shorts, w.const(1, w.shorts))


def magnitude(w: Words, x):
    """Absolute value of every byte."""
    signed = w.b.bitcast(x, w.bytes)
    negative = w.b.icmp_signed("<", signed, w.const(0, w.bytes))
    return w.b.bitcast(w.b.select(negative, w.b.neg(signed), signed), w.ints)


def with_sign(w: Words, x, of):
    """``vpsignb``: bytes of x times the sign of bytes of another vector."""
    arguments = [w.b.bitcast(v, w.bytes) for v in (x, of)]
    return w.call("llvm.x86.avx2.psign.b", w.bytes, *arguments)


def emit_int8(builder, weights, rows, corrections):
    """Products of one group of int8 weights; signed, so nothing is to be corrected."""
    del corrections
    w = Words(builder, 8)
    totals = [w.zero() for _ in range(4 * len(rows))]
    flip = w.const(0x80808080 - (1 << 32))
    for q in range(QUADS):
        quarters = [builder.xor(w.load(weights, 128 * q + 32 * i), flip) for i in range(4)]
        for r, row in enumerate(rows):
            a = w.quad(row, q)
            unsigned = magnitude(w, a)
            for i, quarter in enumerate(quarters):
                product = pairs(w, unsigned, with_sign(w, quarter, a))
                totals[4 * r + i] = builder.add(totals[4 * r + i], widened(w, product))
    return [w.joined(*totals[i : i + 2]) for i in range(0, len(totals), 2)]


def emit_int4(builder, weights, rows, corrections):
    """Products of one group of int4 weights."""
    w = Words(builder, 8)
    totals = [w.splat(c) for c in corrections for _ in range(4)]
    for start in range(0, QUADS, SUMS):
        sums = [None] * len(totals)
        for q in range(start, start + SUMS):
            packed = [w.load(weights, 64 * q + 32 * i) for i in range(2)]
            quarters = [w.nibbles(p, high) for high in (False, True) for p in packed]
            for r, row in enumerate(rows):
                a = w.quad(row, q)
                for i, quarter in enumerate(quarters):
                    product, at = pairs(w, quarter, a), 4 * r + i
                    sums[at] = product if sums[at] is None else builder.add(sums[at], product)
        totals = [builder.add(t, widened(w, s)) for t, s in zip(totals, sums, strict=True)]
    return [w.joined(*totals[i : i + 2]) for i in range(0, len(totals), 2)]
