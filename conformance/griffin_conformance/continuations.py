"""The truth about texts that a model has written, and about where they should have ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.envelope import Envelope
from griffin_conformance.quantisation import oracle_of
from griffin_conformance.rounding import FLOAT32, Profile
from griffin_conformance.worlds import World

__all__ = ["Restless", "Written", "greedy", "judge"]


@dataclass(frozen=True)
class Written(World):
    """Another world's model whose one document is a given text."""

    source: World | None = None
    text: tuple[int, ...] = ()

    @classmethod
    def of(cls, world: World, text: Sequence[int]) -> "Written":
        """The world's model with that text."""
        return cls(world.config, world.weights, world.seed, (len(text),), world, tuple(text))

    def tokens(self, document: int) -> NDArray:
        """The text, (T,)."""
        return np.array(self.text)

    def parameters(self, profile: Profile = FLOAT32) -> dict[str, NDArray]:
        """The model's weights by flat name, float32."""
        assert self.source is not None
        return self.source.parameters(profile)


@dataclass(frozen=True)
class Restless(World):
    """A world whose blocks outweigh the token that they are given.

    Elsewhere a model of random weights mostly repeats that token, because its head is its
    embedding; and then rows end at once or never.
    """

    def __repr__(self) -> str:
        return super().__repr__().replace("World", "Restless", 1)

    @classmethod
    def of(cls, world: World) -> "Restless":
        """The same world, restless."""
        return cls(world.config, world.weights, world.seed, world.lengths)

    def parameters(self, profile: Profile = FLOAT32) -> dict[str, NDArray]:
        """Weights by flat name, float32; what is multiplied stays a number of the profile."""
        out = ("linear_out.weight", "output.weight", "down.weight")
        flat = super().parameters(profile)
        return {n: 32 * array if n.endswith(out) else array for n, array in flat.items()}


@lru_cache(maxsize=512)
def greedy(
    world: World, prompt: tuple[int, ...], count: int, profile: Profile = FLOAT32
) -> tuple[int, ...]:
    """What greedy choice continues a prompt with, by the oracle: ``count`` tokens."""
    oracle = oracle_of(profile, world.config, world.parameters(profile))
    row, found = oracle.read(prompt, range(len(prompt)))[-1], []
    for t in range(len(prompt), len(prompt) + count):
        found.append(int(row.argmax()))
        (row,) = oracle.read(found[-1:], [t])
    return tuple(found)


def judge(
    world: World, profile: Profile, prompt: Sequence[int], row: Sequence[int], ends: set[int],
    most: int,
) -> tuple[int | None, int | None]:  # fmt: skip
    """Where a row goes on after its end, and where it ends without one.

    Parameters
    ----------
    world, profile
        The model, and the precision that a backend is held to.
    prompt, row : sequence of int
        What was given and what came back; the end itself may be the last of it or left out.
    ends : set of int
        Tokens that end a text.
    most : int
        Tokens that were asked for.

    Returns
    -------
    late : int or None
        The first token that is an end and not the last, or that stands where an end belongs.
    early : int or None
        Its length, if the row stops where another token belongs.
    """
    expected = list(greedy(world, tuple(prompt), most, profile))
    end = next((t for t, token in enumerate(expected) if token in ends), most)
    if list(row) in (expected[:end], expected[: end + 1]):
        return None, None
    for t, token in enumerate(row[:-1]):
        if token in ends:
            return t, None
    if row and row[-1] in ends:
        return None, None
    # After the last token nothing more is known of a row that has all that were asked for.
    text = [*prompt, *row] if len(row) < most else [*prompt, *row[:-1]]
    envelope: Envelope = Written.of(world, text).history(profile, 0)["logits"]
    envelope = envelope.rows(slice(len(prompt) - 1, None))
    clear, best = envelope.argmax_is_clear(), envelope.truth.argmax(-1)
    for t, token in enumerate(row):
        if clear[t] and best[t] in ends and token != best[t]:
            return t, None
    if len(row) < most and clear[len(row)] and best[len(row)] not in ends:
        return None, len(row)
    return None, None
