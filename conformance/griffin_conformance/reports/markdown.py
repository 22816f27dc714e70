"""Certificates as a short text in Markdown, for the summary of a CI run."""

import math
import re
from collections.abc import Sequence
from html import escape

from griffin_conformance.checks import LEVELS
from griffin_conformance.reports.badges import failing_clauses
from griffin_conformance.reports.values import (
    MARKS,
    clean,
    dict_of,
    is_should,
    list_of,
    number,
    shown,
)

__all__ = ["as_markdown"]

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&@$])")
MOST = 10
"""Clauses and ratios of one backend that are told."""


def plain(text: object) -> str:
    """Words in one line that Markdown and HTML leave as they are."""
    return SPECIAL.sub(r"\\\1", " ".join(clean(text).split()))


def as_markdown(certificates: Sequence[dict]) -> str:
    """A table of levels by backends; for each backend, what it violates and its worst ratios."""
    levels = sorted({level for c in certificates for level in dict_of(c.get("levels"))})
    head = ["backend", "verdict", *levels, "worst observed / allowed"]
    lines = ["### Griffin conformance", ""]
    lines += [_row(head), _row(["---"] * len(head))]
    lines += [_row(_summary(certificate, levels)) for certificate in certificates]
    lines += ["", ", ".join(f"{level} {LEVELS.get(level, '')}".strip() for level in levels), ""]
    for certificate in certificates:
        lines += _violations(certificate) + _worst(certificate)
    return "\n".join(lines).rstrip()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _name(certificate: dict) -> str:
    return plain(f"{certificate.get('backend', '?')} {certificate.get('dtype', '')}".strip())


def _summary(certificate: dict, levels: list[str]) -> list[str]:
    counted = [dict_of(dict_of(certificate.get("levels")).get(level)) for level in levels]
    mark = MARKS["passed" if certificate.get("conforms") is True else "failed"]
    return [
        _name(certificate),
        f"{mark} {plain(certificate.get('outcome', ''))}",
        *(
            ", ".join(f"{n} {status}" for status, n in counts.items() if n) or MARKS["skipped"]
            for counts in counted
        ),
        shown(certificate.get("worst_observed_over_allowed")),
    ]


def _violations(certificate: dict) -> list[str]:
    failing = failing_clauses(certificate)
    if not failing:
        return []
    clauses = dict_of(certificate.get("clauses"))
    lines = [f"**{_name(certificate)} violates {len(failing)}**, the most suspicious first:", ""]
    for name in failing[:MOST]:
        told = dict_of(clauses.get(name))
        notes = ["known"] if told.get("status") == "xfailed" else []
        ratio = number(told.get("observed_over_allowed"))
        if math.isfinite(ratio):  # else it is no matter of size
            notes.append(f"{shown(ratio)} x allowed")
        title = f"**{plain(name)}** {plain(told.get('title', ''))}"
        lines.append(f"- {title} ({', '.join(notes)})" if notes else f"- {title}")
    if len(failing) > MOST:
        lines.append(f"- and {len(failing) - MOST} more: {plain(', '.join(failing[MOST:]))}")
    if certificate.get("cause"):
        lines += ["", f"Likely cause: it {plain(certificate['cause'])}"]
    return [*lines, ""]


def _ratio(check: dict) -> float:
    ratio = number(check.get("observed_over_allowed", 0))
    # What is no number is as bad as can be.
    return float("inf") if ratio != ratio else ratio


def _worst(certificate: dict) -> list[str]:
    """Ratios of the checks nearest to, or farthest beyond, what is allowed."""
    checks = [dict_of(c) for c in list_of(certificate.get("checks"))]
    judged = [c for c in checks if c.get("status") != "skipped"]
    judged.sort(key=_ratio, reverse=True)
    if not judged:
        return []
    name = escape(clean(certificate.get("backend", "?")))  # Markdown leaves HTML as it is
    lines = [f"<details><summary>{name}: worst ratios</summary>", ""]
    lines += [_row(["check", "level", "status", "observed / allowed"]), _row(["---"] * 4)]
    for check in judged[: MOST // 2]:
        failed = check.get("status") == "failed"
        status = "should" if failed and is_should(check) else str(check.get("status", ""))
        lines.append(
            _row(
                [
                    plain(check.get("check", "")),
                    plain(check.get("level", "")),
                    f"{MARKS.get(status, '')} {plain(status)}".strip(),
                    shown(check.get("observed_over_allowed", 0)),
                ]
            )
        )
    return [*lines, "", "</details>", ""]
