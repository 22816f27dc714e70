"""Products of a few rows with a panel of 32 outputs, their sums kept in registers.

A tile is a tuple of vectors, two for each row: the sums of sixteen outputs each. Every sum grows in
ascending order of inputs, whatever the number of rows, so a product has the same bits in decoding
(one row) and in prefill (many).
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from griffin_kernels.cpu.isa import FEATURES, MODULE, amx
from griffin_kernels.cpu.isa.common import GROUP, I8, I32, I64, PANEL, Words
from griffin_kernels.cpu.simd import FLOATS, LANES, call, is_array_of, llvm_type, splat

__all__ = [
    "TILE_ROWS",
    "add_bfloat16",
    "add_float32",
    "add_int4",
    "add_int8",
    "add_widened",
    "block_zeros",
    "scale_block",
    "store_block",
    "store_tile",
    "tile_config",
    "tile_dot_bfloat16",
    "tile_dot_int8",
    "tile_load",
    "tile_release",
    "tile_store",
    "tile_zero",
    "zeros_of_one",
    "zeros_of_rows",
]

TILE_ROWS = MODULE.TILE_ROWS
LINE = 64
"""Bytes of a row of activations that lie together; the same bytes of the next row follow."""
HAS_BFLOAT16_DOT = "avx512bf16" in FEATURES and "avx512f" in FEATURES


def byte_pointer(context, builder, array_type, array, index):
    """Byte pointer to an element."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), I8.as_pointer())


def moved(builder, pointer, count: int, stride):
    """A byte pointer moved by a number of strides."""
    return builder.gep(pointer, [builder.mul(ir.Constant(I64, count), stride)])


def rows_of(builder, first, count: int):
    """Byte pointers to the lines of ``count`` rows."""
    return [builder.gep(first, [ir.Constant(I64, LINE * r)]) for r in range(count)]


def scalar_at(builder, pointer, kind, offset: int = 0):
    """A number, ``offset`` bytes after a byte pointer."""
    at = builder.gep(pointer, [ir.Constant(I64, offset)])
    value = builder.load(builder.bitcast(at, kind.as_pointer()))
    value.align = kind.width // 8 if isinstance(kind, ir.IntType) else 4
    return value


def vector_at(builder, pointer, vector, offset: int = 0):
    """A vector, ``offset`` bytes after a byte pointer."""
    at = builder.gep(pointer, [ir.Constant(I64, offset)])
    value = builder.load(builder.bitcast(at, vector.as_pointer()))
    value.align = 2
    return value


def bfloat16_at(builder, pointer, offset: int):
    """Sixteen bfloat16 as float32."""
    halves = vector_at(builder, pointer, ir.VectorType(ir.IntType(16), LANES), offset)
    w = Words(builder, LANES)
    wide = builder.shl(builder.zext(halves, w.ints), w.const(16))
    return builder.bitcast(wide, llvm_type(FLOATS))


def fma(builder, a, b, c):
    return call(builder, f"llvm.fma.v{LANES}f32", FLOATS, [a, b, c])


def unpacked(builder, tile):
    return [builder.extract_value(tile, i) for i in range(tile.type.count)]


def packed(builder, vectors, kind):
    tile = ir.Constant(kind, ir.Undefined)
    for i, vector in enumerate(vectors):
        tile = builder.insert_value(tile, vector, i)
    return tile


def zeros(rows: int, about: str):
    """An intrinsic that gives a tile of zeros."""
    kind = types.UniTuple(FLOATS, 2 * rows)

    def generate(context, builder, signature, args):
        zero = ir.Constant(llvm_type(FLOATS), [0.0] * LANES)
        return packed(builder, [zero] * kind.count, context.get_value_type(kind))

    def zeros_of(typing):
        return kind(), generate

    zeros_of.__doc__ = about
    return intrinsic(zeros_of)


zeros_of_one = zeros(1, "A tile of one row, zero.")
zeros_of_rows = zeros(TILE_ROWS, "A tile of TILE_ROWS rows, zero.")
block_zeros = zeros(8, "Sixteen vectors of zeros: sixteen rows of sixteen outputs.")


@intrinsic
def store_tile(typing, tile, out, index, stride):
    """``store_tile(tile, out, index, stride)``: rows of 32 to a float32 array."""

    def generate(context, builder, signature, args):
        base = byte_pointer(context, builder, out, args[1], args[2])
        step = builder.mul(args[3], ir.Constant(I64, 4))
        for i, vector in enumerate(unpacked(builder, args[0])):
            row = moved(builder, base, i // 2, step)
            at = builder.gep(row, [ir.Constant(I64, 64 * (i % 2))])
            builder.store(vector, builder.bitcast(at, vector.type.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(tile, out, types.intp, types.intp), generate


def integer_tile(bits: int):
    """An intrinsic that adds one group of integer weights, with its scales, to a tile."""
    emit = {8: MODULE.emit_int8, 4: MODULE.emit_int4}[bits]

    def add(typing, tile, weights, w, activations, a, steps, corrections, g):
        def generate(context, builder, signature, args):
            t, w_array, wi, a_array, ai, f_array, c_array, gi = args
            rows = tile.count // 2
            first = byte_pointer(context, builder, activations, a_array, ai)
            row_pointers = rows_of(builder, first, rows)
            fixes = byte_pointer(context, builder, corrections, c_array, gi)
            factors = byte_pointer(context, builder, steps, f_array, gi)
            block = byte_pointer(context, builder, weights, w_array, wi)
            dots = emit(
                builder, block, row_pointers,
                [scalar_at(builder, fixes, I32, 4 * r) for r in range(rows)],
            )  # fmt: skip
            scales = PANEL * GROUP * bits // 8
            halves = [bfloat16_at(builder, block, scales + 32 * i) for i in range(2)]
            sums = unpacked(builder, t)
            for r in range(rows):
                factor = splat(builder, scalar_at(builder, factors, ir.FloatType(), 4 * r), FLOATS)
                for i in range(2):
                    exact = builder.sitofp(dots[2 * r + i], llvm_type(FLOATS))
                    step = builder.fmul(halves[i], factor)
                    sums[2 * r + i] = fma(builder, exact, step, sums[2 * r + i])
            return packed(builder, sums, t.type)

        index = types.intp
        return is_array_of(weights, types.uint8) and (
            tile(tile, weights, index, activations, index, steps, corrections, index),
            generate,
        )

    add.__doc__ = f"Add one group of {bits}-bit weights times activations to a tile."
    return intrinsic(add)


add_int8, add_int4 = integer_tile(8), integer_tile(4)


def float_tile(width: int, about: str):
    """An intrinsic that adds sixteen inputs to a tile: float32 activations, one rounding each."""

    def add(typing, tile, weights, w, activations, a):
        def generate(context, builder, signature, args):
            t, w_array, wi, a_array, ai = args
            block = byte_pointer(context, builder, weights, w_array, wi)
            first = byte_pointer(context, builder, activations, a_array, ai)
            rows = rows_of(builder, first, tile.count // 2)
            sums = unpacked(builder, t)
            for k in range(LINE // 4):
                for i in range(2):
                    at = PANEL * width * k + LANES * width * i
                    if width == 4:
                        half = vector_at(builder, block, llvm_type(FLOATS), at)
                    else:
                        half = bfloat16_at(builder, block, at)
                    for r, row in enumerate(rows):
                        x = splat(builder, scalar_at(builder, row, ir.FloatType(), 4 * k), FLOATS)
                        sums[2 * r + i] = fma(builder, half, x, sums[2 * r + i])
            return packed(builder, sums, t.type)

        index = types.intp
        return tile(tile, weights, index, activations, index), generate

    add.__doc__ = about
    return intrinsic(add)


add_float32 = float_tile(4, "Add sixteen inputs of float32 weights to a tile.")
add_widened = float_tile(2, "Add sixteen inputs of bfloat16 weights to a tile, as float32.")


@intrinsic
def add_bfloat16(typing, tile, weights, w, activations, a):
    """Add thirty-two inputs, bfloat16 weights and activations, to a tile."""

    def generate(context, builder, signature, args):
        t, w_array, wi, a_array, ai = args
        block = byte_pointer(context, builder, weights, w_array, wi)
        first = byte_pointer(context, builder, activations, a_array, ai)
        rows = rows_of(builder, first, tile.count // 2)
        words, sums = Words(builder, LANES), unpacked(builder, t)
        for pair in range(LINE // 4):
            halves = [words.load(block, 128 * pair + 64 * i) for i in range(2)]
            for r, row in enumerate(rows):
                x = words.quad(row, pair)
                for i in range(2):
                    sums[2 * r + i] = dot_of_pairs(words, sums[2 * r + i], halves[i], x)
        return packed(builder, sums, t.type)

    index = types.intp
    return tile(tile, weights, index, activations, index), generate


def dot_of_pairs(words: Words, total, weights, activations):
    """Two bfloat16 products for every lane, added to ``total``: the even, then the odd one."""
    builder, floats = words.b, llvm_type(FLOATS)
    if HAS_BFLOAT16_DOT:
        return words.call("llvm.x86.avx512bf16.dpbf16ps.512", floats, total, weights, activations)
    high = words.const(0xFFFF0000 - (1 << 32))
    even = [builder.shl(x, words.const(16)) for x in (weights, activations)]
    odd = [builder.and_(x, high) for x in (weights, activations)]
    for pair in (even, odd):
        total = fma(builder, *(builder.bitcast(x, floats) for x in pair), total)
    return total


# -- sixteen by sixteen, on AMX


def tile_instruction(name: str, tiles: int, memory: bool):
    """An intrinsic for an AMX instruction on tiles named by literals; nothing elsewhere."""

    def generate_with(numbers, array):
        def generate(context, builder, signature, args):
            if amx.COMPILED:
                operands = list(numbers)
                if memory:
                    pointer = byte_pointer(context, builder, array, *args[tiles : tiles + 2])
                    operands += [pointer, *args[tiles + 2 :]]
                amx.emit(builder, name, *operands)
            return context.get_dummy_value()

        return generate

    def on_memory(typing, tile, array, index, stride):
        """``(tile, array, index, stride in bytes)``."""
        return (
            types.void(tile, array, types.intp, types.intp),
            generate_with([tile.literal_value], array),
        )

    def on_one(typing, tile):
        """``(tile)``."""
        return types.void(tile), generate_with([tile.literal_value], None)

    def on_three(typing, total, rows, columns):
        """``(total, rows, columns)``."""
        given = (total, rows, columns)
        return types.void(*given), generate_with([t.literal_value for t in given], None)

    return intrinsic(prefer_literal=True)(on_memory if memory else {1: on_one, 3: on_three}[tiles])


tile_load = tile_instruction("tileloadd64", 1, memory=True)
tile_store = tile_instruction("tilestored64", 1, memory=True)
tile_zero = tile_instruction("tilezero", 1, memory=False)
tile_dot_int8 = tile_instruction("tdpbssd", 3, memory=False)
tile_dot_bfloat16 = tile_instruction("tdpbf16ps", 3, memory=False)


@intrinsic
def tile_config(typing, layout):
    """Make eight tiles of sixteen rows of 64 bytes, as ``layout`` (64 bytes) says."""

    def generate(context, builder, signature, args):
        if amx.COMPILED:
            zero = ir.Constant(I64, 0)
            amx.emit(builder, "ldtilecfg", byte_pointer(context, builder, layout, args[0], zero))
        return context.get_dummy_value()

    return types.void(layout), generate


@intrinsic
def tile_release(typing):
    """Give the tiles back."""

    def generate(context, builder, signature, args):
        if amx.COMPILED:
            amx.emit(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def scale_block(typing, block, products, p, weights, s, steps, g):
    """Add a group's products (sixteen rows of sixteen int32) times their scales to a block.

    The scales stand among the weights, at byte s.
    """

    def generate(context, builder, signature, args):
        b, p_array, pi, s_array, si, f_array, gi = args
        exact = byte_pointer(context, builder, products, p_array, pi)
        factors = byte_pointer(context, builder, steps, f_array, gi)
        scale = bfloat16_at(builder, byte_pointer(context, builder, weights, s_array, si), 0)
        sums, ints = unpacked(builder, b), Words(builder, LANES).ints
        for r in range(LANES):
            factor = splat(builder, scalar_at(builder, factors, ir.FloatType(), 4 * r), FLOATS)
            product = vector_at(builder, exact, ints, 64 * r)
            product.align = 64
            as_floats = builder.sitofp(product, llvm_type(FLOATS))
            sums[r] = fma(builder, as_floats, builder.fmul(scale, factor), sums[r])
        return packed(builder, sums, b.type)

    index = types.intp
    return block(block, products, index, weights, index, steps, index), generate


@intrinsic
def store_block(typing, block, out, index, stride):
    """``store_block(block, out, index, stride)``: sixteen rows of 16 to a float32 array."""

    def generate(context, builder, signature, args):
        base = byte_pointer(context, builder, out, args[1], args[2])
        step = builder.mul(args[3], ir.Constant(I64, 4))
        for r, vector in enumerate(unpacked(builder, args[0])):
            row = moved(builder, base, r, step)
            builder.store(vector, builder.bitcast(row, vector.type.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(block, out, types.intp, types.intp), generate


assert PANEL == 2 * LANES
assert GROUP == LINE
