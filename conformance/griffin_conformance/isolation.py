"""In which part of a model a law is broken: the same law on models that have one part alone."""

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis.errors import Unsatisfiable

from griffin_conformance.worlds import World
from griffin_np.config import ATTENTION, RECURRENT, GriffinConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from griffin_conformance.checks import Scope

__all__ = ["PROBES", "broken_parts"]


def _probe(kind: str, weights: str, **fields) -> World:
    config = GriffinConfig(
        width=10, depth=1, num_heads=2, vocab_size=11, lru_width=10, mlp_width=7, window=4,
        block_pattern=(kind,), **fields,
    )  # fmt: skip
    return World(config, weights, 21, (21, 9, 7))


PROBES: dict[str, World] = {
    "attention": _probe(ATTENTION, "ordinary"),
    "recurrence": _probe(RECURRENT, "ordinary", conv_width=1),
    "convolution": _probe(RECURRENT, "instant", conv_width=4),
}
"""Models with a memory of one kind: keys and values; h, without a convolution; and a convolution,
with a recurrence that forgets at every step."""


def isolates(part: str, config: GriffinConfig) -> bool:
    """Whether a configuration, as a backend has adapted it, has no memory of another kind."""
    kinds = set(config.block_types)
    if part == "attention":
        return kinds == {ATTENTION}
    return kinds == {RECURRENT} and (config.conv_width == 1) == (part == "recurrence")


def broken_parts(scope: "Scope", fails: "Callable[[Scope], bool]") -> set[str]:
    """Parts whose own model breaks a law.

    Parameters
    ----------
    scope : Scope
    fails : callable
        Whether an example drawn within a scope fails.
    """
    found = set()
    for part, world in PROBES.items():
        if not isolates(part, scope.adapt(world.config)):
            continue
        with contextlib.suppress(Unsatisfiable):
            if fails(replace(scope, only=world)):
                found.add(part)
    return found
