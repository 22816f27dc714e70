"""The suite on other implementations: what they fail is what is written down.

Every known failure is looked for until it is found, without making it small. What is not written
down has to hold in a few examples.
"""

import pytest
from support import known_cases

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from griffin_conformance.backends import find_backend
from griffin_conformance.checks import find_checks
from griffin_conformance.runner import run_check
from griffin_conformance.xfails import known_failures

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

ADAPTERS = ("transformers", "transformers-w1")
SLOW = frozenset({"long-scans", "compiled-as-written", "states-evolve"})
"""Checks of which one example has to do."""


@pytest.mark.parametrize(("adapter", "check"), known_cases(ADAPTERS, known=True))
def test_what_is_written_down_fails(adapter, check):
    verdict = run_check(check, find_backend(adapter), shrink=False)
    assert verdict.status == "failed" and not verdict.inconclusive, verdict


@pytest.mark.parametrize(("adapter", "check"), known_cases(ADAPTERS, known=False))
def test_nothing_else_fails(adapter, check):
    few = 1 if check.name in SLOW else 4
    verdict = run_check(check, find_backend(adapter), few, shrink=False)
    assert verdict.status != "failed" or verdict.inconclusive, verdict.explain()
    assert verdict.status != "skipped" or verdict.reason


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_is_written_down_exists_and_says_why(adapter):
    known = known_failures(adapter)
    assert known and all(known.values())
    assert set(known) <= {check.name for check in find_checks()}
