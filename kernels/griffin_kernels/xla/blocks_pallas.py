"""What the Pallas kernels are made of: blocks, and one walk over time in either direction.

The grid goes over batch, width and time. Blocks of (time, width) stream through VMEM, and the
float32 state stays there from one block of time to the next. A kernel prepares the decay and input
of every step of a block, the walk turns them into states or gradients, and the kernel makes results
of these.

Shapes: B rows, T tokens, R lru_width; a block is (M, N) of (T, R).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

__all__ = [
    "OUTSIDE",
    "START",
    "Blocks",
    "Grid",
    "Interpret",
    "backward_pass",
    "choose_blocks",
    "forward_pass",
    "step_decay",
]

LANES = 128
ROWS = 16
"""Rows handled at once outside of the recurrence: a register of bfloat16, two of float32."""

UNROLL = 8
"""Steps of the recurrence that the compiler sees at once."""

START, OUTSIDE = 0, -2
"""Kinds of step: a document's first, and one that the array does not have. Padding is -1, as in
``positions``; a positive number is any other token."""

VMEM_BUDGET = 12 * 2**20
"""Bytes for blocks; the compiler grants a kernel 16 MiB by default, and keeps some itself."""

Interpret = Any
"""What ``pallas_call`` takes, a bool or ``pltpu.InterpretParams``; None: except on a TPU."""

Blocks = tuple[int, int]


def choose_blocks(T: int, R: int, streams: Sequence[Any], scratch: int = 2) -> Blocks:
    """Time and width of a block.

    Steps depend on each other and channels do not, so a block is as wide as the arithmetic of one
    step needs to hide its latency, about 10 registers of 128 lanes, and the width is divided
    evenly. Then it is as long as VMEM permits, in units of 128 steps, at most 256: longer blocks
    save nothing more, and only delay the first result.

    Parameters
    ----------
    T, R : int
    streams : sequence of dtype
        Arrays (B, T, R) that are read and written; each has two blocks in VMEM, one in use and one
        on its way.
    scratch : int
        Blocks of float32 beside them.
    """
    tiles = pl.cdiv(R, LANES)
    width = LANES * pl.cdiv(tiles, pl.cdiv(tiles, 10))
    row = width * (2 * sum(jnp.dtype(dtype).itemsize for dtype in streams) + 4 * scratch)
    time = max(1, min(2, VMEM_BUDGET // (row * LANES))) * LANES
    return min(time, round_up(T, ROWS)), width


def round_up(n: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return pl.cdiv(n, unit) * unit


class Grid:
    """How arrays are cut into blocks, and in which order the blocks are visited.

    Arrays need not be multiples of a block. Lanes beyond the width never meet the others; steps
    beyond the end are :data:`OUTSIDE`, whatever their memory holds.

    Attributes
    ----------
    rows, rows_before, state, kinds, channels : pl.BlockSpec
        For arrays (B, T, R); for the :data:`ROWS` rows of one that stand before a block; for
        (B, R); for :data:`START`, ... (B, T); for (R,).
    """

    def __init__(self, shape: tuple[int, ...], block: Blocks, reverse: bool = False):
        self.shape = B, T, R = shape
        self.M, self.N = M, N = block
        self.steps = steps = pl.cdiv(T, M)
        if M % ROWS or N % LANES or (steps > 1 and M % LANES):
            raise ValueError(f"no kernel for blocks of {M} steps x {N} channels")
        self.grid = (B, pl.cdiv(R, N), steps)
        self.reverse = reverse

        def time(t):
            return steps - 1 - t if reverse else t

        self.rows = pl.BlockSpec((None, M, N), lambda b, w, t: (b, time(t), w))
        self.rows_before = pl.BlockSpec(
            (None, ROWS, N), lambda b, w, t: (b, jnp.maximum(time(t) * (M // ROWS) - 1, 0), w)
        )
        self.state = pl.BlockSpec((None, 1, N), lambda b, w, t: (b, 0, w))
        self.channels = pl.BlockSpec((1, N), lambda b, w, t: (0, w))
        self.kinds = pl.BlockSpec((None, 1, round_up(M, LANES)), lambda b, w, t: (b, 0, time(t)))

    def call(self, kernel: Callable, inputs: list, outputs: list, interpret: Interpret) -> list:
        """Run a kernel on (array, spec) pairs; outputs are (dtype, spec) pairs."""
        B, T, R = self.shape
        in_specs, out_specs = ([spec for _, spec in pairs] for pairs in (inputs, outputs))

        def prepared(array, spec):
            if spec is self.kinds:
                end = round_up(self.steps * self.M, LANES) - T
                return jnp.pad(array, ((0, 0), (0, end)), constant_values=OUTSIDE)[:, None]
            if spec is self.state:
                return array[:, None]
            return array[None] if spec is self.channels else array

        out_shape = [
            jax.ShapeDtypeStruct((B, 1, R) if spec is self.state else (B, T, R), dtype)
            for dtype, spec in outputs
        ]
        block = pltpu.VMEM((self.M, self.N), jnp.float32)
        column = pltpu.VMEM((round_up(self.M, LANES), LANES), jnp.int32)

        def run(interpret):
            return pl.pallas_call(
                # Interpreted, an unrolled loop would only take longer to compile.
                functools.partial(kernel, unroll=1 if interpret else UNROLL),
                grid=self.grid,
                in_specs=in_specs,
                out_specs=out_specs,
                out_shape=out_shape,
                scratch_shapes=[column, block, block, pltpu.VMEM((1, self.N), jnp.float32)],
                compiler_params=pltpu.CompilerParams(
                    dimension_semantics=("parallel", "parallel", "arbitrary")
                ),
                interpret=interpret,
                name=kernel.__name__.strip("_"),
            )

        args = [prepared(array, spec) for array, spec in inputs]
        if interpret is None:
            results = lax.platform_dependent(*args, tpu=run(False), default=run(True))
        else:
            results = run(interpret)(*args)
        return [
            z[:, 0] if spec is self.state else z for z, spec in zip(results, out_specs, strict=True)
        ]


def step_decay(kind: Array, a: Array) -> Array:
    """The decay of each step of a tile: 0 at a start, 1 where nothing happens."""
    return jnp.where(kind == START, 0.0, jnp.where(kind < 0, 1.0, a))


def forward_pass(prepare, kinds, h0, h, last, column, decay, rows, carry, unroll):
    """One block: ``prepare`` fills ``decay`` and ``rows``, which then become states."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        carry[...] = h0[...]

    turn(kinds, column)
    for_tiles(decay, prepare)
    walk(decay, rows, carry, unroll)

    def store(tile):
        h[tile, :] = rows[tile, :].astype(h.dtype)

    for_tiles(decay, store)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        last[...] = carry[...]


def backward_pass(
    prepare, finish, kinds, h, h_before, h0, dh, dlast, dh0, column, decay, rows, carry, unroll
):
    """One block, from its end: ``prepare`` fills ``decay``, and ``rows`` become gradients of h.

    With g_t the gradient that reaches h_t from its own output and from all later steps,
    g_t = dh_t + a_(t+1) g_(t+1). ``finish`` gets the states before each step of a tile.
    """

    @pl.when(pl.program_id(2) == 0)
    def _():
        carry[...] = dlast[...]

    turn(kinds, column)

    def prepare_all(tile):
        prepare(tile)
        outside = column[tile, :1] == OUTSIDE
        rows[tile, :] = jnp.where(outside, 0.0, dh[tile, :].astype(jnp.float32))

    for_tiles(decay, prepare_all)
    walk(decay, rows, carry, unroll, reverse=True)

    first = pl.program_id(2) == pl.num_programs(2) - 1  # of the text: blocks come from its end
    previous = h_before[...].astype(jnp.float32)[ROWS - 1 :]
    previous = jnp.where(first, h0[...], previous)

    def finish_tile(tile, previous):
        states = h[tile, :].astype(jnp.float32)
        row = lax.broadcasted_iota(jnp.int32, states.shape, 0)
        finish(tile, jnp.where(row == 0, previous, pltpu.roll(states, 1, 0)))
        return states[ROWS - 1 :]

    for_tiles(decay, finish_tile, previous)

    @pl.when(first)
    def _():
        dh0[...] = carry[...]


def turn(kinds, column) -> None:
    """Kinds (1, M) lie along lanes, and rows of blocks are steps: (M, 128), each lane the same."""
    column[...] = jnp.broadcast_to(kinds[...], column.shape[::-1]).T


def for_tiles(block, do, carry=None) -> None:
    """Call ``do`` for every :data:`ROWS` rows of a block, so that they stay in registers."""

    def one(n, carry):
        tile = pl.ds(pl.multiple_of(n * ROWS, ROWS), ROWS)
        if carry is None:
            do(tile)
            return None
        return do(tile, carry)

    lax.fori_loop(0, block.shape[0] // ROWS, one, carry)


def walk(decay, rows, carry, unroll: int, reverse: bool = False) -> None:
    """The recurrence itself, in place, a row at a time.

    A decay of exactly 0 forgets: what is not finite would survive a product with 0. All rows are
    float32, because rows of packed types cannot be addressed one by one.
    """
    length = decay.shape[0]

    def times(a, h):
        return jnp.where(a == 0, 0.0, a * h)

    def forwards(t, h):
        row = pl.ds(t, 1)
        h = times(decay[row, :], h) + rows[row, :]
        rows[row, :] = h
        return h

    def backwards(t, h):
        row = pl.ds(length - 1 - t, 1)
        g = rows[row, :] + h
        rows[row, :] = g
        return times(decay[row, :], g)

    step = backwards if reverse else forwards
    carry[...] = lax.fori_loop(0, length, step, carry[...], unroll=unroll)
