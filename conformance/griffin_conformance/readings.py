"""Other ways to read the specification, each of them wrong: what a failing backend may be doing.

A reading is the oracle with one thing changed. Where a backend's results are wrong, but lie within
rounding of a reading's, the fault is found and has a clause: see
:mod:`griffin_conformance.diagnosis`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import mpmath
import numpy as np

from griffin_conformance import oracle

__all__ = ["READINGS", "Reading"]

RIGHT: dict[str, Callable] = {
    name: getattr(oracle, name)
    for name in (
        "attend", "convolve", "embedding_scale", "gate", "gelu", "linear", "log_decay",
        "multiplier", "rg_lru", "rms_norm", "rotate", "soft_cap", "softplus", "turn",
    )
}  # fmt: skip
"""The oracle's own functions, whatever is put in their place."""


@dataclass(frozen=True)
class Reading:
    """One misunderstanding.

    Attributes
    ----------
    clause : str
        What it violates.
    says : str
        What a backend does that reads it so.
    functions : mapping of str to callable
        What takes the place of the oracle's functions.
    config : callable, optional
        Changes a configuration, given as a namespace of its own.
    parameters : callable, optional
        From flat parameters to what it takes them for.
    """

    clause: str
    says: str
    functions: Mapping[str, Callable] = field(default_factory=dict)
    config: Callable[[SimpleNamespace], None] | None = None
    parameters: Callable[[dict], dict] | None = None


# -- other functions


def layer_norm(x, scale, eps):
    return RIGHT["rms_norm"](x - x.mean(), scale, eps)


def norm_with_epsilon_outside(x, scale, eps):
    return x / (math.sqrt(math.fsum(x * x) / len(x)) + eps) * (1 + scale)


def gelu_by_erf(z):
    return 0.5 * z * (1 + math.erf(z / math.sqrt(2)))


def silu(z):
    return z * oracle.logistic(z)


def gate_transposed(x, w, b):
    return RIGHT["gate"](x, w.transpose(0, 2, 1), b)


def convolve_flipped(inputs, weight, bias):
    return RIGHT["convolve"](inputs, weight[::-1], bias)


def convolve_without_bias(inputs, weight, bias):
    return RIGHT["convolve"](inputs, weight, np.zeros_like(bias))


def gates_exchanged(p, v, position, h):
    exchanged = p | {"w_a": p["w_x"], "w_x": p["w_a"], "b_a": p["b_x"], "b_x": p["b_a"]}
    return RIGHT["rg_lru"](exchanged, v, position, h)


def never_reset(p, v, position, h):
    return RIGHT["rg_lru"](p, v, max(position, 1), h)


def kept_but_undamped(p, v, position, h):
    if position:
        return RIGHT["rg_lru"](p, v, position, h)
    fresh = RIGHT["rg_lru"](p, v, 0, h)
    r = oracle.gate(v, p["w_a"], p["b_a"])
    decays = [math.exp(oracle.log_decay(float(a), g)) for a, g in zip(p["a_param"], r, strict=True)]
    return fresh + np.array(decays) * h


def damped_start(p, v, position, h):
    return RIGHT["rg_lru"](p, v, max(position, 1), np.zeros_like(h) if position == 0 else h)


def in_bfloat16(value):
    """Rounded to 8 bits."""
    if value == 0 or not math.isfinite(value):
        return value
    step = 2.0 ** (math.floor(math.log2(abs(value))) - 7)
    return round(value / step) * step


def state_in_bfloat16(p, v, position, h):
    return np.array([in_bfloat16(value) for value in RIGHT["rg_lru"](p, v, position, h)])


def whole_head(x, position, base, rotary_dim):
    return RIGHT["rotate"](x, position, base, len(x) // 2 * 2)


def neighbours(x, position, base, rotary_dim):
    half = rotary_dim // 2
    order = [*range(0, 2 * half, 2), *range(1, 2 * half, 2), *range(2 * half, len(x))]
    y = np.empty_like(x)
    y[order] = RIGHT["rotate"](x[order], position, base, rotary_dim)
    return y


def backwards(x, position, base, rotary_dim):
    return RIGHT["rotate"](x, -position, base, rotary_dim)


def base_of_10000(x, position, base, rotary_dim):
    return RIGHT["rotate"](x, position, 10000.0, rotary_dim)


def exponent_by_the_head(x, position, base, rotary_dim):
    """Frequencies ``base^(-2 j / d)`` for the whole head's size d."""
    return RIGHT["rotate"](x, position, base ** (rotary_dim / len(x)), rotary_dim)


def angles_by(number: Callable[[float], float]) -> Callable:
    """Turns by angles that went through fewer bits."""

    def turn(position, j, half, base):
        with mpmath.workdps(50):
            frequency = number(float(mpmath.power(base, -mpmath.mpf(j) / half)))
            angle = number(number(float(position)) * frequency)
            return float(mpmath.cos(angle)), float(mpmath.sin(angle))

    return turn


def single(value):
    return float(np.float32(value))


def in_float32(function: Callable) -> Callable:
    """Log and exp of float32, as they stand in the formula."""

    def wrong(*args):
        with np.errstate(all="ignore"):
            return float(function(*map(np.float32, args)))

    return wrong


def attend_to(window: Callable[[int], int]) -> Callable:
    """Attention over another number of keys."""

    def attend(query, keys, values, W):
        return RIGHT["attend"](query, keys, values, window(W))

    return attend


def scores_divided_by(size: Callable[[int], float]) -> Callable:
    """Attention whose scores are divided by something else than sqrt(d)."""

    def attend(query, keys, values, W):
        d = len(query)
        return RIGHT["attend"](query * math.sqrt(d) / size(d), keys, values, W)

    return attend


def linear_without_bias(x, weight, bias=None):
    return RIGHT["linear"](x, weight)


def linear_transposed(x, weight, bias=None):
    return RIGHT["linear"](x, weight.T if weight.shape[0] == weight.shape[1] else weight, bias)


# -- other parameters and configurations


def exchanged(one: str, other: str) -> Callable[[dict], dict]:
    """Arrays of one name taken for those of another, where their shapes allow it."""

    def wrong(p):
        result = dict(p)
        for name, array in p.items():
            twin = name.replace(one, other) if one in name else name.replace(other, one)
            if twin in p and p[twin].shape == array.shape:
                result[name] = p[twin]
        return result

    return wrong


def transposed(*leaves: str) -> Callable[[dict], dict]:
    """Square matrices of some names, transposed."""

    def wrong(p):
        return {
            name: array.swapaxes(-1, -2)
            if name.endswith(leaves) and array.shape[-1] == array.shape[-2]
            else array
            for name, array in p.items()
        }

    return wrong


def set_to(**fields) -> Callable[[SimpleNamespace], None]:
    """A configuration with other values."""

    def change(config):
        vars(config).update(fields)

    return change


def _scaled_head(p):
    # A head of its own from the embedding as it is looked up: scaled.
    width = p["embedding"].shape[1]
    return p | {"final_norm": (1 + p["final_norm"]) * RIGHT["embedding_scale"](width) - 1}


READINGS: tuple[Reading, ...] = (
    Reading("EMBED-1", "multiplies embeddings by sqrt(width) without rounding it to bfloat16",
            {"embedding_scale": math.sqrt}),
    Reading("EMBED-1", "does not multiply embeddings by sqrt(width)",
            {"embedding_scale": lambda width: 1.0}),
    Reading("EMBED-2", "multiplies embeddings by sqrt(width) although the configuration says no",
            config=set_to(scale_embeddings=True)),
    Reading("EMBED-3", "takes the scaled embedding for the head", parameters=_scaled_head),
    Reading("NORM-1", "subtracts the mean in RMSNorm", {"rms_norm": layer_norm}),
    Reading("NORM-1", "adds epsilon outside the square root",
            {"rms_norm": norm_with_epsilon_outside}),
    Reading("NORM-2", "multiplies by scale in RMSNorm, and not by 1 + scale",
            {"rms_norm": lambda x, scale, eps: RIGHT["rms_norm"](x, scale - 1, eps)}),
    Reading("NORM-3", "always adds 1e-6 in RMSNorm",
            {"rms_norm": lambda x, scale, eps: RIGHT["rms_norm"](x, scale, 1e-6)}),
    Reading("NORM-3", "always adds 1e-5 in RMSNorm",
            {"rms_norm": lambda x, scale, eps: RIGHT["rms_norm"](x, scale, 1e-5)}),
    Reading("LIN-1", "leaves the biases of linear layers out", {"linear": linear_without_bias}),
    Reading("LIN-1", "takes square matrices for (outputs, inputs)", {"linear": linear_transposed}),
    Reading("MLP-1", "computes GeLU by the error function", {"gelu": gelu_by_erf}),
    Reading("MLP-1", "takes SiLU for GeLU", {"gelu": silu}),
    Reading("MLP-2", "exchanges the branches of the MLP",
            parameters=exchanged("mlp.gate", "mlp.up")),
    Reading("BLOCK-1", "exchanges the norms before the temporal part and the MLP",
            parameters=exchanged("temporal_norm", "mlp_norm")),
    Reading("BLOCK-2", "exchanges the branches of the recurrent block",
            parameters=exchanged("linear_x", "linear_y")),
    Reading("BLOCK-2", "transposes the square matrices of the recurrent block",
            parameters=transposed("linear_x.weight", "linear_y.weight", "linear_out.weight")),
    Reading("CONV-1", "lets the first row of the convolution's weights meet the current token",
            {"convolve": convolve_flipped}),
    Reading("CONV-1", "leaves the convolution's bias out", {"convolve": convolve_without_bias}),
    Reading("GATE-1", "transposes the blocks of the gates", {"gate": gate_transposed}),
    Reading("GATE-3", "exchanges input gate and recurrence gate", {"rg_lru": gates_exchanged}),
    Reading("RGLRU-1", "takes a_param with the other sign",
            {"softplus": lambda z: RIGHT["softplus"](-z)}),
    Reading("RGLRU-1", "takes |a_param| for softplus(a_param)", {"softplus": abs}),
    Reading("RGLRU-2", "computes log(1 + exp(a_param)) as it is written, in float32",
            {"softplus": in_float32(lambda z: np.log(np.float32(1) + np.exp(z)))}),
    Reading("RGLRU-4", "leaves sqrt(1 - a^2) out", {"multiplier": lambda log_a: 1.0}),
    Reading("RGLRU-4", "takes 1 - a^2 without its root",
            {"multiplier": lambda log_a: -math.expm1(2 * log_a)}),
    Reading("RGLRU-4", "takes sqrt(1 - a) for sqrt(1 - a^2)",
            {"multiplier": lambda log_a: math.sqrt(-math.expm1(log_a))}),
    Reading("RGLRU-4", "computes sqrt(1 - a^2) from an a in bfloat16",
            {"multiplier": lambda log_a: math.sqrt(1 - in_bfloat16(math.exp(log_a)) ** 2)}),
    Reading("RGLRU-5", "does not forget the state at position 0", {"rg_lru": never_reset}),
    Reading("RGLRU-5", "keeps the decayed state at position 0", {"rg_lru": kept_but_undamped}),
    Reading("RGLRU-6", "multiplies a document's first input by sqrt(1 - a^2)",
            {"rg_lru": damped_start}),
    Reading("RGLRU-7", "keeps the recurrent state in bfloat16", {"rg_lru": state_in_bfloat16}),
    Reading("ROPE-1", "turns all channels of a head", {"rotate": whole_head}),
    Reading("ROPE-2", "turns neighbouring channels", {"rotate": neighbours}),
    Reading("ROPE-3", "turns the other way round", {"rotate": backwards}),
    Reading("ROPE-3", "always takes 10000 for the base", {"rotate": base_of_10000}),
    Reading("ROPE-3", "divides the exponents by the head's size, and not by rotary_dim",
            {"rotate": exponent_by_the_head}),
    Reading("ROPE-4", "computes rotary angles in float32", {"turn": angles_by(single)}),
    Reading("ROPE-4", "computes rotary angles in bfloat16", {"turn": angles_by(in_bfloat16)}),
    Reading("ATTN-1", "shows W keys, the token's own among them",
            {"attend": attend_to(lambda W: W - 1)}),
    Reading("ATTN-2", "has no window", {"attend": attend_to(lambda W: 10**9)},
            config=set_to(window=10**4)),
    Reading("ATTN-4", "does not divide the scores", {"attend": scores_divided_by(lambda d: 1.0)}),
    Reading("ATTN-4", "divides the scores by the head's size",
            {"attend": scores_divided_by(float)}),
    Reading("ATTN-9", "transposes the query matrix", parameters=transposed("query.weight")),
    Reading("ATTN-9", "transposes the output matrix", parameters=transposed("output.weight")),
    Reading("HEAD-1", "does not cap the logits", {"soft_cap": lambda z, cap: z}),
    Reading("HEAD-1", "always caps at 30", {"soft_cap": lambda z, cap: RIGHT["soft_cap"](z, 30.0)}),
    Reading("HEAD-2", "gives logits of 0 where there is no cap",
            {"soft_cap": lambda z, cap: RIGHT["soft_cap"](z, cap) if cap else 0.0}),
)  # fmt: skip
"""Known misunderstandings, by the part of the model."""
