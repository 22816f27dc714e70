"""Code of the package inside a notebook: shown where it stands, so that it is not retyped."""

import inspect
import re
from collections.abc import Callable

from IPython.display import HTML, display
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from pygments.style import Style
from pygments.token import Comment, Keyword, Name, Number, Operator, String

from griffin_notebooks.pictures import BLUE, GREEN, GREY, OCHRE, VIOLET

__all__ = ["code"]

SECTIONS = re.compile(
    r"\n\n +(?:Parameters|Returns|Yields|Raises|Attributes)\n +-+\n.*?\n *(?=\"\"\"\n)", re.S
)
"""What a docstring says of parameters and results, from the first of them on."""


class LightAndDark(Style):
    """Colours that are legible on light and dark pages; what has none has the page's own."""

    background_color = "transparent"
    styles = {  # noqa: RUF012 - as Pygments has it
        Keyword: BLUE,
        Operator.Word: BLUE,
        Name.Function: f"bold {VIOLET}",
        Name.Class: f"bold {VIOLET}",
        Name.Decorator: VIOLET,
        Number: OCHRE,
        String: GREEN,
        Comment: f"italic {GREY}",
    }


def code(*objects: Callable) -> None:
    """Show the source of functions or classes, as the package has it.

    Beside an equation, it is the line that computes it. Of docstrings the sections are left out.
    """
    text = "\n\n".join(inspect.getsource(one).rstrip() for one in objects)
    text = SECTIONS.sub("", text)
    # Colours inside the elements: pages differ in the rules that they have for classes.
    formatter = HtmlFormatter(
        style=LightAndDark, noclasses=True, nobackground=True,
        prestyles="font-family: monospace; line-height: 125%; margin: 0; white-space: pre-wrap",
    )  # fmt: skip
    display(HTML(highlight(text, PythonLexer(), formatter)))
