"""Level 4, tensors that bitsandbytes has stored in 4 bits (nf4), with scales of 32 or 8 bits.

Codes are packed two to a byte, the even element in the high nibble, over the matrix row by row.
Every 64 elements share a scale; where scales are quantised themselves, every 256 of them share one,
and one offset is added to all. Facts of the format are those of ``bitsandbytes/functional.py``; the
tests hold this statement against bitsandbytes itself where it is installed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from griffin_conformance.backends import Backend
from griffin_conformance.checks import Scope, Violation, check
from griffin_conformance.envelope import Comparison

__all__ = ["NF4", "NF4Case", "dequantised", "parts_of"]

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""Values of the sixteen codes: quantiles of the normal distribution (Dettmers et al. 2023)."""

STATE = "quant_state.bitsandbytes__nf4"
UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoff of the dtypes that a matrix may have had."""


@dataclass(frozen=True)
class NF4Case:
    """A matrix in nf4, drawn from its seed.

    Attributes
    ----------
    outputs, inputs : int
        Its shape; their product is even.
    seed : int
    block : int
        Elements that share a scale.
    double : bool
        Scales are quantised themselves, 256 to a scale.
    dtype : {"float16", "bfloat16", "float32"}
        Of the matrix before it was quantised.
    """

    outputs: int
    inputs: int
    seed: int = 0
    block: int = 64
    double: bool = False
    dtype: str = "float16"

    def strata(self) -> set[str]:
        """What is special about it."""
        found = {f"blocks of {self.block}", "quantised scales" if self.double else "plain scales"}
        blocks = math.ceil(self.outputs * self.inputs / self.block)
        if self.outputs * self.inputs % self.block:
            found.add("a last block that is not full")
        if self.double and blocks > 256:
            found.add("more than 256 blocks")
        return found


@st.composite
def matrices(draw, scope: Scope) -> NF4Case:
    """Matrices of one to several hundred blocks."""
    if draw(st.integers(0, 3)):
        outputs, inputs = draw(st.integers(1, 24)), draw(st.integers(1, 40))
    else:
        outputs, inputs = draw(st.integers(200, 300)), draw(st.sampled_from([64, 66, 90]))
    return NF4Case(
        outputs, inputs + outputs * inputs % 2, draw(st.integers(0, 2**16 - 1)),
        draw(st.sampled_from([64, 64, 128])), draw(st.booleans()),
        draw(st.sampled_from(["float16", "bfloat16", "float32"])),
    )  # fmt: skip


def parts_of(case: NF4Case) -> dict[str, NDArray]:
    """The tensors of a file, by what follows the matrix's name."""
    rng = np.random.default_rng(case.seed)
    count = case.outputs * case.inputs
    blocks = math.ceil(count / case.block)
    codes = rng.integers(0, 16, count)
    told: dict[str, Any] = {"quant_type": "nf4", "blocksize": case.block, "dtype": case.dtype,
            "shape": [case.outputs, case.inputs]}  # fmt: skip
    parts: dict[str, NDArray] = {
        "weight": (codes[0::2] * 16 + codes[1::2]).astype(np.uint8)[:, None],
        "quant_map": np.array(NF4, np.float32),
    }
    if case.double:
        signs = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        parts |= {
            "absmax": rng.integers(0, 256, blocks).astype(np.uint8),
            "nested_quant_map": signs,
            "nested_absmax": rng.uniform(0.01, 0.05, math.ceil(blocks / 256)).astype(np.float32),
        }
        told |= {"nested_blocksize": 256, "nested_dtype": "float32",
                 "nested_offset": float(np.float32(rng.uniform(0.06, 0.1)))}  # fmt: skip
    else:
        parts["absmax"] = rng.uniform(0.01, 0.1, blocks).astype(np.float32)
    parts[STATE] = np.frombuffer(json.dumps(told).encode(), np.uint8)
    return parts


def dequantised(parts: Mapping[str, NDArray]) -> tuple[NDArray, NDArray]:
    """Values of all elements in order, and the error of their scale that float32 may make.

    One element after the other, in Python's numbers.
    """
    told = json.loads(bytes(parts[STATE]))
    packed, scales = parts["weight"].ravel().tolist(), parts["absmax"].tolist()
    values, errors = [], []
    for k in range(math.prod(told["shape"])):
        byte = packed[k // 2]
        code = byte // 16 if k % 2 == 0 else byte % 16
        scale, block = scales[k // told["blocksize"]], k // told["blocksize"]
        error = 0.0
        if "nested_absmax" in parts:
            span = float(parts["nested_absmax"][block // told["nested_blocksize"]])
            moved = float(parts["nested_quant_map"][scale]) * span
            scale = moved + told["nested_offset"]
            error = (2 * abs(moved) + abs(scale)) * UNITS["float32"]
        value = float(parts["quant_map"][code])
        values.append(value * scale)
        errors.append(abs(value) * error)
    return np.array(values), np.array(errors)


def wrong_readings(parts: Mapping[str, NDArray]) -> dict[str, Mapping[str, NDArray]]:
    """What a wrong loader takes the parts for, by its mistake."""
    told = json.loads(bytes(parts[STATE]))

    def saying(**changes) -> Mapping[str, NDArray]:
        content = json.dumps({**told, **changes}).encode()
        return {**parts, STATE: np.frombuffer(content, np.uint8)}

    outputs, inputs = told["shape"]
    swapped = (parts["weight"] >> 4) | (parts["weight"] << 4)
    count = len(parts["absmax"])
    found = {
        "the low nibble were the even element": {**parts, "weight": swapped},
        "blocks had another size": saying(blocksize=192 - told["blocksize"])
        if count * (192 - told["blocksize"]) >= outputs * inputs else parts,
    }  # fmt: skip
    if "nested_offset" in told:
        found["nested_offset were not added"] = saying(nested_offset=0.0)
    return found


@check("L4", matrices, strata=("quantised scales", "plain scales", "blocks of 128",
                               "a last block that is not full"),
       clauses=("CKPT-13",))  # fmt: skip
def nf4_tensors(backend: Backend, case: NF4Case) -> Sequence[Comparison]:
    """A matrix in nf4 has the values that its codes and scales say, to the last bit or two."""
    parts = parts_of(case)
    given = {name: array.copy() for name, array in parts.items()}
    found = np.asarray(backend.nf4(given, (case.outputs, case.inputs)), np.float64)
    if found.shape != (case.outputs, case.inputs):
        raise Violation(
            f"a matrix of shape {(case.outputs, case.inputs)} came back as {found.shape}"
        )
    comparison = hold(found.ravel(), parts, case.dtype)
    if not comparison.passed:
        for mistake, other in wrong_readings(parts).items():
            if hold(found.ravel(), other, case.dtype).passed:
                raise Violation(f"{comparison}\nas if {mistake}", clause="CKPT-13")
    return [comparison]


def hold(found: NDArray, parts: Mapping[str, NDArray], dtype: str) -> Comparison:
    """All elements against what they are; of two roundings, one may be to the matrix's dtype."""
    values, errors = dequantised(parts)
    allowed = 2 * UNITS[dtype] * np.abs(values) + 4 * UNITS["float32"] * np.abs(values) + 4 * errors
    observed = np.abs(found - values)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(observed == 0, 0.0, observed / allowed)
    ratios = np.where(np.isfinite(observed), ratios, np.inf)
    worst = int(np.argmax(ratios))
    return Comparison(
        "elements of the matrix", float(ratios[worst]), worst, float(observed[worst]),
        float(allowed[worst]),
    )  # fmt: skip
