"""Threads that meet inside compiled code: atomic counters, a barrier, and shares of work.

A model's step is one compiled function, which every thread runs with its own ``part``; between two
phases of the step the threads wait for each other here. That costs well below a microsecond, where
handing each phase to a thread pool would cost ten. Within a phase each thread takes pieces of work
as long as there are any, so a core that is slow, or that another process uses too, holds nobody up.
"""

import os

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from griffin_kernels.cpu.isa import FEATURES

__all__ = ["SYNC_SIZE", "atomic_add", "atomic_load", "barrier", "claim"]

SYNC_SIZE = 80
"""int64 numbers that a barrier needs, zero at first."""

COUNT, GENERATION = 0, 16  # on cache lines of their own
TAKEN = 32
"""Where counters of taken pieces begin, one for each kind of work in a phase."""

KINDS_OF_WORK = 3
LINE = 16
SPINS = 2000
"""Looks at the counter before the rest of the time slice is given away."""


def element(context, builder, array_type, array, index):
    """Pointer to an int64."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def atomic_add(typing, array, index, value):
    """Add to an int64, in one piece; the value before."""

    def generate(context, builder, signature, args):
        pointer = element(context, builder, array, args[0], args[1])
        return builder.atomic_rmw("add", pointer, args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def atomic_load(typing, array, index):
    """An int64 as other threads have left it."""

    def generate(context, builder, signature, args):
        pointer = element(context, builder, array, args[0], args[1])
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def atomic_exchange(typing, array, index, expected, value):
    """Write an int64 if it is what was expected; whether it was."""

    def generate(context, builder, signature, args):
        pointer = element(context, builder, array, args[0], args[1])
        result = builder.cmpxchg(pointer, args[2], args[3], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(array, types.intp, types.int64, types.int64), generate


@intrinsic
def pause(typing):
    """Tell the processor that this thread only waits."""

    def generate(context, builder, signature, args):
        if "sse2" in FEATURES:
            function = ir.FunctionType(ir.VoidType(), [])
            name, arguments = "llvm.x86.sse2.pause", []
        elif "neon" in FEATURES:
            function = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            name, arguments = "llvm.aarch64.hint", [ir.Constant(ir.IntType(32), 1)]
        else:
            return context.get_dummy_value()
        builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def give_way(typing):
    """Let another thread run, where the system has POSIX's call for it."""

    def generate(context, builder, signature, args):
        if os.name == "posix":
            function = ir.FunctionType(ir.IntType(32), [])
            call = cgutils.get_or_insert_function(builder.module, function, "sched_yield")
            builder.call(call, [])
        return context.get_dummy_value()

    return types.void(), generate


@njit(error_model="numpy")
def barrier(sync, parts):
    """Wait until all ``parts`` threads are here; what they wrote before is seen after.

    Then all work can be claimed anew.
    """
    generation = atomic_load(sync, GENERATION)
    if atomic_add(sync, COUNT, 1) == parts - 1:
        for kind in range(KINDS_OF_WORK):
            sync[TAKEN + kind * LINE] = 0
        atomic_add(sync, COUNT, -parts)
        atomic_add(sync, GENERATION, 1)
        return
    spins = 0
    while atomic_load(sync, GENERATION) == generation:
        pause()
        spins += 1
        if spins > SPINS:
            give_way()


@njit(error_model="numpy")
def claim(sync, parts, pieces, most, kind):
    """Take some of a phase's ``pieces`` that no thread has taken: first and last + 1.

    Shares are long at first and short towards the end, where threads have to finish together; none
    is longer than ``most``. When nothing is left, first is ``pieces``.

    Parameters
    ----------
    kind : int
        Below KINDS_OF_WORK: phases may have several kinds of work, each with its own pieces.
    """
    while True:
        first = atomic_load(sync, TAKEN + kind * LINE)
        left = pieces - first
        if left <= 0:
            return pieces, pieces
        last = first + min(most, max(left // (2 * parts), 1))
        if atomic_exchange(sync, TAKEN + kind * LINE, first, last):
            return first, last
