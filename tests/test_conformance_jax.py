"""The suite on the JAX engine: a few examples of everything; ``griffin-np conformance`` runs all."""

import pytest

pytest.importorskip("jax")

from griffin_conformance.backends import find_backend
from griffin_conformance.checks import EXAMPLES, find_checks
from griffin_conformance.runner import run_check

FEW = 2
"""XLA compiles every shape, so examples cost more here; full runs are `griffin-np conformance run`."""


@pytest.mark.parametrize("check", find_checks(), ids=lambda c: c.name)
def test_the_jax_engine_conforms(check):
    """Strata are counted in full runs only, so this is a survey."""
    assert FEW < EXAMPLES
    verdict = run_check(check, find_backend("jax"), FEW, survey=True)
    assert verdict.status == "passed", verdict.explain()
    assert verdict.ratio <= 0.5


@pytest.mark.parametrize("scan", ["associative", "pallas"])
@pytest.mark.parametrize("name", ["scans", "long-scans", "recurrences"])
def test_every_scan_conforms(name, scan):
    (check,) = find_checks(names=[name])
    verdict = run_check(
        check, find_backend(f"jax-{scan}"), 20 if scan == "associative" else 5, survey=True
    )
    assert verdict.status == "passed", verdict.explain()
    # A parallel prefix multiplies the decays of many steps, so it rounds more often than a loop.
    assert verdict.ratio <= (1 if scan == "associative" else 0.5)
