"""Level 0, the recurrence: decays of every size, the RG-LRU in a row, and very long scans."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from griffin_conformance import oracle
from griffin_conformance.alone import profile_of
from griffin_conformance.backends import Backend
from griffin_conformance.checks import check
from griffin_conformance.envelope import Comparison, Envelope
from griffin_conformance.operations import (
    OperationCase,
    against,
    operation_cases,
    repeated,
    simulated,
    single,
)
from griffin_conformance.rounding import SAMPLES, Profile
from griffin_conformance.simulation import Simulation
from griffin_conformance.worlds import LAMBDAS

__all__: list[str] = []

LONG = 20_000


def decay_arguments(case: OperationCase) -> tuple[NDArray, NDArray]:
    """Gates r and parameters of a case, with every decay of :data:`LAMBDAS` among them."""
    rng = case.rng()
    r = {
        "ordinary": lambda: rng.random((case.tokens, case.channels)),
        "every size": lambda: 10 ** rng.uniform(-7, 0, (case.tokens, case.channels)),
        "closed": lambda: np.zeros((case.tokens, case.channels)),
        "open": lambda: np.ones((case.tokens, case.channels)),
    }[case.style]()
    return single(r), rng.choice(LAMBDAS, case.channels)


DECAYS = ("ordinary", "every size", "closed", "open")


def decays_of(backend: Backend, case: OperationCase, strict: bool) -> Sequence[Comparison]:
    """Compare a and the multiplier."""
    profile = profile_of(backend)
    # Single channels are compared, so that more samples are needed to meet every direction.
    simulation = Simulation(profile, 4 * SAMPLES, case.seed, strict)
    r, a_param = decay_arguments(case)
    a_param = profile.given(a_param)
    log_a = np.array(
        [[oracle.log_decay(p, g) for p, g in zip(a_param, row, strict=True)] for row in r]
    )
    a, scale = simulation.decay(repeated(r, simulation), a_param)
    found_a, found_scale = backend.decay(r, a_param)
    exact = np.vectorize(oracle.multiplier)(log_a)
    # Channels are held one by one: a norm over channels would let small multipliers go.
    split = [
        (name, np.asarray(f).T[..., None], t.T[..., None], np.moveaxis(s, 2, 1)[..., None])
        for name, f, t, s in (
            ("a", found_a, np.exp(log_a), a),
            ("sqrt(1 - a^2)", found_scale, exact, scale),
        )
    ]
    results = []
    for name, f, t, s in split:
        for channel in range(case.channels):
            label = f"{name} of a_param {a_param[channel]:g}"
            results += against(
                label, f[channel], t[channel], s[:, channel], profile, profile.state_unit
            )
    return results


@check(
    "L0",
    lambda scope: operation_cases(scope, styles=DECAYS),
    strata=DECAYS,
    clauses=("RGLRU-1", "RGLRU-2", "RGLRU-4"),
)
def decays(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """Equation (3): log a = -8 r softplus(a_param), a = 1 to rounding and a = 0 included."""
    return decays_of(backend, case, strict=False)


@check("L0", lambda scope: operation_cases(scope, styles=DECAYS), must=False, clauses=("RGLRU-3",))
def multipliers_keep_their_digits(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """sqrt(1 - a^2) should be exact where a is almost 1, as ``-expm1(2 log a)`` is."""
    return decays_of(backend, case, strict=True)


@check(
    "L0",
    lambda scope: operation_cases(scope, heads=(1, 2, 3), extra=(0, 3)),
    clauses=("RGLRU-4", "GATE-3", "RGLRU-6", "RGLRU-5"),
)
def recurrences(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """Equations (1) to (4) in a row; position 0 forgets the state and enters undamped."""
    profile, simulation = simulated(backend, case)
    rng, G, R = case.rng(), case.channels // case.heads, case.channels
    x = profile.given(case.numbers(rng, case.tokens, R))
    h = single(rng.standard_normal(R))
    gate = (case.heads, G)
    shapes = {"w_a": (*gate, G), "w_x": (*gate, G), "b_a": gate, "b_x": gate}
    p = {name: profile.given(rng.standard_normal(shape)) for name, shape in shapes.items()}
    p["a_param"] = profile.given(rng.choice(LAMBDAS, R))
    at = np.arange(int(case.extra), int(case.extra) + case.tokens)
    truth, state = [], h
    for row, position in zip(x, at, strict=True):
        state = oracle.rg_lru(p, row, int(position), state)
        truth.append(state)
    samples = simulation.rg_lru(repeated(x, simulation), p, at, h)
    return against(
        "rg_lru", backend.rg_lru(x, p, at, h), np.array(truth), samples, profile, profile.state_unit
    )


def scan_arguments(case: OperationCase) -> tuple[NDArray, NDArray, NDArray]:
    """a, x and h of a scan: a channel for each decay, and a last one that must not move at all."""
    rng = case.rng()
    shape = (case.tokens, len(LAMBDAS))
    r = single(rng.random(shape) * case.extra)
    log_a = np.vectorize(oracle.log_decay)(np.array(LAMBDAS), r)
    gain = np.vectorize(oracle.multiplier)(log_a)
    a, x = single(np.exp(log_a)), single(gain * rng.standard_normal(shape))
    held = np.ones((case.tokens, 1))
    a, x = np.concatenate([a, held], axis=1), np.concatenate([x, 0 * held], axis=1)
    return a, x, single(rng.standard_normal(a.shape[1]))


@lru_cache(maxsize=1024)
def _scan_envelopes(case: OperationCase, profile: Profile) -> list[Envelope]:
    """One envelope for each channel."""
    a, x, h = scan_arguments(case)
    truth, state = np.empty_like(x), h
    for t in range(case.tokens):
        state = a[t] * state + x[t]
        truth[t] = state
    # Single channels are compared here too.
    simulation = Simulation(profile, 2 * SAMPLES, case.seed)
    samples = simulation.scan(repeated(a, simulation), repeated(x, simulation), h)
    return [
        Envelope.of(truth[:, [c]], samples[:, :, [c]], profile, profile.state_unit)
        for c in range(len(h))
    ]


def scans_of(backend: Backend, case: OperationCase) -> list[Comparison]:
    """Compare every channel on its own, so that none hides behind larger ones."""
    a, x, h = scan_arguments(case)
    found = np.asarray(backend.scan(a, x, h))
    names = [*(f"scan of a_param {p:g}" for p in LAMBDAS), "scan that holds its state"]
    return [
        envelope.compare(name, found[:, [c]])
        for c, (name, envelope) in enumerate(
            zip(names, _scan_envelopes(case, profile_of(backend)), strict=True)
        )
    ]


def scan_cases(*tokens: int) -> st.SearchStrategy[OperationCase]:
    """Scans of these lengths, with gates of every size or nearly closed."""
    return st.builds(
        lambda T, r, seed: OperationCase(T, len(LAMBDAS) + 1, 1, "every decay", r, seed),
        st.sampled_from(tokens),
        st.sampled_from((1.0, 1e-3)),
        st.integers(0, 99),
    )


@check(
    "L0", lambda scope: scan_cases(1, 2, 3, 17, 64, 300), clauses=("RGLRU-7", "RGLRU-8", "RGLRU-9")
)
def scans(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """The recurrence h = a h + x from a given state, for decays from none to instant; with a = 1
    and x = 0 it does not move.
    """
    return scans_of(backend, case)


@check(
    "L0", lambda scope: scan_cases(LONG), weight=0.05, clauses=("RGLRU-9", "RGLRU-7"), oracle=False
)
def long_scans(backend: Backend, case: OperationCase) -> Sequence[Comparison]:
    """After 20,000 steps of any decay the state is still that of the recurrence."""
    return scans_of(backend, case)
