"""Level 5, the weights of quantised models: what is rounded, and how; and models to try it on.

Weights that a model holds are held to the ones that it was given. What is computed with them is in
:mod:`griffin_conformance.quantised`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.checks import Scope, Violation, check
from griffin_conformance.envelope import Comparison
from griffin_conformance.quantisation import QuantisedProfile, SymmetricWeights
from griffin_conformance.strategies import adapted, pattern
from griffin_conformance.worlds import World
from griffin_np.config import GriffinConfig

__all__ = ["SIZES", "WORLDS", "MatrixCase", "held_to", "held_weights", "is_quantised", "matrices",
           "quantised_worlds"]  # fmt: skip


def _world(letters: str, weights: str, seed: int, **fields) -> World:
    config = GriffinConfig(block_pattern=pattern(letters), depth=len(letters), **fields)
    W = config.window
    return World(config, weights, seed, (2 * W + 5, W + 4, 7))


WORLDS: tuple[World, ...] = (
    _world("R", "ordinary", 51, width=7, num_heads=1, vocab_size=7, lru_width=5, mlp_width=3,
           window=1),
    _world("R", "tiny", 52, width=70, num_heads=1, vocab_size=9, lru_width=11, mlp_width=5,
           window=2),
    _world("A", "ordinary", 53, width=66, num_heads=2, vocab_size=8, mlp_width=6, window=3),
    _world("RA", "mixed", 54, width=10, num_heads=2, vocab_size=70, lru_width=6, mlp_width=75,
           window=3, logits_soft_cap=0.0, norm_eps=1e-3),
    _world("A", "sharp", 55, width=20, num_heads=4, num_kv_heads=2, vocab_size=12, mlp_width=10,
           window=4),
    _world("R", "long", 56, width=12, num_heads=2, vocab_size=9, lru_width=138, mlp_width=8,
           window=2),
    _world("RRA", "ordinary", 57, width=24, num_heads=3, vocab_size=23, lru_width=36,
           mlp_width=20, window=6),
    _world("RRA", "huge", 58, width=12, num_heads=1, vocab_size=9, lru_width=10, mlp_width=12,
           window=5, logits_soft_cap=0.0),
)  # fmt: skip
"""Models of one group of inputs and of several, whole ones and not, and groups cut by heads."""


def quantised_worlds(scope: Scope, kind: str | None = None) -> st.SearchStrategy[World]:
    """Worlds of the pool, each with weights of several seeds."""
    pool = WORLDS if scope.only is None else (scope.only,)
    pool = tuple(w for w in pool if kind is None or kind in w.config.block_types)
    if not pool:
        return st.nothing()
    drawn = st.builds(
        lambda w, more: replace(w, seed=w.seed + 100 * more),
        st.sampled_from(pool), st.integers(0, 2),
    )  # fmt: skip
    return drawn.map(lambda w: adapted(w, scope))


def held_to(backend: Backend) -> QuantisedProfile:
    """How a quantised backend is held; any other is not.

    Raises
    ------
    Unsupported
        If its dtype is not quantised.
    """
    profile = backend.profile
    if not isinstance(profile, QuantisedProfile):
        raise Unsupported(f"{backend.dtype} is not quantised")
    return profile


# -- weights


STYLES = ("ordinary", "every size", "outliers", "empty", "few")
SIZES = ("ordinary", "every size", "empty", "1e-3", "1e4")


@dataclass(frozen=True)
class MatrixCase:
    """A world whose matrices are given another style, and inputs for one of them.

    Attributes
    ----------
    world : World
    style : str
        Of the matrices: numbers of every size, with outliers, with groups of zeros, or of few
        values.
    size : str
        Of the inputs.
    pick : int
        Which matrix.
    seed : int
    """

    world: World
    style: str = "ordinary"
    size: str = "ordinary"
    pick: int = 0
    seed: int = 0

    def strata(self) -> set[str]:
        """What is special about this case, by name."""
        c = self.world.config
        several = max(c.width, c.mlp_width or 0) > 64
        return {f"weights: {self.style}", f"inputs: {self.size}"} | (
            {"several groups"} if several else set()
        )

    def parameters(self, profile: QuantisedProfile) -> dict[str, NDArray]:
        """Weights that the model is given, float32."""
        rng = np.random.default_rng(self.seed)
        flat = self.world.parameters(profile)
        for name, array in flat.items():
            if profile.quantisation.covers(name):
                flat[name] = _in_style(rng, array, self.style, name == "embedding")
        return flat

    def inputs(self, width: int) -> NDArray:
        """What meets the matrix, (T, width)."""
        rng = np.random.default_rng([self.seed, 1])
        x = rng.standard_normal((5, width))
        if self.size == "every size":
            x *= 10 ** rng.uniform(-3, 3, x.shape)
        elif self.size == "empty":
            x[0], x[1, : width // 2 + 1], x[2, width // 2 :] = 0, 0, 0
        elif self.size != "ordinary":
            x *= float(self.size)
        return x


def _in_style(rng: np.random.Generator, array: NDArray, style: str, by_rows: bool) -> NDArray:
    w = np.array(array.T if by_rows else array)  # (inputs, outputs)
    if style == "every size":
        w *= 10 ** rng.uniform(-4, 2, w.shape)
    elif style == "outliers":
        w[rng.random(w.shape) < 0.05] *= 50
    elif style == "empty":
        w[:, rng.random(w.shape[1]) < 0.3] = 0
        w[rng.random(len(w)) < 0.5] = 0
        w[: 64 * rng.integers(0, 2)] = 0
    elif style == "few":
        w = rng.choice([-1.0, -0.5, 0.0, 0.25, 1.0], w.shape) * 0.3
    return np.asarray(w.T if by_rows else w, np.float32)


@st.composite
def matrices(draw, scope: Scope) -> MatrixCase:
    return MatrixCase(
        draw(quantised_worlds(scope)), draw(st.sampled_from(STYLES)),
        draw(st.sampled_from(SIZES)), draw(st.integers(0, 9)), draw(st.integers(0, 999)),
    )  # fmt: skip


def held_weights(backend: Backend, case: MatrixCase):
    """What a model is given, and what it holds then, both by name."""
    profile = held_to(backend)
    flat = case.parameters(profile)
    held = profile.dequantised(case.world.config, flat)
    if set(held) != set(flat):
        odd = sorted({*held, *flat} - ({*held} & {*flat}))[0]
        raise Violation(f"what the model holds and what it was given differ in {odd}")
    found = {name: np.asarray(array, np.float64) for name, array in held.items()}
    for name, array in found.items():
        if array.shape != flat[name].shape or not np.isfinite(array).all():
            raise Violation(
                f"{name} is held with shape {array.shape}, expected {flat[name].shape} and no "
                f"number that is not finite"
            )
    return flat, found


@check("L5", matrices, weight=0.3, clauses=("QUANT-2",))
def parameters_that_stay(backend: Backend, case: MatrixCase) -> Sequence[Comparison]:
    """Lambda, gates, convolution, norms and biases are held as they were given."""
    quantisation = held_to(backend).quantisation
    flat, held = held_weights(backend, case)
    for name, array in flat.items():
        if not quantisation.covers(name) and not np.array_equal(held[name], array):
            at = np.unravel_index(np.argmax(np.abs(held[name] - array)), array.shape)
            raise Violation(
                f"{name} is not to be quantised, but holds {held[name][at]:.9g} at "
                f"{tuple(map(int, at))} in place of {array[at]:.9g}"
            )
    return []


@check(
    "L5",
    matrices,
    strata=("several groups", *(f"weights: {style}" for style in STYLES)),
    weight=0.6,
    clauses=("QUANT-3",),
)
def quantised_weights(backend: Backend, case: MatrixCase) -> Sequence[Comparison]:
    """A group of weights has one step, codes in range, and each weight the code nearest to it."""
    profile = held_to(backend)
    rounding = profile.quantisation.weights
    if rounding is None:
        raise Unsupported("its weights are rounded in a way that the suite does not know")
    flat, held = held_weights(backend, case)
    for name in filter(profile.quantisation.covers, flat):
        given, kept = (
            np.asarray(a.T if name == "embedding" else a, np.float64)
            for a in (flat[name], held[name])
        )
        groups = profile.input_groups(case.world.config, name, len(given))
        for group in np.unique(groups):
            members = groups == group
            wrong = np.flatnonzero(~is_quantised(given[members], kept[members], rounding))
            if wrong.size:
                n = wrong[0]
                raise Violation(
                    f"{name}, group {group} of output {n}: weights "
                    f"{_told(given[members, n])} are held as {_told(kept[members, n])}, which are "
                    f"not the nearest of {rounding.smallest} to {rounding.largest} times one step"
                )
    return []


def _told(weights: NDArray) -> str:
    return np.array2string(weights[:8], precision=5) + (" ..." if len(weights) > 8 else "")


def is_quantised(given: NDArray, held: NDArray, rounding: SymmetricWeights) -> NDArray:
    """Whether each output's weights of one group, (inputs, outputs), are rounded as told.

    The step is not asked for: it is the largest held magnitude over one of the codes, and there
    must be one that explains all of them.
    """
    largest, top = np.abs(given).max(axis=0), np.abs(held).max(axis=0)
    plain = largest / rounding.largest * (1 + 2.0**-rounding.step_bits)
    fine = np.mean((held - given) ** 2, axis=0) <= (plain / 2) ** 2 * (1 + 1e-6)
    found = (top == 0) & (largest < SMALL)
    for code in range(1, max(rounding.largest, -rounding.smallest) + 1):
        step = np.where(top > 0, top / code, 1)
        for sign in (1, -1):
            q = held / (sign * step)
            whole = np.abs(q - np.rint(q)) <= 2.0**-14
            within = (np.rint(q) >= rounding.smallest) & (np.rint(q) <= rounding.largest)
            wanted = np.clip(given / (sign * step), rounding.smallest, rounding.largest)
            near = np.abs(wanted - q) <= 0.5 + 2.0**-10
            found |= fine & (top > 0) & (whole & within & near).all(axis=0)
    return found


SMALL = 2.0**-90
"""Groups below it may be held as zeros: their steps have no exponent to spare."""


@check("L5", matrices, must=False, weight=0.3, clauses=("QUANT-5",))
def quantised_again(backend: Backend, case: MatrixCase) -> Sequence[Comparison]:
    """Weights that have been quantised before come out as they are."""
    _, held = held_weights(backend, case)
    again = held_to(backend).dequantised(
        case.world.config, {name: array.astype(np.float32) for name, array in held.items()}
    )
    for name, array in held.items():
        off = np.abs(np.asarray(again[name], np.float64) - array).max()
        if off > np.abs(array).max() * 2.0**-20:
            raise Violation(f"{name} changes by {off:.3g} when it is quantised a second time")
    return []
