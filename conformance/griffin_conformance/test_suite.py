"""What ``pytest --pyargs griffin_conformance`` collects: a test for each check."""

import pytest


def test_conforms(griffin_verdict):
    """The backend passes the check, or lacks what it needs; a SHOULD may fail with a warning."""
    verdict = griffin_verdict
    if verdict.status == "skipped":
        pytest.skip(verdict.reason)
    if verdict.status == "failed" and not verdict.check.must:
        pytest.skip(f"SHOULD, and is not: {verdict.reason.splitlines()[0]}")
    assert verdict.status == "passed", verdict.explain()
