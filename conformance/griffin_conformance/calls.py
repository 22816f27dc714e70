"""Level 2, the calls: what they may change, what they may be asked for, and what they refuse."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from griffin_conformance.alone import Alone, has_arrays, model_of, profile_of
from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.checks import Violation, check
from griffin_conformance.envelope import Comparison
from griffin_conformance.layouts import Case, Layout, Run, execute
from griffin_conformance.strategies import cases, pooled, row_counts

__all__: list[str] = []


@check("L2", lambda scope: cases(scope, rows=(2, 3)), clauses=("CALL-4",))
def nothing_stays_in_the_model(backend: Backend, case: Case) -> Sequence[Comparison]:
    """What a model has read before, in other calls and batches, changes nothing."""
    model, results = model_of(backend, case), []
    alone = Alone(backend, case)
    for row in (*case.layout.rows, case.layout.rows[0], ((1, 1),)):
        one = replace(case, layout=Layout((row,)))
        results += alone.compare(execute(model, one), one)
    both = replace(case, layout=replace(case.layout, cuts=()))
    # Rows that are right one after the other, and wrong together, are no matter of what stays.
    together = alone.compare(execute(model, both), both)
    return results + [replace(result, clause=result.clause or "BATCH-1") for result in together]


@check("L2", lambda scope: cases(scope, rows=(1, 3), pad="anywhere"), clauses=("CALL-5", "CALL-6"))
def calls_are_pure(backend: Backend, case: Case) -> Sequence[Comparison]:
    """A call changes nothing that it is given, and the same call gives the same again."""
    model, alone = model_of(backend, case), Alone(backend, case)
    tokens, positions = case.layout.arrays(case.world)
    half = case.layout.width // 2
    before, state = model(tokens[:, :half], positions[:, :half])
    rest, steps = tokens[:, half:].copy(), positions[:, half:].copy()
    kept = copy.deepcopy(things_in(state))
    results = []
    for clause in ("", "CALL-6"):  # what is wrong in the second call alone does not repeat
        logits, after = model(rest, steps, state)
        parts = [np.array(part, np.float64) for part in (before, logits)]
        found = alone.compare(Run(np.concatenate(parts, axis=1), after), case)
        results += [replace(result, clause=result.clause or clause) for result in found]
    given = {"tokens": (rest, tokens[:, half:]), "positions": (steps, positions[:, half:])}
    given |= {f"state {name}": (array, kept[name]) for name, array in things_in(state).items()}
    for name, (now, then) in given.items():
        if not np.array_equal(np.asarray(now), np.asarray(then), equal_nan=True):
            raise Violation(f"the caller's {name} was changed by the call", "CALL-5")
    return results


@st.composite
def written_out(draw, scope) -> Case:
    """A text in several calls; of few tokens where every single operation is compiled."""
    if not scope.fixed_shapes:
        return draw(cases(scope, cut=True))
    world = draw(pooled(scope, few=True).filter(lambda w: w.config.depth < 3))
    return Case(world, Layout((((2, 7),),), (), (draw(st.integers(3, 4)),)))


@check("L2", written_out, weight=0.1, clauses=("CALL-10",))
def compiled_as_written(backend: Backend, case: Case) -> Sequence[Comparison]:
    """A model gives the same whether it is compiled, traced, or run as it is written."""
    config, flat = case.world.config, case.world.parameters(profile_of(backend))
    other = execute(backend.compiled(config, flat), case).logits
    same, results = execute(model_of(backend, case), case).logits, []
    for i, row in enumerate(case.layout.rows):
        where, start = case.layout.columns(i), 0
        for document, n in row:
            part = where[start : start + n]
            envelope = case.world.history(profile_of(backend), document)["logits"].rows(slice(n))
            name = f"logits of document {document} in row {i}"
            results.append(envelope.between(name, other[i, part], same[i, part]))
            start += n
    return results


def things_in(state) -> dict[str, NDArray]:
    """Arrays of a state and its positions, if it can be looked into."""
    return {"position": state.position, **state.arrays()} if has_arrays(state) else {}


@st.composite
def mixed_requests(draw, scope) -> Case:
    """Any layout; ``extra`` says which logits each call is asked for."""
    case = draw(cases(scope, rows=(1, 3), documents=(0, 3), pad="anywhere", cut=True, few=True))
    kinds = st.sampled_from(["all", "last", "last", "none"])
    return replace(case, extra=tuple(draw(kinds) for _ in case.layout.calls()))


@check("L2", mixed_requests, clauses=("CALL-7",))
def last_logits(backend: Backend, case: Case) -> Sequence[Comparison]:
    """``logits="last"`` gives those of each row's last real token in the call, or 0; ``"none"``
    gives none; the state does not depend on what was asked for.
    """
    model, state = model_of(backend, case), None
    tokens, positions = case.layout.arrays(case.world)
    shape = (*positions.shape, case.world.config.vocab_size)
    asked, found = np.zeros(positions.shape, bool), np.zeros(shape)
    for call, kind in zip(case.layout.calls(), case.extra, strict=True):
        steps = positions[:, call]
        try:
            logits, state = model(tokens[:, call], steps, state, logits=kind)
        except TypeError as error:
            raise Unsupported(f"it has no choice of logits: {error}") from None
        if kind == "none":
            if logits is not None:
                raise Violation('logits="none" returned logits')
            continue
        if kind == "all":
            asked[:, call], found[:, call] = steps >= 0, np.asarray(logits)
            continue
        for i, row in enumerate(np.asarray(logits, np.float64)):
            real = np.flatnonzero(steps[i] >= 0)
            if len(real):
                asked[i, call.start + real[-1]], found[i, call.start + real[-1]] = True, row
            elif np.any(row != 0):
                raise Violation(f"row {i} has no token in this call, but its last logits are not 0")
    alone = Alone(backend, case)
    expected = found.copy()
    for i, row in enumerate(case.layout.rows):
        where, start = case.layout.columns(i), 0
        for document, n in row:
            part = where[start : start + n]
            told = alone.run(document, n).logits[0]
            # What was not asked for is taken from the other side, and so compares as equal.
            expected[i, part] = np.where(asked[i, part, None], found[i, part], told)
            start += n
    return alone.compare(Run(expected, state), case)


@st.composite
def refused(draw, scope) -> Case:
    """Rows that have begun, and a call with one impossible position or token in one of them."""
    world = draw(pooled(scope))
    n = draw(st.integers(2, 6))
    rows = tuple(((draw(st.integers(0, 2)), n),) for _ in range(draw(row_counts(scope, 1, 3))))
    row = draw(st.integers(0, len(rows) - 1))
    begun = draw(st.integers(0, n - 1))
    column = draw(st.integers(begun, n - 1))
    pads = tuple((begun,) if draw(st.booleans()) else () for _ in rows)
    fault = draw(st.sampled_from(["gap", "back", "negative", "token", "token below 0"]))
    return Case(world, Layout(rows, pads, (begun,)), (fault, row, column))


def refusal(backend: Backend, case: Case) -> str:
    """What the backend says to an impossible call, after a possible one."""
    fault, row, token = case.extra
    model = model_of(backend, case)
    tokens, positions = case.layout.arrays(case.world)
    begun = case.layout.cuts[0]
    _, state = model(tokens[:, :begun], positions[:, :begun])
    tokens, positions = tokens[:, begun:], positions[:, begun:]
    column = case.layout.columns(row)[token] - begun
    values = {"gap": token + 7, "back": token - 1 if token > 1 else 5, "negative": -2}
    if fault in values:
        positions[row, column] = values[fault]
    else:
        tokens[row, column] = case.world.config.vocab_size if fault == "token" else -1
    try:
        model(tokens, positions, state)
    except ValueError as error:
        return f"{error} | expected: row {row}, column {column}"
    raise Violation(
        f"{fault} at row {row}, column {column}: position {positions[row, column]}, token "
        f"{tokens[row, column]} was taken without an error"
    )


@check("L2", refused, weight=0.5, clauses=("CALL-8",))
def impossible_calls_are_refused(backend: Backend, case: Case) -> Sequence[Comparison]:
    """Positions and tokens that no text can have raise ValueError, in any row, at any time."""
    refusal(backend, case)
    return []


@check("L2", refused, must=False, weight=0.5, clauses=("CALL-9",))
def refusals_name_the_place(backend: Backend, case: Case) -> Sequence[Comparison]:
    """The error says ``row R, column C`` of the call."""
    said, _, place = refusal(backend, case).partition(" | expected: ")
    if place not in said:
        raise Violation(f"the error does not name {place}: {said}")
    return []
