"""Level 1, blocks: one residual block at a time, on inputs of every size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from griffin_conformance.alone import profile_of
from griffin_conformance.backends import Backend
from griffin_conformance.checks import check
from griffin_conformance.envelope import Comparison, Envelope
from griffin_conformance.oracle import Oracle
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
    at = np.arange(len(x))
    oracle = Oracle(flat, config)
    truth = np.array([oracle.block(case.block, row, t) for t, row in enumerate(x)])
    simulation = Simulation(profile, seed=case.seed)
    p = {name: array.astype(np.float64) for name, array in flat.items()}
    samples = np.repeat(x[None], simulation.S, axis=0)
    samples = simulation.block(case.block, samples, p, config, at, {})
    found = backend.block(config, flat, case.block, x, at)
    name = f"{config.block_types[case.block]} block {case.block}"
    return [Envelope.of(truth, samples, profile).compare(name, found)]


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
