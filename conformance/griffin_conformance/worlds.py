"""A world: a model and a few documents, with the truth about them and how far off is right.

Laws cut, pack, pad and interleave documents in every way, but a document's results are the same in
all of them. So truth and envelope are computed once for a world, and an example costs no more than
the backend's own time.
"""

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from griffin_conformance.checks import Violation
from griffin_conformance.envelope import Comparison, Envelope, norms
from griffin_conformance.quantisation import (
    QuantisedProfile,
    oracle_of,
    simulation_of,
    weights_of,
)
from griffin_conformance.rounding import FLOAT32, Profile
from griffin_np.config import GriffinConfig
from griffin_np.params import parameter_shapes

__all__ = ["LAMBDAS", "WEIGHTS", "World", "draw_parameters"]

LAMBDAS = (-30.0, -17.0, -12.0, -6.9, -2.2, 0.0, 5.0, 30.0)
"""Values of ``a_param`` from no forgetting at all to instant forgetting."""

WEIGHTS = {
    "ordinary": "decays as trained models have them, everything of order one",
    "long": "decays of a_param -30 to -12: a is 1 to rounding, or nearly",
    "short": "decays of a_param 0 to 30: a is 0, or nearly",
    "mixed": "every decay from -30 to 30 among the channels of a layer",
    "saturated": "gates at 0 and 1 to rounding",
    "held": "recurrence gates at exactly 0: a is 1, and the state must not move at all",
    "tiny": "activations of 1e-3, where RMSNorm's epsilon matters",
    "huge": "activations of 1e4",
    "sharp": "attention that looks at single tokens",
    "loud": "logits far beyond the soft cap",
}
"""Ways of drawing weights, by name."""


@dataclass(frozen=True)
class World:
    """A model and its documents, told by a few numbers: the ``repr`` makes it again.

    Attributes
    ----------
    config : GriffinConfig
    weights : str
        One of :data:`WEIGHTS`.
    seed : int
        Of weights and documents.
    lengths : tuple of int
        Tokens of each document.
    """

    config: GriffinConfig
    weights: str = "ordinary"
    seed: int = 0
    lengths: tuple[int, ...] = (12, 7, 4)

    def __repr__(self) -> str:
        defaults = {f.name: f.default for f in fields(GriffinConfig)}
        defaults |= {"lru_width": self.config.width, "mlp_width": 3 * self.config.width}
        told = {
            name: value
            for name, value in vars(self.config).items()
            if value != defaults.get(name)
        }  # fmt: skip
        config = ", ".join(f"{name}={value!r}" for name, value in told.items())
        return (
            f"World(GriffinConfig({config}), "
            f"{self.weights!r}, seed={self.seed}, lengths={self.lengths})"
        )

    def parameters(self, profile: Profile = FLOAT32) -> dict[str, NDArray]:
        """Weights by flat name, float32: values that a model of this precision has exactly."""
        flat = draw_parameters(self.config, self.weights, self.seed)
        return {name: profile.given(array).astype(np.float32) for name, array in flat.items()}

    def tokens(self, document: int) -> NDArray:
        """Token ids (T,) of a document."""
        rng = np.random.default_rng([self.seed, document])
        return rng.integers(0, self.config.vocab_size, self.lengths[document])

    def history(self, profile: Profile, document: int, start: int = 0) -> dict[str, Envelope]:
        """Truth and allowance at each token of a document.

        ``embedding``, ``blocks.i.residual``, ``final_norm``, ``logits``, and what enters the state
        by the state's names. With ``start`` the document begins at that position, after a state of
        zeros.
        """
        return _history(self, profile, document, start)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every array of one row's state, by name."""
        c = self.config
        assert c.lru_width is not None
        ring = (c.window, c.num_kv_heads, c.width // c.num_heads)
        shapes: dict[str, tuple[int, ...]] = {}
        for i, kind in enumerate(c.block_types):
            if kind == "recurrent":
                shapes[f"layers.{i}.conv"] = (c.conv_width - 1, c.lru_width)
                shapes[f"layers.{i}.rg_lru"] = (c.lru_width,)
            else:
                shapes[f"layers.{i}.keys"] = shapes[f"layers.{i}.values"] = ring
        return shapes

    def logits_of(self, tokens: ArrayLike, profile: Profile) -> Envelope:
        """Logits of a text (T,) that is none of the world's own."""
        flat, config, text = self.parameters(profile), self.config, np.asarray(tokens)
        at = np.arange(len(text))
        truth = oracle_of(profile, config, flat).read(text, at)
        held = weights_of(profile, config, flat)
        samples = simulation_of(profile, config, self.seed).run(held, config, text, at)
        return Envelope.of(truth, samples["logits"], profile)

    def compare_state(
        self, profile: Profile, arrays: dict[str, NDArray], document: int, tokens: int,
        expected: dict[str, NDArray] | None = None, start: int = 0, padded: bool = False,
    ) -> list[Comparison]:  # fmt: skip
        """Hold one row's state after some tokens of a document against the truth.

        Parameters
        ----------
        profile : Profile
        arrays : dict
            By the names of ``State.arrays()``, without the batch axis.
        document, tokens : int
        expected : dict, optional
            Another state that it should equal, in place of the truth.
        start : int
            As in :meth:`history`.
        padded : bool
            Whether the row has padding, which then is what may have entered the convolution.

        Returns
        -------
        list of Comparison
            One per array, and one that fails for each array with non-zero entries outside the
            document.

        Raises
        ------
        Violation
            If an array is missing, unknown or misshapen.
        """
        history, c = self.history(profile, document, start), self.config
        wanted, found = self.state_shapes(), {n: np.shape(a) for n, a in arrays.items()}
        if found != wanted:
            wrong = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))[0]
            raise Violation(
                f"{wrong} of the state has shape {found.get(wrong)}, expected {wanted.get(wrong)}",
                "STATE-1",
            )
        results = []
        for name, array in arrays.items():
            array = np.asarray(array, np.float64)
            part = name.rsplit(".", 1)[1]
            if part == "rg_lru":
                array = array[None]
                where, times = np.array([0]), np.array([tokens - 1])
            else:
                slots = c.conv_width - 1 if part == "conv" else c.window
                times = np.arange(max(tokens - slots, 0), tokens)
                where = times + slots - tokens if part == "conv" else (start + times) % slots
            entries, rest = array[where], np.delete(array, where, axis=0)
            label = f"{name} after {tokens} tokens of document {document}"
            envelope = history[name].rows(times)
            if expected is None:
                result = envelope.compare(label, entries)
            else:
                other = np.asarray(expected[name], np.float64).reshape(array.shape)
                result = envelope.between(label, entries, other[where])
            in_ring = part in ("keys", "values")
            if in_ring and not result.passed and holds_others(history[name], entries, times):
                result = replace(result, name=f"{label}, in a ring that turned", clause="ATTN-7")
            if rest.any():
                clause = result.clause or (
                    "STATE-2" if in_ring else "CONV-5" if padded else "CONV-4"
                )
                outside = Comparison(f"{name} outside the document", np.inf, 0, clause=clause)
                results.append(outside)
            results.append(result)
        return results


def holds_others(history: Envelope, entries: NDArray, times: NDArray) -> bool:
    """Whether what is wrong in a ring is that slots are empty or hold other positions' entries.

    Parameters
    ----------
    history : Envelope
        Of a document's keys or values, at all of its positions.
    entries : array of shape (n, ...)
        What the slots of some positions hold.
    times : array of shape (n,)
        These positions.
    """
    entries = entries.reshape(len(times), history.truth.shape[1])
    with np.errstate(invalid="ignore"):
        right = norms(entries - history.truth[times]) <= history.allowed[times]
        wrong = entries[~right]
        other = norms(wrong[:, None] - history.truth) <= history.allowed
    others, empty = other.any(axis=1), ~wrong.any(axis=1)
    return bool(others.any() and (others | empty).all())


@lru_cache(maxsize=512)
def _truth(world: World, profile: Profile, document: int, start: int) -> dict[str, NDArray]:
    oracle = oracle_of(profile, world.config, world.parameters(profile), start)
    T = world.lengths[document]
    truth = {"logits": oracle.read(world.tokens(document), range(start, start + T))}
    streams = [np.array(stream) for stream in zip(*oracle.streams, strict=True)]
    truth["embedding"], truth["final_norm"] = streams[0], streams[-1]
    for i, past in enumerate(oracle.documents):
        truth[f"blocks.{i}.residual"] = streams[i + 1]
        if past.h:
            truth[f"layers.{i}.conv"] = np.array(past.conv_inputs[-T:])
            truth[f"layers.{i}.rg_lru"] = np.array(past.h[-T:])
        if past.values:
            truth[f"layers.{i}.keys"] = np.array(past.keys[-T:])
            truth[f"layers.{i}.values"] = np.array(past.values[-T:])
    return truth


def truth_profile(profile: Profile) -> Profile:
    """The precision that decides what the truth is about.

    All backends but those of fewer bits are given float32 numbers, so their truth is one.
    """
    fewer = isinstance(profile, QuantisedProfile) or profile.activations < FLOAT32.activations
    return profile if fewer else FLOAT32


@lru_cache(maxsize=512)
def _history(world: World, profile: Profile, document: int, start: int) -> dict[str, Envelope]:
    truth = _truth(world, truth_profile(profile), document, start)
    simulation = simulation_of(profile, world.config, world.seed + document)
    at = np.arange(start, start + world.lengths[document])
    flat = weights_of(profile, world.config, world.parameters(profile))
    samples = simulation.run(flat, world.config, world.tokens(document), at)
    units = {name: profile.state_unit for name in samples if name.endswith("rg_lru")}
    return {
        name: Envelope.of(truth[name], samples[name], profile, units.get(name), simulation.cancels)
        for name in samples
    }  # fmt: skip


def draw_parameters(config: GriffinConfig, weights: str, seed: int) -> dict[str, NDArray]:
    """Weights that leave no part idle: biases, norm scales and the convolution are all non-zero.

    No two arrays agree, and none is symmetric, so that swapped or transposed weights show.

    Returns
    -------
    dict of str to float32 array
        By flat name.
    """
    rng = np.random.default_rng(seed)
    flat = {}
    for name, shape in parameter_shapes(config).items():
        value = rng.standard_normal(shape)
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "a_param":
            value = _decays(rng, weights, shape)
        elif "conv.weight" in name:
            value *= 0.5
        elif name == "embedding" or leaf in ("weight", "w_a", "w_x"):
            value /= np.sqrt(shape[-1] if name == "embedding" else shape[-2])
        else:
            value *= 0.1
        flat[name] = _styled(rng, weights, name, leaf, value).astype(np.float32)
    return flat


def _decays(rng: np.random.Generator, weights: str, shape: tuple[int, ...]) -> NDArray:
    choices = {"long": LAMBDAS[:3], "short": LAMBDAS[5:], "mixed": LAMBDAS}
    if weights == "instant":  # for isolation.py: a is exactly 0, and nothing is remembered
        return np.full(shape, 30.0)
    if weights in choices:
        return rng.choice(choices[weights], shape)
    return rng.uniform(-7, -1, shape)


def _styled(
    rng: np.random.Generator, weights: str, name: str, leaf: str, value: NDArray
) -> NDArray:
    if weights == "saturated" and leaf in ("b_a", "b_x"):
        return value + rng.choice([-200.0, -60.0, -12.0, 12.0, 60.0, 200.0], value.shape)
    if weights == "instant" and leaf == "b_a":
        return np.full_like(value, 20.0)
    if weights == "held" and leaf == "b_a":
        return np.full_like(value, -200.0)
    if weights == "tiny" and name == "embedding":
        return value * 2e-4
    if weights == "huge" and name == "embedding":
        return value * 1e4
    if weights == "sharp" and name.split(".")[-2:-1] and name.split(".")[-2] in ("query", "key"):
        return value * 10
    if weights == "loud" and name == "final_norm":
        return value + 20
    return value
