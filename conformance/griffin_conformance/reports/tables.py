"""The tables of the page: clauses and checks by backends, strata, ULPs, and how it was run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from griffin_conformance.checks import LEVELS
from griffin_conformance.reports.details import check_id, kind_of, mark
from griffin_conformance.reports.values import MARKS, dict_of, list_of, number, say, shown

__all__ = ["Column", "clause_matrix", "heat_map", "runs_table", "strata_table", "ulp_table"]

HEAT = (1e-3, 1e-2, 1e-1, 0.5, 1, 10, 1e2, 1e4, 1e6)
"""Upper ends of the classes of observed over allowed; the last class goes on to infinity."""

BARS = 13
"""Of a histogram of ULPs: up to a quarter, a half, 1, 2 and so on; the last has what is beyond."""

RUN_KEYS = {
    "outcome": "verdict",
    "spec": "specification",
    "profile": "profile",
    "seed": "seed",
    "max_examples": "examples of each check",
    "levels_asked": "levels asked for",
    "checks_asked": "checks asked for",
    "stale_xfails": "known failures that did not fail",
    "seconds": "seconds",
    "schema": "schema",
}


@dataclass(frozen=True)
class Column:
    """One certificate among others.

    Attributes
    ----------
    key : str
        Its name in links, as ``transformers`` in ``#ATTN-1/transformers``.
    certificate : dict
    """

    key: str
    certificate: dict

    @property
    def name(self) -> str:
        return say(self.certificate.get("backend", "?"))

    @property
    def dtype(self) -> str:
        return say(self.certificate.get("dtype", ""))

    @property
    def checks(self) -> dict[str, dict]:
        checks = [dict_of(check) for check in list_of(self.certificate.get("checks"))]
        return {str(check.get("check", "")): check for check in checks}

    @property
    def clauses(self) -> dict[str, dict]:
        clauses = dict_of(self.certificate.get("clauses"))
        return {str(name): dict_of(clause) for name, clause in clauses.items()}


def _union(parts: Sequence[dict[str, dict]]) -> dict[str, dict]:
    """All entries by name, in order; of each the first that there is."""
    found: dict[str, dict] = {}
    for part in parts:
        for name, entry in part.items():
            found.setdefault(name, entry)
    return found


def _head(columns: Sequence[Column], *first: str) -> str:
    names = "".join(
        f'<th scope="col" class="b" data-col="{i}"><span>{c.name} <small>{c.dtype}</small></span>'
        f"</th>"
        for i, c in enumerate(columns)
    )
    return f"<thead><tr>{''.join(f'<th>{w}</th>' for w in first)}{names}</tr></thead>"


def _level_title(level: str) -> str:
    return f"{say(level)} <span>{say(LEVELS.get(level, ''))}</span>".strip()


def _grouped(
    rows: dict[str, dict], level_of: Callable[[str, dict], str], width: int, row: Callable
) -> str:
    """Rows under a heading for each level."""
    parts = []
    for level in sorted({level_of(name, entry) for name, entry in rows.items()}):
        title = _level_title(level) if level else "no check ran"
        parts.append(f'<tbody class="level"><tr><th colspan="{width}">{title}</th></tr></tbody>')
        parts.append("<tbody>")
        parts += [row(n, e) for n, e in rows.items() if level_of(n, e) == level]
        parts.append("</tbody>")
    return "".join(parts)


def _cell(kind: str, target: str, i: int, text: str, ratio: object = None, style: str = "") -> str:
    """A cell that opens what is behind it."""
    size = "" if ratio is None else f' data-r="{shown(ratio)}"'
    return (
        f'<td data-col="{i}"><a class="cell {kind}{style}" href="#{say(target)}"{size}>{text}</a>'
        f"</td>"
    )


def _empty(i: int) -> str:
    return f'<td data-col="{i}"><span class="cell none" title="not asked">·</span></td>'


def clause_matrix(columns: Sequence[Column]) -> str:
    """Clauses by backends, by level and family."""
    clauses = _union([c.clauses for c in columns])
    checks = _union([c.checks for c in columns])
    tests = {
        name: list(
            dict.fromkeys(
                str(k) for c in columns for k in list_of(c.clauses.get(name, {}).get("checks"))
            )
        )
        for name in clauses
    }

    def level_of(name: str, clause: dict) -> str:
        levels = [str(checks[k].get("level", "")) for k in tests[name] if k in checks]
        return min(levels, default="")

    family = ""

    def row(name: str, clause: dict) -> str:
        nonlocal family
        fresh = " fresh" if name.partition("-")[0] != family else ""
        family = name.partition("-")[0]
        title = say(clause.get("title", ""))
        should = " <small>SHOULD</small>" if clause.get("requirement") == "SHOULD" else ""
        cells = "".join(_clause_cell(name, column, i) for i, column in enumerate(columns))
        return (
            f'<tr class="row{fresh}" data-name="{say(name)}" data-title="{title}" '
            f'data-requirement="{say(clause.get("requirement", ""))}" '
            f'data-checks="{say(" ".join(tests[name]))}">'
            f'<th scope="row">{say(name)}</th><td class="title">{title}{should}</td>{cells}</tr>'
        )

    if not clauses:
        return '<p class="none">These certificates name no clauses.</p>'
    few = " few" if len(columns) <= 4 else ""
    body = _grouped(clauses, level_of, len(columns) + 2, row)
    return f'<table class="matrix{few}">{_head(columns, "", "")}{body}</table>'


def _clause_cell(name: str, column: Column, i: int) -> str:
    clause = column.clauses.get(name)
    if clause is None:
        return _empty(i)
    kind = kind_of(clause)
    ratio = None if kind == "skipped" else clause.get("observed_over_allowed", 0)
    return _cell(kind, f"{name}/{column.key}", i, MARKS[kind], ratio)


def heat_class(ratio: float) -> int:
    """Which colour a ratio has."""
    if ratio != ratio:
        return len(HEAT)
    return next((i for i, end in enumerate(HEAT) if ratio <= end), len(HEAT))


def heat_map(columns: Sequence[Column]) -> str:
    """Checks by backends: the worst observed over allowed of each."""
    checks = _union([c.checks for c in columns])

    def row(name: str, check: dict) -> str:
        clauses = say(" ".join(map(str, list_of(check.get("clauses")))))
        cells = "".join(_heat_cell(name, column, i) for i, column in enumerate(columns))
        return (
            f'<tr class="row" data-name="{say(name)}" data-clauses="{clauses}"><th scope="row" '
            f'title="{say(check.get("says", ""))}">{say(name)}</th>{cells}</tr>'
        )

    body = _grouped(checks, lambda _, c: str(c.get("level", "")), len(columns) + 1, row)
    few = " few" if len(columns) <= 4 else ""
    return f'<table class="heat{few}">{_head(columns, "")}{body}</table>{_legend()}'


def _legend() -> str:
    ends = "".join(
        f'<span class="q{i}">{"≤ " + shown(end) if i in (0, 2, 4, 6) else ""}</span>'
        for i, end in enumerate(HEAT)
    )
    return f'<p class="legend" aria-hidden="true">{ends}<span class="q{len(HEAT)}">∞</span></p>'


def _heat_cell(name: str, column: Column, i: int) -> str:
    check = column.checks.get(name)
    if check is None:
        return _empty(i)
    kind, target = kind_of(check), check_id(name, column.key)
    if kind == "skipped":
        return _cell(kind, target, i, MARKS[kind])
    ratio = check.get("observed_over_allowed", 0)
    # What a colour alone would not tell.
    sign = f"<sup>{MARKS[kind]}</sup>" if kind in ("should", "xfailed") else ""
    style = f" q{heat_class(number(ratio))}"
    return _cell(kind, target, i, shown(ratio, 2) + sign, ratio, style)


def _plain_table(columns: Sequence[Column], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f'<td data-col="{i}">{cell}</td>' for i, cell in enumerate(cells))
        + "</tr>"
        for name, cells in rows
    )
    return f'<table class="plain">{_head(columns, "")}<tbody>{body}</tbody></table>'


def strata_table(columns: Sequence[Column]) -> str:
    """How many examples of each kind were drawn."""
    drawn = [dict_of(c.certificate.get("strata")) for c in columns]
    names = sorted({str(name) for strata in drawn for name in strata})
    return _plain_table(
        columns, [(say(n), [say(s[n]) if n in s else "·" for s in drawn]) for n in names]
    )


def ulp_table(columns: Sequence[Column]) -> str:
    """Errors of single values in units in the last place; empty where none were measured."""
    told = [dict_of(c.certificate.get("ulp")) for c in columns]
    if not any(told):
        return ""
    rows = []
    for what in ("logits", "states"):
        for key, name in (("values", "values"), ("99.9", "99.9 %"), ("max", "largest")):
            values = [dict_of(ulp.get(what)) for ulp in told]
            show = say if key == "values" else shown
            cells = [show(v[key]) if key in v else "·" for v in values]
            rows.append((f"{what}, {name}", cells))
        if any(dict_of(ulp.get(what)).get("histogram") for ulp in told):
            rows.append((f"{what}, shares", [_histogram(dict_of(ulp.get(what))) for ulp in told]))
    return _plain_table(columns, rows)


def _histogram(ulps: dict) -> str:
    """Shares of values by their error, doubling from bar to bar; the last bar has all others."""
    shares = [0.0] * BARS
    for entry in list_of(ulps.get("histogram")):
        edge, count = (number(v) for v in [*list_of(entry), None, None][:2])
        if edge > 0 and count > 0:
            place = math.ceil(math.log2(edge)) + 2 if math.isfinite(edge) else BARS
            shares[min(max(place, 0), BARS - 1)] += count
    total, most = sum(shares), max(shares)
    if not total:
        return "·"
    bars = "".join(
        f'<rect x="{10 * i}" width="9" y="{30 - max(1, 30 * n / most):.1f}" '
        f'height="{max(1, 30 * n / most):.1f}"{last}>'
        f"<title>{told}: {100 * n / total:.2g} %</title></rect>"
        for i, n in enumerate(shares)
        if n
        for told in [f"above {2 ** (i - 3):g}" if i == BARS - 1 else f"up to {2.0 ** (i - 2):g}"]
        for last in [' class="most"' if i == BARS - 1 else ""]
    )
    texts = "".join(
        f'<text x="{10 * i + 4.5}" y="40">{text}</text>'
        for i, text in ((0, "¼"), (2, "1"), (6, "16"), (BARS - 1, ">256"))
    )
    return (
        f'<svg class="bars" viewBox="0 0 {10 * BARS + 8} 42" role="img" '
        f'aria-label="shares of values by error in ULP">{bars}{texts}</svg>'
    )


def runs_table(columns: Sequence[Column]) -> str:
    """How the certificates were made."""
    elsewhere = set(
        "backend dtype versions conforms worst_observed_over_allowed levels clauses violated cause "
        "ulp checks strata".split()
    )
    certificates = [c.certificate for c in columns]
    others = {str(k): str(k) for c in certificates for k in c if k not in elsewhere}
    rows = [
        (say(name), [_value(c[key]) if key in c else "·" for c in certificates])
        for key, name in {
            **RUN_KEYS,
            **{k: v for k, v in others.items() if k not in RUN_KEYS},
        }.items()
    ]
    versions = [dict_of(c.get("versions")) for c in certificates]
    names = list(dict.fromkeys(name for version in versions for name in version))
    rows += [(say(n), [say(v[n]) if n in v else "·" for v in versions]) for n in names]
    return _plain_table(columns, rows)


def _value(value: object) -> str:
    if isinstance(value, list):
        return say(", ".join(map(str, value))) or "all"
    if isinstance(value, dict):
        return say(", ".join(f"{k}: {v}" for k, v in value.items())) or "none"
    return say(value)


def legend() -> str:
    """What the signs mean."""
    words = {
        "passed": "holds",
        "failed": "is violated",
        "should": "a SHOULD that is not met",
        "skipped": "not shown by the backend",
        "xfailed": "a known failure",
    }
    return "".join(f"<span>{mark(kind)} {words[kind]}</span>" for kind in words)
