"""Pictures for the notebooks: one style, legible on light and dark pages, with a text for ears.

A figure becomes an inline SVG whose ink is the page's own text colour. A control is a figure that
sliders redraw; where widgets do not run, the figure of the first values stands in its place.
"""

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

__all__ = [
    "BLUE", "CYCLE", "DIVERGING", "GREEN", "GREY", "OCHRE", "RED", "SEQUENTIAL", "VIOLET",
    "choose", "explore", "figure", "heat", "show", "show_svg", "slide", "tokens_below",
]  # fmt: skip

BLUE, OCHRE, GREEN, RED, VIOLET, GREY = (
    "#3b8bd0", "#d98a1f", "#2a9d6f", "#d1495b", "#9a6dd7", "#8a8f98",
)  # fmt: skip
"""Colours with a contrast of about 3 or more to white and to black."""

CYCLE = (BLUE, OCHRE, GREEN, RED, VIOLET, GREY)

DIVERGING = LinearSegmentedColormap.from_list(
    "griffin_diverging", ["#0b5fa5", "#6fb1e3", "#f4f1ea", "#eba55f", "#a34700"]
)
"""For values on both sides of zero."""

SEQUENTIAL = LinearSegmentedColormap.from_list(
    "griffin_sequential", ["#f4f1ea", "#a8cfe6", "#4a97cf", "#1f5f9e", "#0d2c54"]
)
"""For values from zero."""

INK = "#0a0b0c"
"""Stands for the colour of the page's text until a figure is shown."""

STYLE = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.titlecolor": INK, "legend.labelcolor": INK,
    "legend.facecolor": "none", "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.8, "axes.prop_cycle": mpl.cycler(color=CYCLE),
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
    "font.family": "sans-serif", "svg.fonttype": "none", "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
}  # fmt: skip


def figure(
    width: float = 8.0, height: float = 3.0, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """A figure in the notebooks' style, which from then on is matplotlib's, and its axes.

    Parameters
    ----------
    width, height : float
        Inches; 8 is the width of the page.
    rows, columns : int
        Of axes.
    **options
        As of ``Figure.subplots``.

    Returns
    -------
    figure : Figure
    axes : Axes or array of Axes
    """
    mpl.rcParams.update(STYLE)
    made = Figure(figsize=(width, height))
    return made, made.subplots(rows, columns, **options)


def show(made: Figure, alt: str, caption: str = "") -> None:
    """Show a figure below the cell.

    Parameters
    ----------
    made : Figure
    alt : str
        What the picture shows, for people who do not see it: what a glance at it tells.
    caption : str
        Printed below.
    """
    show_svg(_svg(made), alt, caption)


def show_svg(svg: str, alt: str, caption: str = "") -> None:
    """Show an SVG; see :func:`show`."""
    display(HTML(_framed(svg, alt, caption)))


def _svg(made: Figure) -> str:
    """Inline SVG of a figure, its ink the colour of the text around it."""
    stream = io.StringIO()
    made.savefig(stream, format="svg")
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.S)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)
    # Elements that name no colour are black in matplotlib's files.
    return svg.replace("<svg ", '<svg fill="currentColor" ', 1)


def _framed(svg: str, alt: str, caption: str) -> str:
    if not alt.strip():
        raise ValueError("a picture needs alt: what does it show to somebody who does not see it?")
    label = html.escape(" ".join(alt.split()), quote=True)
    svg = re.sub(r"^.*?<svg ", f'<svg role="img" aria-label="{label}" ', svg, count=1, flags=re.S)
    svg = re.sub(r"(<svg [^>]*?)>", r'\1 style="max-width:100%;height:auto">', svg, count=1)
    below = f"<figcaption style='opacity:.75;font-size:.9em'>{html.escape(caption)}</figcaption>"
    return f"<figure style='margin:.5em 0'>{svg}{below * bool(caption)}</figure>"


def heat(
    axes: Axes, values: ArrayLike, *, signed: bool = True, limit: float | None = None,
    title: str = "", x: str = "", y: str = "", bar: bool = True,
) -> None:  # fmt: skip
    """A heat map: rows downwards, columns to the right.

    Parameters
    ----------
    axes : Axes
    values : array of shape (rows, columns)
    signed : bool
        Whether zero stands in the middle of the colours, or at their beginning.
    limit : float, optional
        The value of the strongest colour; by default the largest there is.
    title, x, y : str
        Labels.
    bar : bool
        Whether a scale of the colours stands beside it.
    """
    values = np.asarray(values, np.float64)
    top = limit if limit is not None else float(np.nanmax(np.abs(values), initial=0)) or 1.0
    image = axes.imshow(
        values, aspect="auto", interpolation="nearest",
        cmap=DIVERGING if signed else SEQUENTIAL, vmin=-top if signed else 0, vmax=top,
    )  # fmt: skip
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[:].set_visible(False)
    if bar:
        assert isinstance(axes.figure, Figure)
        scale = axes.figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
        scale.outline.set_visible(False)


def tokens_below(axes: Axes, pieces: Sequence[str], *, size: float = 8) -> None:
    """Write the tokens of a text below the columns of a heat map, or the steps of a plot."""
    labels = [piece.replace("\n", "⏎").replace("$", r"\$") for piece in pieces]
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
    axes.tick_params(axis="x", length=0)


class slide:
    """A slider of :func:`explore`: from ``low`` to ``high``, beginning at ``first``."""

    def __init__(self, low: float, high: float, first: float, step: float | None = None):
        self.low, self.high, self.first = low, high, first
        whole = all(isinstance(v, int) for v in (low, high, first))
        self.step = step if step is not None else (1 if whole else (high - low) / 100)

    def widget(self, label: str):
        import ipywidgets as widgets

        whole = all(isinstance(v, int) for v in (self.low, self.high, self.first, self.step))
        kind = widgets.IntSlider if whole else widgets.FloatSlider
        return kind(
            value=self.first, min=self.low, max=self.high, step=self.step, description=label,
            continuous_update=False, style={"description_width": "initial"},
        )  # fmt: skip


class choose:
    """A menu of :func:`explore`."""

    def __init__(self, *options: Any, first: Any = None):
        self.options, self.first = options, options[0] if first is None else first

    def widget(self, label: str):
        import ipywidgets as widgets

        return widgets.Dropdown(options=self.options, value=self.first, description=label,
                                style={"description_width": "initial"})  # fmt: skip


def explore(draw: Callable[..., Figure], alt: str, caption: str = "", **controls: Any) -> None:
    """A figure that controls redraw.

    Parameters
    ----------
    draw : callable
        Takes a value for each control, by its name, and gives a Figure.
    alt, caption : str
        As of :func:`show`. Static pages show the figure of the first values.
    **controls : slide or choose
        ``explore(draw, alt, half_life=slide(1, 100, 10))``.
    """
    first = {name: control.first for name, control in controls.items()}
    values = ", ".join(f"{name.replace('_', ' ')} = {value}" for name, value in first.items())
    still = _framed(_svg(draw(**first)), f"{alt} Shown for {values}.", caption)
    note = f"<div style='opacity:.6;font-size:.85em'>Here: {html.escape(values)}. Run the "
    note += "notebook to move it.</div>"
    bundle = {"text/html": still + note, "text/plain": values}
    try:
        import ipywidgets as widgets
    except ImportError:
        display(bundle, raw=True)
        return
    inputs = {n: control.widget(n.replace("_", " ")) for n, control in controls.items()}
    picture = widgets.HTML(still)

    def redraw(_change) -> None:
        now = {name: widget.value for name, widget in inputs.items()}
        picture.value = _framed(_svg(draw(**now)), alt, caption)

    for widget in inputs.values():
        widget.observe(redraw, names="value")
    box = widgets.VBox([widgets.HBox(list(inputs.values())), picture])
    # Jupyter shows the richest form that it can: the widget, or the still picture.
    display(box._repr_mimebundle_() | bundle, raw=True)
