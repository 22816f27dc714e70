"""The suite on DeepMind's JAX and PyTorch packages: what they fail is what is written down.

Every known failure is looked for until it is found, without making it small. What is not written
down has to hold in a few examples.
"""

from importlib.util import find_spec

import numpy as np
import pytest
from support import known_cases

from griffin_conformance.backends import ADAPTERS, MissingPackageError, find_backend
from griffin_conformance.backends.deepmind import DeepMindBackend, turn_channels
from griffin_conformance.checks import find_checks
from griffin_conformance.runner import run_check
from griffin_conformance.strategies import POOL
from griffin_conformance.xfails import known_failures

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

NEEDS = {"jax": ("jax", "flax"), "torch": ("torch", "jax", "flax")}
"""Modules that each package needs; JAX is imported by both."""

NAMES = tuple(f"deepmind-{package}" for package in NEEDS)
FEW = {"deepmind-jax": 2, "deepmind-torch": 4}
"""Examples of a check; JAX compiles nearly each."""

SLOW = frozenset({"long-scans", "scans", "states-evolve"})
"""Checks of which one example has to do."""


def missing(package: str) -> str:
    """What is not installed of what a package needs, or nothing."""
    return next((n for n in ("recurrentgemma", *NEEDS[package]) if find_spec(n) is None), "")


def need(package: str) -> None:
    """Skip where a package cannot run."""
    if missing(package):
        pytest.skip(f"{missing(package)} is not installed")


@pytest.mark.parametrize(("adapter", "check"), known_cases(NAMES, known=True))
def test_what_is_written_down_fails(adapter, check):
    need(adapter.removeprefix("deepmind-"))
    verdict = run_check(check, find_backend(adapter), shrink=False)
    assert verdict.status == "failed" and not verdict.inconclusive, verdict
    assert "deepmind" not in verdict.reason.splitlines()[-1], "the adapter is to blame"


@pytest.mark.parametrize(("adapter", "check"), known_cases(NAMES, known=False))
def test_nothing_else_fails(adapter, check):
    need(adapter.removeprefix("deepmind-"))
    few = 1 if check.name in SLOW else FEW[adapter]
    verdict = run_check(check, find_backend(adapter), few, shrink=False)
    assert verdict.status != "failed" or verdict.inconclusive, verdict.explain()
    assert verdict.status != "skipped" or verdict.reason


@pytest.mark.parametrize("adapter", NAMES)
def test_what_is_written_down_exists_and_says_why(adapter):
    known = known_failures(adapter)
    assert known and all(".py:" in why or "the same" in why or "as " in why or "all of" in why
                         for why in known.values())  # fmt: skip
    assert set(known) <= {check.name for check in find_checks()}


def test_packed_documents_and_padding_tell_the_packages_apart():
    """The convolution's cache is masked in one of them alone, by a write into its input."""
    only_jax = set(known_failures("deepmind-jax")) - set(known_failures("deepmind-torch"))
    assert only_jax == {
        "packed-documents",
        "decoding-continues-packed-documents",
        "decoding-continues-padded-rows",
    }


@pytest.mark.parametrize("adapter", NAMES)
def test_a_missing_package_is_one_line_that_says_what_to_install(adapter):
    package = adapter.removeprefix("deepmind-")
    if not missing(package):
        pytest.skip("it is installed")
    with pytest.raises(MissingPackageError, match=r"pip install \"recurrentgemma\[") as error:
        find_backend(adapter)
    assert "\n" not in str(error.value)
    assert adapter in ADAPTERS


def test_configurations_are_changed_only_where_there_is_no_field_for_them():
    adapt = DeepMindBackend().adapt
    for config in (world.config for world in POOL):
        adapted = adapt(config)
        assert adapted == adapt(adapted)
        assert adapted.head_dim % 4 == 0
        for name in ("depth", "num_heads", "vocab_size", "lru_width", "mlp_width", "window",
                     "block_pattern", "logits_soft_cap", "scale_embeddings"):  # fmt: skip
            assert getattr(adapted, name) == getattr(config, name)


@pytest.mark.parametrize(("channels", "turned"), [(2, 0), (3, 2), (6, 2), (8, 4), (8, 8), (7, 6)])
def test_any_number_of_channels_is_turned_by_a_function_that_turns_half(channels, turned):
    x = np.arange(1.0, 1 + 2 * 3 * channels).reshape(2, 3, channels)

    def turn(part):
        half = part.shape[-1] // 2
        return np.concatenate([-part[..., :half], part[..., half:]], axis=-1)

    found = turn_channels(turn, x, turned)
    assert np.array_equal(found, x * np.where(np.arange(channels) < turned, -1, 1))
