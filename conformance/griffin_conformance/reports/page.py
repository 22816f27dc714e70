"""Certificates as one page of HTML that needs nothing else: no network, no fonts, no server."""

import base64
import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from griffin_conformance.checks import LEVELS
from griffin_conformance.reports.badges import failing_clauses
from griffin_conformance.reports.details import details, kind_of, mark
from griffin_conformance.reports.tables import (
    Column,
    clause_matrix,
    heat_map,
    legend,
    runs_table,
    strata_table,
    ulp_table,
)
from griffin_conformance.reports.values import dict_of, say, shown, span, write

__all__ = ["as_html", "write_html"]

CHIPS = 8
"""Violated clauses that the head of a backend names."""


def as_html(certificates: Sequence[dict]) -> str:
    """The page.

    Nothing is loaded from anywhere, and the page's own policy forbids it: style and script are
    let in by their hashes, so that not even a script in a backend's message could run, were it
    not escaped.

    Parameters
    ----------
    certificates : sequence of dict
        One column each.

    Raises
    ------
    ValueError
        If there are none.
    """
    columns = _columns(certificates)
    style, script = (_own(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        f"base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Griffin conformance: {_title(columns)}</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n"
        f"{_head(columns)}\n<main>\n{_sections(columns)}\n</main>\n{PANEL}\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def write_html(certificates: Sequence[dict], path: str | os.PathLike) -> None:
    """Write the page, under a temporary name first.

    Raises
    ------
    ValueError
        If there are no certificates.
    """
    write(path, as_html(certificates))


PANEL = """<aside id="panel" role="dialog" aria-labelledby="panel-title" hidden>
<header><p id="panel-where"></p><h2 id="panel-title" tabindex="-1"></h2><nav>
<button type="button" id="before" title="previous failure (p)">&#8592;</button>
<button type="button" id="after" title="next failure (n)">&#8594;</button>
<button type="button" id="close" title="close (Esc)">&#10005;</button></nav></header>
<div id="panel-body"></div></aside>"""


def _own(name: str) -> str:
    """A file of this package."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _columns(certificates: Sequence[dict]) -> list[Column]:
    """With names for links that are as short as they can be, and different."""
    if not certificates:
        raise ValueError("no certificates: a page needs at least one")
    certificates = [dict_of(c) for c in certificates]
    words = [str(c.get("backend", "backend")) for c in certificates]
    exact = [f"{word}:{c.get('dtype', '')}" for word, c in zip(words, certificates, strict=True)]
    keys: list[str] = []
    for word, longer in zip(words, exact, strict=True):
        key = re.sub(r"[^\w.:+-]+", "-", word if words.count(word) == 1 else longer)
        again = sum(k == key or k.startswith(f"{key}:") for k in keys)
        keys.append(f"{key}:{again + 1}" if key in keys else key)
    return [Column(k, c) for k, c in zip(keys, certificates, strict=True)]


def _title(columns: Sequence[Column]) -> str:
    names = ", ".join(c.name for c in columns[:3])
    return f"{names} and {len(columns) - 3} more" if len(columns) > 3 else names


def _head(columns: Sequence[Column]) -> str:
    specs = sorted({str(c.certificate["spec"]) for c in columns if c.certificate.get("spec")})
    right = sum(c.certificate.get("conforms") is True for c in columns)
    n = len(columns)
    if n == 1:
        told, verb = columns[0].name, "conforms" if right else "does not conform"
    else:
        told, verb = f"{right} of {n} backends", "conforms" if right == 1 else "conform"
    spec = f" to specification {say(' and '.join(specs))}" if specs else ""
    cards = "".join(_card(i, column) for i, column in enumerate(columns))
    return (
        f'<header class="top"><h1>Griffin conformance</h1>'
        f'<p class="lede">{told} {verb}{spec}.</p>'
        f'<div class="cards">{cards}</div></header>'
    )


def _card(i: int, column: Column) -> str:
    """What became of one backend, at a glance."""
    certificate, clauses = column.certificate, column.clauses
    failing = failing_clauses(certificate)
    conforms = certificate.get("conforms") is True
    if conforms:
        seen = [
            n for n, c in dict_of(certificate.get("levels")).items() if dict_of(c).get("passed")
        ]
        kind, verdict = "passed", f"conforms at {span(seen)}"
    elif failing:
        kind, verdict = "failed", f"violates {len(failing)} of {len(clauses)} clauses"
    else:
        kind, verdict = "should", str(certificate.get("outcome", "is not certified"))
    shoulds = [name for name, c in clauses.items() if kind_of(c) == "should"]
    chips = "".join(_chip(name, column) for name in failing[:CHIPS])
    if len(failing) > CHIPS:
        chips += f'<span class="more">and {len(failing) - CHIPS} more</span>'
    cause = (
        f'<p class="cause">It {say(certificate["cause"])}.</p>' if certificate.get("cause") else ""
    )
    worst = shown(certificate.get("worst_observed_over_allowed", 0))
    notes = [f"SHOULD, not met: {', '.join(map(say, shoulds))}"] if shoulds else []
    stale = dict_of(certificate.get("stale_xfails"))
    if stale:
        told = ", ".join(f"{say(name)} {say(status)}" for name, status in stale.items())
        notes.append(f"Known failures that did not fail: {told}")
    also = "".join(f'<p class="also">{note}</p>' for note in notes)
    return (
        f'<article class="card {kind}" data-col="{i}"><h2>{column.name} '
        f"<small>{column.dtype}</small></h2>"
        f'<p class="verdict">{mark(kind)}{say(verdict)}</p>'
        f'<p class="worst"><b>{worst}</b> worst observed / allowed</p>'
        f"{_bars(certificate)}{cause}"
        f"{f'<p class=chips>{chips}</p>' if chips else ''}{also}</article>"
    )


def _chip(name: str, column: Column) -> str:
    title = say(column.clauses.get(name, {}).get("title", ""))
    return f'<a href="#{say(name)}/{say(column.key)}" title="{title}">{say(name)}</a> '


def _bars(certificate: dict) -> str:
    """For each level a bar of checks that passed, failed, are known failures and were skipped."""
    rows = []
    for level, counts in dict_of(certificate.get("levels")).items():
        n = Counter({k: v for k, v in dict_of(counts).items() if isinstance(v, int)})
        at, parts = 0, []
        for kind in ("passed", "failed", "xfailed", "skipped"):
            if n[kind]:
                parts.append(f'<rect class="{kind}" x="{at}" width="{n[kind]}" height="1"/>')
            at += n[kind]
        told = ", ".join(f"{n[k]} {k}" for k in ("passed", "failed", "xfailed", "skipped") if n[k])
        rows.append(
            f'<tr title="{say(LEVELS.get(level, ""))}: {told}"><th>{say(level)}</th><td>'
            f'<svg viewBox="0 0 {max(at, 1)} 1" preserveAspectRatio="none" role="img" '
            f'aria-label="{told}">{"".join(parts)}</svg></td><td>{n["passed"]}/{at}</td></tr>'
        )
    return f'<table class="bars">{"".join(rows)}</table>'


def _sections(columns: Sequence[Column]) -> str:
    ulps = ulp_table(columns)
    parts = [
        _bar(),
        _section("clauses", "Clauses", f'<p class="signs">{legend()}</p>{clause_matrix(columns)}'),
        _section(
            "ratios",
            "Observed over allowed",
            "<p>The worst of each check. Up to 1 is right; at 1 a result is as far from the truth "
            f"as a correct program may be.</p>{heat_map(columns)}",
        ),
        _section("checks", "Checks at length", "".join(map(_all_checks, columns))),
    ]
    if ulps:
        note = "<p>Errors of single values in units in the last place.</p>"
        parts.append(_section("ulp", "Units in the last place", note + ulps))
    note = "<p>In how many examples each kind of case was met.</p>"
    parts.append(_section("strata", "What was drawn", note + strata_table(columns)))
    parts.append(_section("runs", "How it was run", runs_table(columns)))
    return "\n".join(parts)


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2><div class="wide">{body}</div></section>'


def _bar() -> str:
    return (
        '<form class="filter" role="search"><input id="filter" type="search" autocomplete="off" '
        'spellcheck="false" placeholder="Clause, check or backend" '
        'aria-label="Show only what names these words">'
        '<label><input id="failures" type="checkbox"> Only failures</label>'
        '<output id="count"></output>'
        '<span class="keys"><kbd>/</kbd> filter <kbd>&#8592;&#8593;&#8595;&#8594;</kbd> move '
        "<kbd>Enter</kbd> open <kbd>n</kbd> <kbd>p</kbd> failures "
        "<kbd>Esc</kbd> close</span></form>"
    )


def _all_checks(column: Column) -> str:
    """Every check on one backend: what failed stands first."""
    order = ["failed", "should", "xfailed", "skipped", "passed"]
    kinds = {name: kind_of(check) for name, check in column.checks.items()}
    body = "".join(
        details(check, column.key)
        for kind in order
        for name, check in column.checks.items()
        if kinds[name] == kind
    )
    counts = Counter(kinds.values())
    told = ", ".join(f"{counts[k]} {k}" for k in order if counts[k])
    return (
        f'<details class="all" data-key="{say(column.key)}"><summary><b>{column.name}</b> '
        f"{column.dtype} <span>{told}</span></summary>{body}</details>"
    )
