"""Words for emitting vector IR."""

from llvmlite import ir
from numba.core import cgutils

__all__ = ["GROUP", "I8", "I16", "I32", "PANEL", "QUADS", "Words"]

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
PANEL = 32
"""Outputs that lie side by side."""
GROUP = 64
"""Inputs that share a scale."""
QUADS = GROUP // 4
"""Steps of a group: four inputs at a time, as the dot instructions take them."""


class Words:
    """Operations on vectors of ``lanes`` int32, for one builder."""

    def __init__(self, builder, lanes: int):
        self.b, self.lanes = builder, lanes
        self.ints = ir.VectorType(I32, lanes)
        self.bytes = ir.VectorType(I8, 4 * lanes)
        self.shorts = ir.VectorType(I16, 2 * lanes)

    def const(self, value: int, vector=None):
        """One number in every element."""
        vector = vector or self.ints
        return ir.Constant(vector, [value] * vector.count)

    def zero(self):
        return self.const(0)

    def splat(self, value):
        """An int32 in every lane."""
        undefined = ir.Constant(self.ints, ir.Undefined)
        first = self.b.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.b.shuffle_vector(first, undefined, self.zero())

    def load(self, pointer, offset: int):
        """A vector, ``offset`` bytes after a byte pointer."""
        at = self.b.gep(pointer, [ir.Constant(I64, offset)])
        value = self.b.load(self.b.bitcast(at, self.ints.as_pointer()))
        value.align = 1
        return value

    def quad(self, row, number: int):
        """Four activations of a row, in every lane."""
        at = self.b.gep(row, [ir.Constant(I64, 4 * number)])
        value = self.b.load(self.b.bitcast(at, I32.as_pointer()))
        value.align = 1
        return self.splat(value)

    def call(self, name: str, result, *arguments):
        """Call an intrinsic function of LLVM."""
        signature = ir.FunctionType(result, [a.type for a in arguments])
        return self.b.call(
            cgutils.get_or_insert_function(self.b.module, signature, name), arguments
        )

    def joined(self, low, high):
        """Two vectors as one of twice the lanes."""
        mask = ir.Constant(ir.VectorType(I32, 2 * self.lanes), list(range(2 * self.lanes)))
        return self.b.shuffle_vector(low, high, mask)

    def nibbles(self, packed, high: bool):
        """The low or high half of every byte, as bytes."""
        if high:
            packed = self.b.bitcast(
                self.b.lshr(self.b.bitcast(packed, self.shorts), self.const(4, self.shorts)),
                self.ints,
            )
        return self.b.and_(packed, self.const(0x0F0F0F0F))

    def int8_parts(self, weights, q: int):
        """Weights of quad q of a panel, as they are stored."""
        step = 4 * self.lanes
        return [self.load(weights, 4 * PANEL * q + at) for at in range(0, 4 * PANEL, step)]

    def int4_parts(self, weights, q: int):
        """The same out of half-bytes: first all low halves, then all high ones."""
        step = 4 * self.lanes
        packed = [self.load(weights, 2 * PANEL * q + at) for at in range(0, 2 * PANEL, step)]
        return [self.nibbles(p, high) for high in (False, True) for p in packed]

    def products(self, dot, parts, weights, rows, corrections):
        """Sums of a group, two vectors of sixteen lanes for each row.

        ``parts(weights, q)`` gives the weights of a quad, ``dot(words, total, weights,
        activations)`` adds four products to every lane of ``total``.
        """
        n = PANEL // self.lanes
        totals = [self.splat(c) for c in corrections for _ in range(n)]
        # A single row has few sums, and each waits for its last product: it gets two sets of them.
        sets = [totals] if len(rows) > 1 else [totals, [self.zero() for _ in totals]]
        for q in range(QUADS):
            pieces, totals = parts(weights, q), sets[q % len(sets)]
            for r, row in enumerate(rows):
                a = self.quad(row, q)
                for i, piece in enumerate(pieces):
                    totals[n * r + i] = dot(self, totals[n * r + i], piece, a)
        if len(sets) > 1:
            sets[0] = [self.b.add(*both) for both in zip(*sets, strict=True)]
        return self.sixteen(sets[0])

    def sixteen(self, totals):
        """Neighbouring vectors joined until they have sixteen lanes."""
        words = self
        while words.lanes < 16:
            totals = [words.joined(*totals[i : i + 2]) for i in range(0, len(totals), 2)]
            words = Words(self.b, 2 * words.lanes)
        return totals
