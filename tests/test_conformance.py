"""The suite on the reference, on mutants of it, and on itself: right is right, wrong is found."""

import contextlib
import io
import json
import os
import re
import secrets
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import griffin_conformance
from griffin_conformance.backends import ADAPTERS, Backend, Unsupported, find_backend
from griffin_conformance.backends.reference import NumPyBackend
from griffin_conformance.calibration import calibrate
from griffin_conformance.certificate import certify, reproduce
from griffin_conformance.checks import EXAMPLES, Check, Scope, Verdict, Violation, find_checks
from griffin_conformance.envelope import FACTOR, Comparison, Envelope
from griffin_conformance.layouts import Case, Layout
from griffin_conformance.mutants import MUTANTS, NO_FAULT, mutate
from griffin_conformance.operations import OperationCase
from griffin_conformance.reports import as_line, as_text
from griffin_conformance.rounding import FLOAT32, FLOAT64, PROFILES
from griffin_conformance.runner import run_check
from griffin_conformance.strategies import POOL, cases, configurations, layouts, worlds
from griffin_conformance.worlds import WEIGHTS, World, holds_others
from griffin_np.cli import main
from griffin_np.config import GriffinConfig
from griffin_np.inputs import check_positions

CHECKS = find_checks()
NAMES = [c.name for c in CHECKS if c.level != "L5"]
EXPLORING = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
SEED = secrets.randbelow(2**31) if EXPLORING else 0
RIGHT = 0.5
"""Observed over allowed that a right program may come to at most, by the project's definition."""


def named(name: str) -> Check:
    (check,) = find_checks(names=[name])
    return check


# -- right is right


LACKS = {
    "nf4-tensors": "it reads no nf4 tensors",
    "compiled-as-written": "it has no other way of running a model that is compiled",
}
"""What the reference, which is NumPy and nothing else, has not."""


def assert_right(name: str, verdict: Verdict, most: float) -> None:
    """The check passes, or is one that the reference has no part in."""
    if name in LACKS:
        assert (verdict.status, verdict.reason) == ("skipped", LACKS[name])
        return
    assert verdict.status == "passed", f"seed {SEED}: {verdict.explain()}"
    assert verdict.ratio <= most


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_conforms(name):
    # The default number of examples is what `griffin-np conformance run` draws.
    examples = EXAMPLES if EXPLORING else 24
    verdict = run_check(named(name), NumPyBackend("float32"), examples, seed_number=SEED)
    assert_right(name, verdict, 1 if EXPLORING else RIGHT)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_programs_of_other_precisions_conform(name, dtype):
    """A survey of few examples; the verb runs all of them, and counts strata, in float64 too."""
    examples = 6 if named(name).level == "L4" else 12
    verdict = run_check(named(name), mutate(NO_FAULT, dtype), examples, survey=True)
    assert_right(name, verdict, RIGHT)


def test_the_reference_is_not_judged_as_a_quantised_model():
    for dtype in ("float32", "float64", "bfloat16"):
        for check in find_checks(["L5"]):
            verdict = run_check(check, mutate(NO_FAULT, dtype), 1)
            assert verdict.status == "skipped"
            assert verdict.reason == f"{dtype} is judged at L0, L1, L2, L3, L4"


# -- wrong is found; that every mutant is, tests/test_mutants.py shows


def test_mutants_fail_for_their_fault_alone():
    """A mutant of the bookkeeping leaves the operations right, and the other way round."""
    shared = next(m for m in MUTANTS if m.name == "shared state")
    assert certify(mutate(shared), ["L0", "L1"], max_examples=5, survey=True).conforms
    window = next(m for m in MUTANTS if m.name == "window of W keys")
    found = certify(mutate(window), ["L2", "L3"], max_examples=10, survey=True)
    failed = {v.check.name for v in found.verdicts if v.violates}
    assert failed <= {"whole-texts", "the-window-shows-w-past-tokens", "state-values",
                      "late-positions", "best-tokens", "greedy-text", "states-evolve",
                      "rows-stop-by-themselves"}  # fmt: skip
    assert "the-window-shows-w-past-tokens" in failed


def test_the_reference_is_whole_again_after_a_mutant():
    run_check(named("whole-texts"), mutate(MUTANTS[0]), 3, shrink=False)
    assert run_check(named("whole-texts"), NumPyBackend(), 3, survey=True).status == "passed"


# -- verdicts


class Liar(NumPyBackend):
    """Wrong in one operation, silent about others."""

    name = "liar"

    def rms_norm(self, x, scale, eps):
        return super().rms_norm(x, scale, eps) * (1 + 1e-4 * (x.shape[1] >= 3))

    def gelu(self, x):
        raise Unsupported("no GeLU here")

    def rope(self, x, positions, base, rotary_dim):
        raise RuntimeError("the device is on fire")

    def embed(self, rows):
        return super().embed(rows)[:, :-1]


def test_failures_shrink_to_the_smallest_case_and_print_a_reproducer():
    verdict = run_check(named("rms-norms"), Liar())
    assert verdict.status == "failed"
    assert verdict.case.channels == 3
    assert verdict.case.tokens == 1
    assert "x the allowed difference at entry 0" in verdict.reason
    text = verdict.explain()
    assert "reproduce('rms-norms', '" in text
    assert repr(verdict.case) in text


def test_models_shrink_too():
    """The smallest model with a ring, and a text as long as it."""
    mutant = next(m for m in MUTANTS if m.name == "ring too short")
    verdict = run_check(named("decoding-continues-a-prompt"), mutate(mutant))
    config = verdict.case.world.config
    assert (config.depth, config.width, config.window) == (1, 6, 2)
    assert verdict.case.layout.lengths == [3]


def test_reproducers_name_what_can_be_found():
    assert NumPyBackend().spec == "numpy"
    assert Liar().spec == f"{Liar.__module__}:Liar"


def test_a_reproducer_runs(capsys):
    verdict = run_check(named("linear-layers"), NumPyBackend(), 3)
    case = "OperationCase(tokens=1, channels=2, heads=1, style='tiny', extra=0.0, seed=5)"
    space: dict = {}
    exec(
        f"from griffin_conformance import *\nreproduce('linear-layers', 'numpy', 'float32', {case})",
        space,
    )
    assert verdict.status == "passed"
    assert capsys.readouterr().out.endswith("passed\n")
    with pytest.raises(ValueError, match="no check 'x'"):
        reproduce("x", "numpy", "float32", None)


def test_what_a_backend_lacks_is_skipped_with_the_reason():
    verdict = run_check(named("gelu-by-tanh"), Liar())
    assert (verdict.status, verdict.reason) == ("skipped", "no GeLU here")
    assert not verdict.violates
    bare = certify(Backend(), max_examples=1)
    assert {v.status for v in bare.verdicts} == {"skipped"}
    assert all(v.reason for v in bare.verdicts)
    assert not bare.conforms
    assert bare.outcome == "is not certified: it shows nothing at L0, L1, L2, L3, L4"


def test_exceptions_and_shapes_are_violations():
    verdict = run_check(named("rotary-embeddings"), Liar(), shrink=False)
    assert verdict.violates
    assert verdict.reason.startswith("RuntimeError: the device is on fire")
    assert verdict.ratio == np.inf
    verdict = run_check(named("embeddings-are-scaled"), Liar(), shrink=False)
    assert "embed has shape" in verdict.reason


def test_backends_that_are_not_deterministic_are_told_so():
    class Moody(NumPyBackend):
        calls = 0

        def gelu(self, x):
            type(self).calls += 1
            return super().gelu(x) * (1 + (self.calls == 20))

    for shrink in (True, False):
        Moody.calls = 0
        verdict = run_check(named("gelu-by-tanh"), Moody(), shrink=shrink)
        assert verdict.violates
        assert "the backend is not deterministic" in verdict.reason


def test_a_backend_that_exits_does_not_end_the_run():
    class Quits(NumPyBackend):
        def gelu(self, x):
            raise SystemExit(0)

    assert run_check(named("gelu-by-tanh"), Quits(), shrink=False).violates


def test_what_could_not_be_looked_at_is_told():
    class Bare:
        def __init__(self, model):
            self.model = model

        def __call__(self, tokens, positions=None, state=None, logits="all"):
            values, after = self.model(tokens, positions, state and state.inner, logits)
            return values, SimpleNamespace(inner=after)

    class Opaque(NumPyBackend):
        def model(self, config, flat):
            return Bare(super().model(config, flat))

    verdict = run_check(named("any-chunking"), Opaque(), 20, survey=True)
    assert verdict.status == "passed"
    assert verdict.to_dict()["not_compared"] == ["the state's arrays"]
    verdict = run_check(named("whole-texts"), Opaque(), 10, survey=True)
    assert verdict.not_compared == {"the residual streams"}


def test_what_should_hold_may_fail():
    mutant = next(m for m in MUTANTS if m.name == "cancelling multiplier")
    certificate = certify(mutate(mutant), names=["multipliers-keep-their-digits", "decays"])
    assert [v.status for v in certificate.verdicts] == ["passed", "failed"]
    assert certificate.conforms
    assert "should" in as_line(certificate.verdicts[1])


def test_too_few_of_a_stratum_fail_the_run():
    strategy = st.just(Case(POOL[0], Layout((((0, 1),),))))
    check = Check("x", "L2", "says", True, lambda scope: strategy, lambda b, c: [],
                  ("crosses the window", "one head"))  # fmt: skip
    verdict = run_check(check, NumPyBackend())
    assert verdict.violates
    assert "met too few of: crosses the window;" in verdict.reason
    backend = NumPyBackend()
    backend.cannot = frozenset({"crosses the window"})
    assert run_check(check, backend).status == "passed"


def test_a_violation_and_the_first_wrong_comparison_are_the_reason():
    good, bad, worse = (Comparison(n, r, 0) for n, r in (("a", 0.5), ("b", 2.0), ("c", 9.0)))
    check = Check(
        "x", "L2", "says", True, lambda scope: st.just(1), lambda b, c: [good, bad, worse]
    )
    verdict = run_check(check, NumPyBackend())
    assert verdict.reason.startswith("b: 2 x the allowed difference")
    assert verdict.worst is worse

    def raises(backend, case):
        raise Violation("that is not it")

    verdict = run_check(
        Check("x", "L2", "says", True, lambda s: st.just(1), raises), NumPyBackend()
    )
    assert verdict.reason == "that is not it"
    assert verdict.to_dict()["observed_over_allowed"] == "inf"


def test_the_same_seed_draws_the_same_examples():
    def drawn(number: int) -> list:
        seen = []
        check = Check("x", "L2", "", True, lambda scope: cases(scope, cut=True),
                      lambda b, c: seen.append(c) or [])  # fmt: skip
        run_check(check, NumPyBackend(), 20, seed_number=number)
        return seen

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_a_certificate_tells_everything():
    certificate = certify(Liar(), ["L0"], max_examples=20)
    assert not certificate.conforms
    told = certificate.to_dict()
    assert told["levels"]["L0"]["skipped"] == 1
    assert {"python", "numpy", "griffin-np"} <= set(told["versions"])
    by_name = {c["check"]: c for c in told["checks"]}
    assert by_name["rms-norms"]["status"] == "failed"
    assert by_name["rms-norms"]["worst"]["ulp_percentiles"]["100"] > 100
    assert by_name["linear-layers"]["observed_over_allowed"] <= RIGHT
    assert (told["seed"], told["max_examples"], told["levels_asked"]) == (0, 20, ["L0"])
    assert told["outcome"] == "VIOLATES the specification"
    assert json.loads(json.dumps(told)) == told
    text = as_text(certificate)
    assert "VIOLATES the specification" in text
    assert "smallest failing case found, to paste" in text


# -- what is drawn


def test_the_pool_has_every_stratum():
    met = set().union(*(Case(w, Layout((((0, w.lengths[0]),),))).strata() for w in POOL))
    assert {f"weights: {style}" for style in WEIGHTS} <= met
    assert {"all recurrent", "all attention", "lru_width is not width", "odd width", "one head",
            "several key-value heads", "no soft cap", "window of 1"} <= met  # fmt: skip
    assert len({w.config for w in POOL}) == len(POOL)
    assert POOL[0].config.num_parameters() == min(w.config.num_parameters() for w in POOL)


@settings(max_examples=200)
@given(configurations())
def test_configurations_hide_no_rounding_of_the_embedding_scale(config):
    exact = float(np.sqrt(config.width))
    assert not config.scale_embeddings or config.embedding_scale != exact
    assert 1 <= config.window <= 40


@settings(max_examples=50)
@given(worlds())
def test_worlds_are_made_again_from_their_repr(world):
    again = eval(repr(world), {"World": World, "GriffinConfig": griffin_conformance.GriffinConfig})
    assert again == world
    for name, array in world.parameters().items():
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(array, again.parameters()[name])


@settings(max_examples=200)
@given(st.sampled_from(POOL), st.data())
def test_layouts_are_legal_texts(world, data):
    layout = data.draw(
        layouts(world, rows=st.integers(1, 3), documents=(0, 4), cut=True, pad="anywhere")
    )
    tokens, positions = layout.arrays(world)
    assert tokens.shape == positions.shape == (len(layout.rows), layout.width)
    check_positions(positions, np.zeros(len(layout.rows), np.int64))
    assert (positions >= 0).sum(axis=1).tolist() == layout.lengths
    for i, row in enumerate(layout.rows):
        steps = positions[i, layout.columns(i)]
        assert steps.tolist() == [p for _, n in row for p in range(n)]
        assert (tokens[i][positions[i] < 0] == 10**9).all()
    calls = layout.calls()
    assert [c.start for c in calls[1:]] == [c.stop for c in calls[:-1]]
    assert (calls[0].start, calls[-1].stop) == (0, layout.width)


def test_strata_are_what_they_say():
    world = POOL[3]
    layout = Layout((((0, 12), (1, 2)), ((1, 3),)), ((0,), (1, 1)), (5, 5, 6))
    assert layout.strata(world) == {
        "crosses the window", "last document of 1-2 tokens", "reset inside a call",
        "padding on the left", "padding inside a row", "call of 1 token", "call without tokens",
        "rows of several lengths",
    }  # fmt: skip
    assert not Layout((((0, 9),),)).strata(world)


@pytest.mark.parametrize("profile", [FLOAT32, FLOAT64], ids=lambda p: p.name)
def test_the_factor_lies_between_right_and_wrong(profile):
    found = calibrate(profile, POOL[:4])
    assert found.nearest <= RIGHT * FACTOR
    assert found.directed <= FACTOR < found.coarse


def test_the_oracle_knows_nothing_of_the_package():
    code = (
        "import sys, griffin_conformance.oracle; "
        "print([m for m in sys.modules if m.startswith('griffin_np')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist():
    for name in griffin_conformance.__all__:
        assert getattr(griffin_conformance, name) is not None
    with pytest.raises(AttributeError):
        _ = griffin_conformance.Mamba


# -- the command


def run(*argv: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["conformance", *argv])
    return code, out.getvalue(), err.getvalue()


def test_the_command_certifies_the_reference(tmp_path):
    code, out, _ = run("run", "--level", "L1", "--dtype", "float64", "--json", str(tmp_path / "c"))
    assert code == 0
    assert "numpy in float64 conforms at L1; worst observed / allowed 0." in out
    told = json.loads((tmp_path / "c").read_text())
    assert (told["backend"], told["dtype"], told["conforms"]) == ("numpy", "float64", True)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_the_command_takes_a_class_of_the_users_folder(tmp_path, monkeypatch):
    (tmp_path / "my_engine.py").write_text(
        "from griffin_conformance.backends.reference import NumPyBackend\n"
        "class Mine(NumPyBackend):\n"
        "    def gelu(self, x):\n"
        "        return super().gelu(x) * 1.001\n"
        "class Other:\n"
        "    pass\n"
        "class Odd(NumPyBackend):\n"
        "    def __init__(self):\n"
        "        pass\n"
        "class Half(NumPyBackend):\n"
        "    dtypes = ('float16',)\n"
        "class Lazy(NumPyBackend):\n"
        "    def gelu(self, x):\n"
        "        import my_helper\n"
        "        return super().gelu(x)\n"
    )
    (tmp_path / "my_helper.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    code, out, err = run("run", "--backend", "my_engine:Mine", "--check", "gelu-by-tanh",
                         "--json", "-")  # fmt: skip
    assert code == 1
    assert json.loads(out)["conforms"] is False
    assert "reproduce('gelu-by-tanh', 'my_engine:Mine', 'float32'," in err
    assert run("run", "--backend", "my_engine:Lazy", "--check", "gelu-by-tanh")[0] == 0
    for wrong, why in (
        ("my_engine:Other", "is no subclass of griffin_conformance.Backend"),
        ("my_engine:Odd", "its __init__ must take a dtype and pass it to Backend.__init__"),
        ("my_engine:Half", "claims ['float16']; the suite knows the precisions float64, float32"),
        ("broken:X", "ZeroDivisionError"),
        (":X", "no backend ':X'"),
    ):
        code, _, err = run("run", "--backend", wrong)
        assert code == 2
        assert why in err
        assert err.count("\n") == 1
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--backend", "torch"],
            "no backend 'torch'; choose one of numpy, numba, jax, jax-associative, jax-pallas, transformers",
        ),
        (["--backend", "no.such:Thing"], "backend no.such:Thing cannot be loaded"),
        (["--dtype", "int3"], "backend numpy has no dtype 'int3'; choose one of float32, float64"),
        (["--level", "L9"], "no level 'L9'; levels are L0, L1, L2, L3"),
        (["--check", "x"], "no check 'x'; griffin-np conformance list shows all of them"),
        (
            ["--check", "gates", "--level", "L1"],
            "no check is in all of --level, --check and --clause",
        ),
        (["--max-examples", "0"], "--max-examples must be at least 1, got 0"),
        (["--json", "no/such/folder/c.json"], "there is no folder no/such/folder"),
    ],
)
def test_wrong_usage_is_one_line(argv, message):
    code, _, err = run("run", *argv)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


def test_exploring_tells_its_seed():
    code, out, _ = run("run", "--explore", "--check", "gates")
    assert code == 0
    seed = out.partition("--seed ")[2].split()[0]
    again = run("run", "--seed", seed, "--check", "gates")[1]
    assert out.splitlines()[1] == again.splitlines()[0]


def test_the_command_lists_what_is_checked():
    code, out, _ = run("list")
    assert code == 0
    for check in CHECKS:
        assert check.says
        assert check.says in out


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("griffin_np.cli.conformance.find_spec", lambda name: None)
    code, _, err = run("list")
    assert code == 2
    assert 'pip install "griffin-np[conformance]"' in err


def test_adapters_name_classes():
    assert isinstance(find_backend("numpy"), NumPyBackend)
    assert all(":" in path for path in ADAPTERS.values())
    assert set(PROFILES) == {"float32", "float64", "bfloat16"}
    assert not Scope().fixed_shapes


@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        # A gate of 1e-30: whatever is left of it, it is shut.
        ("float32", OperationCase(12, 3, heads=3, style="every size", seed=43628)),
        # Large terms cancel: the order of the sum decides how large it was on the way.
        ("bfloat16", OperationCase(10, 36, heads=3, style="every size", seed=43133)),
    ],
)
def test_gates_of_right_backends_may_be_anything_that_rounding_makes_of_them(dtype, case):
    (check,) = find_checks(names=["gates"])
    for comparison in check.holds(find_backend("numba", dtype), case):
        assert comparison.ratio <= RIGHT


def test_a_change_is_seen_with_the_rounding_of_both_texts():
    """The changed text's logits are the larger ones, and may be off by as much more."""
    config = GriffinConfig(
        width=15, depth=1, num_heads=3, num_kv_heads=3, vocab_size=5, lru_width=3, mlp_width=5,
        window=5, block_pattern=("attention",), conv_width=1, logits_soft_cap=5.0,
        scale_embeddings=False, norm_eps=1e-3,
    )  # fmt: skip
    world = World(config, "loud", seed=4, lengths=(15, 7, 7))
    (check,) = find_checks(names=["the-window-shows-w-past-tokens"])
    case = Case(world, Layout((((0, 15),),)), (5,))
    comparisons = check.holds(find_backend("numba"), case)
    assert len(comparisons) == 2
    assert max(comparison.ratio for comparison in comparisons) <= RIGHT


def test_reports_name_no_folders_of_this_machine():
    class Broken(NumPyBackend):
        def gelu(self, x):
            raise ValueError('it failed at File "/home/somebody/engine/gelu.py", line 3')

    (check,) = find_checks(names=["gelu-by-tanh"])
    reason = run_check(check, Broken(), 1).reason
    assert 'File "engine/gelu.py", line 3' in reason
    assert not re.search(r'File "(/|[A-Z]:)', reason)


def test_a_ring_that_turned_is_told_from_wrong_entries():
    rng = np.random.default_rng(0)
    truth, times = rng.standard_normal((9, 4)), np.arange(5, 9)
    allowed = np.full(9, 1e-6)
    history = Envelope(truth, allowed, allowed, 2.0**-24, 2.0**-126)
    right = truth[times]
    assert not holds_others(history, right, times)
    assert holds_others(history, np.roll(right, 1, axis=0), times)
    one_is_lost = np.concatenate([truth[4:5], 0 * right[:1], right[2:]])
    assert holds_others(history, one_is_lost, times)
    assert not holds_others(history, right + 1, times)
    turned_and_wrong = np.roll(right, 1, axis=0) + np.eye(4)[:1].T
    assert not holds_others(history, turned_and_wrong, times)
    assert not holds_others(history, 0 * right, times)
    assert not holds_others(history, np.full_like(right, np.nan), times)
