"""Vectors of blocks and models: small worlds, laid out in ways that implementations get wrong."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.envelope import Envelope
from griffin_conformance.layouts import Layout
from griffin_conformance.oracle import Oracle
from griffin_conformance.rounding import BFLOAT16, FLOAT32, PROFILES, Profile
from griffin_conformance.simulation import Simulation
from griffin_conformance.strategies import pattern
from griffin_conformance.vectors.files import Expectation, Vector
from griffin_conformance.vectors.truths import block_truth, greedy_truth, truth_of
from griffin_conformance.worlds import World
from griffin_np.config import GriffinConfig

__all__ = ["LARGE", "WORLDS", "Golden", "world_vectors"]

PAST_31_BITS = 2**31


@dataclass(frozen=True, repr=False)
class Golden(World):
    """A world of the vectors.

    Attributes
    ----------
    few_bits : bool
        Weights are values that bfloat16 can hold, so that one truth is every precision's.
    says : str
    """

    few_bits: bool = True
    says: str = ""

    def parameters(self, profile: Profile = FLOAT32) -> dict[str, NDArray]:
        return super().parameters(BFLOAT16 if self.few_bits else FLOAT32)

    @property
    def profiles(self) -> tuple[str, ...]:
        """Precisions that it is for."""
        return tuple(p for p in PROFILES if self.few_bits or p != BFLOAT16.name)


def _golden(letters: str, weights: str, seed: int, lengths, says: str, few_bits=True, **fields):
    config = GriffinConfig(block_pattern=pattern(letters), **fields)
    return Golden(config, weights, seed, lengths, few_bits, says)


WORLDS: dict[str, Golden] = {
    "griffin": _golden(
        "RRA", "ordinary", 12, (18, 9, 5), "the released pattern, cut off at depth 5",
        width=12, depth=5, num_heads=3, vocab_size=13, lru_width=18, mlp_width=10, window=4),
    "hawk": _golden(
        "R", "mixed", 45, (18, 7, 4),
        "recurrence alone, with decays from none to instant; no cap, embeddings not scaled",
        width=10, depth=2, num_heads=2, vocab_size=9, lru_width=6, mlp_width=7, window=4,
        conv_width=3, logits_soft_cap=0.0, scale_embeddings=False, norm_eps=1e-3),
    "local": _golden(
        "A", "ordinary", 3, (14, 8, 4),
        "attention alone: two key-value heads, whole heads turned with base 500, cap 5",
        width=24, depth=2, num_heads=4, num_kv_heads=2, vocab_size=12, mlp_width=10, window=3,
        rope_fraction=1.0, rope_base=500.0, logits_soft_cap=5.0),
    "edges": _golden(
        "ARR", "long", 4, (12, 6, 4),
        "window 1, convolution of width 1, nothing turned, odd width, a almost 1; float32 weights",
        few_bits=False, width=21, depth=3, num_heads=3, num_kv_heads=3, vocab_size=10,
        lru_width=12, mlp_width=8, window=1, conv_width=1, rope_fraction=0.0),
}  # fmt: skip
"""Worlds that the package ships."""

LARGE: dict[str, Golden] = {
    "wide": _golden(
        "RRA", "ordinary", 5, (72, 33, 5), "as griffin, larger, with a window of 16",
        width=96, depth=5, num_heads=3, vocab_size=61, lru_width=96, mlp_width=192, window=16),
    "deep": _golden(
        "RRA", "ordinary", 6, (40, 17, 4), "as griffin, 14 blocks deep",
        width=48, depth=14, num_heads=3, vocab_size=31, lru_width=60, mlp_width=96, window=9),
}  # fmt: skip
"""Worlds that are made on request."""


def layouts_of(world: Golden) -> dict[str, tuple[Layout, str, tuple[str, ...]]]:
    """Layouts by name, what each is, and the clauses that it tests."""
    n0, n1, _ = world.lengths
    W = world.config.window
    short = min(n1, W + 2)
    return {
        "whole": (
            Layout((((0, n0),),)),
            "a text in one call",
            ("CALL-11", "BLOCK-3", "BLOCK-4", "EMBED-2", "ATTN-1", "STATE-1", "STATE-2"),
        ),
        "chunked": (
            Layout((((0, n0),),), cuts=(1, 3, 6, 6, 6 + W, 7 + W)),
            "the same text in calls of 1, 2, 3, 0, W, 1 tokens, and the rest",
            ("CALL-1", "CONV-2", "CALL-2", "ATTN-7"),
        ),
        "packed": (
            Layout((((1, n1), (2, 3), (0, 4)),), cuts=(n1 + 5, n1 + 6)),
            "three documents in a row; the last has two tokens in the first call and goes on",
            ("DOC-2", "DOC-1", "DOC-3", "CONV-3", "CONV-4", "ATTN-6", "RGLRU-5", "RGLRU-6",
             "ROPE-5"),
        ),
        "short-documents": (
            Layout((((1, 2), (2, 1), (0, 1), (1, 1), (2, 3)),), cuts=(2, 3, 4, 5, 6)),
            "documents of one and two tokens, each beginning with a call of its own",
            ("DOC-1", "RGLRU-5", "CONV-4", "DOC-3"),
        ),
        "padded-left": (
            Layout(
                (((0, 3),), ((1, 4),), ((2, 4),), ((0, short + 2),)),
                pads=((0,) * (short - 1), (0,) * (short - 2), (0,) * (short - 3), ()),
                cuts=(short, short + 1),
            ),
            "four rows, of which three have 1, 2 and 3 tokens behind padding, then go on by two",
            ("PAD-1", "CONV-5", "BATCH-1", "PAD-3", "PAD-4"),
        ),
        "padded-anywhere": (
            Layout(
                (((1, n1),), (), ((2, 2), (1, 5)), ((0, W + 3),)),
                pads=((2, 2, 5, n1), (0, 0), (0, 1, 2, 4), (1, W + 1)),
                cuts=(3, 8),
            ),
            "padding inside documents, between them and behind them; one row is all padding",
            ("PAD-2", "ATTN-8", "ROPE-5", "PAD-3", "PAD-4", "BATCH-1", "STATE-3"),
        ),
    }  # fmt: skip


# -- what is allowed


def _allowed_state(world: Golden, history, name: str, n: int, start: int = 0) -> NDArray:
    """What is allowed for one row's array after n tokens of a document; 0 where nothing stands."""
    c, part = world.config, name.rsplit(".", 1)[1]
    allowed = history[name].allowed
    if part == "rg_lru":
        return np.array(allowed[n - 1] if n else 0.0)
    slots = c.conv_width - 1 if part == "conv" else c.window
    found = np.zeros(slots)
    times = np.arange(max(n - slots, 0), n)
    where = times + slots - n if part == "conv" else (start + times) % slots
    found[where] = allowed[times]
    return found


def _allowed(world: Golden, layout: Layout, truth, profile: Profile) -> dict[str, NDArray]:
    """Allowances for every array of a layout, from those of its documents run alone."""
    found = {}
    histories = [world.history(profile, d) for d in range(len(world.lengths))]
    for name in truth:
        if name == "position":
            continue
        if name.startswith("layers."):
            rows = []
            for row in layout.rows:
                d, n = row[-1] if row else (0, 0)
                rows.append(_allowed_state(world, histories[d], name, n))
            found[name] = np.array(rows)
            continue
        found[name] = np.zeros((len(layout.rows), layout.width))
        for i, row in enumerate(layout.rows):
            of_row = [histories[d][name].allowed[:n] for d, n in row]
            if of_row:
                found[name][i, layout.columns(i)] = np.concatenate(of_row)
    return found


def _expectations(
    world: Golden, truth: Mapping[str, NDArray], allowed: Callable[[Profile], Mapping]
) -> tuple[Expectation, ...]:
    of_profiles = [allowed(PROFILES[p]) for p in world.profiles]
    return tuple(
        Expectation(
            name, array, None if name == "position" else np.array([a[name] for a in of_profiles])
        )
        for name, array in truth.items()
    )


# -- the vectors


def world_vectors(name: str, world: Golden) -> list[Vector]:
    """All vectors of levels 1 to 3 of a world."""
    return [
        *_blocks(name, world),
        *_laid_out(name, world),
        *([_steps(name, world)] if len(set(world.config.block_types)) == 1 else []),
        *([_late(name, world)] if "attention" in world.config.block_types else []),
        *(
            [_greedy(name, world)]
            if "recurrent" in world.config.block_types and world.few_bits
            else []
        ),
    ]


def _vector(name: str, world: Golden, label: str, level: str, kind: str, says: str, clauses,
            inputs, expect, **about) -> Vector:  # fmt: skip
    return Vector(f"{name}/{label}", level, kind, says, clauses, inputs, expect, world.profiles,
                  {"world": name, **about})  # fmt: skip


def _blocks(name: str, world: Golden) -> list[Vector]:
    c, vectors = world.config, []
    for kind in sorted(set(c.block_types)):
        i = c.block_types.index(kind)
        for scale in (1.0, 1e-3, 1e4) if name in ("griffin", "local", "hawk") else (1.0,):
            rng = np.random.default_rng([world.seed, i])
            x = BFLOAT16.given(rng.standard_normal((2 * c.window + 3, c.width)) * scale)
            truth = block_truth(world.parameters(), c, i, x)
            allowed = []
            for p in world.profiles:
                simulation = Simulation(PROFILES[p], seed=world.seed)
                flat = {n: w.astype(np.float64) for n, w in world.parameters().items()}
                samples = np.repeat(x[None], simulation.S, axis=0)
                samples = simulation.block(i, samples, flat, c, np.arange(len(x)), {})
                allowed.append(Envelope.of(truth, samples, PROFILES[p]).allowed)
            clauses = {
                "recurrent": ("BLOCK-2", "BLOCK-1", "MLP-2", "BLOCK-5"),
                "attention": ("ATTN-9", "BLOCK-1", "MLP-2", "BLOCK-5"),
            }[kind]
            vectors.append(
                _vector(name, world, f"{kind}-block-{scale:g}", "L1", "block",
                        f"block {i}, {kind}, inputs of {scale:g}", clauses,
                        {"x": x.astype(np.float32)}, (Expectation("y", truth, np.array(allowed)),),
                        block=i)
            )  # fmt: skip
    return vectors


def _laid_out(name: str, world: Golden) -> list[Vector]:
    vectors = []
    for label, (layout, says, clauses) in layouts_of(world).items():
        tokens, positions = layout.arrays(world)
        cuts = [int(c) for c in sorted(layout.cuts) if c <= layout.width]
        truth = truth_of(world.parameters(), world.config, tokens, positions,
                         streams=label == "whole")  # fmt: skip
        expect = _expectations(world, truth, partial(_allowed, world, layout, truth))
        vectors.append(
            _vector(name, world, label, "L2", "model", says, clauses,
                    {"tokens": tokens, "positions": positions}, expect, cuts=cuts, start=0)
        )  # fmt: skip
    return vectors


def _steps(name: str, world: Golden) -> Vector:
    n = world.lengths[0]
    tokens, positions = world.tokens(0)[None], np.arange(n)[None]
    truth = truth_of(world.parameters(), world.config, tokens, positions, after_each=True)

    def allowed(profile: Profile) -> dict[str, NDArray]:
        history = world.history(profile, 0)
        return {
            key: history[key].allowed if key == "logits"
            else np.array([_allowed_state(world, history, key, t + 1) for t in range(n)])
            for key in truth if key != "position"
        }  # fmt: skip

    return _vector(
        name, world, "steps", "L3", "steps",
        "a text token by token, and every array of the state after each, through four windows",
        ("STATE-10", "STATE-1", "STATE-2", "STATE-3", "RGLRU-7", "ATTN-7", "CALL-2"),
        {"tokens": tokens, "positions": positions}, _expectations(world, truth, allowed),
    )  # fmt: skip


def _late(name: str, world: Golden) -> Vector:
    n = world.lengths[2]
    start = PAST_31_BITS - n
    tokens, positions = world.tokens(2)[None], start + np.arange(n)[None]
    truth = truth_of(world.parameters(), world.config, tokens, positions, start)

    def allowed(profile: Profile) -> dict[str, NDArray]:
        history = world.history(profile, 2, start)
        return {
            key: history[key].allowed[None] if key == "logits"
            else np.array([_allowed_state(world, history, key, n, start)])
            for key in truth if key != "position"
        }  # fmt: skip

    return _vector(
        name, world, "late", "L3", "model",
        "the last positions there are, from a state of zeros that stands at the first of them",
        ("STATE-9", "ROPE-4"), {"tokens": tokens, "positions": positions},
        _expectations(world, truth, allowed), cuts=[], start=start,
    )  # fmt: skip


PROMPTS, NEW = (1, 3, 6), 6
"""Seeds of the worlds that have prompts were chosen so that the text does not repeat one token."""


def _greedy(name: str, world: Golden) -> Vector:
    """Prompts of several lengths, padded on the right with -1, and the best tokens after them."""
    prompts = np.full((len(PROMPTS), max(PROMPTS)), -1)
    for i, n in enumerate(PROMPTS):
        prompts[i, :n] = world.tokens(1 if i == 1 else 0)[:n]
    tokens, margins, rows = greedy_truth(world.parameters(), world.config, prompts, NEW)
    allowed = np.zeros((len(world.profiles), *tokens.shape))
    for k, p in enumerate(world.profiles):
        for i, (text, n) in enumerate(zip(rows, PROMPTS, strict=True)):
            simulation = Simulation(PROFILES[p], seed=world.seed)
            at = np.arange(len(text))
            truth = Oracle(world.parameters(), world.config).read(text, at)
            samples = simulation.run(world.parameters(), world.config, text, at)["logits"]
            envelope = Envelope.of(truth, samples, PROFILES[p])
            # Both of the best two may move by what is allowed for the whole position.
            allowed[k, i] = 2 * envelope.allowed[n - 1 :]
    expect = (Expectation("tokens", tokens), Expectation("margin", margins, allowed))
    return _vector(
        name, world, "greedy", "L3", "greedy",
        "prompts of several lengths and the best tokens after them; those with a margin above "
        "what is allowed must agree",
        ("GEN-2", "GEN-1"), {"prompts": prompts}, expect,
    )  # fmt: skip
