"""The clauses of ``SPEC.md``: what a backend is held to, and what its verdict speaks of."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

__all__ = ["Clause", "read_clauses", "version"]

HERE = Path(__file__).parent
HEADING = re.compile(r"^### ([A-Z0-9]+-\d+) · (MUST|SHOULD) · (.+)$", re.MULTILINE)
TRAPS = re.compile(r"^Traps: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Clause:
    """One numbered statement about the model.

    Attributes
    ----------
    id : str
        Such as ``ATTN-1``.
    must : bool
        Otherwise a backend should, and conforms without it.
    title : str
        The statement in one sentence.
    traps : tuple of str
        Known faults of public implementations that it answers, by number.
    text : str
        Formula, reason and source, in Markdown.
    """

    id: str
    must: bool
    title: str
    traps: tuple[str, ...]
    text: str

    @property
    def family(self) -> str:
        """The part of the model that it is about."""
        return self.id.partition("-")[0]


def specification() -> str:
    """The text of ``SPEC.md``, which stands beside the package in a checkout and in it in a wheel.

    Raises
    ------
    FileNotFoundError
        If it is at neither place.
    """
    for path in (HERE.parent / "SPEC.md", HERE / "SPEC.md"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"no SPEC.md beside or in {HERE}: install griffin-np again")


@lru_cache(maxsize=1)
def read_clauses() -> dict[str, Clause]:
    """All clauses by their id, in the order of the specification."""
    text = specification()
    headings = list(HEADING.finditer(text))
    found = {}
    for here, after in zip(headings, [*headings[1:], None], strict=True):
        body = text[here.end() : after.start() if after else len(text)]
        body = re.split(r"^##? ", body, maxsplit=1, flags=re.MULTILINE)[0].strip()
        traps = TRAPS.search(body)
        numbers = tuple(re.findall(r"T\d\d", traps[1])) if traps else ()
        found[here[1]] = Clause(here[1], here[2] == "MUST", here[3].strip(), numbers, body)
    return found


def version() -> str:
    """Version of the specification."""
    match = re.search(r"^# .*version (\d+\.\d+)", specification(), re.MULTILINE)
    if match is None:
        raise ValueError("the heading of SPEC.md names no version")
    return match[1]
