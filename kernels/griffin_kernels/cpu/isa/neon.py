"""NEON with dot products (Apple's processors, and ARMv8.2 and later): ``sdot`` on 128 bits."""

from llvmlite import ir

from griffin_kernels.cpu.isa.common import I32, Words

__all__ = ["TILE_ROWS", "emit_int4", "emit_int8"]

TILE_ROWS = 2


def dot(w: Words, total, weights, activations):
    """``sdot``: four products for every lane, added to ``total``."""
    arguments = [w.b.bitcast(x, w.bytes) for x in (weights, activations)]
    return w.call("llvm.aarch64.neon.sdot.v4i32.v16i8", w.ints, total, *arguments)


def emit_int8(builder, weights, rows, corrections):
    """Products of one group of int8 weights, made signed: nothing is to be corrected."""
    w = Words(builder, 4)
    flip = w.const(0x80808080 - (1 << 32))

    def signed(pointer, q):
        return [builder.xor(part, flip) for part in w.int8_parts(pointer, q)]

    return w.products(dot, signed, weights, rows, [ir.Constant(I32, 0) for _ in corrections])


def emit_int4(builder, weights, rows, corrections):
    """Products of one group of int4 weights, which have no sign but fit into signed bytes."""
    w = Words(builder, 4)
    return w.products(dot, w.int4_parts, weights, rows, corrections)
