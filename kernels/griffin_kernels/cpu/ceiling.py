"""How fast this machine reads memory: the limit of kernels that read every weight once."""

import time

import numpy as np

from griffin_kernels.cpu.compiled import kernel
from griffin_kernels.cpu.memory import available
from griffin_kernels.cpu.pool import pool
from griffin_kernels.cpu.simd import LANES, broadcast, lane_sum, load

__all__ = ["BYTES", "read", "read_ceiling"]

BYTES = 1 << 28
"""Size of the array that is read, several times that of a cache; less if memory is short."""

SECONDS = 0.4
"""How long is read: some machines give more for a moment, after a pause."""


@kernel
def read(part, parts, sync, data, sums):
    """A sum over float32 numbers, as fast as memory gives them: eight vectors in turn.

    Left to itself, LLVM reads at a quarter of that speed on some processors.
    """
    step = 8 * LANES
    pieces = len(data) // step
    first, last = pieces * part // parts * step, pieces * (part + 1) // parts * step
    zero = broadcast(np.float32(0))
    a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
    for i in range(first, last, step):
        a, b = a + load(data, i), b + load(data, i + LANES)
        c, d = c + load(data, i + 2 * LANES), d + load(data, i + 3 * LANES)
        e, f = e + load(data, i + 4 * LANES), f + load(data, i + 5 * LANES)
        g, h = g + load(data, i + 6 * LANES), h + load(data, i + 7 * LANES)
    sums[part] = lane_sum(((a + b) + (c + d)) + ((e + f) + (g + h)))


def read_ceiling() -> float:
    """Gigabytes per second at which all threads of the CPU engine together read memory.

    The mean over SECONDS, as the speeds that it is compared with are means.
    """
    threads, free = pool(), available() or BYTES
    array = np.ones(min(BYTES, max(free // 4, 1 << 26)) // 4, np.float32)
    sums = np.empty(threads.threads, np.float32)
    threads.run(read, array, sums)  # compiles, and brings every page
    began, reads, took = time.perf_counter(), 0, 0.0
    while took < SECONDS:
        threads.run(read, array, sums)
        reads, took = reads + 1, time.perf_counter() - began
    return array.nbytes * reads / took / 1e9
