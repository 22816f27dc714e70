"""From failures to clauses: other readings of the specification, suspicion, and the guilty part."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from griffin_conformance import blocks, diagnosis, oracle, recurrences, worlds
from griffin_conformance.backends import Unsupported
from griffin_conformance.backends.reference import NumPyBackend
from griffin_conformance.certificate import certify
from griffin_conformance.checks import LEVELS, Check, Scope, Verdict, Violation, find_checks
from griffin_conformance.clauses import read_clauses
from griffin_conformance.diagnosis import RELIES, explain, in_order_of_suspicion, read_as
from griffin_conformance.envelope import Comparison
from griffin_conformance.isolation import PROBES, broken_parts, isolates
from griffin_conformance.layouts import Case, Layout
from griffin_conformance.mutants import MUTANTS, mutate
from griffin_conformance.mutants.hunting import hunt
from griffin_conformance.operations import OperationCase
from griffin_conformance.readings import READINGS, RIGHT, Reading
from griffin_conformance.reports import as_text
from griffin_conformance.rounding import FLOAT32
from griffin_conformance.runner import run_check
from griffin_conformance.strategies import cases
from griffin_conformance.worlds import World
from griffin_np import GriffinConfig

CHECKS = {check.name: check for check in find_checks()}
MUTANT = {mutant.name: mutant for mutant in MUTANTS}
CACHES = (worlds._truth, worlds._history, blocks._envelope, recurrences._scan_envelopes)


def world(kinds=("recurrent", "attention"), weights="ordinary", **fields) -> World:
    """A model in which everything that could be exchanged or transposed has one shape."""
    options = {"width": 10, "lru_width": 10, "mlp_width": 7, "num_heads": 1, "vocab_size": 11, "rope_fraction": 0.4,
               "window": 3, "norm_eps": 1e-3, "rope_base": 500.0, "logits_soft_cap": 5.0}  # fmt: skip
    config = GriffinConfig(depth=len(kinds), block_pattern=kinds, **options | fields)
    return World(config, weights, 51, (9, 4, 2))


def whole(w: World) -> Case:
    return Case(w, Layout((((0, w.lengths[0]),),)))


def reading(says: str) -> Reading:
    (found,) = [r for r in READINGS if says in r.says]
    return found


# -- readings


WHOLE = [whole(world()), whole(world(scale_embeddings=False, logits_soft_cap=0.0))]


@pytest.mark.parametrize("other", READINGS, ids=lambda r: r.says)
def test_every_reading_is_wrong(other):
    """Held against it, the right reference fails where the clause is tested."""
    fitting = [
        c for c in CHECKS.values()
        if c.oracle and c.level == "L0" and other.clause in c.clauses and c.name != "long-scans"
    ]  # fmt: skip
    with read_as(other):
        ratios = [run_check(c, NumPyBackend(), 12, survey=True).ratio for c in fitting]
        for case in WHOLE:
            ratios += [c.ratio for c in CHECKS["whole-texts"].holds(NumPyBackend(), case)]
    assert max(ratios) > (1 if other.clause == "RGLRU-2" else 10)


def test_readings_name_clauses_and_say_what_they_do_once():
    known = read_clauses()
    assert {r.clause for r in READINGS} <= set(known)
    assert len({r.says for r in READINGS}) == len(READINGS)
    for r in READINGS:
        assert r.functions or r.parameters or r.config
        assert set(r.functions) <= set(RIGHT)


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_the_oracle_is_whole_again(ends):
    """Also where something is wrong within, and where it is computed for the first time there."""
    for cache in CACHES:
        cache.cache_clear()
    case = WHOLE[0]
    before = oracle.Oracle.__init__, worlds._history, *(getattr(oracle, n) for n in RIGHT)
    for other in (reading("has no window"), reading("other sign"), reading("does not cap")):
        with contextlib.suppress(ZeroDivisionError), read_as(other):
            wrong = case.world.history(FLOAT32, 0)["logits"].truth
            run_check(CHECKS["recurrent-blocks"], NumPyBackend(), 2, survey=True)
            run_check(CHECKS["scans"], NumPyBackend(), 2, survey=True)
            if ends == "badly":
                _ = 1 / 0
        after = oracle.Oracle.__init__, worlds._history, *(getattr(oracle, n) for n in RIGHT)
        assert after == before
        right = case.world.history(FLOAT32, 0)["logits"].truth
        flat = case.world.parameters(FLOAT32)
        fresh = oracle.Oracle(flat, case.world.config).read(case.world.tokens(0), range(9))
        np.testing.assert_array_equal(right, fresh)
        assert not np.array_equal(right, wrong)
        worlds._truth.cache_clear()
        worlds._history.cache_clear()
    for name in ("recurrent-blocks", "scans", "whole-texts"):
        assert run_check(CHECKS[name], NumPyBackend(), 2, survey=True).status == "passed"


def test_caches_that_are_warm_stay():
    case = WHOLE[0]
    case.world.history(FLOAT32, 0)
    hits = worlds._history.cache_info().hits
    with read_as(reading("has no window")):
        case.world.history(FLOAT32, 0)
    case.world.history(FLOAT32, 0)
    assert worlds._history.cache_info().hits == hits + 2


# -- what explains a failure


class Erf(NumPyBackend):
    """GeLU by the error function."""

    def gelu(self, x):
        return np.vectorize(oracle.math.erf)(x / np.sqrt(2)) * x / 2 + x / 2


class Scaleless(NumPyBackend):
    """Norms without ``1 +``."""

    def rms_norm(self, x, scale, eps):
        return super().rms_norm(x, scale - 1, eps)


class Flipped(NumPyBackend):
    """A convolution that runs backwards."""

    def causal_conv(self, x, weight, bias, positions, past):
        return super().causal_conv(x, weight[::-1], bias, positions, past)


class Backwards(NumPyBackend):
    """Angles of the other sign."""

    def rope(self, x, positions, base, rotary_dim):
        half = rotary_dim // 2
        order = [*range(half, 2 * half), *range(half), *range(2 * half, x.shape[-1])]
        return super().rope(x[..., order], positions, base, rotary_dim)[..., order]


class Exchanged(NumPyBackend):
    """The gates of the recurrence take each other's place."""

    def rg_lru(self, x, p, positions, h):
        p = p | {"w_a": p["w_x"], "w_x": p["w_a"], "b_a": p["b_x"], "b_x": p["b_a"]}
        return super().rg_lru(x, p, positions, h)


class Uncapped(NumPyBackend):
    """Logits as they are."""

    def logits(self, x, embedding, cap):
        return super().logits(x, embedding, 0.0)


@pytest.mark.parametrize(
    ("backend", "check", "says", "clause"),
    [
        (mutate(MUTANT["window of W keys"]), "attentions", "shows W keys", "ATTN-1"),
        (mutate(MUTANT["no window"]), "attentions", "has no window", "ATTN-2"),
        (Erf(), "gelu-by-tanh", "computes GeLU by the error function", "MLP-1"),
        (Scaleless(), "rms-norms", "and not by 1 + scale", "NORM-2"),
        (Flipped(), "convolutions", "lets the first row", "CONV-1"),
        (Backwards(), "rotary-embeddings", "turns the other way round", "ROPE-3"),
        (Exchanged(), "recurrences", "exchanges input gate and recurrence gate", "GATE-3"),
        (Uncapped(), "logits-and-soft-caps", "does not cap the logits", "HEAD-1"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_a_backend_does_instead_is_said(backend, check, says, clause):
    verdict = run_check(CHECKS[check], backend, 12)
    assert says in verdict.cause
    assert verdict.violated == (clause,)
    assert f"likely cause: it {verdict.cause}" in verdict.explain()
    assert f"{clause}: {read_clauses()[clause].title}" in verdict.explain()


class Odd(NumPyBackend):
    """Wrong as nobody would think of."""

    def gelu(self, x):
        return super().gelu(x) * 1.001

    def model(self, config, flat):
        return super().model(config, flat | {"final_norm": flat["final_norm"] + 0.01})


def test_other_faults_are_explained_by_nothing():
    verdict = run_check(CHECKS["gelu-by-tanh"], Odd(), 6, shrink=False)
    assert (verdict.status, verdict.cause) == ("failed", "")
    assert verdict.violated == ()
    assert verdict.suspects == ("MLP-1",)  # what the check says, then
    assert explain(CHECKS["whole-texts"], Odd(), WHOLE[:1], []) is None


def test_nothing_explains_what_is_right():
    suspects: list[Reading] = []
    for backend in (NumPyBackend(), mutate(MUTANT["no window"])):
        within = whole(replace(world(), lengths=(2, 1, 1)))  # where no window is missed
        assert explain(CHECKS["whole-texts"], backend, [within], suspects) is None
    assert suspects == []


DAMPED = next(m for m in MUTANTS if m.clause == "RGLRU-6")


def test_readings_that_a_case_cannot_tell_apart_are_all_named():
    """A state of zeros at position 0 may be kept or not."""
    suspects: list[Reading] = []
    case = whole(world(("recurrent",)))
    cause = explain(CHECKS["whole-texts"], mutate(DAMPED), [case], suspects)
    assert cause.clauses == ("RGLRU-5", "RGLRU-6")
    assert cause.says == (
        "does not forget the state at position 0; or it multiplies a document's first input by "
        "sqrt(1 - a^2)"
    )
    assert [r.clause for r in suspects] == ["RGLRU-5", "RGLRU-6"]


def test_what_explained_before_is_asked_first():
    case = whole(world(("recurrent",)))
    suspects = [reading("has no window"), reading("multiplies a document's first input")]
    cause = explain(CHECKS["whole-texts"], mutate(DAMPED), [case], suspects)
    assert cause.clauses == ("RGLRU-6",)
    assert len(suspects) == 2

    suspects = []
    found = [
        run_check(CHECKS[name], mutate(DAMPED), 6, shrink=False, suspects=suspects)
        for name in ("recurrences", "recurrent-blocks")
    ]
    assert [v.violated for v in found] == [("RGLRU-6",), ("RGLRU-6",)]


def test_what_explains_one_case_by_chance_is_found_out():
    first, second = (
        OperationCase(tokens=1, channels=4, heads=1, style="ordinary", extra=float(at), seed=1)
        for at in (0, 1)
    )
    check = replace(CHECKS["recurrences"], holds=lambda b, c: [Comparison("x", 1e6, 0)])
    assert explain(check, NumPyBackend(), [first, second], []) is None
    for_one = diagnosis._ratio(CHECKS["recurrences"], mutate(DAMPED), second)
    assert for_one <= 1  # beyond position 0 nothing is wrong: no case of it


def test_a_backend_that_raises_while_readings_are_tried_is_explained_by_none():
    class Tires(NumPyBackend):
        def __init__(self, error):
            super().__init__()
            self.error, self.calls = error, 0

        def gelu(self, x):
            self.calls += 1
            if self.calls > 1:
                raise self.error
            return super().gelu(x) + 1

    case = OperationCase(tokens=1, channels=2, heads=1, style="ordinary", extra=0.0, seed=1)
    for error in (ValueError("no"), SystemExit(3), Unsupported("no"), Violation("no")):
        assert explain(CHECKS["gelu-by-tanh"], Tires(error), [case], []) is None


# -- suspicion


def check(name: str, *clauses: str, level="L2", **options) -> Check:
    return Check(
        name, level, "", True, lambda scope: None, lambda b, c: [], clauses=clauses, **options
    )


def verdict(of: Check, status="failed", **options) -> Verdict:
    return Verdict(of, status, **options)


def test_clauses_of_checks_that_pass_are_less_suspicious():
    a, b = check("a", "ATTN-1", "ATTN-2"), check("b", "ATTN-1")
    assert in_order_of_suspicion([verdict(a)]) == ["ATTN-1", "ATTN-2"]
    passed = verdict(b, "passed")
    assert in_order_of_suspicion([verdict(a), passed, passed]) == ["ATTN-2", "ATTN-1"]
    assert in_order_of_suspicion([passed]) == []
    assert in_order_of_suspicion([]) == []


def test_what_is_skipped_or_inconclusive_says_nothing():
    a = check("a", "ATTN-1")
    assert in_order_of_suspicion([verdict(a, "skipped")]) == []
    assert in_order_of_suspicion([verdict(a, inconclusive=True)]) == []
    assert in_order_of_suspicion([verdict(a, "xfailed")]) == ["ATTN-1"]


def test_a_cause_comes_first_and_is_shared_by_readings():
    a, b, c = check("a", "ATTN-1"), check("b", "ATTN-2"), check("c", "ATTN-3")
    both = verdict(b, cause="it is so; or so", violated=("CONV-1", "CONV-2"))
    one = verdict(c, cause="so", violated=("CONV-2",))
    found = in_order_of_suspicion([verdict(a), verdict(a), verdict(a), both, one])
    assert found == ["CONV-2", "CONV-1", "ATTN-1"]


def test_a_check_that_relies_on_a_failed_one_tells_less():
    cut, causal = check("any-chunking", "CALL-1"), check("nothing-sees-the-future", "ATTN-3")
    assert in_order_of_suspicion([verdict(cut), verdict(causal)]) == ["ATTN-3", "CALL-1"]
    passes = verdict(causal, "passed")
    assert in_order_of_suspicion([verdict(cut), passes]) == ["CALL-1"]


def test_levels_can_be_relied_on():
    block = check("recurrent-blocks", "BLOCK-2", level="L1")
    norm = check("rms-norms", "NORM-1", level="L0")
    assert in_order_of_suspicion([verdict(block), verdict(norm)]) == ["NORM-1", "BLOCK-2"]
    loader = check("every-tensor-has-its-place", "CKPT-3", level="L4")
    assert in_order_of_suspicion([verdict(loader), verdict(norm)]) == ["NORM-1", "CKPT-3"]


def test_relies_names_what_there_is_and_goes_round_in_no_circle():
    assert set(RELIES) <= set(CHECKS)
    assert {name for names in RELIES.values() for name in names} <= set(CHECKS) | set(LEVELS)

    def below(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"{name} relies on itself: {path}"
        for other in RELIES.get(name, ()):
            below(other, (*path, name))

    for name in RELIES:
        below(name, ())


# -- the guilty part


def test_probes_isolate():
    assert all(isolates(part, probe.config) for part, probe in PROBES.items())
    for part, probe in PROBES.items():
        assert [p for p in PROBES if isolates(p, probe.config)] == [part]


PERTURBED = {
    "attention": ("keys", "values"),
    "recurrence": ("rg_lru",),
    "convolution": ("conv",),
}


@pytest.mark.parametrize("part", PROBES)
@pytest.mark.parametrize("kind", ["keys", "values", "rg_lru", "conv"])
def test_a_probe_remembers_in_one_way_only(part, kind):
    """What its other arrays hold is of no consequence."""
    probe = PROBES[part]
    model = NumPyBackend("float64").model(probe.config, probe.parameters())
    tokens = probe.tokens(0)[None]
    _, state = model(tokens[:, :6])
    right, _ = model(tokens[:, 6:9], None, state)
    _, state = model(tokens[:, :6])
    met = 0
    for name, array in state.arrays().items():
        if name.endswith(kind):
            array += 1.0  # arrays are the state's own
            met += array.size
    wrong, _ = model(tokens[:, 6:9], None, state)
    remembers = kind in PERTURBED[part]
    assert np.array_equal(right, wrong) != remembers
    assert met or not remembers


@pytest.mark.parametrize(
    ("name", "check", "clause"),
    [
        ("convolution not reset", "packed-documents", "CONV-3"),
        ("ring too short", "decoding-continues-a-prompt", "ATTN-7"),
    ],
)
def test_a_fault_of_one_part_is_found_in_it(name, check, clause):
    assert run_check(CHECKS[check], mutate(MUTANT[name]), 30, shrink=False).violated == (clause,)


def broken_in(*parts: str) -> Verdict:
    """The verdict of a check that fails on models with memories of these kinds, and on all others
    but the probes.
    """
    right = [probe.config for part, probe in PROBES.items() if part not in parts]

    def holds(backend, case):
        return [Comparison("x", 0.1 if case.world.config in right else 9.0, 0)]

    clauses = {"attention": "ATTN-7", "convolution": "CONV-2"}
    drawn = check("x", "CALL-1", parts=clauses)
    drawn = replace(drawn, cases=lambda scope: cases(scope, cut=True), holds=holds)
    return run_check(drawn, NumPyBackend(), 4, shrink=False)


@pytest.mark.parametrize(
    ("parts", "clauses"),
    [
        (("attention",), ("ATTN-7",)),
        (("convolution", "recurrence"), ("CONV-2",)),
        (("recurrence",), ()),
        ((), ()),
        (("attention", "convolution"), ()),
        (("attention", "recurrence"), ("ATTN-7",)),
    ],
)
def test_parts_are_named_unless_all_or_none_are_broken(parts, clauses):
    """Of those that the check knows: parts that it does not ask for count for nothing."""
    assert broken_in(*parts).violated == clauses


def test_probes_that_a_backend_cannot_represent_are_left_out():
    asked = []

    def fails(scope: Scope) -> bool:
        asked.append(scope.only)
        return True

    assert broken_parts(Scope(), fails) == set(PROBES)
    assert asked == list(PROBES.values())
    wide = Scope(adapt=lambda c: c.replace(conv_width=4))  # as transformers' models have it
    assert broken_parts(wide, fails) == {"attention", "convolution"}
    pure = Scope(adapt=lambda c: c.replace(block_pattern=("recurrent",)))
    assert broken_parts(pure, fails) == {"recurrence", "convolution"}


# -- features


def test_a_feature_that_all_failing_examples_have_is_named():
    """States as wide as the stream: wrong wherever lru_width is not width, and only there."""
    mutant = MUTANT["state as wide as the stream"]
    verdict = run_check(CHECKS["decoding-continues-a-prompt"], mutate(mutant), 30, shrink=False)
    assert verdict.violated == ("BLOCK-4",)


def test_the_whole_way_from_a_mutant_to_its_clause():
    autopsy = hunt(MUTANT["window of W keys"], ["smoke"], ["attentions", "whole-texts"])
    assert (autopsy.killed, autopsy.place, autopsy.named) == (True, 1, True)
    assert str(autopsy).startswith("killed  ATTN-1   window of W keys")
    assert autopsy.certificate.cause == "shows W keys, the token's own among them"
    assert autopsy.certificate.clauses["ATTN-1"]["status"] == "failed"
    missed = hunt(MUTANT["window of W keys"], ["smoke"], ["gates"])
    assert (missed.killed, missed.place, missed.named) == (False, 0, False)
    assert str(missed).startswith("LIVES") and str(missed).endswith("nothing  NOT NAMED")


def test_certificates_share_suspects():
    """A check whose cases several readings explain is told by what explained an earlier one."""
    certificate = certify(mutate(DAMPED), names=["recurrences", "whole-texts"], max_examples=12,
                          shrink=False)  # fmt: skip
    assert [v.violated for v in certificate.verdicts] == [("RGLRU-6",), ("RGLRU-6",)]
    assert certificate.violated[0] == "RGLRU-6"


def test_the_readme_shows_what_a_failure_prints():
    text = (Path(__file__).parent.parent / "conformance" / "README.md").read_text(encoding="utf-8")
    shown = text.partition("```text\n")[2].partition("```")[0]
    (mutant,) = (m for m in MUTANTS if m.name == "gates transposed")
    printed = as_text(certify(mutate(mutant), names=["recurrent-blocks"]))
    for line in shown.splitlines():
        # Sizes may differ by rounding from machine to machine.
        told = "x the allowed difference at entry 7" if " x " in line else line.partition("...")[0]
        assert told in printed, line
