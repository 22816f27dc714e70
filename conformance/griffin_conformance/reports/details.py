"""One check on one backend, everything about it, as HTML."""

from griffin_conformance.reports.plot import plot_series
from griffin_conformance.reports.values import (
    MARKS,
    dict_of,
    is_should,
    list_of,
    number,
    say,
    shown,
)

__all__ = ["check_id", "details", "kind_of", "mark"]

KNOWN = set(
    "check level requirement says clauses status violated cause examples observed_over_allowed "
    "worst reason inconclusive not_compared reproducer xfail strata seconds series".split()
)


def kind_of(entry: dict) -> str:
    """Status of a check or clause; a SHOULD that fails is ``should``."""
    status = str(entry.get("status", "skipped"))
    if status == "failed" and is_should(entry):
        return "should"
    return status if status in MARKS else "skipped"


def mark(kind: str) -> str:
    """The sign of a status; what it means is said to those who cannot see it."""
    return f'<i class="mark {kind}" role="img" aria-label="{kind}">{MARKS[kind]}</i>'


def check_id(name: object, column: str) -> str:
    """Where the page has a check on a backend."""
    return f"check/{name}/{column}"


def details(check: dict, column: str) -> str:
    """A check on a backend, folded."""
    kind = kind_of(check)
    name = say(check.get("check", ""))
    ratio = shown(check.get("observed_over_allowed", 0))
    told = "" if kind == "skipped" else f'<span class="ratio">{ratio}</span>'
    why = str(check.get("xfail") or check.get("cause") or check.get("reason") or "").strip()
    short = f'<span class="short">{say(why.splitlines()[0])}</span>' if why else ""
    return (
        f'<details class="check {kind}" id="{say(check_id(check.get("check", ""), column))}">'
        f'<summary><i class="mark {kind}">{MARKS[kind]}</i><b>{name}</b>{short}{told}</summary>'
        f'<div class="body"><p>{say(check.get("says", ""))}</p>{_facts(check)}'
        f"{_block('Reason', check.get('reason'))}{_worst(check)}"
        f"{plot_series(check.get('series'))}"
        f"{_block('Reproducer', check.get('reproducer'), copy=True)}{_run(check)}</div></details>"
    )


def _facts(check: dict) -> str:
    """What a reader wants first: what it means, which clauses, why it is known."""
    facts = [
        ("Likely cause", say(f"it {check['cause']}") if check.get("cause") else ""),
        ("Violated", _codes(check.get("violated"))),
        ("Known failure", say(check["xfail"]) if check.get("xfail") else ""),
        ("Inconclusive", "too few kinds of cases were drawn" if check.get("inconclusive") else ""),
        ("Not compared", say(", ".join(map(str, list_of(check.get("not_compared")))))),
    ]
    facts += [(say(key), say(value)) for key, value in check.items() if key not in KNOWN]
    rows = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts if value)
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def _codes(clauses: object) -> str:
    return " ".join(f"<code>{say(clause)}</code>" for clause in list_of(clauses))


def _block(title: str, text: object, copy: bool = False) -> str:
    if not text:
        return ""
    button = '<button type="button" class="copy">Copy</button>' if copy else ""
    code = "code" if copy else "samp"
    return f"<h5>{title}{button}</h5><pre><{code}>{say(text)}</{code}></pre>"


def _worst(check: dict) -> str:
    """The worst comparison as a table with one row."""
    worst = dict_of(check.get("worst"))
    if not worst:
        return ""
    ulps = dict_of(worst.get("ulp_percentiles"))
    cells = [
        ("entry", say(worst.get("entry", ""))),
        ("observed", shown(worst.get("observed"))),
        ("allowed", shown(worst.get("allowed"))),
        ("ratio", _over(worst)),
        *((f"{'max' if p == '100' else p + ' %'} ULP", shown(v, 2)) for p, v in ulps.items()),
    ]
    head = "".join(f"<th>{say(name)}</th>" for name, _ in cells)
    row = "".join(f"<td>{value}</td>" for _, value in cells)
    if check.get("status") == "passed":
        line = ", ".join(f"{say(name)} {value}" for name, value in cells)
        return f'<p class="run">{say(worst.get("what", ""))}: {line}</p>'
    return (
        f'<h5>Worst comparison: {say(worst.get("what", ""))}</h5><div class="wide">'
        f'<table class="numbers"><tr>{head}</tr><tr>{row}</tr></table></div>'
    )


def _over(worst: dict) -> str:
    observed, allowed = number(worst.get("observed")), number(worst.get("allowed"))
    if allowed > 0:
        return shown(observed / allowed)
    return "0" if observed == 0 else "∞"


def _run(check: dict) -> str:
    """How it was run, in small print."""
    strata = ", ".join(f"{say(k)} {say(n)}" for k, n in dict_of(check.get("strata")).items())
    level, requirement = say(check.get("level", "")), say(check.get("requirement", ""))
    examples, clauses = check.get("examples", 0), _codes(check.get("clauses"))
    return (
        f'<p class="run">{f"Tests {clauses}. " if clauses else ""}'
        f"{level} {requirement}, {say(examples)} example{'s' * (examples != 1)}, "
        f"{shown(check.get('seconds', 0))} s{': ' if strata else ''}{strata}</p>"
    )
