"""Vectors of single operations: arguments, the oracle's answer, and samples of right programs."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance import oracle
from griffin_conformance.envelope import Envelope
from griffin_conformance.rounding import BFLOAT16, FLOAT32, PROFILES, SAMPLES
from griffin_conformance.simulation import Simulation
from griffin_conformance.vectors.files import Expectation, Vector
from griffin_conformance.worlds import LAMBDAS

__all__ = ["OPERATIONS", "Operation", "operation_vectors"]

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Operation:
    """An operation as the vectors know it.

    Attributes
    ----------
    results : tuple of str
        Names of the arrays that it gives.
    truth : callable
        From inputs to those arrays, by the oracle.
    samples : callable
        From a simulation and inputs to samples of them, (S, ...) each.
    clauses : tuple of str
    single : bool
        Every value is compared on its own; otherwise all values of a token together.
    state : bool
        Results have the precision of the state.
    """

    results: tuple[str, ...]
    truth: Callable[[Inputs], list[NDArray]]
    samples: Callable[[Simulation, Inputs], list[NDArray]]
    clauses: tuple[str, ...]
    single: bool = False
    state: bool = False


def per_token(function, *arrays: NDArray) -> NDArray:
    """A function of tokens, applied one by one."""
    return np.array([function(*rows) for rows in zip(*arrays, strict=True)])


def repeated(x: NDArray, simulation: Simulation) -> NDArray:
    """The same in every sample."""
    return np.repeat(x[None], simulation.S, axis=0)


def convolved(i: Inputs) -> list[NDArray]:
    """The convolution and the inputs to carry on with."""
    K, start = len(i["weight"]), int(i["positions"][0])
    known = min(K - 1, start)
    inputs = [*i["past"][K - 1 - known :], *i["x"]]
    y = [oracle.convolve(inputs[: known + t + 1], i["weight"], i["bias"])
         for t in range(len(i["x"]))]  # fmt: skip
    carried = np.concatenate([np.zeros((K - 1, i["x"].shape[1])), np.array(inputs)])
    return [np.array(y), carried[len(carried) - (K - 1) :]]


def sampled_convolution(s: Simulation, i: Inputs) -> list[NDArray]:
    """The same in samples; carrying rounds nothing."""
    x = repeated(i["x"], s)
    y = s.convolve(x, i["weight"], i["bias"], i["positions"], i["past"])
    return [y, repeated(convolved(i)[1], s)]


def decayed(i: Inputs) -> list[NDArray]:
    """Decay and multiplier, ``a`` and ``sqrt(1 - a^2)``."""
    log_a = np.array(
        [[oracle.log_decay(float(p), g) for p, g in zip(i["a_param"], row, strict=True)]
         for row in i["r"]]
    )  # fmt: skip
    return [np.vectorize(f)(log_a) for f in (np.exp, oracle.multiplier)]


def scanned(i: Inputs) -> list[NDArray]:
    """The state after every step."""
    h, states = i["h"], []
    for a, x in zip(i["a"], i["x"], strict=True):
        h = a * h + x
        states.append(h)
    return [np.array(states)]


def recurred(i: Inputs) -> list[NDArray]:
    """Equations (1) to (4)."""
    h, states = i["h"], []
    for x, p in zip(i["x"], i["positions"], strict=True):
        h = oracle.rg_lru(i, x, int(p), h)
        states.append(h)
    return [np.array(states)]


def rotated(i: Inputs) -> list[NDArray]:
    """Every head of every token."""
    return [
        np.array(
            [[oracle.rotate(head, int(p), i["base"], i["rotary_dim"]) for head in row]
             for p, row in zip(i["positions"], i["x"], strict=True)]
        )
    ]  # fmt: skip


def attended(i: Inputs) -> list[NDArray]:
    """Every head of every token, over its window."""
    q, k, v = i["q"], i["k"], i["v"]
    H, Q = q.shape[1], k.shape[1]
    return [
        np.array(
            [[oracle.attend(q[t, h], list(k[: t + 1, h * Q // H]), list(v[: t + 1, h * Q // H]),
                            i["window"]) for h in range(H)] for t in range(len(q))]
        )
    ]  # fmt: skip


def sampled_attention(s: Simulation, i: Inputs) -> list[NDArray]:
    """The same in samples."""
    q, k, v = (repeated(i[name], s) for name in "qkv")
    return [s.attend(q, k, v, i["positions"], i["window"])]


def capped(i: Inputs) -> list[NDArray]:
    """Logits of the tied head."""
    z = per_token(lambda row: oracle.linear(row, i["embedding"].T), i["x"])
    return [np.vectorize(lambda z: oracle.soft_cap(z, i["cap"]))(z)]


OPERATIONS: dict[str, Operation] = {
    "embed": Operation(
        ("y",), lambda i: [i["rows"] * oracle.embedding_scale(i["rows"].shape[1])],
        lambda s, i: [s.embed(i["rows"], oracle.embedding_scale(i["rows"].shape[1]))],
        ("EMBED-1",)),
    "rms_norm": Operation(
        ("y",), lambda i: [per_token(lambda x: oracle.rms_norm(x, i["scale"], i["eps"]), i["x"])],
        lambda s, i: [s.norm(repeated(i["x"], s), i["scale"], i["eps"])],
        ("NORM-1", "NORM-2", "NORM-3")),
    "linear": Operation(
        ("y",),
        lambda i: [per_token(lambda x: oracle.linear(x, i["weight"], i.get("bias")), i["x"])],
        lambda s, i: [s.affine(repeated(i["x"], s), i["weight"], i.get("bias"))], ("LIN-1",)),
    "gelu": Operation(
        ("y",), lambda i: [np.vectorize(oracle.gelu)(i["x"])],
        lambda s, i: [s.gelu(repeated(i["x"], s))], ("MLP-1",)),
    "causal_conv": Operation(
        ("y", "past"), convolved, sampled_convolution, ("CONV-1", "CONV-2")),
    "gate": Operation(
        ("y",), lambda i: [per_token(lambda x: oracle.gate(x, i["w"], i["b"]), i["x"])],
        lambda s, i: [s.gate(repeated(i["x"], s), i["w"], i["b"])],
        ("GATE-1", "GATE-2"), state=True),
    "decay": Operation(
        ("a", "multiplier"), decayed, lambda s, i: list(s.decay(repeated(i["r"], s), i["a_param"])),
        ("RGLRU-1", "RGLRU-2", "RGLRU-4"), single=True, state=True),
    "scan": Operation(
        ("h",), scanned, lambda s, i: [s.scan(repeated(i["a"], s), repeated(i["x"], s), i["h"])],
        ("RGLRU-7", "RGLRU-8"), single=True, state=True),
    "rg_lru": Operation(
        ("h",), recurred,
        lambda s, i: [s.rg_lru(repeated(i["x"], s), i, i["positions"], i["h"])],
        ("RGLRU-4", "RGLRU-5", "RGLRU-6", "GATE-3"), state=True),
    "rope": Operation(
        ("y",), rotated,
        lambda s, i: [s.rotate(repeated(i["x"], s), i["positions"], i["base"], i["rotary_dim"])],
        ("ROPE-1", "ROPE-2", "ROPE-3", "ROPE-4")),
    "attention": Operation(
        ("y",), attended,
        sampled_attention,
        ("ATTN-1", "ATTN-2", "ATTN-4", "ATTN-5")),
    "logits": Operation(
        ("y",), capped, lambda s, i: [s.logits(repeated(i["x"], s), i["embedding"], i["cap"])],
        ("HEAD-1", "HEAD-2", "EMBED-3")),
}  # fmt: skip
"""By the names that :class:`griffin_conformance.backends.Backend` gives them."""


class Draw:
    """Numbers that every precision can be given without rounding them."""

    def __init__(self, seed: int, few_bits: bool):
        self.rng = np.random.default_rng(seed)
        self.given = (BFLOAT16 if few_bits else FLOAT32).given

    def normal(self, *shape: int, scale: float = 1.0) -> NDArray:
        """Of the normal distribution."""
        return self.given(self.rng.standard_normal(shape) * scale)

    def every_size(self, *shape: int) -> NDArray:
        """From 1e-4 to 1e4 in magnitude."""
        x = self.rng.standard_normal(shape) * 10 ** self.rng.uniform(-4, 4, shape)
        return self.given(x)

    def gates(self, T: int, style: str) -> NDArray:
        """Gates for every decay: any, tiny, exactly 0, exactly 1."""
        shape = (T, len(LAMBDAS))
        tiny = 10 ** self.rng.uniform(-7, -2, shape)
        some = {"any": self.rng.random(shape), "tiny": tiny, "closed": np.zeros(shape),
                "open": np.ones(shape)}  # fmt: skip
        return FLOAT32.given(some[style])


def _scan_inputs(d: Draw, T: int, style: str) -> dict:
    r = d.gates(T, style)
    log_a = np.vectorize(oracle.log_decay)(np.array(LAMBDAS), r)
    a = np.concatenate([FLOAT32.given(np.exp(log_a)), np.ones((T, 1))], axis=1)
    x = np.vectorize(oracle.multiplier)(log_a) * d.rng.standard_normal(r.shape)
    x = np.concatenate([FLOAT32.given(x), np.zeros((T, 1))], axis=1)
    return {"a": a, "x": x, "h": FLOAT32.given(d.rng.standard_normal(a.shape[1]))}


def _conv_inputs(d: Draw, T: int, K: int, start: int, R: int = 4) -> dict:
    past = d.normal(K - 1, R)
    past[: max(K - 1 - start, 0)] = 0
    return {"x": d.every_size(T, R), "weight": d.normal(K, R), "bias": d.normal(R),
            "positions": np.arange(start, start + T), "past": past}  # fmt: skip


def _rg_lru_inputs(d: Draw, T: int, start: int, H: int = 2, G: int = 4) -> dict:
    p = {n: d.normal(H, G, G) for n in ("w_a", "w_x")} | {n: d.normal(H, G) for n in ("b_a", "b_x")}
    return {"x": d.normal(T, H * G), **p, "a_param": d.given(np.array(LAMBDAS)),
            "positions": np.arange(start, start + T), "h": d.normal(H * G)}  # fmt: skip


def _attention_inputs(d: Draw, H: int, Q: int, window: int, T: int, loud: float = 1.0) -> dict:
    return {"q": d.normal(T, H, 6, scale=loud), "k": d.normal(T, Q, 6), "v": d.every_size(T, Q, 6),
            "positions": np.arange(T), "window": window}  # fmt: skip


def _rope_inputs(d: Draw, start: int, d_head: int, turned: int, base: float = 10000.0) -> dict:
    return {"x": d.normal(3, 2, d_head), "positions": np.arange(start, start + 3), "base": base,
            "rotary_dim": turned}  # fmt: skip


CASES: tuple[tuple[str, str, Callable[[Draw], dict]], ...] = (
    ("embed", "width-10", lambda d: {"rows": d.normal(3, 10)}),
    ("embed", "width-16-exact-root", lambda d: {"rows": d.normal(2, 16)}),
    ("rms_norm", "ordinary", lambda d: {"x": d.normal(3, 12), "scale": d.normal(12), "eps": 1e-6}),
    ("rms_norm", "tiny", lambda d: {"x": d.normal(3, 11, scale=1e-3), "scale": d.normal(11),
                                    "eps": 1e-6}),
    ("rms_norm", "huge", lambda d: {"x": d.every_size(3, 5), "scale": d.normal(5), "eps": 1e-5}),
    ("rms_norm", "one-channel-and-zeros",
     lambda d: {"x": np.zeros((2, 1)), "scale": d.normal(1), "eps": 1e-6}),
    ("linear", "with-bias", lambda d: {"x": d.every_size(3, 7), "weight": d.normal(7, 5),
                                       "bias": d.normal(5)}),
    ("linear", "without-bias", lambda d: {"x": d.normal(3, 6), "weight": d.normal(6, 6)}),
    ("gelu", "every-size", lambda d: {"x": d.every_size(4, 9)}),
    ("gelu", "ordinary", lambda d: {"x": d.normal(4, 9, scale=3)}),
    ("causal_conv", "start", lambda d: _conv_inputs(d, 5, 4, 0)),
    ("causal_conv", "second-token", lambda d: _conv_inputs(d, 2, 4, 1)),
    ("causal_conv", "one-token-later", lambda d: _conv_inputs(d, 1, 4, 9)),
    ("causal_conv", "two-tokens-later", lambda d: _conv_inputs(d, 2, 5, 7)),
    ("causal_conv", "width-2", lambda d: _conv_inputs(d, 3, 2, 1)),
    ("gate", "two-heads", lambda d: {"x": d.normal(4, 6), "w": d.normal(2, 3, 3),
                                     "b": d.normal(2, 3)}),
    ("gate", "nearly-closed", lambda d: {"x": d.normal(3, 4), "w": d.normal(1, 4, 4),
                                         "b": d.given(np.array([[-60.0, -20.0, -8.0, 30.0]]))}),
    *(("decay", style, lambda d, style=style: {"r": d.gates(3, style),
                                               "a_param": d.given(np.array(LAMBDAS))})
      for style in ("any", "tiny", "closed", "open")),
    ("scan", "every-decay", lambda d: _scan_inputs(d, 48, "any")),
    ("scan", "nearly-closed", lambda d: _scan_inputs(d, 48, "tiny")),
    ("scan", "one-step", lambda d: _scan_inputs(d, 1, "any")),
    ("rg_lru", "from-the-start", lambda d: _rg_lru_inputs(d, 6, 0)),
    ("rg_lru", "from-a-state", lambda d: _rg_lru_inputs(d, 6, 3)),
    ("rope", "half", lambda d: _rope_inputs(d, 1, 8, 4)),
    ("rope", "whole-head", lambda d: _rope_inputs(d, 255, 6, 6, 500.0)),
    ("rope", "none", lambda d: _rope_inputs(d, 7, 4, 0)),
    ("rope", "position-2000", lambda d: _rope_inputs(d, 2000, 8, 4)),
    ("rope", "beyond-2^24", lambda d: _rope_inputs(d, 2**24 + 1, 8, 8)),
    ("rope", "last-positions", lambda d: _rope_inputs(d, 2**31 - 3, 8, 4, 1e6)),
    ("attention", "multi-query", lambda d: _attention_inputs(d, 3, 1, 4, 9)),
    ("attention", "two-key-value-heads", lambda d: _attention_inputs(d, 4, 2, 3, 7)),
    ("attention", "window-1", lambda d: _attention_inputs(d, 1, 1, 1, 4)),
    ("attention", "large-scores", lambda d: _attention_inputs(d, 2, 1, 5, 7, loud=60.0)),
    ("logits", "cap-30", lambda d: {"x": d.normal(3, 8, scale=10), "embedding": d.normal(9, 8),
                                    "cap": 30.0}),
    ("logits", "no-cap", lambda d: {"x": d.normal(3, 8, scale=10), "embedding": d.normal(9, 8),
                                    "cap": 0.0}),
)  # fmt: skip


def allowances(
    operation: Operation, inputs: Inputs, truth: list[NDArray], precision: str, seed: int
) -> list[NDArray]:
    """What a precision allows for each result."""
    profile = PROFILES[precision]
    # Single values need more samples to meet every direction.
    samples = SAMPLES * (4 if operation.single else 1)
    simulation = Simulation(profile, samples, seed)
    unit = profile.state_unit if operation.state else None
    found = []
    for exact, sampled in zip(truth, operation.samples(simulation, inputs), strict=True):
        shape = exact.shape if operation.single else exact.shape[:1]
        flat = exact.reshape(int(np.prod(shape)), -1)
        envelope = Envelope.of(flat, sampled.reshape(samples, *flat.shape), profile, unit)
        found.append(envelope.allowed.reshape(shape))
    return found


def operation_vectors() -> list[Vector]:
    """All vectors of level 0. Every other one has values that bfloat16 can hold."""
    vectors = []
    for number, (name, label, make) in enumerate(CASES):
        operation, vector_id = OPERATIONS[name], f"{name}/{label}"
        seed = zlib.crc32(vector_id.encode())
        # The recurrence is float32 in every precision, and is given float32 numbers.
        few_bits = number % 2 == 0
        inputs = make(Draw(seed, few_bits))
        every = few_bits or name in ("scan", "decay", "rope")
        profiles = tuple(p for p in PROFILES if every or p != BFLOAT16.name)
        if name == "rope" and not few_bits:
            inputs["x"] = BFLOAT16.given(inputs["x"])
        if name == "decay":
            inputs["a_param"] = BFLOAT16.given(inputs["a_param"])
        truth = operation.truth(inputs)
        allowed = {p: allowances(operation, inputs, truth, p, seed) for p in profiles}
        expect = tuple(
            Expectation(result, exact, np.array([allowed[p][k] for p in profiles]))
            for k, (result, exact) in enumerate(zip(operation.results, truth, strict=True))
        )
        stored = {
            n: v.astype(np.float32) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
            for n, v in inputs.items()
        }
        vectors.append(
            Vector(vector_id, "L0", "operation", f"{name}: {label.replace('-', ' ')}",
                   operation.clauses, stored, expect, profiles, {"operation": name, "seed": seed})
        )  # fmt: skip
    return vectors
