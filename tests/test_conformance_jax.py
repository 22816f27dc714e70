"""The suite on the JAX engine: a few examples of everything; ``griffin-np conformance`` runs all."""

import pytest

pytest.importorskip("jax")

from griffin_conformance.backends import find_backend
from griffin_conformance.checks import EXAMPLES, find_checks
from griffin_conformance.operations import OperationCase
from griffin_conformance.runner import run_check

FEW = 2
"""XLA compiles every shape, so examples cost more here; full runs are `griffin-np conformance run`."""


CHECKS = [
    check
    for check in find_checks(("L0", "L1", "L2", "L3", "L4"))
    # It reads no nf4; compiled or not takes half a minute, and is one of the full runs.
    if check.name not in ("nf4-tensors", "compiled-as-written")
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.name)
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
    assert verdict.ratio <= 0.5


def test_weights_of_attention_may_be_bfloat16_where_they_meet_values():
    """Values cancel, and what the weights' rounding did is all that is left."""
    (check,) = find_checks(names=["attentions"])
    case = OperationCase(20, 2, heads=2, style="ordinary", extra=2, seed=0)
    (comparison,) = check.holds(find_backend("jax", "bfloat16"), case)
    assert comparison.ratio <= 0.5
