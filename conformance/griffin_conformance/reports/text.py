"""A certificate as text for a terminal, and as a JSON file."""

import json
import os

from griffin_conformance.certificate import Certificate
from griffin_conformance.checks import LEVELS, Verdict
from griffin_conformance.reports.values import write

__all__ = ["as_line", "as_text", "write_json"]

STALE = {"passed": "passes", "skipped": "is skipped", "no such check": "is no check"}
MARKS = {"passed": "ok", "failed": "FAILED", "skipped": "skipped", "xfailed": "xfailed"}


def as_line(verdict: Verdict) -> str:
    """One check in one line."""
    mark = MARKS[verdict.status]
    if verdict.status == "failed" and not verdict.check.must:
        mark = "should"
    ratio = "" if verdict.status == "skipped" else f"{verdict.ratio:9.3g}"
    count = f"{verdict.examples:4d}" if verdict.status != "skipped" else ""
    reason = verdict.reason.splitlines()[0] if verdict.status == "skipped" else ""
    check = verdict.check
    return f"{check.level}  {check.name:40} {mark:8}{ratio:9} {count:4}  {reason}".rstrip()


def as_text(certificate: Certificate) -> str:
    """Failures at length, then a line for each level, then the verdict."""
    lines = []
    for verdict in certificate.verdicts:
        if verdict.status == "failed":
            lines += ["", "-" * 78, verdict.explain()]
    lines.append("")
    for level, what in LEVELS.items():
        counts = certificate.counts(level)
        if counts:
            told = ", ".join(f"{counts[s]} {s}" for s in MARKS if counts[s])
            lines.append(f"{level} {what}: {told}")
    whole = certificate.to_dict()
    if whole.get("violated"):
        lines.append(f"violated, most suspicious first: {', '.join(whole['violated'])}")
    if whole.get("cause"):
        lines.append(f"likely cause: it {whole['cause']}")
    for name, status in certificate.stale.items():
        lines.append(f"known to fail, but: {name} {STALE.get(status, status)}")
    backend = certificate.backend
    versions = ", ".join(f"{name} {v}" for name, v in backend.versions().items())
    lines.append(
        f"{backend.name} in {backend.dtype} {certificate.outcome}; worst observed / allowed "
        f"{certificate.worst:.3g}; {certificate.seconds:.0f} s ({versions})"
    )
    return "\n".join(lines)


def write_json(certificate: Certificate, path: str | os.PathLike) -> None:
    """Write a certificate to a file: first under a temporary name, then renamed."""
    write(path, json.dumps(certificate.to_dict(), indent=1) + "\n")
