#!/usr/bin/env python3
"""RecurrentGemma compiled for real TPUs, without one: memory of a chip, and the roofline.

    python kernels/benchmarks/tpu_models.py [--only decode]

Needs ``libtpu`` in an environment of its own (see tpu_compile.py). Compiles reading a prompt,
decoding, and the whole generation loop with its sampler, in bfloat16; checks that Pallas' kernels
are in what reads and that a chip's memory holds everything; prints a table in Markdown.

The floor of a step is what a chip must do at least: read its share of weights and state once from
memory, and multiply. Compilers count differently: what they copy into fast memory before they use
it is counted twice. Loops over blocks are counted once, so prompts are compiled at two depths, and
the difference is one repetition of the block pattern.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

from tpu_compile import HBM, prepare_environment

CHIPS = {"v5e": (819e9, 197e12), "v5p": (2765e9, 459e12), "v6e": (1640e9, 918e12)}
"""Bytes a second from memory, and bfloat16 operations a second, of a chip."""


@dataclass(frozen=True)
class Case:
    """A model on a mesh, and what it does there."""

    what: str  # read, decode or generate
    preset: str
    topology: str
    mesh: tuple[int, int, int]
    batch: int
    tokens: int = 1


CASES = [
    Case("read", "recurrentgemma-2b", "v5e:2x2", (1, 1, 1), 1, 2048),
    Case("read", "recurrentgemma-2b", "v5e:2x2", (2, 1, 2), 8, 2048),
    Case("read", "recurrentgemma-2b", "v5e:2x2", (1, 2, 2), 1, 8192),
    Case("decode", "recurrentgemma-2b", "v5e:2x2", (1, 1, 1), 1),
    Case("decode", "recurrentgemma-2b", "v5e:2x2", (1, 1, 1), 128),
    Case("decode", "recurrentgemma-2b", "v5e:2x2", (2, 1, 2), 256),
    Case("generate", "recurrentgemma-2b", "v5e:2x2", (1, 1, 1), 128),
    Case("read", "recurrentgemma-9b", "v5e:4x4", (2, 1, 8), 8, 2048),
    Case("decode", "recurrentgemma-9b", "v5e:4x4", (2, 1, 8), 256),
]


def program(case: Case, config, devices) -> tuple[Any, Any, int]:
    """Lowered and compiled, and bytes of weights and state on the fullest chip."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from griffin_kernels.xla.engine import read_text
    from griffin_kernels.xla.generate import decode
    from griffin_kernels.xla.model import stack
    from griffin_kernels.xla.sampling import options_of
    from griffin_kernels.xla.sharding import make_mesh, shardings
    from griffin_np.params import nest, parameter_shapes
    from griffin_np.sampling import Sampler
    from griffin_np.state import State

    mesh = make_mesh(*case.mesh, devices=devices)

    def array(shape, dtype, *axes):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))

    def placed(tree):
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            tree, shardings(tree, mesh),
        )  # fmt: skip

    def shares(tree):
        """Bytes of it on one chip."""
        return sum(
            leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in jax.tree.leaves(tree)
        )

    params = nest({
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for name, shape in parameter_shapes(config).items()
    })  # fmt: skip
    params |= jax.eval_shape(lambda blocks: stack(blocks, config), params["blocks"])
    one = State.zeros(config, 1, jnp.bfloat16)
    layers = [
        {name: jax.ShapeDtypeStruct((case.batch, *x.shape[1:]), x.dtype)
         for name, x in vars(layer).items()}
        for layer in one.layers
    ]  # fmt: skip
    params, layers = placed(params), placed(layers)
    B, T, V = case.batch, case.tokens, config.vocab_size
    static = {"config": config, "scan": "pallas"}
    with jax.set_mesh(mesh):
        if case.what == "generate":
            steps, options = options_of(Sampler(temperature=0.8, top_k=40, top_p=0.95), V)
            options = jax.tree.map(lambda x: array(x.shape, x.dtype), options)
            rows, scalar = array((B,), jnp.int32, "data"), array((), jnp.int32)
            lowered = decode.lower(
                params, layers, array((B, V), jnp.float32, "data"), rows, rows,
                array((B,), jnp.bool_, "data"), array((B, 1), jnp.int32, "data"), rows,
                array((B, 64), jnp.float32, "data"), scalar, array((2,), jnp.int32), options,
                steps=steps, **static,
            )  # fmt: skip
        else:
            tokens = array((B, T), jnp.int32, "data")
            lowered = read_text.lower(
                params,
                tokens,
                tokens,
                layers,
                logits="last",
                watch=False,
                step=T == 1,
                gather=False,
                **static,
            )
        began = time.perf_counter()
        compiled = lowered.compile()
    return compiled, time.perf_counter() - began, shares(params) + shares(layers)


def costs(case: Case, config, devices, whole) -> tuple[float, float]:
    """FLOPs and bytes on a chip, as the compiler counts them."""

    def count(compiled):
        found = compiled.cost_analysis()
        return found["flops"], found["bytes accessed"]

    if case.what != "read":
        return count(whole)
    # Less than two repetitions are not a loop. Blocks after the last whole one are always there.
    period = len(config.block_pattern)
    rest, repeats = config.depth % period, config.depth // period
    small, large = (
        count(program(case, config.replace(depth=rest + n * period), devices)[0]) for n in (0, 1)
    )
    return tuple(a + repeats * (b - a) for a, b in zip(small, large, strict=True))


def main() -> int:
    """Compile everything that was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", choices=["read", "decode", "generate"], help="a part of it")
    options = parser.parse_args()
    prepare_environment()
    from jax.experimental import topologies

    from griffin_np.config import GriffinConfig

    print(
        "| model, chips (data x sequence x model) | program | compiled in, s | Pallas kernels | "
        "GiB of a chip (temporary) | GFLOP a token | MB a token | floor, ms | tokens/s at most |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    failed = 0
    for case in CASES:
        if options.only not in (None, case.what):
            continue
        generation = case.topology.split(":")[0]
        bandwidth, operations = CHIPS[generation]
        devices = topologies.get_topology_desc(platform="tpu", topology_name=case.topology).devices
        config = GriffinConfig.preset(case.preset)
        compiled, seconds, held = program(case, config, devices)
        kernels = compiled.as_text().count('custom_call_target="tpu_custom_call"')
        use = compiled.memory_analysis()
        total = use.argument_size_in_bytes + use.output_size_in_bytes + use.temp_size_in_bytes
        total -= use.alias_size_in_bytes
        flops, moved = costs(case, config, devices, compiled)
        temporary = use.temp_size_in_bytes / 2**30
        tokens = case.batch * case.tokens
        chips = math.prod(case.mesh)
        floor = max(held / bandwidth, flops / operations)
        name = case.preset.removeprefix("recurrentgemma-").upper()
        does = {
            "read": f"read {case.batch} x {case.tokens}",
            "decode": f"decode {case.batch}",
            "generate": f"generation loop, {case.batch}, sampled",
        }[case.what]
        print(
            f"| {name}, {case.topology}, {' x '.join(map(str, case.mesh))} | {does} | "
            f"{seconds:.0f} | {kernels} | {total / 2**30:.2f} ({temporary:.2f})"
            f" | {flops * chips / tokens / 1e9:.2f} | {moved * chips / tokens / 1e6:.1f} | "
            f"{1e3 * floor:.2f} | {tokens / floor:,.0f} |",
            flush=True,
        )
        if case.what == "read" and not kernels:
            print(f"no Pallas kernel in {does}", file=sys.stderr)
            failed += 1
        if total > HBM[generation] * 2**30:
            print(f"{total / 2**30:.1f} GiB do not fit a chip: {does}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
