"""Diagrams of the model, drawn by code: each function gives an SVG for ``pictures.show_svg``.

Ink is the page's own text colour. Colours mean the same everywhere: blue what is remembered, green
what is new, ochre what fades it (the decay) and attention, violet what gates.
"""

import html
import math
import re
from collections.abc import Sequence

import numpy as np

from griffin_notebooks.pictures import BLUE, GREEN, GREY, OCHRE, VIOLET
from griffin_np.config import PRESETS
from griffin_np.layers import gelu

__all__ = ["block", "generation", "recurrent_block", "rg_lru", "state", "window"]

INK = "currentColor"
SIZE, SMALL, TINY = 14.0, 12.0, 10.5
"""Of texts: names, notes, and numbers inside of pictures."""

MINUS, SIGMA = "\N{MINUS SIGN}", "\N{GREEK SMALL LETTER SIGMA}"

Point = tuple[float, float]


class Drawing:
    """An SVG that grows by shapes. All coordinates are its own: nothing is transformed."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.shapes: list[str] = []

    def svg(self) -> str:
        """The whole, as text for the inside of a page."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" '
            f'height="{self.height}" viewBox="0 0 {self.width} {self.height}" '
            'fill="currentColor" stroke-linecap="round" stroke-linejoin="round" '
            f'font-family="system-ui, sans-serif">{"".join(self.shapes)}</svg>'
        )

    def shape(self, tag: str, **attributes: object) -> None:
        """Any element; ``stroke_width`` becomes ``stroke-width``, None leaves one out."""
        told = " ".join(
            f'{name.replace("_", "-")}="{number(value)}"'
            for name, value in attributes.items()
            if value is not None
        )
        self.shapes.append(f"<{tag} {told}/>")

    def label(
        self, x: float, y: float, text: str, *, size: float = SIZE, anchor: str = "middle",
        colour: str = INK, bold: bool = False, faint: bool = False,
    ) -> None:  # fmt: skip
        """A line of text whose middle height is y; ``$h_{t-1}$`` in it is mathematics."""
        weight = ' font-weight="600"' if bold else ""
        opacity = ' fill-opacity="0.72"' if faint else ""
        self.shapes.append(
            f'<text x="{number(x)}" y="{number(y + 0.35 * size)}" font-size="{number(size)}" '
            f'text-anchor="{anchor}" fill="{colour}"{weight}{opacity}>{mathematics(text, size)}'
            "</text>"
        )

    def box(
        self, x: float, y: float, width: float, height: float, *lines: str, colour: str = INK,
        fill: float = 0.16, radius: float = 7, bold: bool = True,
    ) -> None:  # fmt: skip
        """A rounded box around (x, y), its first line a name, the others notes."""
        self.shape(
            "rect", x=x - width / 2, y=y - height / 2, width=width, height=height, rx=radius,
            fill=colour, fill_opacity=0.05 if colour == INK else fill, stroke=colour,
            stroke_width=1.5,
        )  # fmt: skip
        for i, line in enumerate(lines):
            at = y + 17 * (i - (len(lines) - 1) / 2)
            self.label(x, at, line, size=SMALL if i else SIZE, bold=bold and not i, faint=bool(i))

    def line(
        self, *points: Point, colour: str = INK, width: float = 1.5, radius: float = 12,
        head: bool = False, dashes: str | None = None, opacity: float | None = None,
    ) -> None:  # fmt: skip
        """Straight lines from point to point, round at the corners."""
        if head:
            points = (*points[:-1], self._head(points[-2], points[-1], colour, width))
        path = f"M{number(points[0][0])} {number(points[0][1])}"
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            r = min(radius, math.dist(before, corner) / 2, math.dist(corner, after) / 2)
            (ax, ay), (bx, by) = towards(corner, before, r), towards(corner, after, r)
            path += f"L{number(ax)} {number(ay)}Q{number(corner[0])} {number(corner[1])} "
            path += f"{number(bx)} {number(by)}"
        path += f"L{number(points[-1][0])} {number(points[-1][1])}"
        self.shape(
            "path", d=path, fill="none", stroke=colour, stroke_width=width,
            stroke_dasharray=dashes, stroke_opacity=opacity,
        )  # fmt: skip

    def arrow(self, *points: Point, colour: str = INK, width: float = 1.5, radius: float = 12):
        """A line with a head at its end."""
        self.line(*points, colour=colour, width=width, radius=radius, head=True)

    def _head(self, start: Point, end: Point, colour: str, width: float) -> Point:
        """The head of an arrow, and where its line ends inside of it."""
        length, half = 7 + width, 2.6 + 0.8 * width
        x, y = towards(end, start, length)
        across_x, across_y = (end[1] - y) / length * half, (x - end[0]) / length * half
        corners = [end, (x + across_x, y + across_y), (x - across_x, y - across_y)]
        self.shape("polygon", points=joined(corners), fill=colour)
        return towards(end, start, length - 1)

    def curve(
        self, points: Sequence[Point], *, colour: str = INK, width: float = 1.5,
        dashes: str | None = None,
    ) -> None:  # fmt: skip
        """A line through many points."""
        self.shape(
            "polyline", points=joined(points), fill="none", stroke=colour, stroke_width=width,
            stroke_dasharray=dashes,
        )  # fmt: skip

    def dot(self, x: float, y: float, *, colour: str = INK, radius: float = 3.2) -> None:
        """Where a line branches."""
        self.shape("circle", cx=x, cy=y, r=radius, fill=colour)

    def joint(self, x: float, y: float, sign: str, *, colour: str = INK) -> None:
        """A circle where values meet: ``+`` or ``x`` (element by element)."""
        self.shape(
            "circle", cx=x, cy=y, r=JOINT, fill=colour, fill_opacity=0.1, stroke=colour,
            stroke_width=1.5,
        )  # fmt: skip
        r = 5.5 if sign == "+" else 4.2
        ends = [(r, 0), (0, r)] if sign == "+" else [(r, r), (r, -r)]
        for dx, dy in ends:
            self.line((x - dx, y - dy), (x + dx, y + dy), width=1.7)

    def cell(
        self, x: float, y: float, size: float, *, colour: str = INK, fill: float = 0.0,
        height: float | None = None, radius: float = 3, line: float = 1.2,
        opacity: float | None = None,
    ) -> None:  # fmt: skip
        """A small square with its corner at (x, y): one thing that is stored, or seen."""
        self.shape(
            "rect", x=x, y=y, width=size, height=size if height is None else height, rx=radius,
            fill=colour if fill else "none", fill_opacity=fill or None, stroke=colour,
            stroke_width=line, opacity=opacity,
        )  # fmt: skip


JOINT = 11.0


def number(value: object) -> object:
    """A number without needless digits."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def joined(points: Sequence[Point]) -> str:
    return " ".join(f"{number(float(x))},{number(float(y))}" for x, y in points)


def towards(start: Point, end: Point, length: float) -> Point:
    """The point at a distance from ``start`` on the way to ``end``."""
    share = length / math.dist(start, end)
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def mathematics(text: str, size: float) -> str:
    """Text as SVG has it: between dollars, letters slant, and ``_{t-1}`` and ``^2`` move."""
    made, height = "", 0.0
    for i, part in enumerate(text.split("$")):
        if i % 2 == 0:
            runs = [(part, size, 0.0, False)] if part else []
        else:
            runs = _runs(part.replace("-", MINUS), size, 0.0)
        for run, large, level, slant in runs:
            shift = f' dy="{number(level - height)}"' if level != height else ""
            small = f' font-size="{number(large)}"' if large != size else ""
            style = ' font-style="italic"' if slant else ""
            plain = not (shift or small or style)
            made += html.escape(run) if plain else f"<tspan{shift}{small}{style}>"
            made += "" if plain else f"{html.escape(run)}</tspan>"
            height = level
    return made


def _runs(text: str, size: float, level: float) -> list[tuple[str, float, float, bool]]:
    """Parts of a formula, each with its size, how far down it stands, and whether it slants."""
    made = []
    for mark, index, letters, other in re.findall(
        r"([_^])(\{[^{}]*\}|.)|([A-Za-z]+)|([^_^A-Za-z]+)", text
    ):
        if mark:
            down = (0.24 if mark == "_" else -0.36) * size
            made += _runs(index.strip("{}"), 0.74 * size, level + down)
        else:
            made.append((letters or other, size, level, len(letters) == 1))
    return made


def block() -> str:
    """The residual block, and the pattern of blocks over the depth of the 2B model."""
    d = Drawing(740, 344)
    kinds = ["R", "R", "A"] * 9
    kinds = kinds[:26]
    step, side, left, top = 19.6, 16.5, 97.0, 40.0
    middle = top + side / 2
    d.label(
        left + step * 13, 16, "the 2B model: 26 blocks, two recurrent ones, then one of attention",
        size=SMALL, faint=True,
    )  # fmt: skip
    d.box(40, middle, 64, 30, "embed")
    d.arrow((72, middle), (left - 3, middle))
    for i, kind in enumerate(kinds):
        colour = BLUE if kind == "R" else OCHRE
        d.cell(left + step * i, top, side, colour=colour, fill=0.22, radius=4, line=1.4)
        d.label(left + step * i + side / 2, middle, kind, size=TINY, bold=True)
    end = left + step * 26
    d.arrow((end, middle), (end + 20, middle))
    d.box(end + 73, middle, 106, 30, "norm, head")

    chosen, panel = 12, 96.0
    x = left + step * chosen
    for a, b in (((x, top + side + 3), (14, panel)), ((x + side, top + side + 3), (726, panel))):
        d.line(a, b, dashes="2 5", opacity=0.6)
    d.shape(
        "rect", x=8, y=panel, width=724, height=240, rx=14, fill=INK, fill_opacity=0.035,
        stroke=INK, stroke_opacity=0.35, stroke_width=1.2,
    )  # fmt: skip

    stream, branch = 166.0, 258.0
    d.label(26, 122, "residual stream, $D$ wide", size=SMALL, anchor="start", faint=True)
    d.label(30, stream, "$x$", size=16)
    add1, add2 = 366.0, 674.0
    d.line((44, stream), (add1 - JOINT, stream), width=3)
    d.line((add1 + JOINT, stream), (add2 - JOINT, stream), width=3)
    d.arrow((add2 + JOINT, stream), (722, stream), width=3)
    for start, end, name, wide, colour in (
        (66.0, add1, "temporal mixing", 150, BLUE),
        (404.0, add2, "gated MLP", 108, VIOLET),
    ):
        norm = start + 68
        mixer = norm + 46 + 20 + wide / 2
        d.dot(start, stream, radius=4.5)
        d.arrow((start, stream), (start, branch), (norm - 46, branch))
        d.box(norm, branch, 92, 44, "RMSNorm")
        d.arrow((norm + 46, branch), (mixer - wide / 2, branch))
        d.box(mixer, branch, wide, 78, colour=colour)
        d.label(mixer, branch - 22, name, bold=True)
        d.arrow((mixer + wide / 2, branch), (end, branch), (end, stream + JOINT))
        d.joint(end, stream, "+")
        if colour == VIOLET:
            d.label(mixer, branch + 1, "two branches,", size=SMALL, faint=True)
            d.label(mixer, branch + 18, "GeLU on one", size=SMALL, faint=True)
            d.label(mixer, 316, "within each token", size=SMALL, faint=True)
            continue
        for kind, what, dy in (("R", "recurrent block", 1), ("A", "or local attention", 20)):
            hue = BLUE if kind == "R" else OCHRE
            d.cell(mixer - 66, branch + dy - 7, 14, colour=hue, fill=0.22, radius=3.5, line=1.4)
            d.label(mixer - 59, branch + dy, kind, size=9.5, bold=True)
            d.label(mixer - 47, branch + dy, what, size=11.5, anchor="start", faint=True)
        d.label(mixer, 316, "from token to token", size=SMALL, faint=True)
    return d.svg()


def recurrent_block() -> str:
    """The recurrent block: two branches, and what each part keeps from token to token."""
    d = Drawing(740, 300)
    upper, lower = 96.0, 232.0
    middle = (upper + lower) / 2
    d.label(30, middle, "$u_t$", size=16)
    d.line((46, middle), (66, middle))
    d.dot(66, middle)
    d.arrow((66, middle), (66, upper), (90, upper))
    d.arrow((66, middle), (66, lower), (90, lower))
    for y in (upper, lower):
        d.box(127, y, 74, 56, "linear", "$D$ → $R$")

    conv, lru, times, out = 259.0, 429.0, 566.0, 642.0
    d.arrow((164, upper), (conv - 62, upper), colour=GREEN, width=1.8)
    d.box(conv, upper, 124, 84, colour=GREEN)
    d.label(conv, upper - 24, "convolution", bold=True)
    for i, height in enumerate((8, 13, 20, 30)):
        x = conv - 38 + 21 * i
        d.shape(
            "rect", x=x, y=upper + 22 - height, width=13, height=height, rx=2.5, fill=GREEN,
            fill_opacity=0.55,
        )  # fmt: skip
    for i, time in ((0, "$t-3$"), (3, "$t$")):
        d.label(conv - 31.5 + 21 * i, upper + 31, time, size=TINY, faint=True)
    d.arrow((conv + 62, upper), (lru - 62, upper), colour=GREEN, width=1.8)
    d.label((conv + lru) / 2, upper - 16, "$x_t$", colour=INK)

    d.box(lru, upper, 124, 84, colour=BLUE)
    d.label(lru, upper - 24, "RG-LRU", bold=True)
    turn = [
        (lru + 17 * math.cos(w), upper + 13 + 17 * math.sin(w))
        for w in np.linspace(-0.35 * math.pi, 1.25 * math.pi, 40)
    ]
    d.curve(turn, colour=BLUE, width=2.4)
    d._head(turn[-3], (turn[-1][0] + 3.5, turn[-1][1] - 5), BLUE, 2.2)
    d.label(lru, upper + 13, "$h$", size=15)
    d.arrow((lru + 62, upper), (times, upper), (times, middle - JOINT), colour=BLUE, width=1.8)
    d.label(lru + 82, upper - 16, "$h_t$")

    act = (conv + lru) / 2
    d.arrow((164, lower), (act - 62, lower), colour=VIOLET, width=1.8)
    d.box(act, lower, 124, 56, colour=VIOLET)
    d.label(act - 28, lower, "GeLU", bold=True)
    zs = np.linspace(-3, 2.2, 40)
    d.line((act + 6, lower + 11), (act + 50, lower + 11), width=1, opacity=0.5)
    shape = [(act + 32 + 8 * z, lower + 11 - 12 * g) for z, g in zip(zs, gelu(zs), strict=True)]
    d.curve(shape, colour=VIOLET, width=2.2)
    d.arrow((act + 62, lower), (times, lower), (times, middle + JOINT), colour=VIOLET, width=1.8)
    d.joint(times, middle, "x")
    d.arrow((times + JOINT, middle), (out - 37, middle))
    d.box(out, middle, 74, 56, "linear", "$R$ → $D$")
    d.arrow((out + 37, middle), (726, middle))

    for x, text in ((conv, "keeps its last 3 inputs"), (lru, "keeps $h_t$")):
        d.label(x, 34, text, size=SMALL, faint=True)
    d.label(act, 280, "how much of each channel goes on", size=SMALL, faint=True)
    return d.svg()


def rg_lru() -> str:
    """One step of the RG-LRU: the gates, the decay, and the state that comes round again."""
    d = Drawing(740, 392)
    memory, decay, gate, new = 96.0, 192.0, 272.0, 350.0
    forget, scale, add = 452.0, 612.0, 672.0

    # What is new: x, and from it the gates.
    d.label(24, new, "$x_t$", size=16)
    d.line((40, new), (68, new), colour=GREEN, width=2.2)
    d.arrow((68, new), (300 - JOINT, new), colour=GREEN, width=2.2)
    d.arrow((68, new), (68, decay), (92, decay), colour=GREEN)
    d.arrow((68, gate), (92, gate), colour=GREEN)
    d.dot(68, new, colour=GREEN, radius=4)
    d.dot(68, gate, colour=GREEN)
    d.box(164, decay, 144, 52, "recurrence gate", f"${SIGMA}(W_a x_t + b_a)$", colour=VIOLET)
    d.box(164, gate, 144, 52, "input gate", f"${SIGMA}(W_x x_t + b_x)$", colour=VIOLET)
    d.arrow((236, decay), (286, decay), colour=VIOLET, width=1.8)
    d.label(258, decay - 15, "$r_t$")
    d.arrow((236, gate), (300, gate), (300, new - JOINT), colour=VIOLET, width=1.8)
    d.label(258, gate - 15, "$i_t$")
    d.joint(300, new, "x", colour=GREEN)
    d.arrow((300 + JOINT, new), (scale - JOINT, new), colour=GREEN, width=2.2)
    d.label(452, new - 16, "gated input  $i_t x_t$", size=SMALL)

    # The decay, which goes two ways.
    d.box(346, decay, 120, 60, colour=OCHRE)
    d.label(346, decay - 13, "decay", bold=True)
    d.label(346, decay + 10, f"$a_t = {SIGMA}(Λ)^{{8r_t}}$", size=15)
    d.line((406, decay), (forget, decay), colour=OCHRE, width=1.8)
    d.dot(forget, decay, colour=OCHRE, radius=4)
    d.arrow((forget, decay), (forget, memory + JOINT), colour=OCHRE, width=1.8)
    d.label(forget - 16, (decay + memory) / 2 + 2, "$a_t$")
    d.arrow((forget, decay), (494, decay), colour=OCHRE, width=1.8)
    d.box(538, decay, 88, 60, colour=OCHRE)
    d.label(538, decay, "$√(1 - a_t^2)$", size=15)
    d.arrow((582, decay), (scale, decay), (scale, new - JOINT), colour=OCHRE, width=1.8)
    d.joint(scale, new, "x", colour=GREEN)
    d.arrow((scale + JOINT, new), (add, new), (add, memory + JOINT), colour=GREEN, width=2.2)

    # The state, round and round.
    out, back = 700.0, 250.0
    d.arrow((out, memory), (out, 26), (458, 26), colour=BLUE, width=2.8, radius=22)
    d.arrow((462, 26), (back, 26), (back, memory), (forget - JOINT, memory),
            colour=BLUE, width=2.8, radius=22)  # fmt: skip
    d.joint(forget, memory, "x", colour=BLUE)
    d.arrow((forget + JOINT, memory), (add - JOINT, memory), colour=BLUE, width=2.8)
    d.joint(add, memory, "+", colour=BLUE)
    d.line((add + JOINT, memory), (out, memory), colour=BLUE, width=2.8)
    d.arrow((out, memory), (734, memory), colour=BLUE, width=2.8)
    d.dot(out, memory, colour=BLUE, radius=4.5)
    d.label(720, memory + 20, "$h_t$", size=16)
    d.label(330, memory + 20, "$h_{t-1}$", size=16)
    d.label(466, 45, "waits one step", size=SMALL, faint=True)
    for i, (colour, text) in enumerate((
        (BLUE, "what is remembered"), (OCHRE, "how it fades"), (GREEN, "what is new"),
        (VIOLET, "what decides"),
    )):  # fmt: skip
        d.line((24, 26 + 22 * i), (46, 26 + 22 * i), colour=colour, width=3)
        d.label(56, 26 + 22 * i, text, size=SMALL, anchor="start", faint=True)
    d.label(558, memory - 16, "what is left of the past", size=SMALL, faint=True)
    return d.svg()


def window() -> str:
    """Which keys a query sees, and where a ring keeps them: a window of 6."""
    d = Drawing(740, 396)
    W, T, asks = 6, 13, 9
    side, left, top = 23.0, 44.0, 62.0
    d.label(left + side * T / 2, 18, "which keys a query sees", bold=True)
    d.label(left + side * T / 2, 38, "key (position in the text)", size=SMALL, faint=True)
    for q in range(T):
        mark = q == asks
        d.label(left - 12, top + side * (q + 0.5), str(q), size=TINY, bold=mark, faint=not mark)
        d.label(left + side * (q + 0.5), top - 9, str(q), size=TINY, bold=mark, faint=not mark)
        for k in range(T):
            x, y = left + side * k + 1, top + side * q + 1
            if q - W <= k <= q:
                colour = GREEN if k == q else OCHRE
                d.cell(x, y, side - 2, colour=colour, fill=0.75 if mark else 0.28)
            elif k < q:
                d.cell(x, y, side - 2, colour=GREY, line=1, opacity=0.6)
    y = top + side * asks
    d.shape(
        "rect", x=left + side * (asks - W) - 3, y=y - 3, width=side * (W + 1) + 6,
        height=side + 6, rx=6, fill="none", stroke=INK, stroke_width=1.8,
    )  # fmt: skip
    for i, (colour, text) in enumerate((
        (GREEN, "the token itself"), (OCHRE, "the $W$ before it"), (GREY, "too far back"),
    )):  # fmt: skip
        y = top + 4 + 23 * (i + 0.5)
        look = {"line": 1.0, "opacity": 0.6} if colour == GREY else {"fill": 0.28}
        d.cell(left + side * 7.2, y - 7, 14, colour=colour, **look)
        d.label(left + side * 8.1, y, text, size=SMALL, anchor="start")

    cx, cy, inner, outer = 556.0, 190.0, 52.0, 102.0
    d.label(cx, 18, "where the ring keeps them", bold=True)
    d.label(cx, 38, "just before token 9", size=SMALL, faint=True)
    for slot in range(W):
        a, b = (2 * math.pi * (slot + e) / W - math.pi / 2 - math.pi / W for e in (0.02, 0.98))
        (ax, ay), (bx, by) = (math.cos(a), math.sin(a)), (math.cos(b), math.sin(b))
        path = f"M{number(cx + outer * ax)} {number(cy + outer * ay)}"
        path += f"A{outer} {outer} 0 0 1 {number(cx + outer * bx)} {number(cy + outer * by)}"
        path += f"L{number(cx + inner * bx)} {number(cy + inner * by)}"
        path += f"A{inner} {inner} 0 0 0 {number(cx + inner * ax)} {number(cy + inner * ay)}Z"
        position = max(p for p in range(asks) if p % W == slot)
        oldest = position == asks - W
        d.shape(
            "path", d=path, fill=OCHRE, fill_opacity=0.5 if oldest else 0.24, stroke=OCHRE,
            stroke_width=1.4,
        )  # fmt: skip
        mid = (a + b) / 2
        r = (inner + outer) / 2
        d.label(cx + r * math.cos(mid), cy + r * math.sin(mid), str(position), size=17, bold=True)
        r = outer + 22
        d.label(
            cx + r * math.cos(mid), cy + r * math.sin(mid), f"slot {slot}", size=TINY, faint=True
        )
    d.label(cx, cy - 8, "$p$ mod $W$", size=SIZE)
    d.label(cx, cy + 12, "$W$ = 6", size=SMALL, faint=True)
    d.arrow((cx, cy + outer + 58), (cx, cy + outer + 34), colour=GREEN, width=2.2)
    d.label(cx, cy + 174, "token 9 sees these six and itself: $W$ + 1 keys,", size=SMALL)
    d.label(cx, cy + 191, "then takes the place of token 3", size=SMALL)
    return d.svg()


def state() -> str:
    """All that is remembered of a text, layer by layer, beside a transformer's cache."""
    d = Drawing(740, 404)
    top, pitch, side = 64.0, 40.0, 13.0
    kinds = ["R", "R", "A", "R", "R", "A"]
    d.label(20, 18, "Griffin", bold=True, anchor="start")
    d.label(20, 38, "as large after a million tokens as after ten", size=SMALL, anchor="start",
            faint=True)  # fmt: skip
    now, right = 12, 408.0
    d.label(right, 18, "a transformer", bold=True, anchor="start")
    d.label(right, 38, "one more column with every token", size=SMALL, anchor="start", faint=True)

    def chip(x: float, y: float, kind: str) -> None:
        colour = BLUE if kind == "R" else OCHRE
        d.cell(x, y + 5, 20, colour=colour, fill=0.22, radius=5, line=1.4)
        d.label(x + 10, y + 15, kind, size=SMALL, bold=True)

    def pair(x: float, y: float, **look) -> None:
        """A key above a value."""
        for row in range(2):
            d.cell(x, y + 16 * row, side, colour=OCHRE, radius=2.5, **look)

    for layer, kind in enumerate(kinds):
        y = top + pitch * layer
        chip(20, y, kind)
        if kind == "R":
            for i in range(3):
                d.cell(56 + 17 * i, y + 8.5, side, colour=GREEN, fill=0.4, radius=2.5)
            d.cell(120, y + 8.5, 150, height=side, colour=BLUE, fill=0.4, radius=2.5)
        else:
            for i in range(13):
                pair(56 + 16.5 * i, y, fill=0.4)
            end = 56 + 16.5 * 13 + 4
            d.arrow((end, y + 6), (end + 16, y + 6), (end + 16, y + 23), (end + 1, y + 23),
                    colour=OCHRE, radius=9)  # fmt: skip
        chip(right, y, "A")
        for i in range(now + 5):
            fade = max(0.0, 1 - 0.19 * max(i - now + 1, 0))
            look = {"fill": 0.4} if i < now else {"opacity": fade}
            pair(right + 36 + 16.5 * i, y, **look)
    end = right + 36 + 16.5 * now - 10
    bottom = top + pitch * len(kinds) + 6
    d.line((right + 36, bottom), (end + 4, bottom), width=1.2, opacity=0.6)
    d.label(right + 36 + 16.5 * now / 2, bottom + 14, "the text so far", size=SMALL, faint=True)
    d.arrow((end + 16, bottom), (726, bottom), width=1.2)

    for i, (colour, text) in enumerate((
        (GREEN, "the last 3 inputs of the convolution"),
        (BLUE, "$h$, the state of the RG-LRU"),
        (OCHRE, "keys and values, $W$ of each, the oldest overwritten"),
    )):  # fmt: skip
        y = bottom + 12 + 21 * i
        d.cell(20, y - 6, 12, colour=colour, fill=0.4, radius=2.5)
        d.label(40, y, text, size=SMALL, anchor="start")

    config = PRESETS["recurrentgemma-2b"]
    all_of_it = config.state_bytes(float_bytes=2) / 1e6
    a_token = config.depth * 2 * config.num_kv_heads * config.head_dim * 2 / 1e3
    d.label(20, 390, f"the 2B model, in bfloat16: {all_of_it:.1f} MB", bold=True, size=SMALL,
            anchor="start")  # fmt: skip
    d.label(right, 390, f"26 such blocks of attention: {a_token:.1f} kB a token", bold=True,
            size=SMALL, anchor="start")  # fmt: skip
    return d.svg()


def generation() -> str:
    """From text to ids, through the model, to the next token, and round again."""
    d = Drawing(740, 190)
    y = 84.0
    d.label(22, y, "text")
    d.arrow((40, y), (60, y))
    d.box(108, y, 96, 52, "tokenizer", colour=GREEN)
    d.arrow((156, y), (180, y))
    for i, token in enumerate(("2", "432", "449")):
        d.cell(182 + 31 * i, y - 11, 29, height=22.0, radius=5)
        d.label(196.5 + 31 * i, y, token, size=9.5)
    d.label(227, y - 26, "ids", size=SMALL, faint=True)
    d.arrow((274, y), (298, y))
    d.box(348, y, 100, 64, "Griffin", colour=BLUE)
    d.arrow((378, y - 32), (378, 24), (318, 24), (318, y - 32), colour=BLUE, width=2.2)
    d.label(348, 38, "state", size=SMALL, faint=True)
    d.arrow((398, y), (416, y))
    for i, height in enumerate((6, 13, 34, 4, 9, 19, 5)):
        d.shape(
            "rect", x=420 + 7 * i, y=y + 15 - height, width=5, height=height, rx=1.5, fill=BLUE,
            fill_opacity=0.75,
        )  # fmt: skip
    d.label(444, y - 34, "logits", size=SMALL, faint=True)
    d.arrow((472, y), (490, y))
    d.box(532, y, 84, 52, "sampler", colour=VIOLET)
    d.line((574, y), (600, y))
    d.dot(600, y)
    d.arrow((600, y), (622, y))
    d.box(668, y, 92, 52, "decoder", colour=GREEN)
    d.arrow((668, y + 26), (668, y + 50))
    d.label(668, y + 62, "text")
    d.arrow((600, y), (600, 152), (348, 152), (348, y + 32))
    d.label(474, 168, "the new token goes in, and so on", size=SMALL, faint=True)
    return d.svg()
