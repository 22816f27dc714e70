"""The suite on other implementations: what they fail is what is written down."""

from importlib.resources import files

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from griffin_conformance.backends import find_backend
from griffin_conformance.certificate import certify
from griffin_conformance.checks import find_checks

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


def written_down(backend: str) -> dict[str, str]:
    """Names of checks that a backend is known to fail, and why."""
    text = files("griffin_conformance").joinpath("xfails", f"{backend}.txt").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {name.strip(): why.strip() for name, _, why in (line.partition("#") for line in lines)}


@pytest.fixture(scope="module")
def transformers():
    return certify(find_backend("transformers"), shrink=False)


def test_transformers_fails_what_is_written_down_and_nothing_else(transformers):
    failed = {v.check.name: v.reason for v in transformers.verdicts if v.status == "failed"}
    assert set(failed) == set(written_down("transformers")), failed
    assert not any(v.inconclusive for v in transformers.verdicts)


def test_transformers_passes_blocks_and_whole_texts(transformers):
    status = {v.check.name: v.status for v in transformers.verdicts}
    for name in ("recurrent-blocks", "attention-blocks", "whole-texts"):
        assert status[name] == "passed"


def test_what_is_skipped_has_a_reason(transformers):
    skipped = [v for v in transformers.verdicts if v.status == "skipped"]
    assert {"state-values", "late-positions"} <= {v.check.name for v in skipped}
    assert all(v.reason for v in skipped)


def test_what_is_written_down_exists_and_says_why():
    names = {check.name for check in find_checks()}
    for name, why in written_down("transformers").items():
        assert name in names
        assert why
