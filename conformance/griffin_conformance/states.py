"""Level 3, the state: what is remembered, how large it is, and what may be done with it."""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from griffin_conformance.alone import Alone, has_arrays, model_of, profile_of, row_of
from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.checks import Violation, check
from griffin_conformance.envelope import Comparison
from griffin_conformance.layouts import Case, Layout, execute
from griffin_conformance.strategies import cases, pooled, row_counts, sizes

__all__: list[str] = []

PAST_31_BITS = 2**31


def need(state, *names: str):
    """The state, if it has all that a check needs.

    Raises
    ------
    Unsupported
        If it has not.
    """
    missing = [name for name in names if not hasattr(state, name)]
    if missing:
        raise Unsupported(f"its state has no {', '.join(missing)}")
    return state


@check(
    "L3",
    lambda scope: cases(
        scope, rows=(1, 3), documents=(1, 3), cut=True, pad="anywhere", short_end=True
    ),
    strata=("crosses the window", "last document of 1-2 tokens"),
    weight=2,
    clauses=("STATE-1", "STATE-2", "STATE-3"),
    oracle=True,
)
def state_values(backend: Backend, case: Case) -> Sequence[Comparison]:
    """After any layout the state holds the oracle's values, and zeros outside the document."""
    run = execute(model_of(backend, case), case)
    need(run.state, "arrays", "position")
    results = []
    for i, row in enumerate(case.layout.rows):
        document, n = row[-1]
        if run.state.position[i] != n:
            raise Violation(
                f"position of row {i} is {run.state.position[i]}, expected {n}", "STATE-3"
            )
        padded = case.layout.is_padded(i)
        results += case.world.compare_state(
            profile_of(backend), row_of(run.state, i), document, n, padded=padded
        )
    return results


@st.composite
def two_lengths(draw, scope) -> Case:
    world = draw(pooled(scope))
    row = ((0, draw(sizes(world, 0))),)
    return Case(world, Layout((row,)), (draw(sizes(world, 1)),))


@check("L3", two_lengths, weight=0.5, clauses=("STATE-4",))
def state_size(backend: Backend, case: Case) -> Sequence[Comparison]:
    """The state takes the same bytes however long the text was."""
    long = execute(model_of(backend, case), case).state
    short = replace(case, layout=Layout((((1, case.extra[0]),),)))
    sizes = {"long": need(long, "nbytes").nbytes}
    sizes["short"] = execute(model_of(backend, short), short).state.nbytes
    if len(set(sizes.values())) > 1:
        raise Violation(f"bytes of the state depend on the text: {sizes}")
    return []


@st.composite
def continued(draw, scope, few: bool = False) -> Case:
    """Rows that are stopped once and continued; ``extra`` says after how many columns."""
    world = draw(pooled(scope, few=few))
    count = draw(row_counts(scope, 1, 3))
    n = draw(st.integers(2, min(world.lengths[:2])))
    batch = tuple(((draw(st.integers(0, 1)), n),) for _ in range(count))
    return Case(world, Layout(batch), (draw(st.integers(0, n - 1)),))


def stopped(backend: Backend, case: Case):
    """Model, state at the stop, and the arrays of the rest of the layout."""
    model = model_of(backend, case)
    tokens, positions = case.layout.arrays(case.world)
    at = case.extra[0]
    _, state = model(tokens[:, :at], positions[:, :at])
    return model, state, tokens[:, at:], positions[:, at:]


@check("L3", continued, clauses=("STATE-5",))
def saved_states_continue(backend: Backend, case: Case) -> Sequence[Comparison]:
    """A state saved to a file has the same bits when it is loaded, and continues."""
    model, state, tokens, positions = stopped(backend, case)
    need(state, "save", "arrays")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stopped.state"
        state.save(path)
        again = type(state).load(path)
    for name, array in state.arrays().items():
        loaded = again.arrays()[name]
        same = np.array_equal(np.asarray(loaded), np.asarray(array), equal_nan=True)
        if np.asarray(loaded).dtype != np.asarray(array).dtype or not same:
            raise Violation(f"{name} has other values or another dtype after saving and loading")
    results, alone, at = [], Alone(backend, case), case.extra[0]
    logits = np.asarray(model(tokens, positions, again)[0])
    for i, ((document, n),) in enumerate(case.layout.rows):
        envelope = case.world.history(profile_of(backend), document)["logits"].rows(slice(at, n))
        expected = alone.run(document, n).logits[0, at:]
        results.append(envelope.between(f"logits of row {i} after loading", logits[i], expected))
    return results


@check("L3", lambda scope: continued(scope, few=True), clauses=("STATE-6",))
def forks_are_independent(backend: Backend, case: Case) -> Sequence[Comparison]:
    """Copied, selected and joined rows continue each on its own, and the source stays as it was."""
    model, state, tokens, positions = stopped(backend, case)
    need(state, "fork", "select", "concat", "arrays")
    kept = copy.deepcopy(state.arrays())
    B = len(tokens)
    forks = state.fork(2)
    twice = np.repeat(tokens, 2, axis=0)
    twice[1::2] = (twice[1::2] + 1) % case.world.config.vocab_size
    steps = np.repeat(positions, 2, axis=0)
    logits, _ = model(twice, steps, forks)
    results = []
    alone, at, n = Alone(backend, case), case.extra[0], case.layout.lengths[0]
    for i, ((document, _),) in enumerate(case.layout.rows):
        envelope = case.world.history(profile_of(backend), document)["logits"].rows(slice(at, n))
        expected = alone.run(document, n).logits[0, at:]
        found = np.asarray(logits)[2 * i]
        results.append(
            envelope.between(f"logits of the unchanged fork of row {i}", found, expected)
        )
    for name, array in state.arrays().items():
        if not np.array_equal(np.asarray(array), np.asarray(kept[name])):
            raise Violation(f"running a fork changed {name} of the state it was forked from")
    order = list(reversed(range(B)))
    for label, rows in (
        ("select", state.select(order)),
        ("concat", type(state).concat([state.select([i]) for i in order])),
    ):
        logits, _ = model(tokens[order], positions[order], rows)
        for j, i in enumerate(order):
            document = case.layout.rows[i][0][0]
            history = case.world.history(profile_of(backend), document)["logits"]
            expected = alone.run(document, n).logits[0, at:]
            results.append(
                history.rows(slice(at, n)).between(
                    f"logits of row {i} after {label}", np.asarray(logits)[j], expected
                )
            )
    return results


@st.composite
def sessions(draw, scope) -> Case:
    """Texts that go on in turns; ``extra`` is whose turn it is."""
    world = draw(pooled(scope))
    count = draw(st.integers(2, 3))
    rows = tuple(((i, min(8, world.lengths[i])),) for i in range(count))
    turns = draw(st.permutations(list(range(count)) * 4))
    return Case(world, Layout(rows), tuple(turns))


@check("L3", sessions, clauses=("STATE-7",))
def sessions_do_not_mix(backend: Backend, case: Case) -> Sequence[Comparison]:
    """Several texts that take turns on one model each give what they give alone."""
    model, alone = model_of(backend, case), Alone(backend, case)
    states: dict[int, Any] = {}
    done, results = dict.fromkeys(case.extra, 0), []
    for i in case.extra:
        ((document, n),) = case.layout.rows[i]
        part = slice(done[i], min(done[i] + 2, n))
        if part.start == part.stop:
            continue
        tokens = case.world.tokens(document)[None, part]
        # Every other turn leaves it to the model to go on where the session's state is.
        told = np.arange(n)[None, part] if part.start % 4 == 0 else None
        logits, states[i] = model(tokens, told, states.get(i))
        envelope = case.world.history(profile_of(backend), document)["logits"].rows(part)
        results.append(
            envelope.between(
                f"logits of session {i} from token {part.start}",
                np.asarray(logits)[0],
                alone.run(document, n).logits[0, part],
            )
        )
        done[i] = part.stop
    return results


@check("L3", continued, clauses=("RGLRU-5",))
def position_0_forgets(backend: Backend, case: Case) -> Sequence[Comparison]:
    """A document that starts from a state forgets it, even one that holds no finite number."""
    model, state, *_ = stopped(backend, case)
    need(state, "arrays", "with_arrays", "position")
    damaged = {name: np.full_like(np.asarray(a), np.inf) for name, a in state.arrays().items()}
    state = state.with_arrays(damaged, state.position)
    return Alone(backend, case).compare(execute(model, case, state), case)


LATE = (1000, 8191, 10**6, 2**24 + 1, PAST_31_BITS)


@st.composite
def late_cases(draw, scope) -> Case:
    """Texts that go on at a late position."""
    world = draw(pooled(scope))
    n = min(draw(sizes(world, 1)), 20)
    start = min(draw(st.sampled_from(LATE)), PAST_31_BITS - n)
    return Case(replace(world, lengths=(world.lengths[0], n)), Layout((((1, n),),)), (start,))


@check("L3", late_cases, clauses=("STATE-9", "ROPE-4"), oracle=True)
def late_positions(backend: Backend, case: Case) -> Sequence[Comparison]:
    """Positions up to 2^31 - 1 are as exact as early ones, and the first beyond is refused."""
    model, (start,) = model_of(backend, case), case.extra
    if not hasattr(model, "init_state"):
        raise Unsupported("its model has no init_state")
    state = need(model.init_state(1), "with_arrays", "position")
    state = state.with_arrays(state.arrays(), np.array([start]))
    tokens = case.world.tokens(1)[None]
    n = tokens.shape[1]
    logits, after = model(tokens, np.arange(start, start + n)[None], state)
    history = case.world.history(profile_of(backend), 1, start)
    results = [history["logits"].compare(f"logits from position {start}", np.asarray(logits)[0])]
    results += case.world.compare_state(profile_of(backend), row_of(after, 0), 1, n, start=start)
    if start + n == PAST_31_BITS:
        try:
            model(tokens[:, :1], [[PAST_31_BITS]], after)
        except ValueError:
            return results
        raise Violation("position 2^31 was taken without an error")
    return results


@check("L3", lambda scope: continued(scope, few=True), weight=0.5, clauses=("STATE-8",))
def foreign_states_are_refused(backend: Backend, case: Case) -> Sequence[Comparison]:
    """A state of another batch, configuration or set of weights raises ValueError."""
    model, state, tokens, positions = stopped(backend, case)
    if not has_arrays(state):
        raise Unsupported("its state has no arrays")
    other = replace(
        case,
        world=replace(
            case.world, config=case.world.config.replace(window=case.world.config.window + 1)
        ),
    )
    _, foreign, *_ = stopped(backend, other)
    trained = replace(case, world=replace(case.world, seed=case.world.seed + 1))
    _, of_others, *_ = stopped(backend, trained)
    batch = np.repeat(tokens, 2, axis=0), np.repeat(positions, 2, axis=0)
    for what, call in (
        ("of another batch", lambda: model(*batch, state)),
        ("of another window", lambda: model(tokens, positions, foreign)),
        ("of other weights", lambda: model(tokens, positions, of_others)),
    ):
        try:
            call()
        except ValueError:
            continue
        raise Violation(f"a state {what} was taken without an error")
    return []
