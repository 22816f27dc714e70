"""The suite on mlx-lm, which runs on Linux's CPUs too: what it fails is what is written down.

Every known failure is looked for until it is found, without making it small. What is not written
down has to hold in a few examples. That the reasons given are the reasons is seen by leaving them
out: then the rest passes.
"""

import sys
from importlib.util import find_spec

import pytest
from support import known_cases

from griffin_conformance.backends import find_backend
from griffin_conformance.checks import find_checks
from griffin_conformance.runner import run_check
from griffin_conformance.xfails import known_failures

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
installed = pytest.mark.skipif(
    find_spec("mlx_lm") is None or find_spec("mlx") is None,
    reason='mlx-lm is not installed: pip install "mlx-lm[cpu]"',
)

ADAPTERS = ("mlx-lm", "mlx-lm-w1", "mlx-lm-bfloat16")
SLOW = frozenset({"long-scans", "states-evolve"})
"""Checks of which one example has to do."""

TELLING = {
    "mlx-lm": {"attentions": "ATTN-1", "rms-norms": "NORM-3", "embeddings-are-scaled": "EMBED-1"},
    "mlx-lm-w1": {
        "recurrent-blocks": "NORM-3",
        "packed-documents": "ATTN-6",
        "padding-on-the-left": "PAD-1",
        "turns-end": "GEN-6",
    },
    "mlx-lm-bfloat16": {"scans": "RGLRU-7", "configurations-are-read": "CKPT-7"},
}
"""Clauses that failures are put down to."""


@installed
@pytest.mark.parametrize(("adapter", "check"), known_cases(ADAPTERS, known=True))
def test_what_is_written_down_fails(adapter, check):
    # A survey looks for no causes, which takes minutes where an example has 20,000 tokens.
    once = {"max_examples": 6, "survey": True} if check.name == "long-scans" else {}
    verdict = run_check(check, find_backend(adapter), shrink=False, **once)
    assert verdict.status == "failed" and not verdict.inconclusive, verdict
    clause = TELLING[adapter].get(check.name)
    assert clause is None or clause in verdict.suspects


@installed
@pytest.mark.parametrize(("adapter", "check"), known_cases(ADAPTERS, known=False))
def test_nothing_else_fails(adapter, check):
    few = 1 if check.name in SLOW else 4
    verdict = run_check(check, find_backend(adapter), few, shrink=False)
    assert verdict.status != "failed" or verdict.inconclusive, verdict.explain()
    assert verdict.status != "skipped" or verdict.reason


@pytest.fixture(scope="module")
def without():
    """Backends that are asked for nothing that the known causes would show in.

    The first without the scale of embeddings, and with the epsilon that blocks always add; the
    second without recurrences too.
    """
    from griffin_conformance.backends.mlx import MlxLmW1

    class Plain(MlxLmW1):
        def adapt(self, config):
            return super().adapt(config).replace(scale_embeddings=False, norm_eps=1e-5)

    class AttentionAlone(Plain):
        def adapt(self, config):
            return super().adapt(config).replace(block_pattern=("attention",))

    return {"plain": Plain(), "attention alone": AttentionAlone()}


@installed
@pytest.mark.parametrize(
    ("left_out", "names"),
    [
        ("plain", "recurrent-blocks attention-blocks whole-texts the-window-shows-w-past-tokens"),
        ("plain", "states-evolve best-tokens every-tensor-has-its-place"),
        ("plain", "checkpoints-come-in-many-forms patterns-end-with-the-depth"),
        ("attention alone", "padding-on-the-left decoding-continues-padded-rows calls-are-pure"),
        ("attention alone", "nothing-stays-in-the-model greedy-text rows-stop-by-themselves"),
    ],
)
def test_without_the_causes_that_are_written_down_the_rest_passes(without, left_out, names):
    for check in find_checks(names=names.split()):
        verdict = run_check(check, without[left_out], 20, shrink=False)
        assert verdict.status == "passed" or verdict.inconclusive, verdict.explain()
        assert verdict.ratio <= 0.5


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_is_written_down_exists_and_says_why(adapter):
    known = known_failures(adapter)
    assert known and all(known.values())
    assert set(known) <= {check.name for check in find_checks()}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_package_that_is_missing_is_named_with_its_command(adapter, monkeypatch):
    for name in ("mlx", "mlx_model"):
        monkeypatch.delitem(sys.modules, f"griffin_conformance.backends.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "mlx", None)
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(ImportError) as caught:
        find_backend(adapter)
    assert str(caught.value).endswith('run  pip install "mlx-lm[cpu]"')
    assert "\n" not in str(caught.value) and adapter in str(caught.value)
