"""What the READMEs say of the suite is what the suite is, and what its certificates say."""

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from griffin_conformance.checks import find_checks
from griffin_conformance.clauses import read_clauses
from griffin_conformance.mutants.hunting import EVERY
from griffin_conformance.reports import load_certificate
from griffin_conformance.vectors.files import DATA
from griffin_conformance.xfails import known_failures

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "conformance" / "README.md").read_text(encoding="utf-8")
MUTANTS = (ROOT / "conformance" / "MUTANTS.md").read_text(encoding="utf-8")
CERTIFICATES = {
    (told["backend"], told["dtype"]): told
    for told in (
        load_certificate(path)
        for path in sorted((ROOT / "conformance" / "certificates").glob("*.json"))
        if ".badge." not in path.name
    )
}


@pytest.mark.parametrize(
    ("text", "pattern", "number"),
    [
        (README, r"in (\d+) clauses", len(read_clauses())),
        (GUIDE, r"specification: (\d+) numbered clauses", len(read_clauses())),
        (README, r"and (\d+) checks of", len(find_checks())),
        (README, r"kills (\d+) wrong", len(EVERY)),
        (GUIDE, r"has (\d+) wrong variants", len(EVERY)),
        (README, r"with (\d+) reproducers",
         len(list(Path(str(files("griffin_conformance"))).glob("reproducers/*/*.py")))),
        (GUIDE, r"holds (\d+) cases as safetensors",
         len(json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))["vectors"])),
        *(
            (README, rf"(\d+)\]\(\S+/{name}\.txt\)", len(known_failures(name)))
            for name in ("transformers", "transformers-w1", "mlx-lm", "deepmind-jax",
                         "deepmind-torch")
        ),
    ],
)  # fmt: skip
def test_numbers_are_counted(text, pattern, number):
    assert int(re.search(pattern, text)[1]) == number


def test_the_table_of_mutants_has_every_one():
    """In their order, with clause, trap and checks; sizes are measured and may differ."""
    rows = [line.split(" | ") for line in MUTANTS.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(EVERY)
    for mutant, (fault, clause, trap, checks, *_) in zip(EVERY, rows, strict=True):
        assert fault.removeprefix("| ") == mutant.fault
        assert (clause, trap) == (mutant.clause, mutant.trap)
        assert tuple(re.findall(r"`([\w-]+)`", checks)) == mutant.caught_by


OURS = ("numpy", "numba", "jax", "jax-associative", "jax-pallas")


def test_our_engines_are_certified_without_a_known_failure():
    for (name, dtype), told in CERTIFICATES.items():
        if name in OURS:
            assert told["conforms"], (name, dtype)
            assert told["profile"] == "thorough"
            assert float(told["worst_observed_over_allowed"]) <= 0.5
            assert not known_failures(name)
    assert {name for name, _ in CERTIFICATES} >= set(OURS)


def test_the_table_of_engines_is_that_of_the_certificates():
    ours = re.findall(r"^\| (n\w+|jax\S*(?:, jax\S*)*) \| ([\w, ]+) \| (.*)$", README, re.M)
    assert len(ours) == 5
    for row in ours:
        names, dtypes, cells = row[0].split(", "), row[1].split(", "), row[2].split(" | ")
        told = [CERTIFICATES[name, dtype] for name in names for dtype in dtypes]
        worst = [f"{float(one['worst_observed_over_allowed']):.2f}" for one in told]
        assert cells[1] == ", ".join(worst)
        for one in told:
            passed = sum(level["passed"] for level in one["levels"].values())
            asked = passed + sum(level["failed"] for level in one["levels"].values())
            assert f"{passed} of {asked}" in cells[0], one["backend"]
