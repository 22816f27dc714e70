"""Two certificates side by side: what changed, and whether anything got worse."""

import math
from dataclasses import dataclass, field

from griffin_conformance.reports.values import dict_of, is_should, list_of, number, shown

__all__ = ["Change", "Difference", "compare"]

RANK = {"passed": 0, "skipped": 1, "xfailed": 2, "failed": 3}
FLOOR = 0.05
"""Ratios below this are rounding that happens to fall so or so, and count as this."""

SETTINGS = {
    "schema": "schema",
    "spec": "version of the specification",
    "backend": "backend",
    "dtype": "dtype",
    "profile": "profile",
    "seed": "seed",
    "max_examples": "examples of each check",
    "levels_asked": "levels asked for",
    "checks_asked": "checks asked for",
}


@dataclass(frozen=True)
class Change:
    """What became of one check or clause.

    Attributes
    ----------
    name : str
    kind : {"worse", "better", "changed", "higher", "lower", "new", "removed"}
        ``higher`` and ``lower`` are ratios of the same status.
    before, after : str
        Statuses; empty where there is none.
    ratio_before, ratio_after : float
        Observed over allowed.
    worse : bool
        Whether the backend got worse by it.
    """

    name: str
    kind: str
    before: str
    after: str
    ratio_before: float
    ratio_after: float
    worse: bool

    def to_dict(self) -> dict:
        """As JSON values."""
        ratios = {
            "observed_over_allowed_before": _json(self.ratio_before),
            "observed_over_allowed_after": _json(self.ratio_after),
        }
        told = {"name": self.name, "kind": self.kind, "before": self.before, "after": self.after}
        return {**told, **ratios, "worse": self.worse}


@dataclass(frozen=True)
class Difference:
    """Between two certificates, the older and the newer.

    Attributes
    ----------
    before, after : str
        What the certificates are about.
    notes : list of str
        In what else they differ, so that the comparison may not be a fair one.
    verdict : str
        ``conforms`` or not, before and after.
    checks, clauses : list of Change
    lost : bool
        The older conforms and the newer does not.
    """

    before: str
    after: str
    notes: list[str]
    verdict: str
    checks: list[Change] = field(default_factory=list)
    clauses: list[Change] = field(default_factory=list)
    lost: bool = False

    @property
    def worse(self) -> bool:
        """Whether anything got worse."""
        return self.lost or any(change.worse for change in self.checks + self.clauses)

    def to_dict(self) -> dict:
        """As JSON values."""
        return {
            "before": self.before,
            "after": self.after,
            "worse": self.worse,
            "verdict": self.verdict,
            "notes": self.notes,
            "clauses": [change.to_dict() for change in self.clauses],
            "checks": [change.to_dict() for change in self.checks],
        }

    def as_text(self) -> str:
        """As a table for a terminal."""
        lines = [f"before  {self.before}", f"after   {self.after}", self.verdict]
        lines += [f"note: {note}" for note in self.notes]
        for what, changes in (("clauses", self.clauses), ("checks", self.checks)):
            if changes:
                lines += ["", *_table(what, changes)]
        count = sum(change.worse for change in self.checks)
        if self.worse:
            told = f"{count} check{'s' * (count != 1)} got worse" if count else "it got worse"
        elif self.checks or self.clauses:
            told = "nothing got worse"
        else:
            told = "no check and no clause changed"
        return "\n".join([*lines, "", told])


def compare(a: dict, b: dict, factor: float = 2.0) -> Difference:
    """What changed from certificate ``a`` to certificate ``b``.

    A check gets worse where its status does (passed, skipped, xfailed, failed: in this order),
    where it passes with a ratio that grew by more than the factor, and where it is new and fails.

    Parameters
    ----------
    a, b : dict
        Certificates, of one backend or of two.
    factor : float
        Ratios of observed to allowed that moved by more than this are told.

    Raises
    ------
    ValueError
        If the factor is not above 1.
    """
    if not factor > 1:
        raise ValueError(f"factor must be above 1, got {factor}")
    checks = _changes(_checks(a), _checks(b), factor)
    clauses = _changes(_clauses(a), _clauses(b), math.inf)
    lost = a.get("conforms") is True and b.get("conforms") is not True
    told = [str(c.get("outcome") or f"conforms: {c.get('conforms')}") for c in (a, b)]
    verdict = f"both: {told[0]}" if told[0] == told[1] else f"{told[0]} -> {told[1]}"
    return Difference(_about(a), _about(b), _notes(a, b), verdict, checks, clauses, lost)


def _about(certificate: dict) -> str:
    versions = dict_of(certificate.get("versions")).items()
    told = ", ".join(f"{name} {version}" for name, version in versions)
    about = f"{certificate.get('backend', '?')} {certificate.get('dtype', '?')}"
    return f"{about} ({told})" if told else about


def _notes(a: dict, b: dict) -> list[str]:
    notes = [
        f"{what} differs: {_told(a.get(key))} and {_told(b.get(key))}"
        for key, what in SETTINGS.items()
        if a.get(key) != b.get(key)
    ]
    old, new = dict_of(a.get("versions")), dict_of(b.get("versions"))
    for name in [*old, *(n for n in new if n not in old)]:
        if old.get(name) != new.get(name):
            told = [_told(versions.get(name)) for versions in (old, new)]
            notes.append(f"version of {name} differs: {told[0]} and {told[1]}")
    return notes


def _told(value) -> str:
    if value is None:
        return "none"
    return (", ".join(map(str, value)) or "all") if isinstance(value, list) else str(value)


def _checks(certificate: dict) -> dict[str, dict]:
    checks = [dict_of(check) for check in list_of(certificate.get("checks"))]
    return {str(check.get("check", "")): check for check in checks}


def _clauses(certificate: dict) -> dict[str, dict]:
    return {str(c): dict_of(v) for c, v in dict_of(certificate.get("clauses")).items()}


def _changes(old: dict[str, dict], new: dict[str, dict], factor: float) -> list[Change]:
    names = [*old, *(name for name in new if name not in old)]
    found = (_change(name, old.get(name), new.get(name), factor) for name in names)
    changes = [change for change in found if change]
    return sorted(changes, key=lambda c: (not c.worse, c.kind))


def _change(name: str, old: dict | None, new: dict | None, factor: float) -> Change | None:
    """What became of one entry, or nothing."""
    before, after = (str(e.get("status", "")) if e else "" for e in (old, new))
    was, now = _ratio(old), _ratio(new)
    if old is None or new is None:
        kind = "new" if old is None else "removed"
        worse = new is not None and after == "failed" and not is_should(new)
        return Change(name, kind, before, after, was, now, worse)
    if before != after:
        rise = RANK.get(after, 3) - RANK.get(before, 3)
        kind = "worse" if rise > 0 else "better" if after == "passed" else "changed"
        return Change(name, kind, before, after, was, now, rise > 0)
    low, high = (max(FLOOR, ratio) if ratio == ratio else math.inf for ratio in (was, now))
    if high > factor * low:
        return Change(name, "higher", before, after, was, now, after == "passed")
    if low > factor * high:
        return Change(name, "lower", before, after, was, now, False)
    return None


def _json(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def _ratio(entry: dict | None) -> float:
    """Observed over allowed; no number where nothing was observed."""
    if not entry or entry.get("status") == "skipped":
        return math.nan
    return number(entry.get("observed_over_allowed", 0))


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else shown(value)


def _table(what: str, changes: list[Change]) -> list[str]:
    head = (what, "", "before", "after", "observed/allowed")
    rows = [
        (
            c.name,
            c.kind,
            c.before or "-",
            c.after or "-",
            f"{_shown(c.ratio_before)} -> {_shown(c.ratio_after)}",
        )
        for c in changes
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
