"""A matrix-matrix product beside what the processor's multipliers can do at most.

    python kernels/benchmarks/product_peak.py [--rows 512] [--outputs 7680] [--inputs 2560]

Prefill is limited by arithmetic. The peak is a loop of nothing but the instruction that multiplies
(fused multiply-add, AVX-512's bfloat16 and integer dot products), on registers, on all threads; it
is left out where products run on other instructions. NumPy's float32 product stands beside them.
Peak and product are timed in turns, because the machine's speed drifts. Operations are two for each
weight and row.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
from numba import njit
from numba.extending import intrinsic

from griffin_conformance.envelope import chain_bound
from griffin_kernels.cpu import isa
from griffin_kernels.cpu.isa import amx, avx512
from griffin_kernels.cpu.isa.common import Words
from griffin_kernels.cpu.matmul import (
    BFLOAT16,
    FLOAT32,
    INT4,
    INT8,
    TILE_LAYOUT,
    product,
    scratch_bytes,
)
from griffin_kernels.cpu.operations import laid_out
from griffin_kernels.cpu.pack import aligned, pack, unpack
from griffin_kernels.cpu.pool import pool
from griffin_kernels.cpu.simd import FLOATS, LANES, llvm_type, load, store
from griffin_kernels.cpu.tiles import HAS_BFLOAT16_DOT, block_zeros, dot_of_pairs, fma
from griffin_kernels.cpu.weights import KINDS

PASSES = 5_000_000
SUMS = 16
"""Sums that grow beside each other, as many as a tile has."""


@njit(nogil=True, error_model="numpy")
def whole(part, parts, sync, kind, tiles, weights, K, x, rows, out, N, layout, scratch):
    """One thread's panels, for all rows."""
    panels = N // 32
    first, last = panels * part // parts, panels * (part + 1) // parts
    data, steps, corrections = x
    product(
        kind, tiles, weights, first, last, K, data, steps, corrections, rows, out[32 * first:], N,
        layout, scratch[part],
    )  # fmt: skip


def multiplying(kind: int):
    """A kernel of nothing but products of one kind, and the operations of one pass."""

    @intrinsic
    def step(typing, sums, factor):
        def generate(context, builder, signature, args):
            words, floats = Words(builder, LANES), llvm_type(FLOATS)
            x = args[1] if kind == FLOAT32 else builder.bitcast(args[1], words.ints)
            result = args[0]
            for i in range(SUMS):
                total = builder.extract_value(result, i)
                if kind == FLOAT32:
                    total = fma(builder, x, x, total)
                elif kind == BFLOAT16:
                    total = dot_of_pairs(words, total, x, x)
                else:
                    exact = avx512.dot(words, builder.bitcast(total, words.ints), x, x)
                    total = builder.bitcast(exact, floats)
                result = builder.insert_value(result, total, i)
            return result

        return sums(sums, factor), generate

    @njit(nogil=True, error_model="numpy")
    def run(part, parts, sync, out):
        x, sums = load(out, part * LANES), block_zeros()
        for _ in range(PASSES):
            sums = step(sums, x)
        total = x
        for s in sums:
            total = total + s
        store(out, part * LANES, total)

    inputs = {FLOAT32: 1, BFLOAT16: 2}.get(kind, 4)
    return run, 2 * SUMS * LANES * inputs * PASSES


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--outputs", type=int, default=7680)
    parser.add_argument("--inputs", type=int, default=2560)
    parser.add_argument("--repeat", type=int, default=9)
    args = parser.parse_args()
    threads, T, N, K = pool(), args.rows, args.outputs, args.inputs
    print(f"{platform.processor() or platform.machine()}, {isa.NAME}"
          f"{' + AMX' if amx.permitted() else ''}, {threads.threads} threads; "
          f"({T}, {K}) times ({K}, {N})\n")  # fmt: skip
    print(
        "| weights | product, GOP/s | peak of the instruction, GOP/s | share |\n|---|---|---|---|"
    )
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((N, K), np.float32) * np.float32(K**-0.5)
    rows = rng.standard_normal((T, K)).astype(np.float32)
    scratch = aligned(threads.threads * scratch_bytes(K)).reshape(threads.threads, -1)
    out = aligned(-(-T // 16) * 16 * N, np.float32)
    sums = aligned(LANES * threads.threads, np.float32)
    sums[:] = 0
    work = 2 * T * N * K
    for name, kind in KINDS.items():
        packed = pack(weights, kind)
        data, _, steps, corrections = laid_out(rows, kind)
        tiles = amx.permitted() and kind != FLOAT32
        known = {FLOAT32: True, BFLOAT16: HAS_BFLOAT16_DOT}.get(kind, isa.NAME == "avx512")
        arguments = (kind, tiles, packed, K, (data, steps, corrections), T, out, N, TILE_LAYOUT,
                     scratch)  # fmt: skip
        multiply, of_pass = multiplying(kind) if known and not tiles else (None, 0)
        threads.run(whole, *arguments)
        check(kind, packed, rows, out.reshape(-1, N), N, K)
        speeds, peaks = [], []
        for turn in range(args.repeat + 1):
            speed = work / seconds(lambda given=arguments: threads.run(whole, *given))
            peak = 0.0
            if multiply:
                took = seconds(lambda run=multiply: threads.run(run, sums))
                peak = of_pass * threads.threads / took
            if turn:  # the first one compiles
                speeds.append(speed)
                peaks.append(peak)
        speed, peak = statistics.median(speeds), statistics.median(peaks)
        cells = [f"{peak / 1e9:.0f}", f"{speed / peak:.2f}"] if peak else ["", ""]
        print(f"| {name} | {speed / 1e9:.0f} | {cells[0]} | {cells[1]} |", flush=True)
    by_numpy = [work / seconds(lambda: rows @ weights.T) for _ in range(args.repeat)]
    print(f"| float32, NumPy | {statistics.median(by_numpy) / 1e9:.0f} | | |")


def check(kind: int, packed, rows, out, N: int, K: int) -> None:
    """Sixteen outputs of all rows, against float64; activations may have been rounded to 8 bits."""
    known = unpack(packed, kind, N, K)[:16].astype(np.float64)
    allowed = chain_bound(K + 4, "float32") * (np.abs(rows) @ np.abs(known).T)
    if kind in (INT8, INT4):
        steps = np.abs(rows.reshape(len(rows), -1, 64)).max(-1) / 127
        allowed += np.repeat(steps, 64, axis=1) / 2 @ np.abs(known).T
    elif kind != FLOAT32:
        allowed += 2**-8 * (np.abs(rows) @ np.abs(known).T)
    if not (np.abs(out[: len(rows), :16] - rows.astype(np.float64) @ known.T) <= allowed).all():
        raise SystemExit("wrong")


if __name__ == "__main__":
    main()
