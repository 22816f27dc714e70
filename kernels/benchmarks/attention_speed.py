"""Speed of the CPU engine's attention: a prompt on one thread, and one token on all of them.

    python kernels/benchmarks/attention_speed.py [--threads 2] [--heads 10] [--head-dim 256] ...

A prompt is held against the float32 peak of a core, which a loop of fused multiply-adds on
registers measures in the same run. One token is held against the time that the threads need to
read the keys and values from memory; before each, other memory is read, so that the ring is not in
a cache.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from numba import njit, prange, set_num_threads

from griffin_kernels.cpu.attention import attend, scratch_size
from griffin_kernels.cpu.simd import LANES, broadcast, fma, load, store

CHAINS = 12
"""Independent sums in :func:`multiply_add`: more than two units with a latency of four need."""


@njit(error_model="numpy")
def multiply_add(turns, out):
    """Fused multiply-adds on registers: CHAINS of them each turn."""
    a = b = c = d = e = f = g = h = i = j = k = l = load(out, 0)  # noqa: E741
    x, y = broadcast(np.float32(0.999)), broadcast(np.float32(1))
    for _ in range(turns):
        a, b, c = fma(a, x, y), fma(b, x, y), fma(c, x, y)
        d, e, f = fma(d, x, y), fma(e, x, y), fma(f, x, y)
        g, h, i = fma(g, x, y), fma(h, x, y), fma(i, x, y)
        j, k, l = fma(j, x, y), fma(k, x, y), fma(l, x, y)  # noqa: E741
    for n, s in enumerate((a, b, c, d, e, f, g, h, i, j, k, l)):
        store(out, n * LANES, s)


@njit(parallel=True, error_model="numpy")
def read_all(x, parts, sums):
    """Read an array in one pass, each thread its share."""
    share = len(x) // parts // (4 * LANES) * (4 * LANES)
    for part in prange(parts):
        out = sums[part]
        a = b = c = d = load(out, 0)
        for i in range(part * share, (part + 1) * share, 4 * LANES):
            a, b = a + load(x, i), b + load(x, i + LANES)
            c, d = c + load(x, i + 2 * LANES), d + load(x, i + 3 * LANES)
        store(out, 0, a + b + (c + d))


@njit(parallel=True, error_model="numpy")
def attend_all(parts, q, k, v, y, ring_k, ring_v, positions, tokens, H, Q, d, W, scratch):
    """Attention of a call on all threads."""
    for part in prange(parts):
        attend(
            part, parts, q, k, v, y, ring_k, ring_v, 0, positions, 0, tokens,
            H, Q, d, W, scratch[part],
        )  # fmt: skip


def aligned(n: int) -> np.ndarray:
    """Zeros, float32, from a cache line on."""
    x = np.zeros(n + LANES, np.float32)
    start = -(x.ctypes.data // 4) % LANES
    return x[start : start + n]


def drawn(rng, n: int) -> np.ndarray:
    """Normal numbers, from a cache line on."""
    x = aligned(n)
    x[:] = rng.standard_normal(n, np.float32)
    return x


def shortest(run: Callable[[], object], before: Callable[[], object], repeat: int) -> float:
    """Least time of a call, in seconds: whatever else the machine does can only add to it."""
    times = []
    for _ in range(repeat):
        before()
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def peak_flops() -> float:
    """Float32 operations a second of one core."""
    out, turns = aligned(CHAINS * LANES), 2_000_000
    multiply_add(1, out)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        multiply_add(turns, out)
        times.append(time.perf_counter() - began)
    return turns * CHAINS * LANES * 2 / min(times)


def operations(tokens: int, position: int, W: int, H: int, d: int) -> int:
    """Float32 operations of scores and weighted sums over the keys that are seen."""
    keys = sum(min(p, W) + 1 for p in range(position, position + tokens))
    return 4 * keys * H * d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {
        "tokens": 512, "position": 4096, "window": 2048, "heads": 10, "kv-heads": 1,
        "head-dim": 256, "threads": 2, "repeat": 5,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    T, W, H, Q, d = args.tokens, args.window, args.heads, args.kv_heads, args.head_dim
    rng = np.random.default_rng(0)
    q = drawn(rng, T * H * d)
    q /= np.float32(np.sqrt(d))
    k, v = drawn(rng, T * Q * d), drawn(rng, T * Q * d)
    ring_k, ring_v = drawn(rng, W * Q * d), drawn(rng, W * Q * d)
    y, positions = aligned(T * H * d), args.position + np.arange(T)
    scratch = np.zeros((args.threads, scratch_size(H, Q, d)), np.float32)
    ring, other = np.concatenate([ring_k, ring_v]), np.ones(1 << 26, np.float32)
    sums = np.zeros((args.threads, LANES), np.float32)

    def run(threads, tokens):
        set_num_threads(threads)
        attend_all(threads, q, k, v, y, ring_k, ring_v, positions, tokens, H, Q, d, W, scratch)

    def read(threads, what):
        set_num_threads(threads)
        read_all(what, threads, sums)

    run(1, 1)
    read(1, other)
    print(f"H={H} Q={Q} d={d} W={W}, position {args.position}; "
          f"scratch {scratch_size(H, Q, d) * 4 / 1024:.0f} KiB a thread")  # fmt: skip
    shares = []
    for _ in range(args.repeat):
        # The peak is taken anew each time, because the clock drifts.
        peak = peak_flops()
        rate = operations(T, args.position, W, H, d) / shortest(lambda: run(1, T), list, 1)
        shares.append((rate / peak, rate, peak))
    share, rate, peak = statistics.median_low(shares)
    print(f"{T} tokens, 1 thread: {rate / 1e9:.1f} GFLOP/s, {share:.2f} of a core's "
          f"{peak / 1e9:.1f}; best of {args.repeat} {max(shares)[0]:.2f}")  # fmt: skip
    for n in sorted({1, args.threads}):

        def evict(n=n):
            read(n, other)

        cold = shortest(lambda n=n: run(n, 1), evict, 5 * args.repeat)
        warm = shortest(lambda n=n: run(n, 1), list, 5 * args.repeat)
        memory = shortest(lambda n=n: read(n, ring), evict, 5 * args.repeat)
        print(f"1 token, {n} thread{'s' * (n > 1)}: {cold * 1e6:.0f} µs, again "
              f"{warm * 1e6:.0f} µs; reading {ring.nbytes / 1e6:.1f} MB from memory "
              f"{memory * 1e6:.0f} µs: "
              f"{cold / memory:.2f} x")  # fmt: skip


if __name__ == "__main__":
    main()
