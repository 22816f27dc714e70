#!/usr/bin/env python3
"""DeepMind's Flax model against the JAX engine: the same size, the same machine, in turns.

    pip install "griffin-np[jax]" "recurrentgemma[jax]"
    python kernels/benchmarks/peer_flax.py

A model of 246 million random weights (17 blocks of width 1024, vocabulary 32,000) in float32. Both
read a prompt into a state without computing logits, and take single steps with logits from a state
whose buffers are donated. DeepMind's code is tried with each scan that it has for this platform.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from griffin_kernels.xla.engine import JaxModel
from griffin_np.config import GriffinConfig
from griffin_np.params import init_parameters

CONFIG = GriffinConfig(
    width=1024, depth=17, num_heads=8, vocab_size=32_000, lru_width=1024, mlp_width=3072,
    window=1024,
)  # fmt: skip


def their_model(scan: str) -> tuple[Callable, Callable]:
    """``read(tokens)`` gives a cache; ``step(cache)`` one token's logits and the next cache."""
    from recurrentgemma import common
    from recurrentgemma import jax as port

    kinds, c = common.TemporalBlockType, CONFIG
    config = common.GriffinConfig(
        vocab_size=c.vocab_size, width=c.width, mlp_expanded_width=c.mlp_width,
        num_heads=c.num_heads, lru_width=c.lru_width,
        block_types=tuple(kinds[kind.upper()] for kind in c.block_types),
        embeddings_scale_by_sqrt_dim=True, attention_window_size=c.window,
        logits_soft_cap=c.logits_soft_cap, scan_type=common.ScanType[scan],
    )  # fmt: skip
    model = port.Griffin(config, dtype=jnp.float32, param_dtype=jnp.float32)
    one = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), one, one)
    prefill = jax.jit(
        lambda params, tokens, positions: model.apply(
            params, tokens, positions, None, return_logits=False, return_cache=True
        )[1]
    )
    decode = jax.jit(
        lambda params, cache, position: model.apply(params, one, position, cache),
        donate_argnums=1,
    )

    def read(tokens):
        positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
        return jax.block_until_ready(prefill(params, tokens, positions)), tokens.shape[1]

    def step(carry):
        cache, position = carry
        logits, cache = decode(params, cache, np.full((1, 1), position, np.int32))
        np.asarray(logits)
        return cache, position + 1

    return read, step


def our_model() -> tuple[Callable, Callable]:
    model = JaxModel(CONFIG, init_parameters(CONFIG))

    def read(tokens):
        _, state = model.advance(tokens, logits="none")
        jax.block_until_ready(state.device)
        return state

    def step(state):
        return model.advance([[0]], None, state)[1]

    return read, step


def seconds(call: Callable, *args) -> tuple[float, object]:
    began = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=512, help="tokens of the prompt (512)")
    parser.add_argument("--steps", type=int, default=20, help="steps in each turn (20)")
    parser.add_argument("--turns", type=int, default=5, help="turns (5)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, (1, args.length)).astype(np.int32)
    print(f"{CONFIG.num_parameters():,} parameters, float32, {jax.devices()[0].device_kind}")

    runs = {"griffin-np": our_model()}
    for scan in ("LINEAR_NATIVE", "ASSOCIATIVE_NATIVE"):
        runs[f"Flax, {scan}"] = their_model(scan)
    carries, times = {}, {name: ([], []) for name in runs}
    for name, (read, step) in runs.items():
        compile_read, carry = seconds(read, tokens)
        compile_step, carries[name] = seconds(step, carry)
        print(f"{name}: first prompt {compile_read:.1f} s, first step {compile_step:.1f} s")
    for _ in range(args.turns):
        for name, (read, step) in runs.items():
            times[name][0].append(seconds(read, tokens)[0])
            began = time.perf_counter()
            for _ in range(args.steps):
                carries[name] = step(carries[name])
            times[name][1].append((time.perf_counter() - began) / args.steps)
    ours = [statistics.median(z) for z in times["griffin-np"]]
    print(f"\n| model | prompt of {args.length}, ms | ours is faster by | step, ms | by |")
    print("|---|---|---|---|---|")
    for name, parts in times.items():
        read, step = (statistics.median(z) for z in parts)
        print(
            f"| {name} | {1e3 * read:.0f} | {read / ours[0]:.2f} | {1e3 * step:.1f} | "
            f"{step / ours[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
