"""What the real TPU compilers make of this project's kernels, on a machine without a TPU.

    python kernels/benchmarks/tpu_compile.py [--topology v5e:2x2] [--tokens 2048] [--width 2560]
                                             [--batch 1 8] [--only PART]

The package ``libtpu`` holds Mosaic and XLA:TPU; they compile for a TPU that is described to them.
``pip install libtpu`` into an environment of its own. Every program is checked for the kernels that
it must contain and for the memory that it takes; exit code 1 if one does not compile or fit.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HBM = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
"""GiB of memory of a chip."""


@dataclass(frozen=True)
class Program:
    """Something to compile.

    Attributes
    ----------
    name : str
    run : callable
    arguments : tuple
        Trees of arrays' shapes, with shardings on the devices of the topology.
    kernels : int
        Pallas kernels that the program must contain at least.
    """

    name: str
    run: Any
    arguments: tuple
    kernels: int


def prepare_environment() -> None:
    """Let JAX find the TPU compiler and look for no TPU; before JAX is imported."""
    found = importlib.util.find_spec("libtpu")
    if found is None or found.origin is None:
        sys.exit("error: the TPU compiler is not installed: pip install libtpu")
    os.environ["TPU_LIBRARY_PATH"] = str(Path(found.origin).with_name("libtpu.so"))
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Nothing here occupies a TPU, so several of these may run at once.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    # The library asks where it runs, and complains at length about a machine without a TPU.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def kernels(devices, shapes, dtypes) -> Iterator[Program]:
    """The scan and the fused RG-LRU, forwards and with their gradients, on one device."""
    import jax
    import jax.numpy as jnp

    from griffin_kernels.xla.rg_lru_pallas import fused_rg_lru
    from griffin_kernels.xla.scan_pallas import linear_scan

    where = jax.sharding.SingleDeviceSharding(devices[0])

    def array(*shape, dtype="float32"):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def with_gradients(run, count):
        """All gradients of a function whose first ``count`` arguments are differentiated."""

        def gradients(*arguments):
            *arguments, dy, dlast = arguments
            rest = arguments[count:]
            _, pull = jax.vjp(lambda *z: run(*z, *rest), *arguments[:count])
            return pull((dy, dlast))

        return gradients

    def scan(a, x, h0, starts):
        return linear_scan(a, x, h0, starts)

    def fused(z_r, z_i, u, a_param, h0, positions):
        return fused_rg_lru(z_r, z_i, u, a_param, positions, h0)

    for B, T, R in shapes:
        for gates, values in dtypes:
            z, x, h = array(B, T, R, dtype=gates), array(B, T, R, dtype=values), array(B, R)
            starts, positions = array(B, T, dtype=jnp.bool_), array(B, T, dtype=jnp.int32)
            label = f"({B}, {T}, {R}) {values}"
            arguments: tuple = (x, x, h, starts)
            if gates == values:
                yield Program(f"scan {label}", scan, arguments, 1)
                yield Program(
                    f"scan {label}, gradients", with_gradients(scan, 3), (*arguments, x, h), 2
                )
            else:
                label += f", gates {gates}"
            arguments = (z, z, x, array(R), h, positions)
            yield Program(f"RG-LRU {label}", fused, arguments, 1)
            yield Program(
                f"RG-LRU {label}, gradients", with_gradients(fused, 5), (*arguments, x, h), 2
            )


def compile_program(program: Program, memory: int) -> str | None:
    """Compile, print what it takes, and return what is wrong with it."""
    import jax

    start = time.perf_counter()
    try:
        compiled = jax.jit(program.run).lower(*program.arguments).compile()
    except Exception as error:  # whatever the compilers do not like
        return " ".join(str(error).split())[:500]
    seconds = time.perf_counter() - start
    found = compiled.as_text().count('custom_call_target="tpu_custom_call"')
    use = compiled.memory_analysis()
    held = use.argument_size_in_bytes + use.output_size_in_bytes + use.temp_size_in_bytes
    held -= use.alias_size_in_bytes
    print(
        f"{program.name:62s} {seconds:5.1f} s  {found:2d} kernels  "
        f"{held / 2**20:8.1f} MiB, {use.temp_size_in_bytes / 2**20:6.1f} of them temporary",
        flush=True,
    )
    if found < program.kernels:
        return f"{found} Pallas kernels where {program.kernels} should be"
    if held > memory:
        return f"{held / 2**30:.1f} GiB do not fit into {memory / 2**30:.0f} GiB"
    return None


def main() -> int:
    """Compile everything that was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--topology", default="v5e:2x2", help="chips, as libtpu names them")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", choices=["kernels"], help="one part of it")
    options = parser.parse_args()

    prepare_environment()
    from jax.experimental import topologies

    generation = options.topology.split(":")[0]
    if generation not in HBM:
        sys.exit(f"error: {generation} is none of {', '.join(HBM)}")
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=options.topology)
    except Exception as error:  # libtpu's own kinds
        sys.exit(f"error: no topology {options.topology}: {str(error).splitlines()[0]}")
    print(f"{options.topology}: {len(topology.devices)} x {topology.devices[0].device_kind}")

    # The model's shape, and one that no block divides.
    shapes = [(batch, options.tokens, options.width) for batch in options.batch]
    shapes += [(3, 601, 200), (1, 1, options.width)]
    dtypes = [("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")]
    parts = {"kernels": lambda: kernels(topology.devices, shapes, dtypes)}

    failed = 0
    for name, programs in parts.items():
        if options.only in (None, name):
            for program in programs():
                wrong = compile_program(program, HBM[generation] * 2**30)
                if wrong:
                    failed += 1
                    print(f"{program.name}: {wrong}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
