"""Level 5, quantised models: what they compute with the weights that they hold, and the laws.

A quantised model is no worse a program for its coarser weights: it is held to the truth about the
weights that it holds.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from griffin_conformance import blocks, calls, generation, laws, states  # noqa: F401 (their checks)
from griffin_conformance import oracle as exact
from griffin_conformance.backends import Backend
from griffin_conformance.blocks import BlockCase
from griffin_conformance.checks import CHECKS, Scope, check
from griffin_conformance.envelope import Comparison, Envelope
from griffin_conformance.quantisation import oracle_of, simulation_of
from griffin_conformance.quantised_weights import (
    SIZES,
    MatrixCase,
    held_to,
    held_weights,
    matrices,
    quantised_worlds,
)

__all__: list[str] = []


SINGLE = ("linear_x", "query", "gate", "down", "embedding")
"""Matrices whose inputs are in order in every layout."""


# -- what is computed with them


@check(
    "L5",
    matrices,
    strata=("several groups", *(f"inputs: {size}" for size in SIZES)),
    clauses=("QUANT-1",),
)
def quantised_products(backend: Backend, case: MatrixCase) -> Sequence[Comparison]:
    """A single linear layer, or the head, is right for its held weights and rounded inputs."""
    profile, config = held_to(backend), case.world.config
    flat, held = held_weights(backend, case)
    names = [n for n in flat if n.removesuffix(".weight").rpartition(".")[2] in SINGLE
             and profile.quantisation.covers(n)]  # fmt: skip
    name = names[case.pick % len(names)]
    head = name == "embedding"
    weight, kept = (a[name].T if head else a[name] for a in (flat, held))
    x = profile.given(case.inputs(len(weight)))
    bias = None if head else flat.get(name.removesuffix("weight") + "bias")
    meets, simulation = profile.meets(config), simulation_of(profile, config, case.seed)
    truth = np.array([exact.linear(meets(name, row), kept, bias) for row in x])
    samples = np.repeat(x[None], simulation.S, axis=0)
    if head:
        samples = simulation.logits(samples, kept.T, 0.0)
        found = backend.logits(x, weight.T, 0.0)
    else:
        samples = simulation.affine(samples, kept, bias, name)
        found = backend.linear(x, weight, bias)
    return [Envelope.of(truth, samples, profile).compare(name, found)]


@st.composite
def quantised_block_cases(draw, scope: Scope) -> BlockCase:
    world = draw(quantised_worlds(scope))
    i = draw(st.integers(0, world.config.depth - 1))
    return BlockCase(world, i, draw(st.sampled_from([1.0, 1e-3, 1e4])), draw(st.integers(0, 9)))


@check(
    "L5",
    quantised_block_cases,
    strata=("recurrent", "attention", "crosses the window"),
    weight=0.6,
    clauses=("QUANT-1",),
)
def quantised_blocks(backend: Backend, case: BlockCase) -> Sequence[Comparison]:
    """A residual block is right for its held weights and the rounding of what meets them."""
    profile, config = held_to(backend), case.world.config
    flat, x = case.world.parameters(profile), profile.given(case.inputs())
    oracle, simulation = (
        oracle_of(profile, config, flat), simulation_of(profile, config, case.seed),
    )  # fmt: skip
    truth = np.array([oracle.block(case.block, row, t) for t, row in enumerate(x)])
    samples, at = np.repeat(x[None], simulation.S, axis=0), np.arange(len(x))
    samples = simulation.block(case.block, samples, oracle.p, config, at, {})
    found = backend.block(config, flat, case.block, x, at)
    return [Envelope.of(truth, samples, profile).compare(f"block {case.block}", found)]


# -- the laws, on quantised models


KEPT = frozenset({
    "crosses the window", "call of 1 token", "reset inside a call", "last document of 1-2 tokens",
    "padding on the left", "padding inside a row", "rows of several lengths",
})  # fmt: skip
"""Strata of the laws that their quantised twins must meet as well."""

WHOLE = ("whole-texts", "state-values", "best-tokens")
"""Comparisons with the truth."""

LAWS = (
    "any-chunking", "decoding-continues-a-prompt", "packed-documents",
    "decoding-continues-packed-documents", "padding-anywhere", "decoding-continues-padded-rows",
    "rows-are-independent", "nothing-sees-the-future", "nothing-stays-in-the-model",
    "calls-are-pure", "last-logits", "saved-states-continue", "forks-are-independent",
    "sessions-do-not-mix", "position-0-forgets", "foreign-states-are-refused",
)  # fmt: skip
"""Comparisons of a backend with itself."""


def on_quantised_models(name: str, clause: str) -> None:
    """Register a check of another level once more, for quantised models."""
    law = CHECKS[name]

    def cases(scope: Scope) -> st.SearchStrategy:
        return quantised_worlds(scope).flatmap(lambda w: law.cases(replace(scope, only=w)))

    def holds(backend: Backend, case) -> Sequence[Comparison]:
        held_to(backend)
        return law.holds(backend, case)

    holds.__name__ = f"quantised-{name}"
    holds.__doc__ = f"Of a quantised model: {law.says}"
    strata = tuple(s for s in law.strata if s in KEPT)
    weight = 1.0 if name in WHOLE else 0.6 if name == "last-logits" else 0.3
    check("L5", cases, must=law.must, strata=strata, weight=weight, clauses=(clause,))(holds)


for _name in WHOLE:
    on_quantised_models(_name, "QUANT-1")
for _name in LAWS:
    on_quantised_models(_name, "QUANT-4")
