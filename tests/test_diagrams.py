"""The notebooks' diagrams: well-formed, legible on light and on dark pages, nothing over a label."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib", reason="the notebooks extra is not installed")

from griffin_notebooks import diagrams

NAMES = [name for name in diagrams.__all__ if name.islower()]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(params=NAMES)
def root(request):
    return ET.fromstring(getattr(diagrams, request.param)())


def test_all_are_there():
    assert {"block", "recurrent_block", "rg_lru", "window", "state"} <= set(NAMES)


def test_they_are_svg_that_fits_a_page(root):
    assert root.tag == f"{SVG}svg"
    x, y, width, height = map(float, root.get("viewBox").split())
    assert (x, y) == (0, 0)
    assert float(root.get("width")) == width <= 760
    assert float(root.get("height")) == height <= 500
    assert root.get("fill") == "currentColor"


def test_ids_are_not_used(root):
    """Several diagrams stand on one page: an id that two of them have would be one of them's."""
    assert not [e for e in root.iter() if e.get("id")]


def test_nothing_is_said_of_the_page(root):
    """The ink is the page's: no element is black or white on its own."""
    for element in root.iter():
        for name in ("fill", "stroke"):
            assert re.fullmatch(r"none|currentColor|#[0-9a-f]{6}", element.get(name, "none"))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """As the Web Content Accessibility Guidelines define it."""
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def test_colours_show_on_light_and_dark_pages(root):
    for element in root.iter():
        for name in ("fill", "stroke"):
            colour = element.get(name, "")
            if colour.startswith("#") and not element.get(f"{name}-opacity"):
                assert contrast(colour, "#ffffff") >= 2.5
                assert contrast(colour, "#111111") >= 2.5


def extent(text: ET.Element) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, for a rather wide font."""
    wide = 0.66 if text.get("font-weight") else 0.6

    def length(words: str | None, size: float) -> float:
        return sum(0.35 if c in " .,:;il|'()fjt" else wide for c in words or "") * size

    size = float(text.get("font-size"))
    width = length(text.text, size)
    for span in text:
        width += length(span.text, float(span.get("font-size", size))) + length(span.tail, size)
    x, y = float(text.get("x")), float(text.get("y"))
    left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[text.get("text-anchor")] * width
    return left, y - 0.75 * size, left + width, y + 0.2 * size


def texts(root) -> list[tuple[str, tuple[float, float, float, float]]]:
    return [("".join(t.itertext()), extent(t)) for t in root.iter(f"{SVG}text")]


def test_labels_are_told_apart(root):
    found = texts(root)
    assert len(found) > 5
    assert all(name.strip() for name, _ in found)
    width, height = float(root.get("width")), float(root.get("height"))
    for name, (left, top, right, bottom) in found:
        assert left >= 0 and top >= 0 and right <= width and bottom <= height, name
    for (one, a), (other, b) in itertools.combinations(found, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{one!r} and {other!r} overlap"


def test_labels_keep_inside_their_boxes(root):
    """The smallest box around a label's middle holds the whole of it."""
    boxes = [
        tuple(float(r.get(k)) for k in ("x", "y", "width", "height"))
        for r in root.iter(f"{SVG}rect")
    ]
    for name, (left, top, right, bottom) in texts(root):
        x, y = (left + right) / 2, (top + bottom) / 2
        around = [b for b in boxes if b[0] <= x <= b[0] + b[2] and b[1] <= y <= b[1] + b[3]]
        if around:
            bx, by, bw, bh = min(around, key=lambda b: b[2] * b[3])
            assert left >= bx and right <= bx + bw, f"{name!r} is wider than its box"
            assert top >= by and bottom <= by + bh, f"{name!r} is higher than its box"


def corners(element: ET.Element) -> list[tuple[float, float]]:
    told = element.get("d") or element.get("points")
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", told)]
    return list(itertools.pairwise(numbers))[::2]


def test_no_line_goes_through_a_label(root):
    lines = [
        e
        for e in root.iter()
        if e.tag in (f"{SVG}path", f"{SVG}polyline") and e.get("fill") == "none"
    ]
    for name, (left, top, right, bottom) in texts(root):
        for line in lines:
            for a, b in itertools.pairwise(corners(line)):
                steps = max(int(math.dist(a, b)), 1)
                for i in range(steps + 1):
                    x, y = (a[j] + (b[j] - a[j]) * i / steps for j in (0, 1))
                    assert not (left < x < right and top < y < bottom), f"a line crosses {name!r}"


def test_what_is_drawn_is_what_the_model_is():
    """Numbers in the diagrams follow the configuration and the equations."""
    from griffin_np import PRESETS

    config = PRESETS["recurrentgemma-2b"]
    letters = [t for t, _ in texts(ET.fromstring(diagrams.block())) if t in ("R", "A")]
    kinds = [kind[0].upper() for kind in config.block_types]
    assert letters[: len(kinds)] == kinds
    shown = " ".join(t for t, _ in texts(ET.fromstring(diagrams.state())))
    assert f"{config.state_bytes(float_bytes=2) / 1e6:.1f} MB" in shown
    assert config.conv_width - 1 == 3


@pytest.mark.parametrize(
    ("text", "plain", "spans"),
    [
        ("a < b", "a < b", 0),
        ("$x$", "x", 1),
        ("$h_{t-1}$ is old", "ht\N{MINUS SIGN}1 is old", 4),
        ("$a^{8r_t}$", "a8rt", 4),
        ("sigmoid $sigmoid$", "sigmoid sigmoid", 0),
    ],
)
def test_mathematics_is_set(text, plain, spans):
    made = ET.fromstring(f"<text>{diagrams.mathematics(text, 10)}</text>")
    assert "".join(made.itertext()) == plain
    assert len(made) == spans


def test_indices_go_down_and_come_back():
    made = ET.fromstring(f"<text>{diagrams.mathematics('$h_{t-1}$ + $a_t^2$ b', 10)}</text>")
    assert sum(float(span.get("dy", 0)) for span in made) == pytest.approx(0, abs=0.02)
    assert "".join(made.itertext()) == "ht\N{MINUS SIGN}1 + at2 b"
