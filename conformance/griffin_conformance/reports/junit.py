"""A certificate as JUnit XML, which CI servers show as tests."""

import os
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from griffin_conformance.checks import LEVELS
from griffin_conformance.reports.values import clean, dict_of, is_should, list_of, number, write

__all__ = ["as_junit", "write_junit"]


def as_junit(certificate: dict) -> str:
    """A test suite for each level, a test for each check.

    Only what a backend must do and does not is a failure; what it should do, a known failure (an
    xfail) and what it lacks are skipped, with the reason. The elements, their order and their
    attributes satisfy the schemas of Ant's JUnit task and of Jenkins' xUnit plugin, both.
    """
    root = Element("testsuites")
    checks = [dict_of(check) for check in list_of(certificate.get("checks"))]
    made = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    for level in sorted({str(check.get("level", "")) for check in checks}):
        suite = SubElement(root, "testsuite")
        of_level = [check for check in checks if check.get("level", "") == level]
        properties = SubElement(suite, "properties")
        for name, value in _properties(certificate):
            SubElement(properties, "property", name=clean(name) or "-", value=clean(value))
        kinds = [_add_test(suite, check, certificate) for check in of_level]
        SubElement(suite, "system-out")
        SubElement(suite, "system-err")
        seconds = sum(_seconds(check) for check in of_level)
        suite.attrib.update(
            name=clean(f"{level} {LEVELS.get(level, '')}".strip() or "checks"),
            package="griffin_conformance",
            id=str(len(root) - 1),
            timestamp=made,
            hostname="localhost",  # the schema wants one; where it ran is nobody's business
            tests=str(len(kinds)),
            failures=str(kinds.count("failure")),
            errors="0",
            skipped=str(kinds.count("skipped")),
            time=f"{seconds:.3f}",
        )
    indent(root)
    text = tostring(root, encoding="unicode")
    return f"<?xml version='1.0' encoding='UTF-8'?>\n{text}\n"


def write_junit(certificate: dict, path: str | os.PathLike) -> None:
    """Write a certificate as JUnit XML, under a temporary name first."""
    write(path, as_junit(certificate))


def _seconds(check: dict) -> float:
    seconds = number(check.get("seconds", 0))
    return seconds if 0 <= seconds < float("inf") else 0.0


def _properties(certificate: dict) -> list[tuple[str, object]]:
    names = ("backend", "dtype", "spec", "profile", "seed", "max_examples", "outcome")
    told: list[tuple[str, object]] = [(n, certificate[n]) for n in names if n in certificate]
    versions = dict_of(certificate.get("versions"))
    return told + [(f"version of {name}", value) for name, value in versions.items()]


def _add_test(suite: Element, check: dict, certificate: dict) -> str:
    """Add one check; what became of it: passed, failure or skipped."""
    backend, level = certificate.get("backend", "backend"), check.get("level", "")
    test = SubElement(
        suite,
        "testcase",
        name=clean(check.get("check", "")),
        classname=clean(f"griffin_conformance.{level}.{backend}"),
        time=f"{_seconds(check):.3f}",
    )
    status, reason = check.get("status"), str(check.get("reason", ""))
    first = reason.strip().splitlines()[0] if reason.strip() else ""
    if status == "passed":
        return "passed"
    if status == "failed" and not is_should(check):
        clauses = ", ".join(map(str, list_of(check.get("violated"))))
        failure = SubElement(
            test,
            "failure",
            message=clean(f"{clauses}: {first}" if clauses else first or "failed"),
            type="inconclusive" if check.get("inconclusive") else "violation",
        )
        failure.text = clean(_at_length(check, reason))
        return "failure"
    if status == "failed":
        first = f"SHOULD, and does not: {first}"
    elif status == "xfailed":
        first = f"known failure: {check.get('xfail') or first}"
    SubElement(test, "skipped", message=clean(first or "skipped"))
    return "skipped"


def _at_length(check: dict, reason: str) -> str:
    """Everything about a failure."""
    parts = [str(check.get("says", "")), reason]
    if check.get("cause"):
        parts.append(f"likely cause: it {check['cause']}")
    if check.get("reproducer"):
        parts.append(f"smallest failing case found, to paste:\n\n{check['reproducer']}")
    return "\n\n".join(part for part in parts if part)
