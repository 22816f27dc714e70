"""Level 3, generation: what is chosen, held against the oracle only where the choice is clear."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from griffin_conformance.alone import model_of, profile_of
from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.checks import Violation, check
from griffin_conformance.envelope import Comparison
from griffin_conformance.laws import whole_cases
from griffin_conformance.layouts import Case, Layout
from griffin_conformance.strategies import pooled, row_counts

__all__: list[str] = []


@check("L3", whole_cases, clauses=("GEN-1",))
def best_tokens(backend: Backend, case: Case) -> Sequence[Comparison]:
    """The most probable next token is the oracle's, wherever rounding cannot change which it is.

    Teacher-forced: after each token of a given text, so that one choice does not decide the next.
    """
    logits, _ = model_of(backend, case)(case.world.tokens(0)[None])
    envelope = case.world.history(profile_of(backend), 0)["logits"]
    clear = envelope.argmax_is_clear()
    values = np.array(logits[0], np.float64)
    found, expected = values.argmax(-1), envelope.truth.argmax(-1)
    wrong = np.flatnonzero(clear & (found != expected))
    if wrong.size:
        t = wrong[0]
        best = np.arange(len(values)), expected
        values[best] = envelope.truth[best]
        others_are_right = envelope.compare("the other logits", values).ratio <= 1
        raise Violation(
            f"after token {t} the best next token is {found[t]}, expected {expected[t]}, which "
            f"leads by more than rounding can explain",
            "GEN-1" if others_are_right else "",
        )
    return []


@st.composite
def prompts(draw, scope) -> Case:
    """A batch of prompts."""
    world = draw(pooled(scope, few=True))
    rows = tuple(
        ((draw(st.integers(0, 2)), draw(st.integers(1, 6))),)
        for _ in range(draw(row_counts(scope, 1, 4)))
    )
    rows = tuple(((d, min(n, world.lengths[d])),) for ((d, n),) in rows)
    return Case(world, Layout(rows), (draw(st.integers(1, 8)),))


def generated(model, case: Case, **options):
    """Continuations of the case's prompts, in one batch."""
    if not hasattr(model, "generate"):
        raise Unsupported("its model has no generate")
    (more,) = case.extra
    texts = [case.world.tokens(d)[:n].tolist() for ((d, n),) in case.layout.rows]
    found = model.generate(texts, max_tokens=more, ignore_eos=True, **options)
    return texts, [list(map(int, generation.tokens)) for generation in found]


@check("L3", prompts, strata=("rows of several lengths",), weight=2, clauses=("GEN-2",))
def greedy_text(backend: Backend, case: Case) -> Sequence[Comparison]:
    """Greedy generation takes the oracle's best token after its own text, where that is clear."""
    texts, found = generated(model_of(backend, case), case, temperature=0)
    (more,) = case.extra
    for i, (text, tokens) in enumerate(zip(texts, found, strict=True)):
        if len(tokens) != more:
            raise Violation(f"row {i} has {len(tokens)} new tokens, expected {more}")
        whole = [*text, *tokens[:-1]]
        envelope = case.world.logits_of(whole, profile_of(backend))
        envelope = envelope.rows(slice(len(text) - 1, None))
        clear, best = envelope.argmax_is_clear(), envelope.truth.argmax(-1)
        wrong = np.flatnonzero(clear & (best != np.array(tokens)))
        if wrong.size:
            raise Violation(
                f"row {i}: new token {wrong[0]} is {tokens[wrong[0]]}, expected {best[wrong[0]]}, "
                f"which leads by more than rounding can explain"
            )
    return []


@check("L3", prompts, must=False, clauses=("GEN-3",))
def seeds_repeat(backend: Backend, case: Case) -> Sequence[Comparison]:
    """The same seed gives the same text, whatever other rows are in the batch."""
    options = {"temperature": 0.9, "seed": case.world.seed}
    _, found = generated(model_of(backend, case), case, **options)
    _, again = generated(model_of(backend, case), case, **options)
    if found != again:
        raise Violation(f"seed {case.world.seed} gave {found}, and then {again}")
    _, alone = generated(
        model_of(backend, case),
        replace(case, layout=Layout(case.layout.rows[:1])),
        **options,
    )
    if alone[0] != found[0]:
        raise Violation(f"the first prompt gave {found[0]} in a batch and {alone[0]} alone")
    if any(not 0 <= t < case.world.config.vocab_size for row in found for t in row):
        raise Violation(f"tokens outside the vocabulary: {found}")
    return []
