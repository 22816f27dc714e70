"""Level 0, operations: each equation on its own, and at the extremes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from griffin_conformance import oracle
from griffin_conformance.alone import profile_of
from griffin_conformance.backends import Backend
from griffin_conformance.checks import Scope, check
from griffin_conformance.envelope import Comparison, Envelope
from griffin_conformance.rounding import SAMPLES, Profile
from griffin_conformance.simulation import Simulation

__all__ = ["OperationCase"]

STYLES = ("ordinary", "tiny", "huge", "every size")


@dataclass(frozen=True)
class OperationCase:
    """Arguments of an operation, told by a few numbers.

    Attributes
    ----------
    tokens, channels : int
        T, and the channels of whatever the operation works on.
    heads : int
        Heads or blocks; channels are a multiple of it where that matters.
    style : str
        Of the numbers; what styles there are depends on the operation.
    extra : float
        A further number of the operation: epsilon, cap, position, window.
    seed : int
    """

    tokens: int
    channels: int
    heads: int = 1
    style: str = "ordinary"
    extra: float = 0.0
    seed: int = 0

    def strata(self) -> set[str]:
        """What is special about this case, by name."""
        return {self.style} | ({"one channel"} if self.channels == 1 else set())

    def rng(self) -> np.random.Generator:
        """The source of the arguments."""
        return np.random.default_rng(self.seed)

    def numbers(self, rng: np.random.Generator, *shape: int) -> NDArray:
        """Numbers of the case's style."""
        x = rng.standard_normal(shape)
        if self.style == "tiny":
            x *= 1e-3
        elif self.style == "huge":
            x *= 1e4
        elif self.style == "every size":
            x *= 10 ** rng.uniform(-4, 4, shape)
        return x


def single(x: ArrayLike) -> NDArray:
    """Float32 values, as float64."""
    return np.asarray(x, np.float32).astype(np.float64)


def operation_cases(
    scope: Scope, extra=(0.0,), styles=STYLES, heads=(1,), tokens=(1, 12)
) -> st.SearchStrategy[OperationCase]:
    """Cases of an operation; channels are per head."""
    first, last = tokens
    lengths, widths = st.integers(first, last), st.integers(1, 16)
    if scope.fixed_shapes:
        lengths, widths, heads = st.sampled_from((first, last)), st.sampled_from((1, 8)), heads[-2:]
    return st.builds(
        lambda tokens, channels, heads, style, extra, seed: OperationCase(
            tokens, channels * heads, heads, style, extra, seed
        ),
        lengths,
        widths,
        st.sampled_from(heads),
        st.sampled_from(styles),
        st.sampled_from(extra),
        st.integers(0, 2**16 - 1),
    )


def per_token(function, *arrays: NDArray) -> NDArray:
    """A function of tokens, applied one by one."""
    return np.array([function(*rows) for rows in zip(*arrays, strict=True)])


def against(
    name: str,
    found: NDArray,
    truth: NDArray,
    samples: NDArray,
    profile: Profile,
    unit: float | None = None,
) -> list[Comparison]:
    """The one comparison of an operation."""
    return [Envelope.of(truth, samples, profile, unit).compare(name, found)]


def repeated(x: NDArray, simulation: Simulation) -> NDArray:
    """The same in every sample."""
    return np.repeat(x[None], simulation.S, axis=0)


def simulated(backend: Backend, case: OperationCase) -> tuple[Profile, Simulation]:
    """The profile, and a simulation for a case."""
    profile = profile_of(backend)
    return profile, Simulation(profile, seed=case.seed)


@check("L0", lambda scope: operation_cases(scope, tokens=(1, 3)), clauses=("EMBED-1",))
def embeddings_are_scaled(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """Embeddings are multiplied by sqrt(width) rounded to bfloat16, whatever the dtype."""
    profile, simulation = simulated(backend, case)
    rows = profile.given(case.numbers(case.rng(), case.tokens, case.channels))
    scale = oracle.embedding_scale(case.channels)
    return against(
        "embed", backend.embed(rows), rows * scale, simulation.embed(rows, scale), profile
    )


@check(
    "L0",
    lambda scope: operation_cases(scope, extra=(1e-6, 1e-5, 1e-12)),
    strata=("tiny",),
    clauses=("NORM-1", "NORM-2", "NORM-3"),
)
def rms_norms(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """RMSNorm divides by sqrt(mean(x^2) + eps) and multiplies by 1 + scale."""
    profile, simulation = simulated(backend, case)
    rng = case.rng()
    x, scale = (
        profile.given(case.numbers(rng, case.tokens, case.channels)),
        profile.given(rng.standard_normal(case.channels)),
    )
    truth = per_token(lambda row: oracle.rms_norm(row, scale, case.extra), x)
    samples = simulation.norm(repeated(x, simulation), scale, case.extra)
    return against("rms_norm", backend.rms_norm(x, scale, case.extra), truth, samples, profile)


@check("L0", lambda scope: operation_cases(scope, heads=(1, 2, 3)), clauses=("LIN-1",))
def linear_layers(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """A linear layer is ``x @ weight + bias``, weight of shape (inputs, outputs)."""
    profile, simulation = simulated(backend, case)
    rng = case.rng()
    x = profile.given(case.numbers(rng, case.tokens, case.channels))
    w, b = (
        profile.given(rng.standard_normal(s))
        for s in ((case.channels, case.heads + 3), case.heads + 3)
    )
    bias = None if case.heads == 2 else b
    truth = per_token(lambda row: oracle.linear(row, w, bias), x)
    samples = simulation.affine(repeated(x, simulation), w, bias)
    return against("linear", backend.linear(x, w, bias), truth, samples, profile)


@check("L0", lambda scope: operation_cases(scope), clauses=("MLP-1",))
def gelu_by_tanh(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """GeLU is the tanh form, everywhere."""
    profile, simulation = simulated(backend, case)
    x = profile.given(case.numbers(case.rng(), case.tokens, case.channels))
    truth = np.vectorize(oracle.gelu)(x)
    return against(
        "gelu", backend.gelu(x), truth, simulation.gelu(repeated(x, simulation)), profile
    )


@check(
    "L0",
    lambda scope: operation_cases(scope, heads=(1, 2, 4, 5), extra=(0, 1, 2, 7), tokens=(1, 9)),
    clauses=("CONV-1", "CONV-2"),
)
def convolutions(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """The last row of the convolution's weights meets the current token; inputs carry over."""
    profile, simulation = simulated(backend, case)
    rng, K, start = case.rng(), case.heads, int(case.extra)
    x, past = (profile.given(case.numbers(rng, n, case.channels)) for n in (case.tokens, K - 1))
    w, b = (
        profile.given(rng.standard_normal((K, case.channels))),
        profile.given(rng.standard_normal(case.channels)),
    )
    past[: max(K - 1 - start, 0)] = 0
    at = np.arange(start, start + case.tokens)
    inputs = [*past[max(K - 1 - start, 0) :], *x]
    known = len(inputs) - case.tokens
    truth = np.array([oracle.convolve(inputs[: known + t + 1], w, b) for t in range(case.tokens)])
    y, after = backend.causal_conv(x, w, b, at, past)
    carried = np.concatenate([np.zeros((K - 1, case.channels)), *map(np.atleast_2d, inputs)])
    carried = carried[len(carried) - (K - 1) :]
    results = against(
        "causal_conv",
        y,
        truth,
        simulation.convolve(repeated(x, simulation), w, b, at, past),
        profile,
    )
    if K == 1:
        return results
    if known:  # what is right without a past and wrong with one is not the order of the weights
        results = [replace(result, clause="CONV-2") for result in results]
    same = Envelope.of(carried, repeated(carried, simulation), profile)
    return [*results, replace(same.compare("inputs carried over", after), clause="CONV-2")]


SHUT = 2.0**-64
"""A gate below this changes no state by as much as one rounding of float32, in 2^31 steps."""

MANY = 8 * SAMPLES
"""Computations of a gate. Where large terms cancel and little is left, the order of the sum decides
how large the sums on the way were, and the sigmoid makes much of their errors."""


@check(
    "L0",
    lambda scope: operation_cases(scope, styles=("ordinary", "every size"), heads=(1, 2, 3)),
    clauses=("GATE-1", "GATE-2"),
)
def gates(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """Equations (1) and (2): sigmoid(W x + b), one block of W for each head, W as (in, out).

    Gates near 0 keep their relative accuracy: they decide how long the memory is.
    """
    profile, rng, G = profile_of(backend), case.rng(), case.channels // case.heads
    x = profile.given(case.numbers(rng, case.tokens, case.channels))
    w = profile.given(rng.standard_normal((case.heads, G, G)))
    b = profile.given(rng.standard_normal((case.heads, G)) * 3)
    truth = per_token(lambda row: oracle.gate(row, w, b), x)
    # Relative to their own size: a norm over channels would let errors of small gates go. By the
    # logarithm, in which what an error before the sigmoid does is as large upwards as downwards.
    truth = np.maximum(truth, SHUT)
    simulation = Simulation(profile, MANY, case.seed)
    samples = _relative(simulation.gate(repeated(x, simulation), w, b), truth)
    found = np.asarray(backend.gate(x, w, b), np.float64)
    if found.shape == truth.shape:
        found, truth = _relative(found, truth), np.ones_like(truth)
    return against("gate", found, truth, samples, profile, profile.state_unit)


def _relative(gates: NDArray, truth: NDArray) -> NDArray:
    """Gates in units of what they should be: 1 + log(gate / truth); those shut all count alike."""
    with np.errstate(invalid="ignore"):  # a gate below 0 gives NaN, and is wrong
        return 1 + np.log(np.where(np.abs(gates) < SHUT, SHUT, gates) / truth)


POSITIONS = (0.0, 1.0, 255.0, 2000.0, 1e6, 2.0**24 + 1, 2.0**31 - 20)


@check(
    "L0",
    lambda scope: operation_cases(scope, extra=POSITIONS, heads=(1, 2, 3)),
    clauses=("ROPE-1", "ROPE-2", "ROPE-3", "ROPE-4"),
)
def rotary_embeddings(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """RoPE turns channel j with channel j + half, by angles exact to 1e-6 rad below 2^31."""
    profile, simulation = simulated(backend, case)
    d = max(case.channels // case.heads, 2)
    x = profile.given(case.numbers(case.rng(), case.tokens, case.heads, d))
    turned = d // 2 // 2 * 2 if case.seed % 2 else d // 2 * 2
    base = (10000.0, 500.0, 1e6)[case.seed % 3]
    at = np.arange(int(case.extra), int(case.extra) + case.tokens)
    truth = np.array(
        [
            [oracle.rotate(head, int(p), base, turned) for head in row]
            for p, row in zip(at, x, strict=True)
        ]
    )
    samples = simulation.rotate(repeated(x, simulation), at, base, turned)
    return against("rope", backend.rope(x, at, base, turned), truth, samples, profile)


@check(
    "L0",
    lambda scope: operation_cases(
        scope,
        styles=("ordinary", "every size"),
        heads=(1, 2, 4),
        extra=(1, 2, 5, 40),
        tokens=(1, 20),
    ),
    clauses=("ATTN-4", "ATTN-5", "ATTN-1", "ATTN-2"),
)
def attentions(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """Attention over W + 1 keys: softmax of q k / sqrt(d), also of scores beyond 100; heads share
    key-value heads in order.
    """
    profile, simulation = simulated(backend, case)
    rng, H, d, T = case.rng(), case.heads, case.channels // case.heads, case.tokens
    Q = H if case.seed % 2 else max(H // 2, 1)
    q = profile.given(rng.standard_normal((T, H, d)) * (60 if case.style == "every size" else 1))
    k = profile.given(rng.standard_normal((T, Q, d)))
    v = profile.given(case.numbers(rng, T, Q, d))
    W, at = int(case.extra), np.arange(T)
    truth = np.array(
        [
            [
                oracle.attend(
                    q[t, h], list(k[: t + 1, h * Q // H]), list(v[: t + 1, h * Q // H]), W
                )
                for h in range(H)
            ]
            for t in range(T)
        ]
    )
    sq, sk, sv = (repeated(z, simulation) for z in (q, k, v))
    samples = simulation.attend(sq, sk, sv, at, W)
    return against("attention", backend.attention(q, k, v, at, W), truth, samples, profile)


@check(
    "L0",
    lambda scope: operation_cases(scope, extra=(30.0, scope.caps, 5.0)),
    clauses=("HEAD-1", "HEAD-2", "EMBED-3"),
)
def logits_and_soft_caps(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """Logits are x times the embedding, capped by c tanh(z / c); a cap of 0 is none."""
    profile, simulation = simulated(backend, case)
    rng = case.rng()
    x = profile.given(case.numbers(rng, case.tokens, case.channels))
    embedding = profile.given(rng.standard_normal((case.seed % 7 + 2, case.channels)))
    exact = per_token(lambda row: oracle.linear(row, embedding.T), x)
    truth = np.vectorize(lambda z: oracle.soft_cap(z, case.extra))(exact)
    samples = simulation.logits(repeated(x, simulation), embedding, case.extra)
    found = backend.logits(x, embedding, case.extra)
    return against("logits", found, truth, samples, profile)
