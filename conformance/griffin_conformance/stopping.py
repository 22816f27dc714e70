"""Level 3, where generation ends: every row at its own end, and a model's turn at its marker.

What a row should do after each of its own tokens is the oracle's to say, and only where rounding
cannot change it. So rows are judged alone, whatever other rows of the batch do.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from griffin_conformance import checkpoint_files as files
from griffin_conformance.alone import profile_of
from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.checkpoint_files import FolderCase, new_folder
from griffin_conformance.checks import Scope, Violation, check
from griffin_conformance.continuations import Restless, greedy, judge
from griffin_conformance.envelope import Comparison
from griffin_conformance.rounding import FLOAT32, Profile
from griffin_conformance.strategies import FEW, adapted, pattern, pooled
from griffin_conformance.tokenizers import BOS, EOS, pieces, write_vocabulary
from griffin_np.config import GriffinConfig

__all__ = ["EndCase", "TurnCase"]


# -- rows of a batch


@dataclass(frozen=True)
class EndCase:
    """A batch of prompts and a token that is to end their continuations.

    Attributes
    ----------
    world : Restless
    prompts : tuple of (int, int)
        For each row a document, and how many of its tokens are the prompt.
    end : int
        The configuration's ``eos_id``.
    most : int
        Tokens asked for.
    """

    world: Restless
    prompts: tuple[tuple[int, int], ...]
    end: int
    most: int

    @property
    def texts(self) -> list[list[int]]:
        """Token ids of each prompt."""
        return [self.world.tokens(d)[:n].tolist() for d, n in self.prompts]

    def strata(self) -> set[str]:
        """How the rows should end, by the oracle."""
        rows = [greedy(self.world, tuple(text), self.most) for text in self.texts]
        ends = [row.index(self.end) if self.end in row else None for row in rows]
        seen = [e for e in ends if e is not None]
        found = {
            APART: len(set(seen)) > 1,
            UNENDING: bool(seen) and None in ends,
            "a row ends at once": 0 in ends,
            "the end is in a prompt": any(self.end in text for text in self.texts),
            "several rows": len(rows) > 1,
        }
        return {name for name, holds in found.items() if holds}


def cases_of(world: Restless, prompts: tuple[tuple[int, int], ...], most: int) -> list[EndCase]:
    """The batch with each end that one of its greedy continuations has."""
    case = EndCase(world, prompts, 0, most)
    chosen = [greedy(world, tuple(text), most) for text in case.texts]
    # Padding fills rows up in some implementations, and would not be seen to come after an end.
    pad = world.config.pad_id
    drawn = sorted({token for row in chosen for token in row} - {pad})
    ends = drawn or [t for t in range(world.config.vocab_size) if t != pad][:1]
    return [replace(case, end=end) for end in ends]


APART, UNENDING = "rows end at different times", "a row never ends"


@lru_cache(maxsize=16)
def fixed_cases(scope: Scope) -> list[EndCase]:
    """Few cases, for a backend that compiles every shape and every end anew."""
    found: list[EndCase] = []
    for world in FEW:
        for seed in range(50):
            drawn = Restless.of(adapted(replace(world, seed=seed), scope))
            cases = cases_of(drawn, ((0, 1), (1, 3), (2, 5)), 6)
            telling = [c for c in cases if {APART, UNENDING} <= c.strata()]
            if telling:
                found.append(telling[0])
                break
    return found


@st.composite
def ending(draw, scope: Scope) -> EndCase:
    """Prompts, and an end that some of their greedy continuations have."""
    if scope.fixed_shapes and scope.only is None:
        return draw(st.sampled_from(fixed_cases(scope)))
    world = Restless.of(draw(pooled(scope)))
    rows = draw(st.integers(2, 5)) if draw(st.integers(0, 5)) else 1
    prompts = tuple(
        (d, min(n, world.lengths[d]))
        for d, n in (
            (draw(st.integers(0, 2)), draw(st.integers(1, 6))) for _ in range(rows)
        )
    )  # fmt: skip
    most = draw(st.one_of(st.integers(2, 7), st.just(7)))
    cases = cases_of(world, prompts, most)
    telling = [case for case in cases if APART in case.strata()]
    return draw(st.sampled_from(telling if telling and draw(st.integers(0, 4)) else cases))


@check(
    "L3", ending,
    strata=(APART, UNENDING, "several rows"),
    clauses=("GEN-4", "GEN-5"),
)  # fmt: skip
def rows_stop_by_themselves(backend: Backend, case: EndCase) -> Sequence[Comparison]:
    """Each row ends at its own end and goes on if others end; nothing after it comes back."""
    config = case.world.config.replace(eos_id=case.end)
    model = backend.model(config, case.world.parameters(profile_of(backend)))
    if not hasattr(model, "generate"):
        raise Unsupported("its model has no generate")
    found = model.generate(case.texts, max_tokens=case.most, temperature=0)
    rows = [list(map(int, generation.tokens)) for generation in found]
    if len(rows) != len(case.texts):
        raise Violation(f"{len(case.texts)} prompts have {len(rows)} continuations")
    verdicts = []
    for i, (text, row) in enumerate(zip(case.texts, rows, strict=True)):
        if len(row) > case.most:
            raise Violation(
                f"row {i} has {len(row)} new tokens, at most {case.most} were asked for"
            )
        verdicts.append(judge(case.world, profile_of(backend), text, row, {case.end}, case.most))
    for i, (_, early) in enumerate(verdicts):
        if early is not None:
            raise Violation(
                f"row {i} has stopped after {early} token(s), {rows[i]}, though {case.end}, which "
                f"ends a row, is not its next token",
                clause="GEN-4",
            )
    for i, (late, _) in enumerate(verdicts):
        if late is not None:
            # If all rows are as long as can be, they may have been cut off only at the very end.
            endless = all(len(row) == case.most for row in rows)
            raise Violation(
                f"row {i} has ended at its token {late}, {case.end}, and what comes back is "
                f"{rows[i]}",
                clause="" if endless else "GEN-5",
            )
    return []


# -- turns


PROMPT = (BOS, *pieces().encode("<start_of_turn>model\n"))
MARKER = pieces().piece_to_id("<end_of_turn>")
ANSWER = 8
"""Tokens that are asked for."""

TALKER = GriffinConfig(
    width=8, depth=2, num_heads=1, vocab_size=pieces().vocab_size(), mlp_width=8, window=4,
    block_pattern=pattern("RA"),
)  # fmt: skip
SEEDS = (1, 2, 4)
"""Of weights with which no token of the first four of a turn comes twice."""


@dataclass(frozen=True)
class Talker(Restless):
    """A model whose greedy continuation of :data:`PROMPT` is the marker after some tokens.

    Attributes
    ----------
    turn : int
        How many; -1 for a model that has nothing done to it.
    """

    turn: int = -1

    def parameters(self, profile: Profile = FLOAT32) -> dict[str, NDArray]:
        """Weights by flat name, float32."""
        flat = super().parameters(profile)
        if self.turn >= 0:
            # Tokens are numbered anew, so that the one that comes then has the marker's number.
            last = greedy(replace(self, turn=-1), PROMPT, self.turn + 1)[-1]
            rows = np.arange(self.config.vocab_size)
            rows[[last, MARKER]] = MARKER, last
            flat["embedding"] = flat["embedding"][rows]
        return flat


@dataclass(frozen=True)
class TurnCase:
    """A model that ends its turn by itself.

    Attributes
    ----------
    seed : int
        Of its weights.
    turn : int
        Tokens of its turn, before the marker.
    listed : bool
        Whether ``generation_config.json`` lists the marker among the ends; the released models'
        does not.
    """

    seed: int
    turn: int
    listed: bool = False

    @property
    def talker(self) -> Talker:
        """Its model."""
        return Talker(TALKER, "ordinary", self.seed, (len(PROMPT),), self.turn)

    def strata(self) -> set[str]:
        """Where the marker is an end."""
        return {"the marker is listed" if self.listed else "the marker is in the vocabulary alone"}


def turns(scope: Scope) -> st.SearchStrategy[TurnCase]:
    """A few models, so that an example costs little."""
    return st.builds(TurnCase, st.sampled_from(SEEDS), st.integers(0, 3), st.booleans())


@check(
    "L3", turns, weight=0.3,
    strata=("the marker is listed", "the marker is in the vocabulary alone"),
    clauses=("GEN-6",),
)  # fmt: skip
def turns_end(backend: Backend, case: TurnCase) -> Sequence[Comparison]:
    """A model whose vocabulary has turns ends at ``<end_of_turn>``, listed as an end or not."""
    world, profile = case.talker, profile_of(backend)
    with new_folder() as folder:
        files.write_folder(folder, FolderCase(world), world.parameters(profile))
        write_vocabulary(folder)
        ends = [EOS, MARKER] if case.listed else EOS
        settings = {"bos_token_id": BOS, "eos_token_id": ends, "pad_token_id": 0}
        (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
        model = backend.load(folder)
        if not hasattr(model, "generate"):
            raise Unsupported("its model has no generate")
        (found,) = model.generate([list(PROMPT)], max_tokens=ANSWER, temperature=0)
    row = list(map(int, found.tokens))
    late, early = judge(world, profile, PROMPT, row, {EOS, MARKER}, ANSWER)
    if late is not None:
        raise Violation(f"the turn ends after {late} token(s), and what comes back is {row}")
    if early is not None:
        raise Violation(f"the turn does not end after {early} token(s): {row}", clause="GEN-4")
    return []
