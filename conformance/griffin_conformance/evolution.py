"""Level 3, the state through time: every array after every step, for four windows and more.

:func:`evolve` holds two backends against each other in the same way, in units in the last place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import strategies as st

from griffin_conformance.alone import model_of, profile_of, row_of
from griffin_conformance.backends import Backend
from griffin_conformance.checks import Scope, Violation, check, json_number
from griffin_conformance.envelope import Comparison, Ulps
from griffin_conformance.layouts import Case, Layout
from griffin_conformance.states import need
from griffin_conformance.strategies import COMPILED, LONG, POOL, adapted, pooled
from griffin_conformance.worlds import World
from griffin_np.config import ATTENTION, RECURRENT

__all__ = ["Evolution", "evolve", "through_four_windows"]

LONGEST = 168
"""Steps at most: four times the largest window but one, and some."""


def through_four_windows(world: World) -> World:
    """The world with a first document of four windows and some tokens."""
    length = 4 * world.config.window + 5
    return replace(world, lengths=(length, *world.lengths[1:]))


@st.composite
def stepped(draw, scope) -> Case:
    """A text of four windows, read one token at a time, the first few perhaps at once."""
    # Rings are what four windows are for.
    kind = draw(st.sampled_from([ATTENTION, ATTENTION, RECURRENT]))
    world = draw(
        pooled(scope).filter(
            lambda w: 4 * w.config.window + 5 <= LONGEST and kind in w.config.block_types
        )
    )
    world = through_four_windows(world)
    length = world.lengths[0]
    prompt = draw(st.sampled_from([1, 1, 2, world.config.window + 1]))
    return Case(world, Layout((((0, length),),), (), tuple(range(prompt, length))))


def states_through(model, case: Case):
    """Tokens read so far, logits of the call, and the state, after each call of a layout."""
    tokens, positions = case.layout.arrays(case.world)
    state = None
    for call in case.layout.calls():
        logits, state = model(tokens[:, call], positions[:, call], state)
        yield call.stop, np.asarray(logits, np.float64), state


@check(
    "L3",
    stepped,
    strata=("crosses the window",),
    weight=0.7,
    clauses=("STATE-10", "ATTN-7", "STATE-1", "RGLRU-7"),
    oracle=True,
)
def states_evolve(backend: Backend, case: Case) -> Sequence[Comparison]:
    """After every single step, through four windows, every array of the state is the oracle's."""
    profile, results = profile_of(backend), []
    for n, _, state in states_through(model_of(backend, case), case):
        need(state, "arrays", "position")
        if state.position[0] != n:
            raise Violation(f"position after {n} tokens is {state.position[0]}", "STATE-3")
        results += case.world.compare_state(profile, row_of(state, 0), 0, n)
    return results


@dataclass
class Evolution:
    """How far two backends drift apart, step by step.

    Attributes
    ----------
    worlds, steps : int
        Models compared, and their steps together.
    ulps : dict of str to Ulps
        For logits and for states, differences of the values that the tokens read have left, in
        units in the last place, at the scale of the largest value of the same array at that step.
    worst : dict of str to float
        Largest difference over what two right programs may differ by.
    """

    worlds: int = 0
    steps: int = 0
    ulps: dict[str, Ulps] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)

    def note(self, comparison: Comparison) -> None:
        """Count one comparison."""
        kind = "logits" if comparison.name.startswith("logits") else "states"
        self.worst[kind] = max(self.worst.get(kind, 0.0), comparison.ratio)
        if comparison.counts:
            self.ulps.setdefault(kind, Ulps()).add(comparison)

    def to_dict(self) -> dict:
        """As JSON values."""
        return {
            "worlds": self.worlds,
            "steps": self.steps,
            **{
                kind: {
                    # The first class of the histogram has the differences of nothing at all.
                    "equal_bits": found.counts[0] / max(sum(found.counts), 1),
                    "observed_over_allowed": json_number(self.worst[kind]),
                    **found.to_dict(),
                }
                for kind, found in self.ulps.items()
            },
        }


def evolve(
    one: Backend,
    other: Backend,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    weights: str = "",
    at_once: bool = False,
) -> Evolution:
    """Read texts of four windows and more on two backends, and compare what each step leaves.

    Every array of the state is compared after every step, and the logits of every step.

    Parameters
    ----------
    one, other : Backend
        In one precision; states have to show their arrays.
    seeds : sequence of int
        Added to the seeds of the models and texts.
    weights : str
        One of :data:`~griffin_conformance.worlds.WEIGHTS`; each model's own by default.
    at_once : bool
        Each step's state is that of one call from the start of the text, padded to one length, so
        that a scan over time makes it; otherwise tokens are read one at a time.
    """
    result = Evolution()
    compiles = one.fixed_shapes or other.fixed_shapes
    pool = (*COMPILED, *LONG) if compiles else POOL
    for world in pool:
        if 4 * world.config.window + 5 > LONGEST:
            continue
        for seed in seeds:
            again = replace(through_four_windows(world), seed=world.seed + 1000 * seed)
            again = replace(again, weights=weights or again.weights)
            for backend in (one, other):
                again = adapted_to(again, backend)
            _compare(one, other, again, result, at_once)
            result.worlds += 1
    return result


def adapted_to(world: World, backend: Backend) -> World:
    """The world with a configuration that the backend can represent."""
    return adapted(world, Scope(adapt=backend.adapt))


def prefixes_through(model, world: World):
    """Tokens read, the last logits, and the state, of each prefix of a text read in one call."""
    length = world.lengths[0]
    for n in range(1, length + 1):
        padded = Layout((((0, n),),), ((n,) * (length - n),))
        tokens, positions = padded.arrays(world)
        logits, state = model(tokens, positions)
        yield n, np.asarray(logits, np.float64)[:, n - 1 : n], state


def _compare(one: Backend, other: Backend, world: World, result: Evolution, at_once: bool) -> None:
    length = world.lengths[0]
    case = Case(world, Layout((((0, length),),), (), tuple(range(1, length))))
    profile = profile_of(one)
    history = world.history(profile, 0)
    models = [model_of(backend, case) for backend in (one, other)]
    if at_once:
        runs = [prefixes_through(model, world) for model in models]
    else:
        runs = [states_through(model, case) for model in models]
    for (n, logits, state), (_, logits_too, state_too) in zip(*runs, strict=True):
        need(state, "arrays")
        need(state_too, "arrays")
        result.steps += 1
        row = history["logits"].rows([n - 1])
        result.note(row.between("logits", logits[0], logits_too[0]))
        arrays, arrays_too = row_of(state, 0), row_of(state_too, 0)
        for comparison in world.compare_state(profile, arrays, 0, n, arrays_too):
            result.note(comparison)
