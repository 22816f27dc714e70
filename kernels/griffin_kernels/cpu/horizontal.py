"""Dot products and weighted sums of many rows at once, with their accumulators in registers.

The two inner loops of attention, and what they need across lanes. Each is emitted whole, because
what matters is which sums stay in registers meanwhile. Every result is one fixed sequence of
operations, whichever others are computed beside it:

- a dot product adds, in lane i, the products of elements i, i + 16, i + 32 ... with one rounding
  each, then folds the lanes: 8 apart, 4, 2, 1;
- a weighted sum adds row after row, with one rounding each.

Rows are given by addresses, so that one function reads keys wherever they are.
"""

from llvmlite import ir
from numba import float32, types
from numba.extending import intrinsic

from griffin_kernels.cpu.isa import FEATURES
from griffin_kernels.cpu.simd import (
    FLOATS,
    INT32,
    INTS,
    LANES,
    MASK,
    address,
    call,
    constant,
    llvm_type,
    splat,
)

__all__ = [
    "ACCUMULATORS",
    "add_weighted",
    "address_of",
    "between",
    "dots",
    "fetch",
    "highest",
    "lane_0",
]

ACCUMULATORS = 16 if "avx512f" in FEATURES else 4
"""Vectors of sums that fit into the registers beside what is added to them: of 32 registers on
AVX-512; elsewhere a vector takes two to four. Results do not depend on it."""

INT64 = ir.IntType(64)
FLOAT = ir.FloatType()
FLOAT_BYTES = 4


# -- across lanes


def shuffled(builder, a, b, lanes):
    """Lanes of two vectors; those of the second count from 16."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes)))


@intrinsic
def highest(typing, value):
    """``highest(vector)``: largest of all lanes, in every lane; anything if one is NaN."""

    def generate(context, builder, signature, args):
        (x,) = args
        for distance in (8, 4, 2, 1):
            other = shuffled(builder, x, x, [lane ^ distance for lane in range(LANES)])
            x = builder.select(builder.fcmp_ordered("<", x, other), other, x)
        return x

    return (FLOATS(value), generate) if value is FLOATS else None


@intrinsic
def lane_0(typing, value):
    """``lane_0(vector)``: the first lane as a number."""

    def generate(context, builder, signature, args):
        return builder.extract_element(args[0], ir.Constant(INT32, 0))

    return (float32(value), generate) if value is FLOATS else None


@intrinsic
def between(typing, first, last):
    """``between(first, last)``: mask of lanes first to last - 1."""

    def generate(context, builder, signature, args):
        lanes = constant(INTS, range(LANES))
        low, high = (splat(builder, builder.trunc(a, INT32), INTS) for a in args)
        return builder.and_(
            builder.icmp_signed(">=", lanes, low), builder.icmp_signed("<", lanes, high)
        )

    return MASK(types.intp, types.intp), generate


# -- rows


@intrinsic
def address_of(typing, array, index):
    """``address_of(array, index)``: where an element stands, for what reads rows by address."""

    def generate(context, builder, signature, args):
        return builder.ptrtoint(address(context, builder, array, args[0], args[1]), INT64)

    is_floats = isinstance(array, types.Array) and array.dtype == float32
    return (types.int64(array, types.intp), generate) if is_floats else None


@intrinsic
def fetch(typing, where, size):
    """``fetch(address, bytes)``: ask for what stands there, into the second-level cache.

    ``bytes`` is a multiple of 64; memory that is not there does no harm.
    """

    def generate(context, builder, signature, args):
        where, size = args
        pointer = ir.IntType(8).as_pointer()
        signature = ir.FunctionType(ir.VoidType(), [pointer, INT32, INT32, INT32])
        function = builder.module.globals.get("llvm.prefetch.p0") or ir.Function(
            builder.module, signature, "llvm.prefetch.p0"
        )

        def line(i, _):
            at = builder.inttoptr(builder.add(where, i), function.args[0].type)
            builder.call(function, [at, *(ir.Constant(INT32, n) for n in (0, 2, 1))])
            return []

        loop(builder, number(0), size, 64, [], line)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def number(value: int) -> ir.Constant:
    """A 64-bit integer known when the kernel is compiled."""
    return ir.Constant(INT64, value)


def loop(builder, start, stop, step: int, carried, body):
    """Emit ``for i in range(start, stop, step)`` with values that go from turn to turn.

    ``body(i, values)`` emits one turn and returns the new values; so does this function.
    """
    before = builder.block
    head, inside, after = (builder.append_basic_block(n) for n in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(INT64)
    values = [builder.phi(value.type) for value in carried]
    builder.cbranch(builder.icmp_signed("<", i, stop), inside, after)
    builder.position_at_end(inside)
    new = body(i, values)
    following = builder.add(i, number(step))
    end = builder.block
    builder.branch(head)
    for phi, first, then in zip([i, *values], [start, *carried], [following, *new], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(then, end)
    builder.position_at_end(after)
    return values


def pointer(builder, where, offset, kind=None):
    """Pointer to a vector of floats ``offset`` elements after an address."""
    at = builder.add(where, builder.mul(offset, number(FLOAT_BYTES)))
    return builder.inttoptr(at, (kind or llvm_type(FLOATS)).as_pointer())


def read(builder, where, offset):
    """Load a vector from there."""
    value = builder.load(pointer(builder, where, offset))
    value.align = FLOAT_BYTES
    return value


def write(builder, value, where, offset):
    """Store a vector there."""
    builder.store(value, pointer(builder, where, offset, value.type)).align = FLOAT_BYTES


def fused(builder, a, b, c):
    """``a * b + c``, rounded once."""
    return call(builder, f"llvm.fma.v{LANES}f32", FLOATS, [a, b, c])


def summed(builder, vectors):
    """Lane sums of 1, 2, 4, 8 or 16 vectors n in one vector: in lanes ``16 / n * i`` that of i.

    Every turn adds upper halves to lower ones, in two vectors at once as long as there are two.
    """
    half = LANES // 2
    while half:
        lower = [lane % (2 * half) < half for lane in range(LANES)]
        if len(vectors) > 1:
            # Lower halves come from the first of a pair and upper halves from the second, which is
            # a blend; the halves to add to them, which change sides, take a shuffle.
            kept = [lane if low else lane + LANES for lane, low in enumerate(lower)]
            moved = [lane + half if low else lane - half + LANES for lane, low in enumerate(lower)]
            pairs = zip(vectors[: len(vectors) // 2], vectors[len(vectors) // 2 :], strict=True)
            vectors = [
                builder.fadd(shuffled(builder, a, b, kept), shuffled(builder, a, b, moved))
                for a, b in pairs
            ]
        else:
            (x,) = vectors
            moved = [lane ^ half for lane in range(LANES)]
            vectors = [builder.fadd(x, shuffled(builder, x, x, moved))]
        half //= 2
    return vectors[0]


def emit_dots(builder, rows, keys, stride, queries, d, scores, row_of_scores):
    """Scores of ``rows`` queries with sixteen keys."""
    together = min(ACCUMULATORS // rows, 8)
    count = rows * together

    def some_keys(first, _):
        here = [builder.mul(builder.add(first, number(i)), stride) for i in range(together)]

        def some_channels(c, sums):
            q = [
                read(builder, queries, builder.add(c, builder.mul(number(row), d)))
                for row in range(rows)
            ]
            k = [read(builder, keys, builder.add(c, offset)) for offset in here]
            pairs = [(a, b) for a in q for b in k]
            return [fused(builder, a, b, s) for (a, b), s in zip(pairs, sums, strict=True)]

        zeros = [constant(FLOATS, [0] * LANES)] * count
        sums = summed(builder, loop(builder, number(0), d, LANES, zeros, some_channels))
        for row in range(rows):
            lanes = [(row * together + i) * (LANES // count) for i in range(together)]
            found = shuffled(builder, sums, sums, lanes)
            at = builder.add(first, builder.mul(number(row), row_of_scores))
            write(builder, found, scores, at)
        return []

    loop(builder, number(0), number(LANES), together, [], some_keys)


def emit_weighted(
    builder, rows, values, stride, weights, row_of_weights, first, last, sums, d, channels
):
    """Add rows first to last - 1, each times its weight, to some channels of ``rows`` sums."""

    def several(width):
        def some_channels(c, _):
            places = [
                builder.add(builder.add(c, number(i * LANES)), builder.mul(number(row), d))
                for row in range(rows)
                for i in range(width)
            ]

            def one_row(key, found):
                start = builder.add(c, builder.mul(key, stride))
                v = [read(builder, values, builder.add(start, number(i * LANES)))
                     for i in range(width)]  # fmt: skip
                new = []
                for row in range(rows):
                    at = builder.add(key, builder.mul(number(row), row_of_weights))
                    weight = builder.load(pointer(builder, weights, at, FLOAT))
                    weight = splat(builder, weight, FLOATS)
                    mine = found[row * width : (row + 1) * width]
                    new += [fused(builder, weight, x, s) for x, s in zip(v, mine, strict=True)]
                return new

            found = [read(builder, sums, place) for place in places]
            found = loop(builder, first, last, 1, found, one_row)
            for place, value in zip(places, found, strict=True):
                write(builder, value, sums, place)
            return []

        return some_channels

    done = number(0)
    for width in sorted({ACCUMULATORS // rows, min(ACCUMULATORS // rows, 4), 1}, reverse=True):
        step = number(width * LANES)
        whole = builder.mul(builder.sdiv(channels, step), step)
        loop(builder, done, whole, width * LANES, [], several(width))
        done = whole


def split(rows: int) -> list[int]:
    """So many rows in groups that leave a row at least two accumulators."""
    size = min(rows, max(ACCUMULATORS // 2, 1))
    return [size] * (rows // size)


@intrinsic(prefer_literal=True)
def dots(typing, rows, keys, stride, queries, d, scores, row_of_scores):
    """Dot products of some queries with sixteen keys.

    Parameters
    ----------
    rows : {1, 2, 4}, a literal
        Queries.
    keys, queries, scores : int64
        Addresses: of 16 rows ``stride`` elements apart, of rows of ``d`` elements each after the
        other, and of sixteen numbers to write in rows ``row_of_scores`` elements apart.
    stride, d, row_of_scores : int
        ``d`` is a multiple of 16.
    """
    if not isinstance(rows, types.IntegerLiteral):
        return None

    def generate(context, builder, signature, args):
        _, keys, stride, queries, d, scores, row_of_scores = args
        for i, size in enumerate(split(rows.literal_value)):
            skip = number(i * size * FLOAT_BYTES)
            emit_dots(
                builder, size, keys, stride, builder.add(queries, builder.mul(skip, d)), d,
                builder.add(scores, builder.mul(skip, row_of_scores)), row_of_scores,
            )  # fmt: skip
        return context.get_dummy_value()

    return types.void(rows, *[types.int64] * 6), generate


@intrinsic(prefer_literal=True)
def add_weighted(
    typing, rows, values, stride, weights, row_of_weights, first, last, sums, d, channels
):
    """Add to some channels of each of ``rows`` sums the values ``first`` to ``last - 1``, weighted.

    Parameters
    ----------
    rows : {1, 2, 4}, a literal
        Sums.
    values, weights, sums : int64
        Addresses: of rows ``stride`` elements apart, of the weights for each sum
        ``row_of_weights`` apart, and of the sums ``d`` apart.
    stride, row_of_weights, first, last, d : int
    channels : int
        How many, a multiple of 16.
    """
    if not isinstance(rows, types.IntegerLiteral):
        return None

    def generate(context, builder, signature, args):
        _, values, stride, weights, row_of_weights, first, last, sums, d, channels = args
        for i, size in enumerate(split(rows.literal_value)):
            skip = number(i * size * FLOAT_BYTES)
            emit_weighted(
                builder, size, values, stride,
                builder.add(weights, builder.mul(skip, row_of_weights)), row_of_weights,
                first, last, builder.add(sums, builder.mul(skip, d)), d, channels,
            )  # fmt: skip
        return context.get_dummy_value()

    return types.void(rows, *[types.int64] * 9), generate
