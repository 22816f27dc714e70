"""A value over time: the oracle's, the backend's and what is allowed, as a picture in SVG."""

import json
import math
from collections.abc import Sequence

from griffin_conformance.reports.values import dict_of, list_of, number, say, shown

__all__ = ["plot_series"]

WIDTH, LEFT, RIGHT = 640, 58, 10
TOP, CURVES, GAP, STRIP, BOTTOM = 10, 170, 14, 64, 24
MOST = 200
"""Steps that are drawn; of more, those after the first that is wrong, and a fifth before it."""


def plot_series(series: object) -> str:
    """The picture with its legend, as a ``figure``; empty where there is nothing to draw.

    Parameters
    ----------
    series : object
        ``series`` of a check: name, first step, and truth, found and allowed of every step.
    """
    told = dict_of(series)
    columns = [list(map(number, list_of(told.get(k)))) for k in ("truth", "found", "allowed")]
    first = number(told.get("first", 0))
    first = int(first) if math.isfinite(first) else 0
    # Of equal length in a certificate; another one is drawn as far as it goes.
    rows = list(zip(*columns, strict=False))
    if not rows or not any(math.isfinite(truth) for truth, _, _ in rows):
        return ""
    points = _part([(first + i, *row, _ratio(*row)) for i, row in enumerate(rows)])
    steps = [p[0] for p in points]
    right = WIDTH - RIGHT
    across = _axis(steps[0], max(steps[-1], steps[0] + 1), LEFT + 4, right - 4)
    name = say(told.get("name", "value"))
    shorter = [[_short(v) for v in column] for column in list(zip(*points, strict=True))[1:4]]
    data = say(json.dumps([steps[0], *shorter], separators=(",", ":")))
    part = f", steps {steps[0]} to {steps[-1]}" if len(points) < len(rows) else ""
    height = TOP + CURVES + GAP + STRIP + BOTTOM
    return (
        f'<figure class="series"><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{name}: oracle and backend over time" '
        f'data-points="{data}" data-left="{across(steps[0]):.1f}" '
        f'data-right="{across(steps[-1]):.1f}">'
        f"{_curves(points, across)}{_ratios(points, across)}{_times(steps, across)}"
        f'<line class="cross" x1="0" x2="0" y1="{TOP}" y2="{TOP + CURVES + GAP + STRIP}"/></svg>'
        f'<figcaption><span class="k truth">oracle</span> <span class="k band">allowed</span> '
        f'<span class="k found">backend</span> <span class="name">{name}{part}</span>'
        f'<output class="readout"></output></figcaption></figure>'
    )


Point = tuple[int, float, float, float, float]
"""Step, truth, found, allowed and observed over allowed."""


def _ratio(truth: float, found: float, allowed: float) -> float:
    off = abs(found - truth)
    if not math.isfinite(off):
        return math.inf
    return off / allowed if allowed > 0 else (math.inf if off else 0.0)


def _part(points: list[Point]) -> list[Point]:
    """Where it goes wrong."""
    wrong = next((i for i, p in enumerate(points) if p[4] > 1), 0)
    first = max(0, min(wrong - MOST // 5, len(points) - MOST))
    return points[first : first + MOST]


def _short(value: float) -> float | str:
    return float(f"{value:.5g}") if math.isfinite(value) else str(value)


def _axis(low: float, high: float, start: float, end: float):
    """From values to pixels; what is beyond the axis lies on its end."""

    def at(value: float) -> float:
        share = (value - low) / (high - low)
        return start + (end - start) * min(1.0, max(0.0, share))

    return at


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between two others."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    begin, end = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(begin, end + 1)]


def _path(points: Sequence[tuple[float, float]], closed: bool = False) -> str:
    return f"M{'L'.join(f'{x:.1f} {y:.1f}' for x, y in points)}{'Z' if closed else ''}"


def _range(points: list[Point]) -> tuple[float, float]:
    """What the axis shows: truth and allowance whole, and the backend within reason."""
    edges = [t + s * (a if math.isfinite(a) else 0) for _, t, _, a, _ in points for s in (-1, 1)]
    edges = [e for e in edges if math.isfinite(e)]
    low, high = min(edges), max(edges)
    # A constant truth still needs an axis of some height.
    reach = 2 * (high - low) or abs(high) or 1.0
    found = [f for _, _, f, _, _ in points if math.isfinite(f)]
    low = max(min([low, *found]), low - reach)
    high = min(max([high, *found]), high + reach)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def _curves(points: list[Point], across) -> str:
    low, high = _range(points)
    up = _axis(low, high, TOP + CURVES, TOP)
    parts = [_grid([(up(v), shown(v)) for v in _ticks(low, high, 4)])]
    finite = [p for p in points if math.isfinite(p[1])]
    band = [(across(s), up(t + a)) for s, t, _, a, _ in finite]
    band += [(across(s), up(t - a)) for s, t, _, a, _ in reversed(finite)]
    parts.append(f'<path class="band" d="{_path(band, True)}"/>')
    parts.append(f'<path class="truth" d="{_path([(across(p[0]), up(p[1])) for p in finite])}"/>')
    run: list[tuple[float, float]] = []
    for step, _, found, _, _ in [*points, (0, 0.0, math.nan, 0.0, 0.0)]:
        if math.isfinite(found):
            run.append((across(step), up(found)))
            continue
        if run:
            dot = "" if len(run) > 1 else "h.1"  # a lone point is seen by its round ends
            parts.append(f'<path class="found" d="{_path(run)}{dot}"/>')
            run = []
    lost = [across(s) for s, _, f, _, _ in points if not math.isfinite(f)]
    if lost:
        ticks = "".join(f"M{x:.1f} {TOP}v7" for x in lost)
        parts.append(f'<path class="lost" d="{ticks}"/>')
    return "".join(parts)


def _grid(lines: list[tuple[float, str]], kind: str = "grid") -> str:
    """Lines across the picture, and what they stand for."""
    path = "".join(f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}" for y, _ in lines)
    texts = "".join(
        f'<text class="y" x="{LEFT - 6}" y="{y + 3.5:.1f}">{label}</text>' for y, label in lines
    )
    return f'<path class="{kind}" d="{path}"/>{texts}'


def _ratios(points: list[Point], across) -> str:
    """Stems of observed over allowed on a log axis: below and above the line of what is allowed."""
    logs = [(s, math.log10(r) if 0 < r < math.inf else r) for s, *_, r in points]
    sizes = [v for (_, v), p in zip(logs, points, strict=True) if 0 < p[4] < math.inf]
    low = max(-4, math.floor(min([*sizes, -1])))
    high = max(1, math.ceil(max([*sizes, 0])))
    bottom, top = TOP + CURVES + GAP + STRIP, TOP + CURVES + GAP
    up = _axis(low, high, bottom, top)
    every = max(1, math.ceil((high - low) / 3))
    powers = [v for v in range(high, low - 1, -every) if abs(up(v) - up(0)) > 11]
    parts = [_grid([(up(v), f"1e{v}") for v in powers]), _grid([(up(0), "1")], "limit")]
    for kind in ("right", "wrong"):
        stems = [
            f"M{across(s):.1f} {bottom}V{up(v if r else low):.1f}"
            for (s, v), (*_, r) in zip(logs, points, strict=True)
            if (r > 1) == (kind == "wrong") and r > 0
        ]
        if stems:
            parts.append(f'<path class="{kind}" d="{"".join(stems)}"/>')
    return "".join(parts)


def _times(steps: list[int], across) -> str:
    y = TOP + CURVES + GAP + STRIP
    last = max(steps[-1], steps[0] + 1)
    texts = "".join(
        f'<text class="x" x="{across(v):.1f}" y="{y + 15}">{v:.0f}</text>'
        for v in _ticks(steps[0], last, 8)
        if v == int(v)
    )
    return f'{texts}<text class="unit" x="{LEFT - 16}" y="{y + 15}">step</text>'
