"""The suite on other implementations: what they fail is what is written down.

Every known failure is looked for until it is found, without making it small. What is not written
down has to hold in a few examples. Reproducers run as whoever maintains the library would run them.
"""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from griffin_conformance.backends import find_backend
from griffin_conformance.checks import find_checks
from griffin_conformance.clauses import read_clauses
from griffin_conformance.runner import run_check
from griffin_conformance.xfails import known_failures

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

ADAPTERS = ("transformers", "transformers-w1")
FOLDER = Path(str(files("griffin_conformance"))) / "reproducers" / "transformers"
REPRODUCERS = sorted(FOLDER.glob("*.py"))
SLOW = frozenset({"long-scans", "compiled-as-written", "states-evolve"})
"""Checks of which one example has to do."""


def cases(known: bool):
    """Adapters with the checks that each is, or is not, known to fail."""
    return [
        pytest.param(adapter, check, id=f"{adapter}-{check.name}")
        for adapter in ADAPTERS
        for check in find_checks()
        if (check.name in known_failures(adapter)) == known
    ]


@pytest.mark.parametrize(("adapter", "check"), cases(known=True))
def test_what_is_written_down_fails(adapter, check):
    verdict = run_check(check, find_backend(adapter), shrink=False)
    assert verdict.status == "failed" and not verdict.inconclusive, verdict


@pytest.mark.parametrize(("adapter", "check"), cases(known=False))
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


@pytest.mark.parametrize("path", REPRODUCERS, ids=lambda path: path.stem)
def test_a_reproducer_shows_its_divergence(path):
    """It ends with 1, having run: an error that is not caught would end with 1 too."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, f"{path.name} finds the library right:\n{done.stdout}"
    assert "Traceback" not in done.stderr
    assert done.stdout or done.stderr


@pytest.mark.parametrize("path", REPRODUCERS, ids=lambda path: path.stem)
def test_a_reproducer_is_short_and_stands_alone(path):
    text = path.read_text(encoding="utf-8")
    first, *_ = lines = text.splitlines()
    assert len(lines) <= 20
    assert "griffin" not in text.replace("RecurrentGemma", "").lower()
    clauses = first.removeprefix("# ").partition(":")[0].split(", ")
    assert set(clauses) <= set(read_clauses()), "the first line names the clauses it is about"
    about = [line for line in lines if line.startswith("#")]
    assert ".py:" in " ".join(about), "and where the library has it"


def test_the_named_divergences_have_a_reproducer():
    named = ("window", "chunked", "sessions", "one_token", "padding", "lru_width", "cap")
    for part in named:
        assert any(part in path.stem for path in REPRODUCERS), part
