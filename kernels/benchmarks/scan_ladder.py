"""The scan of the RG-LRU, rung by rung: from a loop over NumPy rows to vectors on all cores.

    python kernels/benchmarks/scan_ladder.py [--tokens 4096] [--width 2560] [--repeat 25]

Every rung is held against the envelope of the reference before it is timed. The ceiling is what the
same run moves with the same two reads and one write and a single addition, also around the caches.
All but JAX write into an array that is there already: a new one costs more than the scan. JAX's
associative scan runs beside them where JAX is installed.
"""

import argparse
import math
import platform
from collections.abc import Callable

import numpy as np
from numba import njit
from timing import in_turns

from griffin_conformance.envelope import Envelope
from griffin_conformance.rounding import FLOAT32
from griffin_conformance.simulation import Simulation
from griffin_kernels.cpu import scan as cpu
from griffin_kernels.cpu.pack import aligned
from griffin_kernels.cpu.pool import pool, set_threads
from griffin_kernels.cpu.simd import LANES, load, store_around_cache
from griffin_np.rg_lru import scan as reference


@njit(error_model="numpy")
def plain_numba(a, x, h, y):
    """The definition, compiled: time outermost, one thread."""
    state = h.copy()
    for t in range(a.shape[0]):
        for c in range(a.shape[1]):
            state[c] = a[t, c] * state[c] + x[t, c]
            y[t, c] = state[c]
    return y


def one_row_at_a_time(a, x, h, y):
    """The reference's loop, into an array that is there already."""
    for t in range(len(x)):
        np.multiply(a[t], h, out=y[t])
        y[t] += x[t]
        h = y[t]
    return y


def one_thread(a, x, h, y):
    """Explicit vectors, one thread."""
    set_threads(1)
    try:
        return cpu.scan(a, x, h, y)
    finally:
        set_threads(None)


@njit(nogil=True, error_model="numpy")
def ceiling(part, parts, sync, a, x, y):
    """Two reads and a write of every number."""
    first, last = len(a) // LANES * part // parts, len(a) // LANES * (part + 1) // parts
    for i in range(LANES * first, LANES * last, LANES):
        store_around_cache(y, i, load(a, i) + load(x, i))


def in_jax():
    """JAX's associative scan as a rung, or None."""
    try:
        import jax
    except ImportError:
        return None
    from griffin_kernels.xla.scan_xla import associative_scan

    compiled = jax.jit(associative_scan)

    def run(a, x, h, y):
        return jax.block_until_ready(compiled(a[None], x[None], h[None]))[0][0]

    return run


def check(run: Callable, name: str) -> float:
    """Observed over allowed on a short text; raises if the rung is wrong."""
    rng = np.random.default_rng(1)
    a, x = rng.random((40, 100), np.float32), rng.standard_normal((40, 100)).astype(np.float32)
    h = rng.standard_normal(100).astype(np.float32)
    wide = [np.repeat(z[None].astype(np.float64), 16, axis=0) for z in (a, x)]
    truth = reference(*(z.astype(np.float64) for z in (a, x, h)))
    samples = Simulation(FLOAT32).scan(*wide, h.astype(np.float64))
    found = Envelope.of(truth, samples, FLOAT32).compare(
        name, np.asarray(run(a, x, h, np.empty_like(x)))
    )
    if not found.passed:
        raise SystemExit(f"{found}")
    return found.ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--repeat", type=int, default=25)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (args.tokens, args.width)
    a, x = rng.random(shape, np.float32), rng.standard_normal(shape).astype(np.float32)
    h, y = np.zeros(args.width, np.float32), aligned(math.prod(shape), np.float32).reshape(shape)
    bytes_moved, flat = 3 * a.nbytes, (a.ravel(), x.ravel(), y.ravel())

    rungs = {
        "NumPy, a row at a time (as the reference)": one_row_at_a_time,
        "plain Numba, one thread": plain_numba,
        "vectors, one thread": one_thread,
        "vectors, all threads": cpu.scan,
    }
    jax = in_jax()
    if jax:
        rungs["JAX associative scan"] = jax
    ratios = {name: check(run, name) for name, run in rungs.items()}
    print(f"{platform.processor() or platform.machine()}, {pool().threads} threads; "
          f"({args.tokens}, {args.width}) float32, {bytes_moved / 1e6:.0f} MB moved\n")  # fmt: skip
    print("| rung | ms | GB/s | of the ceiling | observed / allowed |\n|---|---|---|---|---|")
    for name, run in rungs.items():
        took, ratio = in_turns(
            lambda run=run: run(a, x, h, y), lambda: pool().run(ceiling, *flat), args.repeat
        )
        print(f"| {name} | {took * 1e3:.1f} | {bytes_moved / took / 1e9:.1f} | {ratio:.2f} | "
              f"{ratios[name]:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
