"""A matrix-vector product, rung by rung: from NumPy to vectors on all cores.

    python kernels/benchmarks/product_ladder.py [--outputs 65536] [--inputs 2560] [--repeat 15]

Weights are read once, so bytes of weights per second is the measure, and what a bare sum over as
much memory reaches in the same run the ceiling. Every rung is checked against a float64 product of
the weights and activations that it is given, before it is timed. With
``NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=`` in the environment the same runs as on a processor
with AVX2 alone.
"""

import argparse
import platform
from collections.abc import Callable

import ml_dtypes
import numpy as np
from numba import njit
from timing import in_turns

from griffin_conformance.envelope import chain_bound
from griffin_kernels.cpu import isa
from griffin_kernels.cpu.ceiling import read
from griffin_kernels.cpu.isa import amx
from griffin_kernels.cpu.matmul import (
    BFLOAT16,
    BYTES_PER_INPUT,
    FLOAT32,
    GROUP_BYTES,
    INT4,
    INT8,
    TILE_LAYOUT,
    product,
    scratch_bytes,
)
from griffin_kernels.cpu.pack import aligned, pack, unpack
from griffin_kernels.cpu.pool import pool
from griffin_kernels.cpu.rows import prepare_row

KINDS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8, "int4": INT4}


@njit(nogil=True, error_model="numpy")
def all_panels(part, parts, sync, kind, tiles, weights, K, rows, out, layout, scratch):
    """One thread's panels of a product with one row."""
    panels = len(out) // 16 // 32
    first, last = panels * part // parts, panels * (part + 1) // parts
    data, steps, corrections = rows
    product(
        kind, tiles, weights, first, last, K, data, steps, corrections, 1,
        out[first * 32 :], panels * 32, layout, scratch[part],
    )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def prepared(kind, x, K, data, floats, steps, corrections):
    prepare_row(kind, x, 0, 0, K, data, floats, steps, corrections)


@njit(nogil=True, error_model="numpy")
def plain_floats(weights, x, out):
    """Rows of float32 weights times x, as one writes it."""
    for n in range(weights.shape[0]):
        total = np.float32(0)
        for k in range(weights.shape[1]):
            total += weights[n, k] * x[k]
        out[n] = total


@njit(nogil=True, error_model="numpy")
def plain_integers(codes, scales, x, steps, offset, out):
    """Rows of integer weights times integer activations, as one writes it."""
    for n in range(codes.shape[0]):
        total = np.float32(0)
        for g in range(scales.shape[1]):
            dot = np.int32(0)
            for k in range(g * 64, g * 64 + 64):
                dot += (np.int32(codes[n, k]) - offset) * np.int32(x[k])
            total += np.float32(dot) * (scales[n, g] * steps[g])
        out[n] = total


def rungs(kind: int, N: int, K: int, rng) -> tuple[dict[str, Callable], int, Callable]:
    """Rungs by name, bytes of weights, and a check that takes a rung's result."""
    w = rng.standard_normal((N, K), np.float32) * np.float32(K**-0.5)
    data = pack(w, kind)
    exact = unpack(data, kind, N, K)
    del w
    x = rng.standard_normal(K).astype(np.float32)
    size = K * BYTES_PER_INPUT[kind]
    line, groups = aligned(16 * size), K // 64
    line[:] = 0
    steps, corrections = np.zeros(groups * 16, np.float32), np.zeros(groups * 16, np.int32)
    prepared(kind, x, K, line, line.view(np.float32), steps, corrections)
    # What the kernel was given: the row, rounded, out of its lines.
    mine = np.ascontiguousarray(line.reshape(-1, 16, 64)[:, 0]).reshape(-1)
    step = steps[::16].copy()
    if kind == FLOAT32:
        rounded = mine.view(np.float32).astype(np.float64)
    elif kind == BFLOAT16:
        rounded = mine.view(ml_dtypes.bfloat16).astype(np.float64)
    else:
        rounded = mine.view(np.int8).astype(np.float64) * np.repeat(step.astype(np.float64), 64)
    truth = exact @ rounded
    size_of_sums = np.abs(exact) @ np.abs(rounded)

    def check(result) -> None:
        error = np.abs(np.asarray(result, np.float64)[:N] - truth)
        worst = float((error / size_of_sums).max())
        if not worst <= chain_bound(K + 4, "float32"):
            raise SystemExit(f"wrong by {worst:.2g}")

    out, threads = aligned(16 * N, np.float32), pool()
    scratch = aligned(threads.threads * scratch_bytes(K)).reshape(threads.threads, -1)
    rows = (line, steps, corrections)
    arguments = (kind, amx.permitted(), data, K, rows, out, TILE_LAYOUT, scratch)

    def one_thread():
        all_panels(0, 1, threads.sync, *arguments)
        return out

    def all_threads():
        threads.run(all_panels, *arguments)
        return out

    y = np.empty(N, np.float32)
    short = rounded.astype(np.float32)
    if kind in (FLOAT32, BFLOAT16):
        kept = exact if kind == FLOAT32 else exact.astype(ml_dtypes.bfloat16)

        def numpy_product():
            for first in range(0, N, 4096):
                part = kept[first : first + 4096]
                y[first : first + 4096] = part.astype(np.float32, copy=False) @ short
            return y

        found = {"NumPy, a slab at a time": numpy_product}
        if kind == FLOAT32:
            found["plain Numba, one thread"] = lambda: (plain_floats(exact, short, y), y)[1]
    else:
        offset = 128 if kind == INT8 else 8
        of_groups = data.reshape(N // 32, groups, GROUP_BYTES[kind])[:, :, -64:]
        words = np.ascontiguousarray(of_groups).view(np.uint16).transpose(0, 2, 1)
        factor = np.ascontiguousarray(words).reshape(N, groups).view(ml_dtypes.bfloat16)
        factor = factor.astype(np.float32)
        codes = np.empty((N, K), np.uint8)
        for g in range(groups):
            part = exact[:, g * 64 : g * 64 + 64] / np.where(factor == 0, 1, factor)[:, g, None]
            codes[:, g * 64 : g * 64 + 64] = np.rint(part) + offset
        q = mine.view(np.int8).copy()

        def numpy_product():
            for first in range(0, N, 4096):
                part = codes[first : first + 4096].astype(np.float32) - np.float32(offset)
                part = part.reshape(-1, groups, 64) * factor[first : first + 4096, :, None]
                y[first : first + 4096] = part.reshape(-1, K) @ short
            return y

        def plain():
            plain_integers(codes, factor, q, step, np.int32(offset), y)
            return y

        found = {"NumPy, a slab at a time": numpy_product, "plain Numba, one thread": plain}
    found |= {"vectors, one thread": one_thread, "vectors, all threads": all_threads}
    return found, data.nbytes, check


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=int, default=65536)
    parser.add_argument("--inputs", type=int, default=2560)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--dtype", action="append", choices=KINDS)
    args = parser.parse_args()
    threads = pool()
    print(
        f"{platform.processor() or platform.machine()}, {isa.NAME}"
        f"{' + AMX' if amx.permitted() else ''}, {threads.threads} threads; "
        f"{args.outputs} outputs of {args.inputs}\n"
    )
    print("| weights | rung | ms | GB/s of weights | of the ceiling |\n|---|---|---|---|---|")
    memory, sums = np.ones(1 << 26, np.float32), np.zeros(threads.threads, np.float32)
    for name in args.dtype or KINDS:
        found, size, check = rungs(KINDS[name], args.outputs, args.inputs, np.random.default_rng(0))
        for rung, run in found.items():
            check(run())
            took, ratio = in_turns(run, lambda: threads.run(read, memory, sums), args.repeat)
            print(f"| {name} | {rung} | {took * 1e3:.1f} | {size / took / 1e9:.1f} | "
                  f"{ratio * size / memory.nbytes:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
