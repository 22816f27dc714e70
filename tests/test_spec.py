"""The specification and the checks: no clause without a test, no test without a clause."""

import re

import pytest

from griffin_conformance import clauses
from griffin_conformance.checks import find_checks
from griffin_conformance.clauses import read_clauses

CLAUSES = read_clauses()
CHECKS = find_checks()
TRAPS = [f"T{n:02}" for n in range(1, 33)]
FAMILIES = """
    EMBED NORM LIN MLP BLOCK CONV GATE RGLRU ROPE ATTN HEAD DOC PAD BATCH CALL STATE GEN CKPT TOK
    CHAT QUANT
""".split()


def appendix() -> dict[str, set[str]]:
    """Clauses of each known fault, from the table at the end."""
    text = clauses.specification().partition("## Known faults")[2]
    rows = re.findall(r"^\| (T\d\d) \| .+ \| (.+) \|$", text, re.MULTILINE)
    assert len(dict(rows)) == len(rows), "a fault stands in the table twice"
    return {trap: set(ids.split(", ")) for trap, ids in rows}


def test_every_heading_is_a_clause():
    """A heading with a slip in it would be no clause, and nobody would miss it."""
    headings = re.findall(r"^### (.+)$", clauses.specification(), re.MULTILINE)
    told = [f"{c.id} · {'MUST' if c.must else 'SHOULD'} · {c.title}" for c in CLAUSES.values()]
    assert headings == told
    assert len(CLAUSES) >= 60


def test_clauses_are_numbered_without_gaps_family_by_family():
    found = [(c.family, int(c.id.rpartition("-")[2])) for c in CLAUSES.values()]
    counts = {family: sum(f == family for f, _ in found) for family in FAMILIES}
    assert found == [(f, n) for f in FAMILIES for n in range(1, counts[f] + 1)]
    assert all(counts.values())


def test_every_family_has_a_section_of_its_own_with_an_introduction():
    text = clauses.specification()
    sections = re.findall(r"^## ([A-Z]+): .+\n\n(?!#)", text, re.MULTILINE)
    assert sections == FAMILIES
    for clause in CLAUSES.values():
        before = text[: text.index(f"### {clause.id} ")]
        assert re.findall(r"^## ([A-Z]+): ", before, re.MULTILINE)[-1] == clause.family


@pytest.mark.parametrize("clause", CLAUSES.values(), ids=lambda c: c.id)
def test_clauses_say_what_and_why(clause):
    """Formula, and a reason or a source; nothing that points at a machine or at other clauses
    that do not exist.
    """
    body = clause.text
    assert body.count("```") == 2, "one formula"
    assert re.search(r"^(Why|Source): ", body, re.MULTILINE)
    assert len([line for line in body.splitlines() if line.strip()]) >= 5
    assert not re.search(r"/(work|tmp|home|root)\b|facts/", body)
    mentioned = re.findall(rf"\b(?:{'|'.join(FAMILIES)})-\d+\b", body)
    assert set(mentioned) <= set(CLAUSES)
    traps = re.findall(r"\bT\d\d\b", body.partition("\n")[0])
    assert list(clause.traps) == sorted(set(traps)), "traps stand in the first line, in order"
    assert set(clause.traps) <= set(TRAPS)


def test_the_text_has_no_long_lines():
    for line in clauses.specification().splitlines():
        assert len(line) <= 112 or line.startswith(("|", "### ")), line


def test_every_known_fault_is_answered():
    """The table at the end is the clauses' own traps, turned around."""
    turned = {t: {c.id for c in CLAUSES.values() if t in c.traps} for t in TRAPS}
    assert appendix() == turned
    assert all(turned.values())


# -- clauses and checks


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.name)
def test_a_check_cites_clauses_of_its_own_requirement(check):
    assert check.clauses, "it cites no clause"
    assert len(set(check.clauses)) == len(check.clauses)
    unknown = set(check.clauses) - set(CLAUSES)
    assert not unknown
    assert {CLAUSES[i].must for i in check.clauses} == {check.must}


@pytest.mark.parametrize("clause", CLAUSES.values(), ids=lambda c: c.id)
def test_a_clause_is_tested(clause):
    assert [c.name for c in CHECKS if clause.id in c.clauses], f"no check cites: {clause.title}"
