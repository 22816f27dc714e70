"""Vectors as values in Numba: sixteen float32 or int32 lanes, in LLVM's portable vector IR.

Plain Numba loops leave vectors to LLVM's optimiser, which gives up as soon as a loop holds a
function call. Here a kernel says itself what a vector is: :func:`load` sixteen numbers, compute
with operators and :func:`fma`, :func:`store` them. LLVM lowers sixteen lanes to one register on
AVX-512, two on AVX2, four on NEON and SSE, so one kernel serves every processor.

Lanes never meet, so a result does not depend on the lane in which it was computed; the last lanes
of an array that is no multiple of sixteen are read and written under a mask. Nothing here allows
LLVM to reorder or contract arithmetic: what is fused is written as :func:`fma`.
"""

import operator
from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

__all__ = [
    "LANES",
    "array_at",
    "as_float",
    "as_int",
    "bits_and",
    "bits_or",
    "bits_xor",
    "broadcast",
    "float_from_bits",
    "fma",
    "lane_max",
    "lane_sum",
    "less",
    "load",
    "load_bfloat16",
    "load_bytes",
    "load_first",
    "maximum",
    "maximum_int",
    "minimum",
    "prefetch",
    "select",
    "shift_left",
    "shift_right",
    "sqrt",
    "store",
    "store_around_cache",
    "store_bfloat16",
    "store_bytes",
    "store_first",
    "store_int8",
    "to_float",
]

LANES = 16

INT32 = ir.IntType(32)
ELEMENTS = {"float32": ir.FloatType(), "int32": INT32, "bool": ir.IntType(1)}


class Vector(types.Type):
    """The Numba type of a vector; its values live in registers."""

    def __init__(self, element: str):
        self.element = element
        super().__init__(name=f"vector({element} x {LANES})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """How Numba keeps a vector: as LLVM's own."""

    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(ELEMENTS[vector.element], LANES))


FLOATS, INTS, MASK = Vector("float32"), Vector("int32"), Vector("bool")


def llvm_type(vector: Vector) -> ir.VectorType:
    """LLVM's type of a vector."""
    return ir.VectorType(ELEMENTS[vector.element], LANES)


def constant(vector: Vector, values) -> ir.Constant:
    """A vector known when the kernel is compiled."""
    return ir.Constant(llvm_type(vector), list(values))


def splat(builder, value, vector: Vector):
    """The same value in every lane."""
    undefined = ir.Constant(llvm_type(vector), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, undefined, constant(INTS, [0] * LANES))


def call(builder, name: str, result: Vector, arguments):
    """Call one of LLVM's intrinsic functions."""
    signature = ir.FunctionType(llvm_type(result), [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, arguments)


# -- memory


def address(context, builder, array_type, array, index):
    """Pointer to sixteen elements of a one-dimensional contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = FLOATS if array_type.dtype == types.float32 else INTS
    return builder.bitcast(builder.gep(data, [index]), llvm_type(vector).as_pointer())


def vector_of(array) -> Vector | None:
    """The vector type of an array's elements, if the array is one-dimensional and contiguous."""
    if not isinstance(array, types.Array) or array.ndim != 1 or array.layout != "C":
        return None
    return {types.float32: FLOATS, types.int32: INTS}.get(array.dtype)


def first_lanes(builder, count):
    """Mask of the first ``count`` lanes."""
    lanes = constant(INTS, range(LANES))
    return builder.icmp_signed("<", lanes, splat(builder, builder.trunc(count, INT32), INTS))


@intrinsic
def load(typing, array, index):
    """``load(array, index)``: elements index to index + 15; the caller vouches that they exist."""
    vector = vector_of(array)

    def generate(context, builder, signature, args):
        value = builder.load(address(context, builder, array, args[0], args[1]))
        value.align = 4
        return value

    return vector and (vector(array, types.intp), generate)


@intrinsic
def load_first(typing, array, index, count):
    """``load_first(array, index, count)``: ``count`` lanes of :func:`load`, then zeros."""
    vector = vector_of(array)

    def generate(context, builder, signature, args):
        pointer = address(context, builder, array, args[0], args[1])
        mask = first_lanes(builder, args[2])
        zero = constant(vector, [0] * LANES)
        kind = "f32" if vector is FLOATS else "i32"
        name = f"llvm.masked.load.v{LANES}{kind}.p0"
        return call(builder, name, vector, [pointer, ir.Constant(INT32, 4), mask, zero])

    return vector and (vector(array, types.intp, types.intp), generate)


@intrinsic
def store(typing, array, index, value):
    """``store(array, index, vector)``: write elements index to index + 15."""
    vector = vector_of(array)

    def generate(context, builder, signature, args):
        written = builder.store(args[2], address(context, builder, array, args[0], args[1]))
        written.align = 4
        return context.get_dummy_value()

    return vector and (types.void(array, types.intp, vector), generate)


@intrinsic
def store_around_cache(typing, array, index, value):
    """:func:`store` to memory that is not read soon, on a cache line's start.

    The processor does not fetch the line first, which saves a quarter of a scan's traffic.
    """
    vector = vector_of(array)

    def generate(context, builder, signature, args):
        written = builder.store(args[2], address(context, builder, array, args[0], args[1]))
        written.align = 4 * LANES
        one = builder.module.add_metadata([ir.Constant(INT32, 1)])
        written.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return vector and (types.void(array, types.intp, vector), generate)


@intrinsic
def store_first(typing, array, index, count, value):
    """``store_first(array, index, count, vector)``: write the first ``count`` lanes."""
    vector = vector_of(array)

    def generate(context, builder, signature, args):
        pointer = address(context, builder, array, args[0], args[1])
        mask = first_lanes(builder, args[2])
        kind = "f32" if vector is FLOATS else "i32"
        arguments = [args[3], pointer, ir.Constant(INT32, 4), mask]
        signature = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        name = f"llvm.masked.store.v{LANES}{kind}.p0"
        function = cgutils.get_or_insert_function(builder.module, signature, name)
        builder.call(function, arguments)
        return context.get_dummy_value()

    return vector and (types.void(array, types.intp, types.intp, vector), generate)


@intrinsic
def prefetch(typing, array, index):
    """``prefetch(array, index)``: ask for what stands there; beyond the array it does nothing."""

    def generate(context, builder, signature, args):
        pointer = address(context, builder, array, args[0], args[1])
        arguments = [pointer, *(ir.Constant(INT32, i) for i in (0, 3, 1))]  # read, keep, data
        kinds = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        function = cgutils.get_or_insert_function(builder.module, kinds, "llvm.prefetch.p0")
        builder.call(function, arguments)
        return context.get_dummy_value()

    return vector_of(array) and (types.void(array, types.intp), generate)


@intrinsic
def float_from_bits(typing, bits):
    """``float_from_bits(bits)``: the low 32 bits of an integer as a float32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], INT32), ir.FloatType())

    return types.float32(types.int64), generate


@intrinsic
def broadcast(typing, value):
    """``broadcast(x)``: a float32 or int32 in every lane."""
    vector = {types.float32: FLOATS, types.int32: INTS}.get(value)

    def generate(context, builder, signature, args):
        return splat(builder, args[0], vector)

    return vector and (vector(value), generate)


def pointer_to(context, builder, array_type, array, index, vector_type):
    """Pointer to a vector of any LLVM type at an element of an array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector_type.as_pointer())


def is_array_of(array, *dtypes) -> bool:
    """Whether a Numba type is a one-dimensional contiguous array of one of these."""
    flat = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"
    return flat and array.dtype in dtypes


@intrinsic
def load_bfloat16(typing, array, index):
    """``load_bfloat16(array, index)``: sixteen bfloat16, kept as uint16, as float32."""

    def generate(context, builder, signature, args):
        halves = ir.VectorType(ir.IntType(16), LANES)
        value = builder.load(pointer_to(context, builder, array, args[0], args[1], halves))
        value.align = 2
        wide = builder.zext(value, llvm_type(INTS))
        return builder.bitcast(builder.shl(wide, constant(INTS, [16] * LANES)), llvm_type(FLOATS))

    return (FLOATS(array, types.intp), generate) if is_array_of(array, types.uint16) else None


@intrinsic
def store_bfloat16(typing, array, index, value):
    """``store_bfloat16(array, index, floats)``: rounded to nearest, ties to even; NaN stays."""

    def generate(context, builder, signature, args):
        bits = builder.bitcast(args[2], llvm_type(INTS))
        sixteen, one = constant(INTS, [16] * LANES), constant(INTS, [1] * LANES)
        odd = builder.and_(builder.lshr(bits, sixteen), one)
        rounded = builder.add(builder.add(bits, constant(INTS, [0x7FFF] * LANES)), odd)
        # Rounding could carry a NaN's last bits into the sign: a quiet NaN is written instead.
        quiet = builder.or_(bits, constant(INTS, [0x400000] * LANES))
        is_nan = builder.fcmp_unordered("uno", args[2], args[2])
        top = builder.lshr(builder.select(is_nan, quiet, rounded), sixteen)
        halves = ir.VectorType(ir.IntType(16), LANES)
        pointer = pointer_to(context, builder, array, args[0], args[1], halves)
        builder.store(builder.trunc(top, halves), pointer).align = 2
        return context.get_dummy_value()

    known = is_array_of(array, types.uint16, types.uint8)
    return (types.void(array, types.intp, FLOATS), generate) if known else None


@intrinsic
def load_bytes(typing, array, index):
    """``load_bytes(array, index)``: sixty-four bytes as sixteen int32."""

    def generate(context, builder, signature, args):
        value = builder.load(pointer_to(context, builder, array, args[0], args[1], llvm_type(INTS)))
        value.align = 1
        return value

    return (INTS(array, types.intp), generate) if is_array_of(array, types.uint8) else None


@intrinsic
def store_bytes(typing, array, index, value):
    """``store_bytes(array, index, ints)``: sixteen int32 as sixty-four bytes."""

    def generate(context, builder, signature, args):
        pointer = pointer_to(context, builder, array, args[0], args[1], llvm_type(INTS))
        builder.store(args[2], pointer).align = 1
        return context.get_dummy_value()

    known = is_array_of(array, types.uint8)
    return (types.void(array, types.intp, INTS), generate) if known else None


@intrinsic
def store_int8(typing, array, index, value):
    """``store_int8(array, index, ints)``: the low byte of every lane."""

    def generate(context, builder, signature, args):
        narrow = ir.VectorType(ir.IntType(8), LANES)
        pointer = pointer_to(context, builder, array, args[0], args[1], narrow)
        builder.store(builder.trunc(args[2], narrow), pointer).align = 1
        return context.get_dummy_value()

    known = is_array_of(array, types.int8, types.uint8)
    return (types.void(array, types.intp, INTS), generate) if known else None


def array_from_address(dtype):
    """An intrinsic that makes an array of ``dtype`` from the address where it stands."""

    def generate(context, builder, signature, args):
        array = context.make_array(signature.return_type)(context, builder)
        item = context.get_abi_sizeof(context.get_data_type(dtype))
        size = ir.Constant(ir.IntType(64), item)
        context.populate_array(
            array,
            data=builder.inttoptr(args[0], array.data.type),
            shape=(args[1],),
            strides=(size,),
            itemsize=size,
            meminfo=None,
            parent=None,
        )
        return array._getvalue()

    def array_at(typing, address, length):
        return types.Array(dtype, 1, "C")(types.int64, types.intp), generate

    return intrinsic(array_at)


_ARRAY_AT = {
    dtype: array_from_address(dtype)
    for dtype in (types.float32, types.int32, types.int8, types.uint8, types.uint16, types.int64)
}


def array_at(dtype):
    """``array_at(dtype)(address, length)`` for kernels: memory that Python keeps alive."""
    return _ARRAY_AT[dtype]


# -- across lanes, in a fixed order


def folded(builder, value, combine):
    """All lanes combined: upper half with lower half, and so on, always in this order."""
    n = LANES
    while n > 1:
        n //= 2
        low = ir.Constant(ir.VectorType(INT32, n), list(range(n)))
        high = ir.Constant(ir.VectorType(INT32, n), list(range(n, 2 * n)))
        undefined = ir.Constant(value.type, ir.Undefined)
        halves = [builder.shuffle_vector(value, undefined, mask) for mask in (low, high)]
        value = combine(builder, *halves)
    return builder.extract_element(value, ir.Constant(INT32, 0))


@intrinsic
def lane_sum(typing, value):
    """Sum of all lanes, as a tree that is the same on every processor."""
    scalar = {FLOATS: types.float32, INTS: types.int32}.get(value)

    def generate(context, builder, signature, args):
        name = "fadd" if value is FLOATS else "add"
        return folded(builder, args[0], lambda b, x, y: getattr(b, name)(x, y))

    return scalar and (scalar(value), generate)


@intrinsic
def lane_max(typing, value):
    """Largest of all lanes, compared as signed integers."""

    def generate(context, builder, signature, args):
        return folded(builder, args[0], lambda b, x, y: b.select(b.icmp_signed(">", x, y), x, y))

    return (types.int32(value), generate) if value is INTS else None


# -- arithmetic


def lanewise(name: str, emit: Callable, result: Vector, *operands: Vector, about: str = ""):
    """An operation that works on each lane alone, as a function for kernels."""

    def generate(context, builder, signature, args):
        return emit(builder, *args)

    def typed(*given):
        return (result(*operands), generate) if given == operands else None

    # Numba asks an intrinsic for its named arguments, so there is one form for each number.
    def unary(typing, a):
        return typed(a)

    def binary(typing, a, b):
        return typed(a, b)

    def ternary(typing, a, b, c):
        return typed(a, b, c)

    operation = (unary, binary, ternary)[len(operands) - 1]
    operation.__name__ = operation.__qualname__ = name
    operation.__doc__ = about
    return intrinsic(operation)


def function_of_llvm(name: str) -> Callable:
    """Emits a call of one of LLVM's intrinsics on float32 vectors."""
    return lambda builder, *args: call(builder, f"llvm.{name}.v{LANES}f32", FLOATS, args)


fma = lanewise("fma", function_of_llvm("fma"), FLOATS, FLOATS, FLOATS, FLOATS,
               about="``a * b + c``, rounded once.")  # fmt: skip
sqrt = lanewise("sqrt", function_of_llvm("sqrt"), FLOATS, FLOATS, about="Square root.")
minimum = lanewise(
    "minimum", lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), y, x), FLOATS, FLOATS, FLOATS,
    about="The smaller of two; NaN where the first is.",
)  # fmt: skip
maximum_int = lanewise(
    "maximum_int", lambda b, x, y: b.select(b.icmp_signed(">", x, y), x, y), INTS, INTS, INTS,
    about="The larger of two integers.",
)  # fmt: skip
maximum = lanewise(
    "maximum", lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), y, x), FLOATS, FLOATS, FLOATS,
    about="The larger of two; NaN where the first is.",
)  # fmt: skip
less = lanewise("less", lambda b, x, y: b.fcmp_ordered("<", x, y), MASK, FLOATS, FLOATS,
                about="Mask of ``a < b``; NaN is less than nothing.")  # fmt: skip
select = lanewise("select", lambda b, m, x, y: b.select(m, x, y), FLOATS, MASK, FLOATS, FLOATS,
                  about="``b`` where the mask is set, else ``c``.")  # fmt: skip
as_int = lanewise("as_int", lambda b, x: b.bitcast(x, llvm_type(INTS)), INTS, FLOATS,
                  about="The bits of float32 as int32.")  # fmt: skip
as_float = lanewise("as_float", lambda b, x: b.bitcast(x, llvm_type(FLOATS)), FLOATS, INTS,
                    about="Bits as float32.")  # fmt: skip
to_float = lanewise("to_float", lambda b, x: b.sitofp(x, llvm_type(FLOATS)), FLOATS, INTS,
                    about="Integers as the nearest float32.")  # fmt: skip
bits_and = lanewise("bits_and", lambda b, x, y: b.and_(x, y), INTS, INTS, INTS,
                    about="``a & b``.")  # fmt: skip
bits_or = lanewise("bits_or", lambda b, x, y: b.or_(x, y), INTS, INTS, INTS,
                   about="``a | b``.")  # fmt: skip
bits_xor = lanewise("bits_xor", lambda b, x, y: b.xor(x, y), INTS, INTS, INTS,
                    about="``a ^ b``.")  # fmt: skip
shift_left = lanewise("shift_left", lambda b, x, y: b.shl(x, y), INTS, INTS, INTS,
                      about="``a << b``.")  # fmt: skip
shift_right = lanewise("shift_right", lambda b, x, y: b.ashr(x, y), INTS, INTS, INTS,
                       about="``a >> b``, which keeps the sign.")  # fmt: skip


def _operators() -> None:
    """Make ``+ - * /`` and unary minus work on vectors."""
    table = {
        operator.add: {FLOATS: "fadd", INTS: "add"},
        operator.sub: {FLOATS: "fsub", INTS: "sub"},
        operator.mul: {FLOATS: "fmul", INTS: "mul"},
        operator.truediv: {FLOATS: "fdiv"},
    }
    for symbol, kinds in table.items():
        functions = {
            vector: lanewise(
                symbol.__name__, lambda b, x, y, i=instruction: getattr(b, i)(x, y),
                vector, vector, vector,
            )
            for vector, instruction in kinds.items()
        }  # fmt: skip

        def choose(functions):
            def overloaded(a, b):
                function = functions.get(a) if a == b else None
                return (lambda a, b: function(a, b)) if function else None

            return overloaded

        overload(symbol)(choose(functions))


_operators()
