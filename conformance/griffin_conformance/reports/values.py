"""What all reports share: numbers, marks, and files that are there whole or not at all."""

import math
import os
import re
from html import escape
from pathlib import Path
from typing import Any

__all__ = [
    "MARKS",
    "clean",
    "dict_of",
    "is_should",
    "list_of",
    "number",
    "say",
    "shown",
    "span",
    "violates",
    "write",
]

MARKS = {"passed": "✓", "failed": "✕", "should": "!", "skipped": "-", "xfailed": "≠"}
"""One sign for each status, so that no report needs colours. ``should`` is a failed SHOULD."""

CONTROL = re.compile(
    "[^\\t\\n\\x20-\\x7e\\xa0-\\ud7ff\\ue000-\\ufdcf\\ufdf0-\\ufffd\\U00010000-\\U0010fffd]"
)
"""What neither XML nor HTML may hold: control characters, halves of surrogates, no characters."""


def clean(text: Any) -> str:
    """A backend's words without characters that XML and HTML cannot hold."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text).replace("\r\n", "\n"))


def say(text: Any) -> str:
    """Anybody's words, safe in HTML and XML."""
    return escape(clean(text))


def number(value: Any) -> float:
    """A number of a certificate, which has ``"inf"`` as a string; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def shown(value: Any, digits: int = 3) -> str:
    """A number for a person, as short as it can be."""
    value = number(value)
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-4 <= size < 1e4:
        places = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{value:.{places}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.{max(0, digits - 2)}e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def dict_of(value: Any) -> dict:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def is_should(entry: dict) -> bool:
    """Whether a check or clause is one that a backend may break and still conform."""
    return entry.get("requirement") == "SHOULD"


def violates(entry: dict) -> bool:
    """Whether a backend does not conform because of this check or clause, as expected or not."""
    return entry.get("status") in ("failed", "xfailed") and not is_should(entry)


def span(levels: list[str]) -> str:
    """Levels in short: ``L0-L4``, or ``L0-L2, L4``."""
    numbers = sorted({int(level[1:]) for level in levels if re.fullmatch(r"L\d", level)})
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"L{r[0]}" if len(r) == 1 else f"L{r[0]}-L{r[-1]}" for r in runs)


def write(path: str | os.PathLike, text: str) -> None:
    """Write a file under a temporary name and rename it.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind, and a file that was there stays.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
