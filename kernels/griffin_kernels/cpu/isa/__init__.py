"""Integer dot products, one file for each instruction set, behind one interface.

Every module has ``TILE_ROWS``, the rows of activations that share the registers, and two functions
that emit LLVM IR::

    emit_int8(builder, weights, rows, corrections)
    emit_int4(builder, weights, rows, corrections)

``weights`` points to one group of a panel: 64 inputs of 32 outputs, as :mod:`..pack` lays them out.
``rows`` are pointers to the 64 signed bytes of each row of activations, ``corrections`` int32
values ``-offset * sum(row)``, offset being 128 or 8: weights are stored without sign. The result is
a list of two vectors of sixteen int32 for each row: the exact products, so every module gives the
same.
"""

import importlib

from numba import config
from numba.core import codegen

__all__ = ["FEATURES", "MODULE", "NAME"]

HASWELL = frozenset({"avx2", "fma"})
ICELAKE = HASWELL | {"avx512f", "avx512bw", "avx512vl", "avx512vnni"}
FEATURES_OF = {
    **dict.fromkeys(["haswell", "broadwell", "skylake", "znver1", "znver2", "znver3",
                     "x86-64-v3"], HASWELL),
    **dict.fromkeys(["alderlake", "raptorlake", "meteorlake", "lunarlake", "arrowlake"],
                    HASWELL | {"avxvnni"}),
    **dict.fromkeys(["icelake-server", "icelake-client", "rocketlake", "tigerlake"], ICELAKE),
    **dict.fromkeys(["cooperlake", "znver4", "znver5", "sapphirerapids"],
                    ICELAKE | {"avx512bf16"}),
}  # fmt: skip
"""What matters here of processors that NUMBA_CPU_NAME may name."""


def target_features() -> frozenset[str]:
    """Features of the processor that Numba compiles for: this one, or the one that is asked for."""
    if config.CPU_NAME is None and config.CPU_FEATURES is None:
        listed = codegen.get_host_cpu_features()
        return frozenset(f[1:] for f in listed.split(",") if f.startswith("+"))
    explicit = (config.CPU_FEATURES or "").split(",")
    named = FEATURES_OF.get(str(config.CPU_NAME), frozenset())
    return named | {f[1:] for f in explicit if f.startswith("+")}


def choose(features: frozenset[str]) -> str:
    """The module for a set of features."""
    if {"avx512f", "avx512bw", "avx512vnni"} <= features:
        return "avx512"
    if "avxvnni" in features:
        return "avxvnni"
    if "avx2" in features:
        return "avx2"
    return "neon" if "dotprod" in features else "generic"


FEATURES = target_features()
NAME = choose(FEATURES)
MODULE = importlib.import_module(f"{__name__}.{NAME}")
