"""Code of the package inside a notebook: shown where it stands, so that it is not retyped."""

import inspect
from collections.abc import Callable

from IPython.display import Code, display

__all__ = ["code"]


def code(*objects: Callable) -> None:
    """Show the source of functions or classes, as the package has it.

    Beside an equation, it is the line that computes it.
    """
    text = "\n\n".join(inspect.getsource(one).rstrip() for one in objects)
    display(Code(text, language="python"))
