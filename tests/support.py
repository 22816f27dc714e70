"""What tests share: comparison at derived tolerances, and small random models.

Tolerances are the textbook bound on a chain of roundings, whose length a test counts from its
shapes: ``longest_chain(config, tokens)`` for models. No test types one, except numbers that the
specification names.
"""

from __future__ import annotations

import mpmath
import numpy as np

from griffin_conformance.envelope import chain_bound, longest_chain
from griffin_conformance.worlds import draw_parameters
from griffin_np import GriffinConfig
from griffin_np.model import NumPyModel
from griffin_np.params import nest

SMALL = GriffinConfig(
    width=24, depth=5, num_heads=3, vocab_size=61, window=8, lru_width=36, mlp_width=40
)
"""Every kind of block, widths that differ, and a window that short texts cross."""

SHARDED = GriffinConfig(
    width=32, depth=5, num_heads=8, vocab_size=64, window=8, lru_width=48, mlp_width=40
)
"""A small model whose heads, channels and vocabulary 8 devices can share."""

SMALL_CHAIN = longest_chain(SMALL, 40)
"""Roundings in a row of :data:`SMALL` over a text of 40 tokens."""


def assert_close(
    actual, expected, dtype: str, what: str = "result", *, chain: int = SMALL_CHAIN
) -> None:
    """Fail if two arrays differ by more than rounding of ``dtype`` explains; say where.

    Allowed is the bound on ``chain`` roundings in a row, of the largest magnitude expected or of 1.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (
        f"{what}: shape {actual.shape}, expected {expected.shape}"
    )
    if not actual.size:
        return
    assert np.isfinite(actual).all(), f"{what} is not finite"
    error = np.abs(actual - expected)
    allowed = chain_bound(chain, dtype) * max(1.0, float(np.abs(expected).max()))
    worst = np.unravel_index(int(error.argmax()), error.shape)
    assert error[worst] <= allowed, (
        f"{what}: {actual[worst]!r} at {tuple(map(int, worst))}, expected {expected[worst]!r} "
        f"(error {error[worst]:.3g}, allowed {allowed:.3g}: {chain} roundings of {dtype})"
    )


def assert_states_close(actual, expected, dtype: str) -> None:
    """Compare two states array by array, and their positions exactly."""
    np.testing.assert_array_equal(actual.position, expected.position)
    chain = longest_chain(expected.config, int(expected.position.max(initial=1)))
    theirs = expected.arrays()
    for name, array in actual.arrays().items():
        assert array.dtype == theirs[name].dtype, name
        assert_close(array, theirs[name], dtype, name, chain=chain)


def assert_exact(actual, exact, dtype: str, what: str = "result", *, chain: int, scale=None):
    """Hold a number against an ``mpmath`` one, to ``chain`` roundings of ``dtype``.

    The error is relative to ``exact``, or to ``scale`` where terms cancel. It is taken at 40 digits,
    so that ``exact`` itself is not rounded.
    """
    with mpmath.workdps(40):
        error = abs(mpmath.mpf(float(actual)) - exact)
        allowed = chain_bound(chain, dtype) * abs(exact if scale is None else mpmath.mpf(scale))
        assert error <= allowed, (
            f"{what}: {float(actual)!r}, expected {mpmath.nstr(exact, 20)} (error "
            f"{mpmath.nstr(error, 3)}, allowed {mpmath.nstr(allowed, 3)}: {chain} roundings of {dtype})"
        )


def random_parameters(config: GriffinConfig, seed: int, dtype="float32") -> dict:
    """Ordinary weights of the suite, as a tree."""
    flat = draw_parameters(config, "ordinary", seed)
    return nest({name: array.astype(dtype) for name, array in flat.items()})


def random_model(config: GriffinConfig, seed: int = 0, dtype="float32") -> NumPyModel:
    """The reference with :func:`random_parameters`."""
    return NumPyModel(config, random_parameters(config, seed, dtype))


def tokens_for(config: GriffinConfig, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)


def known_cases(adapters, known: bool) -> list:
    """Adapters with the checks that each is, or is not, known to fail, as parameters of a test."""
    import pytest

    from griffin_conformance.checks import find_checks
    from griffin_conformance.xfails import known_failures

    return [
        pytest.param(adapter, check, id=f"{adapter}-{check.name}")
        for adapter in adapters
        for check in find_checks()
        if (check.name in known_failures(adapter)) == known
    ]
