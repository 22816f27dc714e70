"""A certificate as a badge: JSON for shields.io, or a small picture."""

from html import escape

from griffin_conformance.reports.values import clean, dict_of, list_of, shown, span, violates

__all__ = ["badge", "badge_svg", "failing_clauses"]

COLORS = {"brightgreen": "#3c8f5a", "red": "#b3372e", "orange": "#b2661b", "lightgrey": "#7d7d7d"}
NARROW, WIDE = "fijlt.,:|!' ·-IJ()[]", "mwMW%@"


def failing_clauses(certificate: dict) -> list[str]:
    """Clauses that the backend must obey and does not, the most suspicious first.

    Those that are known to fail are among them.
    """
    clauses = {c: dict_of(v) for c, v in dict_of(certificate.get("clauses")).items()}
    failing = [c for c, v in clauses.items() if violates(v)]
    order = [c for c in list_of(certificate.get("violated")) if c in failing]
    return order + [c for c in failing if c not in order]


def badge(certificate: dict) -> dict:
    """What shields.io shows for an endpoint: ``L0-L4 float32 · 0.32``, or ``fails 17 clauses``.

    The number is the worst observed / allowed of all required checks.
    """
    spec = certificate.get("spec")
    failing = failing_clauses(certificate)
    checks = [dict_of(c) for c in list_of(certificate.get("checks"))]
    failed = [c for c in checks if violates(c)]
    if certificate.get("conforms") is True:
        levels = dict_of(certificate.get("levels"))
        seen = [level for level, counts in levels.items() if dict_of(counts).get("passed")]
        worst = shown(certificate.get("worst_observed_over_allowed"), 2)
        message = f"{span(seen)} {certificate.get('dtype', '')} · {worst}".strip()
        color = "brightgreen"
    elif failed and all(c.get("inconclusive") for c in failed):
        message, color = "too few examples", "lightgrey"
    elif failing:
        message, color = f"fails {_count(len(failing), 'clause')}", "red"
    elif failed:
        message, color = f"fails {_count(len(failed), 'check')}", "red"
    else:
        message, color = "not certified", "lightgrey"
    label = f"griffin-conformance {spec}" if spec else "griffin-conformance"
    return {"schemaVersion": 1, "label": clean(label), "message": clean(message), "color": color}


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _width(text: str) -> float:
    """Pixels that a text takes at 11 px, about; textLength makes it exactly that."""
    return sum(3.9 if c in NARROW else 9.6 if c in WIDE else 6.7 for c in text)


def badge_svg(certificate: dict) -> str:
    """The same badge as a picture, with nothing loaded from anywhere."""
    told = badge(certificate)
    label, message = told["label"], told["message"]
    left, right = _width(label) + 12, _width(message) + 12
    total = left + right
    corners = f"r{10 * total:.0f}"  # so that badges of other sizes in one page keep theirs
    texts = "".join(
        f'<text x="{x:.1f}" y="14" textLength="{_width(text):.1f}" '
        f'lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        for x, text in ((left / 2, label), (left + right / 2, message))
    )
    title = escape(f"{label}: {message}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total:.1f}" height="20" role="img" '
        f'aria-label="{title}"><title>{title}</title>'
        f'<clipPath id="{corners}"><rect width="{total:.1f}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#{corners})"><rect width="{left:.1f}" height="20" fill="#444"/>'
        f'<rect x="{left:.1f}" width="{right:.1f}" height="20" fill="{COLORS[told["color"]]}"/></g>'
        f'<g fill="#fff" text-anchor="middle" font-size="11" '
        f'font-family="Verdana,DejaVu Sans,sans-serif">{texts}</g></svg>\n'
    )
