"""How documents are laid out in a batch and cut into calls, and running a model over that."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.worlds import World

__all__ = ["Case", "Layout", "Run", "execute"]

NEVER_READ = 10**9
"""Token id at padding: a backend that reads it finds no such row in its embedding."""


@dataclass(frozen=True)
class Layout:
    """Rows of documents, with padding between tokens, cut into calls.

    Attributes
    ----------
    rows : tuple of tuple of (int, int)
        For each row, its documents as (document, tokens of it).
    pads : tuple of tuple of int
        For each row, before which of its tokens a column of padding is put; a number twice is two
        columns, and the number of the row's tokens means behind the last. Rows are filled up with
        padding to one length.
    cuts : tuple of int
        Columns at which a new call begins; the same twice is a call without columns.
    """

    rows: tuple[tuple[tuple[int, int], ...], ...]
    pads: tuple[tuple[int, ...], ...] = ()
    cuts: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.pads:
            object.__setattr__(self, "pads", ((),) * len(self.rows))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [sum(n for _, n in row) for row in self.rows]

    @property
    def width(self) -> int:
        """Columns."""
        return max(n + len(p) for n, p in zip(self.lengths, self.pads, strict=True))

    def is_padded(self, row: int) -> bool:
        """Whether a row has columns without a token."""
        return self.lengths[row] < self.width

    def columns(self, row: int) -> NDArray:
        """Column of each token of a row."""
        n = self.lengths[row]
        before = np.searchsorted(np.sort(self.pads[row]), np.arange(n), side="right")
        return np.arange(n) + before

    def arrays(self, world: World) -> tuple[NDArray, NDArray]:
        """Tokens and positions, (B, T) each."""
        shape = (len(self.rows), self.width)
        tokens, positions = np.full(shape, NEVER_READ), np.full(shape, -1)
        for i, row in enumerate(self.rows):
            where = self.columns(i)
            if row:
                tokens[i, where] = np.concatenate([world.tokens(d)[:n] for d, n in row])
                positions[i, where] = np.concatenate([np.arange(n) for _, n in row])
        return tokens, positions

    def calls(self) -> list[slice]:
        """Columns of each call."""
        edges = [0, *sorted(self.cuts), self.width]
        return [slice(a, b) for a, b in pairwise(edges)]

    def strata(self, world: World) -> set[str]:
        """What is special about this layout, by name."""
        found = set()
        edges = {call.start for call in self.calls()}
        sizes = [call.stop - call.start for call in self.calls()]
        found |= {f"call of {n} token{'s' * (n > 1)}" for n in (1, 2, 3) if n in sizes}
        if len(sizes) > 1 and 0 in sizes:
            found.add("call without tokens")
        if len(self.rows) > 8:
            found.add("more than 8 rows")
        if any(n > 256 for row in self.rows for _, n in row):
            found.add("more than 256 tokens")
        if len(set(self.lengths)) > 1:
            found.add("rows of several lengths")
        for i, row in enumerate(self.rows):
            where = self.columns(i)
            if any(n > world.config.window + 1 for _, n in row):
                found.add("crosses the window")
            if len(row) > 1 and row[-1][1] <= 2:
                found.add("last document of 1-2 tokens")
            starts = np.cumsum([0, *(n for _, n in row)])[1:-1]
            if any(int(where[s]) not in edges for s in starts):
                found.add("reset inside a call")
            if len(where) and where[0] > 0:
                found.add("padding on the left")
            if len(where) and np.any(np.diff(where) > 1):
                found.add("padding inside a row")
        return found


@dataclass(frozen=True)
class Case:
    """One example of a law: its ``repr`` is Python that makes it again."""

    world: World
    layout: Layout = Layout((((0, 1),),))
    extra: tuple = ()

    def strata(self) -> set[str]:
        """What is special about this case, by name."""
        c = self.world.config
        found = self.layout.strata(self.world) | {f"weights: {self.world.weights}"}
        kinds = set(c.block_types)
        for name, holds in (
            ("all recurrent", kinds == {"recurrent"}),
            ("all attention", kinds == {"attention"}),
            ("lru_width is not width", c.lru_width != c.width),
            ("odd width", c.width % 2 == 1),
            ("one head", c.num_heads == 1),
            ("several key-value heads", c.num_kv_heads > 1),
            ("no soft cap", c.logits_soft_cap == 0),
            ("window of 1", c.window == 1),
        ):
            if holds:
                found.add(name)
        return found


@dataclass
class Run:
    """What a model returned over all calls of a layout."""

    logits: NDArray
    state: Any


def execute(model, case: Case, state: Any = None, tell_positions: bool = True) -> Run:
    """Run a model over a layout, call after call, each continuing from the state of the last.

    Where positions are not told, every row has to go on from its state by itself.
    """
    tokens, positions = case.layout.arrays(case.world)
    parts = []
    for call in case.layout.calls():
        steps = positions[:, call] if tell_positions else None
        logits, state = model(tokens[:, call], steps, state)
        parts.append(np.asarray(logits, np.float64))
    return Run(np.concatenate(parts, axis=1), state)
