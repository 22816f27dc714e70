"""Hypothesis strategies: configurations, weights, documents, and every way of laying them out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from griffin_conformance.layouts import Case, Layout
from griffin_conformance.worlds import WEIGHTS, World
from griffin_np.config import ATTENTION, RECURRENT, GriffinConfig

if TYPE_CHECKING:
    from griffin_conformance.checks import Scope

__all__ = ["POOL", "cases", "configurations", "layouts", "row_counts", "worlds"]

KINDS = {"R": RECURRENT, "A": ATTENTION}
seeds = st.integers(0, 2**16 - 1)
ONE = st.just(1)


def pattern(letters: str) -> tuple[str, ...]:
    """``RRA`` as a block pattern."""
    return tuple(KINDS[letter] for letter in letters)


@st.composite
def configurations(draw, letters: str | None = None) -> GriffinConfig:
    """Small configurations of all kinds: odd widths, no attention, attention only, no cap.

    Widths leave out those whose square root bfloat16 can hold, because they hide whether the
    embedding's scale was rounded.
    """
    kinds = letters or draw(st.sampled_from(["R", "A", "RA", "RRA", "ARR", "AAR"]))
    heads = draw(st.integers(1, 4))
    width = heads * draw(st.sampled_from([5, 3, 6, 8, 11, 16]))
    if width in (4, 9, 16, 25, 36, 49, 64):
        width += 3 * heads
    window = draw(st.one_of(st.integers(1, 8), st.sampled_from([12, 40])))
    fraction = draw(st.sampled_from([0.5, 0.0, 1.0]))
    if int(width // heads * fraction) % 2:
        fraction = 0.5 if int(width // heads * 0.5) % 2 == 0 else 0.0
    return GriffinConfig(
        width=width,
        depth=len(kinds) + (draw(st.integers(0, 2)) if letters is None else 0),
        num_heads=heads,
        num_kv_heads=draw(st.sampled_from([n for n in (1, 2, 3, 4) if heads % n == 0])),
        vocab_size=draw(st.integers(5, 24)),
        lru_width=heads * draw(st.integers(1, 7)),
        mlp_width=draw(st.integers(1, 24)),
        window=window,
        block_pattern=pattern(kinds),
        conv_width=draw(st.integers(1, 5)),
        logits_soft_cap=draw(st.sampled_from([30.0, 5.0, 0.0])),
        scale_embeddings=draw(st.sampled_from([True, True, False])),
        rope_fraction=fraction,
        rope_base=draw(st.sampled_from([10000.0, 500.0, 1e6])),
        norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
    )


def lengths_for(config: GriffinConfig) -> tuple[int, ...]:
    """Documents that cross the window and are seldom longer than 45 tokens."""
    W = config.window
    longest = max(2 * W + 5, 12) if W <= 18 else W + 5
    return longest, max(longest // 2, 4), 7


@st.composite
def worlds(draw, letters: str | None = None, weights: str | None = None) -> World:
    """Any model and its documents."""
    config = draw(configurations(letters))
    style = weights or draw(st.sampled_from(list(WEIGHTS)))
    return World(config, style, draw(seeds), lengths_for(config))


def _pooled(letters: str, weights: str, seed: int, lengths=None, **fields) -> World:
    config = GriffinConfig(block_pattern=pattern(letters), **fields)
    return World(config, weights, seed, lengths or lengths_for(config))


POOL: tuple[World, ...] = (
    _pooled("R", "ordinary", 1, width=5, depth=1, num_heads=1, vocab_size=7, lru_width=3,
            mlp_width=4, window=1),
    _pooled("A", "ordinary", 2, width=6, depth=1, num_heads=1, vocab_size=7, mlp_width=5,
            window=2, rope_fraction=1.0, rope_base=500.0),
    _pooled("RA", "mixed", 3, width=10, depth=2, num_heads=2, vocab_size=11, lru_width=6,
            mlp_width=7, window=3, logits_soft_cap=0.0, norm_eps=1e-3),
    _pooled("RRA", "ordinary", 4, width=24, depth=5, num_heads=3, vocab_size=23, lru_width=36,
            mlp_width=20, window=8),
    _pooled("A", "sharp", 5, width=20, depth=2, num_heads=4, num_kv_heads=2, vocab_size=12,
            mlp_width=10, window=5),
    _pooled("R", "long", 6, width=15, depth=2, num_heads=3, vocab_size=13, lru_width=15,
            mlp_width=9, conv_width=2, window=9),
    _pooled("ARR", "saturated", 7, width=21, depth=3, num_heads=3, num_kv_heads=3,
            vocab_size=10, lru_width=12, mlp_width=8, window=1, conv_width=5,
            rope_fraction=0.0),
    _pooled("AAR", "tiny", 8, width=26, depth=3, num_heads=2, vocab_size=14, lru_width=8,
            mlp_width=11, window=4, conv_width=3),
    _pooled("RRA", "huge", 9, width=12, depth=3, num_heads=1, vocab_size=9, lru_width=10,
            mlp_width=12, window=12, logits_soft_cap=0.0),
    _pooled("RRA", "loud", 10, width=18, depth=3, num_heads=2, vocab_size=15, lru_width=18,
            mlp_width=13, window=6, scale_embeddings=False, conv_width=1),
    _pooled("RA", "held", 11, width=13, depth=2, num_heads=1, vocab_size=8, lru_width=9,
            mlp_width=6, window=40),
    _pooled("RRA", "short", 12, width=18, depth=5, num_heads=3, vocab_size=16, lru_width=12,
            mlp_width=15, window=7, rope_fraction=1.0, rope_base=1e6),
    _pooled("R", "ordinary", 13, (300, 150, 7), width=7, depth=1, num_heads=1, vocab_size=9,
            lru_width=5, mlp_width=3, window=1),
    _pooled("A", "ordinary", 14, (300, 150, 7), width=10, depth=1, num_heads=2, vocab_size=9,
            mlp_width=4, window=100),
)  # fmt: skip
"""Models that between them have every stratum, small ones first; laws draw from these."""


LONG = POOL[-2:]
"""Those with texts of several hundred tokens, and little else."""

COMPILED = tuple(POOL[i] for i in (1, 2, 4, 5, 6))
"""Models for backends that compile every shape: few, shallow, with weights of every style, and of
texts whose lengths fall into few buckets; long ones are drawn where a check asks for them."""

FEW = tuple(POOL[i] for i in (2, 6))
"""Those of them, with both kinds of block, for checks that compile programs of their own."""


def pooled(
    scope: Scope, letters: str | None = None, *, few: bool = False
) -> st.SearchStrategy[World]:
    """Worlds of the pool, as the backend can represent them.

    With ``few``, from :data:`FEW` where every shape is compiled.
    """
    kinds = None if letters is None else {KINDS[letter] for letter in letters}
    pool = (FEW if few else COMPILED) if scope.fixed_shapes else POOL
    pool = pool if scope.only is None else (scope.only,)
    found = [w for w in pool if kinds is None or set(w.config.block_types) == kinds]
    if not found:
        return st.nothing()
    drawn = st.sampled_from(found)
    if scope.fixed_shapes and scope.only is None:
        # Other weights need no other program.
        styles = st.sampled_from(list(WEIGHTS))
        drawn = st.builds(lambda w, style: replace(w, weights=style), drawn, styles)
    return drawn.map(lambda w: adapted(w, scope))


def any_world(scope: Scope, letters: str | None = None) -> st.SearchStrategy[World]:
    """Worlds of the pool and, where shapes are free, any others."""
    if scope.fixed_shapes or scope.only is not None:
        return pooled(scope, letters)
    free = worlds(letters).map(lambda w: adapted(w, scope))
    return st.one_of(pooled(scope, letters), free)


@st.composite
def sometimes_long(
    draw, scope: Scope, kind: str | None = None, others: st.SearchStrategy[World] | None = None
) -> World:
    """Any world, or one of ``others``; one in ten has a long text.

    ``kind`` is of a block that it must have.
    """
    if scope.only is None and not draw(st.integers(0, 9)):
        found = [w for w in LONG if kind is None or kind in w.config.block_types]
        return adapted(draw(st.sampled_from(found)), scope)
    drawn = any_world(scope) if others is None else others
    return draw(drawn.filter(lambda w: kind is None or kind in w.config.block_types))


def row_counts(scope: Scope, least: int, most: int) -> st.SearchStrategy[int]:
    """How many rows: any number, or one and three where every shape is compiled."""
    if not scope.fixed_shapes:
        return st.integers(least, most)
    return st.sampled_from([n for n in (1, 3) if least <= n <= most] or [least])


def adapted(world: World, scope: Scope) -> World:
    """The world with a configuration that the backend can represent."""
    return replace(world, config=scope.adapt(world.config))


@st.composite
def sizes(draw, world: World, document: int) -> int:
    """How much of a document to take: short, about a window, or anything."""
    most, W = world.lengths[document], world.config.window
    special = sorted({n for n in (1, 2, 3, W - 1, W, W + 1, W + 2, 2 * W, most) if 1 <= n <= most})
    drawn = [st.sampled_from(special), st.integers(1, most)]
    return draw(st.one_of(*drawn, *([st.integers(257, most)] if most > 256 else [])))


@st.composite
def layouts(
    draw,
    world: World,
    *,
    rows: st.SearchStrategy[int] = ONE,
    documents: tuple[int, int] = (1, 1),
    cut: bool = False,
    pad: str = "",
    short_end: bool = False,
    many: bool = False,
) -> Layout:
    """Layouts of a world's documents.

    Parameters
    ----------
    rows : strategy
        How many rows.
    documents : (int, int)
        Least and most documents of each.
    cut : bool
        Into several calls.
    pad : {"", "left", "anywhere"}
    short_end : bool
        The last document of a row has mostly one or two tokens.
    many : bool
        Sometimes nine to thirteen rows.
    """
    batch = []
    if many:
        rows = st.one_of(rows, rows, st.integers(9, 13))
    for _ in range(draw(rows)):
        count = draw(st.integers(*documents))
        chosen = [draw(st.integers(0, len(world.lengths) - 1)) for _ in range(count)]
        row = [(d, draw(sizes(world, d))) for d in chosen]
        if short_end and row and draw(st.integers(0, 3)):
            row[-1] = (row[-1][0], draw(st.integers(1, 2)))
        batch.append(tuple(row))
    bare = Layout(tuple(batch))
    pads = []
    for n in bare.lengths:
        if pad == "left":
            pads.append((0,) * draw(st.integers(0, 5)))
        elif pad:
            pads.append(tuple(sorted(draw(st.lists(st.integers(0, n), max_size=4)))))
        else:
            pads.append(())
    layout = replace(bare, pads=tuple(pads))
    return replace(layout, cuts=draw(cuts(layout.width))) if cut else layout


@st.composite
def cuts(draw, width: int) -> tuple[int, ...]:
    """Columns to cut at: every one to three, or anywhere, calls without columns included."""
    step = draw(st.sampled_from([0, 0, 1, 2, 3]))
    if step:
        # Bounded calls keep long texts cheap; the first call takes what is before them.
        first = draw(st.integers(0, max(width - 1, 0)))
        return tuple(range(first, width, step))[:16]
    return tuple(sorted(draw(st.lists(st.integers(0, width), min_size=1, max_size=6))))


@st.composite
def cases(
    draw,
    scope: Scope,
    *,
    rows: tuple[int, int] = (1, 1),
    long: bool = False,
    few: bool = False,
    **options,
) -> Case:
    """A world of the pool and a layout.

    Parameters
    ----------
    scope : Scope
    rows : (int, int)
        Least and most.
    long : bool
        One world in ten has a long text, also where every shape is compiled.
    few : bool
        As for :func:`pooled`.
    **options
        As for :func:`layouts`.
    """
    world = pooled(scope, few=few)
    drawn = draw(sometimes_long(scope, others=world) if long else world)
    return Case(drawn, draw(layouts(drawn, rows=row_counts(scope, *rows), **options)))
