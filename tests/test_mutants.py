"""Wrong on purpose: the suite finds every fault, names its clause, and keeps far from right ones."""

import os

import pytest

from griffin_conformance.checks import find_checks
from griffin_conformance.clauses import read_clauses
from griffin_conformance.mutants.hunting import EVERY, hunt, wrong_backend
from griffin_conformance.mutants.of_quantised import QuantisedMutant
from griffin_conformance.runner import run_check

EXPLORING = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
MARGIN = 10.0
"""Observed over allowed that a fault of more than rounding must come to at least, by the project's
definition."""


def told(mutant) -> str:
    kind = "quantised " if isinstance(mutant, QuantisedMutant) else ""
    return f"{kind}{mutant.name}"


each_mutant = pytest.mark.parametrize("mutant", EVERY, ids=told)


@pytest.mark.parametrize("mutant", EVERY if EXPLORING else EVERY[::2], ids=told)
def test_mutants_die_where_the_fault_is(mutant):
    """By the checks that point at the place, which name the clause."""
    autopsy = hunt(mutant, names=mutant.caught_by)
    failed = {v.check.name for v in autopsy.certificate.verdicts if v.failed}
    assert failed, f"no check catches: {mutant.fault}"
    assert autopsy.named, f"{mutant.clause} is not among {autopsy.certificate.violated[:5]}"


@pytest.mark.skipif(
    not EXPLORING, reason="the whole suite on each mutant: HYPOTHESIS_PROFILE=explore"
)
@each_mutant
def test_the_whole_suite_names_the_fault(mutant):
    autopsy = hunt(mutant)
    assert autopsy.killed
    assert autopsy.named, f"{mutant.clause} is not among {autopsy.certificate.violated[:5]}"


@pytest.mark.skipif(not EXPLORING, reason="all examples of each mutant: HYPOTHESIS_PROFILE=explore")
@each_mutant
def test_faults_lie_far_outside(mutant):
    """Every check that is to catch a mutant does, and one sees ten times what is allowed."""
    verdicts = [
        run_check(check, wrong_backend(mutant), survey=True)
        for check in find_checks(names=mutant.caught_by)
    ]
    for verdict in verdicts:
        assert verdict.status == "failed", f"{verdict.check.name} does not catch: {mutant.fault}"
    if "float32" not in mutant.rounding:
        assert max(verdict.ratio for verdict in verdicts) >= MARGIN


def test_every_check_is_failed_by_some_mutant():
    assert {name for m in EVERY for name in m.caught_by} == {c.name for c in find_checks()}


def test_mutants_stand_for_every_known_fault_and_for_clauses():
    known = read_clauses()
    assert all(mutant.clause in known for mutant in EVERY)
    traps = {trap for clause in known.values() for trap in clause.traps}
    assert {trap for mutant in EVERY for trap in mutant.trap.split()} == traps
    assert len(EVERY) >= 40
