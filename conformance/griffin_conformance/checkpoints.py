"""Level 4, checkpoint folders: every tensor in its place, every spelling read, damage refused."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from griffin_conformance import checkpoint_files as files
from griffin_conformance.alone import profile_of
from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.checkpoint_files import (
    FolderCase,
    Form,
    Spelling,
    StoredWorld,
    new_folder,
    stored,
)
from griffin_conformance.checks import Scope, Violation, check
from griffin_conformance.envelope import Comparison, Envelope
from griffin_conformance.loader_readings import misreading_of
from griffin_conformance.rounding import Profile
from griffin_conformance.strategies import adapted, configurations, pattern, seeds
from griffin_conformance.worlds import World
from griffin_np.config import GriffinConfig

__all__ = ["SHAPES", "SQUARE", "TOKENS", "small_worlds"]

TOKENS = 9
"""Of the text that is read from each checkpoint: more than most windows here."""


def small(letters: str, seed: int, **fields) -> World:
    """A world of one short text."""
    config = GriffinConfig(block_pattern=pattern(letters), **fields)
    return World(config, "ordinary", seed, (TOKENS,))


SQUARE = (
    small("RA", 31, width=10, depth=2, num_heads=2, num_kv_heads=2, vocab_size=11, lru_width=10,
          mlp_width=10, window=3, rope_base=500.0, norm_eps=1e-3),
    small("RRA", 32, width=12, depth=3, num_heads=1, vocab_size=13, mlp_width=12, window=2),
)  # fmt: skip
"""Models in which every pair of weights that could be mistaken for each other has one shape."""

SHAPES = (
    small("R", 33, width=5, depth=1, num_heads=1, vocab_size=7, mlp_width=4, window=1,
          conv_width=2, logits_soft_cap=0.0, norm_eps=1e-5),
    small("RRA", 34, width=24, depth=5, num_heads=3, vocab_size=17, lru_width=36, mlp_width=20,
          window=4, logits_soft_cap=5.0),
    small("ARR", 35, width=20, depth=4, num_heads=2, vocab_size=9, lru_width=14, mlp_width=9,
          window=3, rope_fraction=1.0, rope_base=1e6, scale_embeddings=False, conv_width=3),
)  # fmt: skip
"""Models in which hardly two weights have one shape."""

DEEP = tuple(
    small("RRA", 36, width=6, depth=depth, num_heads=1, vocab_size=8, mlp_width=3, window=3,
          rope_fraction=1 / 3)
    for depth in (26, 38)
)  # fmt: skip
"""As many blocks as the released models have, narrow ones."""


@st.composite
def small_worlds(draw, scope: Scope, pool: Sequence[World] = (*SQUARE, *SHAPES)) -> World:
    """Worlds of these pools and, where shapes are free, others."""
    if scope.only is not None:
        return adapted(replace(scope.only, weights="ordinary", lengths=(TOKENS,)), scope)
    world = draw(st.sampled_from(pool))
    if scope.fixed_shapes or draw(st.integers(0, 5)) < 5:
        world = replace(world, seed=world.seed + draw(st.sampled_from((0, 100))))
    else:
        world = World(draw(configurations()), "ordinary", draw(seeds), (TOKENS,))
    return adapted(world, scope)


# -- what a loader makes of a folder


def truth_of(case: FolderCase, profile: Profile) -> Envelope:
    """Logits of document 0 with the weights as they are stored."""
    return StoredWorld.of(case.world, case.form.dtype).history(profile, 0)["logits"]


def logits(backend: Backend, case: FolderCase) -> NDArray:
    """What the backend's loaded model says of document 0."""
    with new_folder() as folder:
        files.write_folder(folder, case, stored(case.world, profile_of(backend), case.form.dtype))
        found, _ = backend.load(folder)(case.world.tokens(0)[None])
        return np.asarray(found, np.float64)[0]


def compare(backend: Backend, case: FolderCase, diagnose: bool = True) -> Comparison:
    """The loaded model's logits against the truth.

    Raises
    ------
    Violation
        If the vocabulary is another, or the logits are those of a known misreading.
    """
    found, V = logits(backend, case), case.world.config.vocab_size
    if found.shape != (TOKENS, V):
        raise Violation(
            f"logits of {TOKENS} tokens have shape {found.shape}, expected {(TOKENS, V)}: the "
            f"vocabulary of config.json",
            clause="CKPT-9" if found.shape[-1] > V else "",
        )
    truth = truth_of(case, profile_of(backend))
    comparison = truth.compare("logits of the loaded model", found)
    if diagnose and not comparison.passed:
        mistake = misreading_of(case, profile_of(backend), found, truth)
        if mistake is not None:
            raise Violation(f"{comparison}\nas if {mistake.title}", clause=mistake.clause)
    return comparison


def is_right(backend: Backend, case: FolderCase) -> bool:
    """Whether a folder is read as it should be."""
    try:
        with np.errstate(all="ignore"):
            return compare(backend, case, diagnose=False).passed
    except Unsupported:
        raise
    except (Exception, SystemExit):  # a backend may raise anything
        return False


CLAUSES = {
    "pattern": "CKPT-6", "rotary": "CKPT-7", "scale": "CKPT-8", "lru_width": "CKPT-15",
    "head_dim": "CKPT-15", "kv_heads": "CKPT-15", "dtype_key": "CKPT-15", "decoys": "CKPT-15",
    "dtype": "CKPT-11", "shards": "CKPT-11", "metadata": "CKPT-11", "head": "CKPT-10",
    "more_rows": "CKPT-9",
}  # fmt: skip
"""The clause that a wrong reading of each choice violates."""


def hold(backend: Backend, case: FolderCase) -> Sequence[Comparison]:
    """Compare, and where it fails find the choice that would have to be another.

    Raises
    ------
    Violation
        With the clause of a known misreading, or of that choice.
    """
    raised: BaseException | None = None
    try:
        comparison = compare(backend, case)
        if comparison.passed:
            return [comparison]
        told, clause = str(comparison), ""
    except Unsupported:
        raise
    except Violation as violation:
        told, clause, raised = str(violation), violation.clause, violation
    except (Exception, SystemExit) as error:  # a backend may raise anything
        told, clause, raised = f"{type(error).__name__}: {error}", "", error
    for choice, value, other in case.otherwise() if not clause else ():
        if is_right(backend, other):
            told += f"\nand right where {choice} is {value!r}"
            raise Violation(told, clause=CLAUSES[choice]) from raised
    if not clause and takes_the_whole_width(backend, case):
        told, clause = f"{told}\nas if the MLP were intermediate_size wide", "CKPT-5"
    raise Violation(told, clause=clause) from raised


def takes_the_whole_width(backend: Backend, case: FolderCase) -> bool:
    """Whether a loader is content where ``intermediate_size`` is the MLP's width, not twice it."""
    config = case.world.config
    assert config.mlp_width is not None
    world = replace(case.world, config=config.replace(mlp_width=2 * config.mlp_width))
    flat = stored(world, profile_of(backend), "float32")
    with new_folder() as folder:
        files.write_folder(folder, replace(case, form=Form()), flat)
        try:
            backend.load(folder)
        except (Exception, SystemExit):
            return False
    return True


# -- the checks


def plain_cases(scope: Scope) -> st.SearchStrategy[FolderCase]:
    """Folders as the released 2B model's, with weights of one shape in most."""
    return small_worlds(scope, (*SQUARE, *SQUARE, *SHAPES)).map(FolderCase)


@check("L4", plain_cases, oracle=True, clauses=("CKPT-3", "CKPT-1", "CKPT-2", "CKPT-4", "CKPT-14"))
def every_tensor_has_its_place(backend: Backend, case: FolderCase) -> Sequence[Comparison]:
    """A loaded checkpoint gives the oracle's logits: no tensor is turned, exchanged or left out."""
    return hold(backend, case)


@st.composite
def spelled(draw, scope: Scope) -> FolderCase:
    """Any way to write a model's ``config.json``."""
    world = draw(small_worlds(scope))
    c = world.config
    released = c.block_pattern == pattern("RRA")
    usual = (c.rope_base, c.rope_fraction) == (10000.0, 0.5)
    as_wide = c.lru_width == c.width
    told = Spelling(
        pattern=draw(st.sampled_from(
            ["_block_types", "block_types", "both"] + ["left out"] * 2 * released)),
        rotary=draw(st.sampled_from(
            ["top level", "rope_parameters", "both"] + ["left out"] * usual)),
        scale=draw(st.sampled_from(["told"] + ["left out"] * c.scale_embeddings)),
        lru_width=draw(st.sampled_from(["told"] + ["null", "left out"] * as_wide)),
        head_dim=draw(st.sampled_from(["told", "left out"])),
        kv_heads=draw(st.sampled_from(["told"] + ["null"] * (c.num_kv_heads == c.num_heads))),
        dtype_key=draw(st.sampled_from(["torch_dtype", "dtype", "left out"])),
        decoys=draw(st.booleans()),
    )  # fmt: skip
    return FolderCase(world, told)


@check(
    "L4", spelled,
    strata=("pattern: block_types", "pattern: both", "pattern: left out", "scale: left out",
            "rotary: rope_parameters", "rotary: both", "kv_heads: null", "dtype_key: dtype"),
    clauses=("CKPT-5", "CKPT-6", "CKPT-7", "CKPT-8", "CKPT-15"),
)  # fmt: skip
def configurations_are_read(backend: Backend, case: FolderCase) -> Sequence[Comparison]:
    """Every way in which ``config.json`` is written comes to the same model."""
    return hold(backend, case)


@st.composite
def formed(draw, scope: Scope) -> FolderCase:
    """Any way to store a model's weights."""
    form = Form(
        dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])),
        shards=draw(st.sampled_from([0, 1, 2, 3])),
        head=draw(st.booleans()),
        metadata=draw(st.booleans()),
    )
    return FolderCase(draw(small_worlds(scope, (SQUARE[0], *SHAPES[::2]))), Spelling(), form)


@check(
    "L4", formed,
    strata=("dtype: float16", "dtype: bfloat16", "head", "shards: 1", "shards: 3"),
    clauses=("CKPT-11", "CKPT-10"),
)  # fmt: skip
def checkpoints_come_in_many_forms(backend: Backend, case: FolderCase) -> Sequence[Comparison]:
    """Weights of any dtype load from one file or many, with or without the tied head."""
    return hold(backend, case)


@st.composite
def with_more_rows(draw, scope: Scope) -> FolderCase:
    """An embedding with rows that no token has."""
    rows = draw(st.sampled_from([1, 5, 128]))
    form = Form(shards=draw(st.sampled_from([0, 2])), head=draw(st.booleans()), more_rows=rows)
    return FolderCase(draw(small_worlds(scope)), Spelling(), form)


@check("L4", with_more_rows, strata=("head",), weight=0.5, clauses=("CKPT-9",))
def larger_vocabularies_are_cut(backend: Backend, case: FolderCase) -> Sequence[Comparison]:
    """Rows of the embedding beyond ``vocab_size`` are dropped: there are no logits of them."""
    return hold(backend, case)


def deep_cases(scope: Scope) -> st.SearchStrategy[FolderCase]:
    """Models as deep as the released ones, and some that end elsewhere in the pattern."""
    others = () if scope.fixed_shapes else SHAPES[1:]
    return small_worlds(scope, (*DEEP, *DEEP, *others)).map(
        lambda world: FolderCase(world, Spelling(pattern="block_types"))
    )


@check("L4", deep_cases, weight=0.2, clauses=("BLOCK-3",))
def patterns_end_with_the_depth(backend: Backend, case: FolderCase) -> Sequence[Comparison]:
    """26 blocks are 18 recurrent and 8 of attention, 38 are 26 and 12; the last two recurrent."""
    return hold(backend, case)
