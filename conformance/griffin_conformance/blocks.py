"""Level 1, blocks: one residual block at a time, on inputs of every size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from griffin_conformance.alone import profile_of
from griffin_conformance.backends import Backend
from griffin_conformance.checks import check
from griffin_conformance.envelope import Comparison, Envelope
from griffin_conformance.oracle import Oracle
from griffin_conformance.rounding import Profile
from griffin_conformance.simulation import Simulation
from griffin_conformance.strategies import sometimes_long
from griffin_conformance.worlds import World

__all__ = ["BlockCase"]


@dataclass(frozen=True)
class BlockCase:
    """A block of a world's model, and the size of what goes into it."""

    world: World
    block: int = 0
    scale: float = 1.0
    seed: int = 0

    def inputs(self) -> np.ndarray:
        """Residual stream (T, D) before the block."""
        rng = np.random.default_rng(self.seed)
        shape = (self.world.lengths[0], self.world.config.width)
        return rng.standard_normal(shape) * self.scale

    def strata(self) -> set[str]:
        """What is special about this case, by name."""
        config = self.world.config
        found = {config.block_types[self.block], f"inputs of {self.scale:g}"}
        if self.world.lengths[0] > config.window + 1:
            found.add("crosses the window")
        if self.world.lengths[0] > 256:
            found.add("more than 256 tokens")
        return found


@st.composite
def block_cases(draw, scope, letter: str) -> BlockCase:
    kind = {"R": "recurrent", "A": "attention"}[letter]
    world = draw(sometimes_long(scope, kind))
    i = draw(st.sampled_from([i for i, k in enumerate(world.config.block_types) if k == kind]))
    scale = draw(st.sampled_from([1.0, 1e-3, 1e4]))
    return BlockCase(world, i, scale, draw(st.integers(0, 999)))


SIZES = tuple(f"inputs of {scale:g}" for scale in (1.0, 1e-3, 1e4))


def holds(backend: Backend, case: BlockCase) -> Sequence[Comparison]:
    """Compare a block's output."""
    profile, config = profile_of(backend), case.world.config
    flat, x = case.world.parameters(profile), profile.given(case.inputs())
    envelope = replace(_envelope(case, profile), truth=block_truth(case, profile))
    found = backend.block(config, flat, case.block, x, np.arange(len(x)))
    return [envelope.compare(f"{config.block_types[case.block]} block {case.block}", found)]


def block_truth(case: BlockCase, profile: Profile) -> NDArray:
    """The oracle's output (T, D)."""
    oracle = Oracle(case.world.parameters(profile), case.world.config)
    x = profile.given(case.inputs())
    return np.array([oracle.block(case.block, row, t) for t, row in enumerate(x)])


@lru_cache(maxsize=512)
def _envelope(case: BlockCase, profile: Profile) -> Envelope:
    config, x = case.world.config, profile.given(case.inputs())
    simulation = Simulation(profile, seed=case.seed)
    flat = case.world.parameters(profile)
    p = {name: array.astype(np.float64) for name, array in flat.items()}
    samples = np.repeat(x[None], simulation.S, axis=0)
    samples = simulation.block(case.block, samples, p, config, np.arange(len(x)), {})
    return Envelope.of(block_truth(case, profile), samples, profile)


@check(
    "L1",
    lambda scope: block_cases(scope, "R"),
    strata=(*SIZES, "more than 256 tokens"),
    clauses=("BLOCK-2", "BLOCK-1", "MLP-2", "BLOCK-5"),
)
def recurrent_blocks(backend: Backend, case: BlockCase) -> Sequence[Comparison]:
    """A residual block with the recurrence gives the oracle's output."""
    return holds(backend, case)


@check(
    "L1",
    lambda scope: block_cases(scope, "A"),
    strata=(*SIZES, "crosses the window", "more than 256 tokens"),
    clauses=("ATTN-9", "BLOCK-1", "MLP-2", "BLOCK-5"),
)
def attention_blocks(backend: Backend, case: BlockCase) -> Sequence[Comparison]:
    """A residual block with local attention gives the oracle's output, also beyond a window."""
    return holds(backend, case)
