"""Threads that meet inside compiled code: atomic counters and a barrier.

A model's step is one compiled function, which every thread runs with its own ``part``; between two
phases of the step the threads wait for each other here. That costs well below a microsecond, where
handing each phase to a thread pool would cost ten.
"""

import os

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from griffin_kernels.cpu.isa import FEATURES

__all__ = ["SYNC_SIZE", "atomic_add", "atomic_load", "barrier"]

SYNC_SIZE = 32
"""int64 numbers that a barrier needs, zero at first."""

COUNT, GENERATION = 0, 16  # on cache lines of their own
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
    """Wait until all ``parts`` threads are here; what they wrote before is seen after."""
    if parts == 1:
        return
    generation = atomic_load(sync, GENERATION)
    if atomic_add(sync, COUNT, 1) == parts - 1:
        atomic_add(sync, COUNT, -parts)
        atomic_add(sync, GENERATION, 1)
        return
    spins = 0
    while atomic_load(sync, GENERATION) == generation:
        pause()
        spins += 1
        if spins > SPINS:
            give_way()
