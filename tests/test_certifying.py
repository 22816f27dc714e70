"""Certificates: what they say, what is known to fail, a folder of them; runs; two backends' paths."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import strategies as st

from griffin_conformance import certificate as certificates
from griffin_conformance import certifying, evolution, reports, xfails
from griffin_conformance.backends import ADAPTERS, Unsupported
from griffin_conformance.backends.reference import NumPyBackend
from griffin_conformance.certificate import Certificate, certify
from griffin_conformance.certifying import certify_all, installed
from griffin_conformance.checks import EFFORTS, Check, Verdict, Violation, find_checks
from griffin_conformance.clauses import read_clauses, version
from griffin_conformance.envelope import EDGES, Comparison, Ulps
from griffin_conformance.evolution import Evolution, evolve
from griffin_conformance.layouts import Case, Layout
from griffin_conformance.mutants import MUTANTS, mutate
from griffin_conformance.protocol import EngineFailure
from griffin_conformance.reports import as_text
from griffin_conformance.reports.loading import CertificateError, validator
from griffin_conformance.runner import run_check
from griffin_conformance.schemas import wrong_with
from griffin_conformance.strategies import POOL
from griffin_conformance.xfails import known_failures, read_xfails

CHECKS = {check.name: check for check in find_checks()}
MUTANT = {mutant.name: mutant for mutant in MUTANTS}
OURS = ("numpy", "numba", "jax", "jax-associative", "jax-pallas")


def verdict(name: str, status: str = "passed", **options) -> Verdict:
    worst = Comparison("logits", 0.25 if status == "passed" else 40.0, 3)
    return Verdict(CHECKS[name], status, worst=worst, **options)


def certificate(*verdicts: Verdict, **options) -> Certificate:
    asked = {
        "profile": "smoke",
        "seed": 0,
        "max_examples": 6,
        "levels_asked": [],
        "checks_asked": [],
    }
    return Certificate(NumPyBackend(), list(verdicts), asked, **options)


def statuses(found: Certificate) -> dict[str, str]:
    return {name: told["status"] for name, told in found.clauses.items()}


def schema_fault(found: Certificate) -> str:
    return wrong_with(json.loads(json.dumps(found.to_dict(), allow_nan=False)), validator())


# -- clauses


def test_a_failure_speaks_against_the_clause_that_it_names_alone():
    """And shows nothing of the others of its check, which other checks may show."""
    failed = verdict("attentions", "failed", violated=("ATTN-1",))
    found = certificate(failed, verdict("the-window-shows-w-past-tokens"))
    assert statuses(found) == {
        "ATTN-1": "failed", "ATTN-2": "passed", "ATTN-4": "skipped", "ATTN-5": "skipped",
    }  # fmt: skip
    told = found.clauses
    assert told["ATTN-1"]["observed_over_allowed"] == 40.0
    assert told["ATTN-2"]["observed_over_allowed"] == 0.25, "of what shows it"
    assert told["ATTN-2"]["checks"] == ["attentions", "the-window-shows-w-past-tokens"]
    assert schema_fault(found) == ""


def test_a_failure_that_names_no_clause_speaks_against_all_of_its_check():
    found = certificate(verdict("attentions", "failed"))
    assert statuses(found) == dict.fromkeys(("ATTN-1", "ATTN-2", "ATTN-4", "ATTN-5"), "failed")


def test_a_clause_of_another_check_may_be_named():
    found = certificate(verdict("whole-texts", "failed", violated=("RGLRU-6",)))
    assert statuses(found)["RGLRU-6"] == "failed"
    assert found.clauses["RGLRU-6"]["checks"] == ["whole-texts"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([("skipped", {})], "skipped"),
        ([("skipped", {}), ("passed", {})], "passed"),
        ([("xfailed", {})], "xfailed"),
        ([("xfailed", {}), ("failed", {})], "failed"),
        ([("xfailed", {}), ("passed", {})], "xfailed"),
        ([("failed", {"inconclusive": True})], "failed"),
        ([("failed", {"inconclusive": True}), ("passed", {})], "failed"),
    ],
)
def test_the_status_of_a_clause(given, expected):
    names = ("attentions", "the-window-shows-w-past-tokens")
    found = certificate(*(verdict(n, s, **o) for n, (s, o) in zip(names, given, strict=False)))
    assert statuses(found)["ATTN-1"] == expected
    assert schema_fault(found) == ""


def test_clauses_stand_in_the_order_of_the_specification():
    found = list(certificate(*(verdict(name) for name in reversed(CHECKS))).clauses)
    assert found == list(read_clauses())


# -- outcomes


def test_what_was_asked_in_part_is_told():
    names = [c.name for c in find_checks(["L1"])]
    assert certificate(*map(verdict, names)).outcome == "conforms at L1"
    some = certificate(verdict("gates"), *map(verdict, names))
    count = len(find_checks(["L0"]))
    assert some.outcome == f"conforms at L0 in part (1 of {count} checks), L1"


def test_a_should_does_not_make_a_backend_wrong():
    should = next(c.name for c in CHECKS.values() if not c.must)
    found = certificate(verdict("gates"), verdict(should, "failed"))
    assert found.conforms and found.as_expected
    assert schema_fault(found) == ""


def test_what_is_known_to_fail_is_expected_and_does_not_conform():
    found = certificate(verdict("gates"), verdict("scans", "xfailed", expected="8 bits"))
    assert not found.conforms
    assert found.as_expected
    assert found.outcome == "VIOLATES the specification, as is known of it"
    assert not replace(found, stale={"gates": "passed"}).as_expected
    surprised = certificate(verdict("scans", "xfailed"), verdict("gates", "failed"))
    assert not surprised.as_expected
    assert surprised.outcome == "VIOLATES the specification"


def test_a_backend_that_shows_nothing_is_not_as_expected():
    found = certificate(verdict("gates", "skipped"))
    assert not found.as_expected
    assert found.outcome == "is not certified: it shows nothing at L0"
    wrong = verdict("recurrent-blocks", "xfailed")
    assert certificate(wrong, verdict("gates", "skipped")).as_expected
    few = certificate(verdict("gates", "failed", inconclusive=True))
    assert few.outcome == "is not certified: too few examples were drawn"
    assert few.violated == []


def test_certificates_of_every_kind_pass_the_schema():
    odd = Comparison("logits", math.inf, 0, math.inf, math.nan, (0.0, 1.0, math.inf, math.inf))
    found = certificate(
        verdict("gates"),
        verdict("attentions", "skipped", reason="it has none"),
        verdict("scans", "xfailed", expected="known", cause="keeps", violated=("RGLRU-7",)),
        replace(verdict("decays", "failed"), worst=odd),
        replace(verdict("whole-texts", "failed"), worst=None, reason="two\nlines"),
        stale={"rms-norms": "passed", "nothing": "no such check"},
    )
    found.verdicts[0].ulps["logits"] = Ulps((0,) * len(EDGES) + (3,), math.inf)
    assert schema_fault(found) == ""
    told = found.to_dict()
    assert told["spec"] == version()
    assert told["levels"]["L0"] == {"passed": 1, "failed": 1, "skipped": 1, "xfailed": 1}
    assert told["worst_observed_over_allowed"] == "inf"
    del told["violated"]
    assert "violated" in wrong_with(told, validator()), "the schema lets nothing be left out"


def test_histograms_count_every_value_that_was_compared(monkeypatch):
    seen = Counter()
    holds = CHECKS["state-values"].holds

    def counted(backend, case):
        results = holds(backend, case)
        for comparison in results:
            seen["logits" if comparison.name.startswith("logits") else "states"] += sum(
                comparison.counts
            )
        return results

    check = replace(CHECKS["state-values"], holds=counted, strata=())
    one, two = (run_check(check, NumPyBackend(), 3, seed_number=seed) for seed in (0, 1))
    found = certificate(one, two)
    assert seen["states"] > 100
    for kind, total in found.ulps.items():
        told = total.to_dict()
        assert told["values"] == sum(n for _, n in told["histogram"]) == seen[kind]
        assert told["max"] == max(v.ulps[kind].most for v in (one, two))
        assert told["99.9"] <= told["max"]
    assert one.ulps["states"].counts != total.counts, "a sum changes no summand"


# -- known failures


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gates\n", "line 1: expected 'check-name  # reason', got 'gates'"),
        ("# fine\n\ngates  #  \n", "line 3: expected 'check-name  # reason'"),
        ("gates: wrong\n", "line 1: expected"),
        ("  # a comment that is none\n", "line 1: expected"),
        ("gates # a\nscans # b\ngates # c\n", "line 3: gates is there twice; keep one"),
    ],
)
def test_lists_of_known_failures_are_read_strictly(tmp_path, text, message):
    path = tmp_path / "known.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="known.txt, line") as caught:
        read_xfails(path)
    assert message in str(caught.value)


def test_a_list_gives_reasons(tmp_path):
    path = tmp_path / "known.txt"
    path.write_text(
        "# two\n\ngates   # W x + b, without b # see there\n  scans # ü\n", encoding="utf-8"
    )
    assert read_xfails(path) == {"gates": "W x + b, without b # see there", "scans": "ü"}


def test_shipped_lists_name_checks_and_backends():
    shipped = sorted(Path(xfails.__file__).parent.glob("*.txt"))
    assert shipped
    for path in shipped:
        assert path.stem in ADAPTERS, f"{path.name} is of no backend"
        known = known_failures(path.stem)
        assert known == read_xfails(path)
        assert set(known) <= set(CHECKS)
        assert path.stem not in OURS or not known


def test_our_own_backends_and_programs_have_no_list():
    for name in (*OURS, "cmd:./engine --stdio", "mine:Class", "../xfails/transformers", ""):
        assert known_failures(name) == {}
    assert known_failures("transformers")


def test_known_failures_are_expected_and_no_others():
    known = {"gelu-by-tanh": "its GeLU", "gates": "it is said", "nothing": "no more",
             "rms-norms": "no norms", "scans": "not asked"}  # fmt: skip

    class Wrong(NumPyBackend):
        def gelu(self, x):
            return super().gelu(x) + 1

        def rms_norm(self, x, scale, eps):
            raise Unsupported("no norms here")

    names = ["gelu-by-tanh", "gates", "rms-norms"]
    found = certify(Wrong(), names=names, max_examples=20, xfails=known, shrink=False)
    by_name = {v.check.name: v for v in found.verdicts}
    assert (by_name["gelu-by-tanh"].status, by_name["gelu-by-tanh"].expected) == (
        "xfailed",
        "its GeLU",
    )
    assert by_name["gates"].status == "passed"
    assert found.stale == {"rms-norms": "skipped", "nothing": "no such check"}, "20 are few"
    found = certify(Wrong(), names=names, xfails=known, shrink=False)
    assert found.stale == {"gates": "passed", "rms-norms": "skipped", "nothing": "no such check"}
    assert not found.as_expected
    text = as_text(found)
    for line in ("gates passes", "rms-norms is skipped", "nothing is no check"):
        assert f"known to fail, but: {line}" in text
    assert schema_fault(found) == ""
    del known["gates"], known["nothing"], known["rms-norms"]
    found = certify(Wrong(), names=names, max_examples=20, xfails=known, shrink=False)
    assert found.stale == {}
    assert found.as_expected


@pytest.mark.parametrize(
    ("examples", "profile"), [*((n, name) for name, n in EFFORTS.items()), (7, "custom")]
)
def test_profiles_have_numbers_of_examples(examples, profile, monkeypatch):
    monkeypatch.setattr(certificates, "find_checks", lambda *args, **options: [])
    found = certify(NumPyBackend(), max_examples=examples)
    assert (found.asked["profile"], found.asked["max_examples"]) == (profile, examples)


def test_progress_comes_before_and_reports_after_each_check():
    told = []
    certify(NumPyBackend(), names=["gelu-by-tanh", "gates"], max_examples=1,
            progress=lambda c: told.append(c.name), report=lambda v: told.append(v.status))  # fmt: skip
    assert told[::2] == ["gelu-by-tanh", "gates"]
    assert len(told) == 4


# -- runs


def drawn(holds, strategy=None, **options) -> Check:
    cases = strategy or (lambda scope: st.integers(0, 9))
    return Check("x", "L2", "says", True, cases, holds, **options)


def test_a_backend_that_is_gone_is_asked_no_more():
    asked = []

    def holds(backend, case):
        asked.append(case)
        raise EngineFailure("the engine has died")

    found = run_check(drawn(holds, parts={"attention": "ATTN-7"}, oracle=True), NumPyBackend(), 60)
    assert len(asked) == 1
    assert (found.status, found.reason, found.examples) == ("failed", "the engine has died", 1)
    assert found.ratio == math.inf

    def breaks(backend, case):
        asked.append(case)
        raise Violation("not so")

    asked.clear()
    assert run_check(drawn(breaks), NumPyBackend(), 60).reason == "not so"
    assert len(asked) > 1, "others are asked for something smaller"


def test_a_smaller_model_that_a_backend_lacks_does_not_end_the_search():
    def cases(scope):
        return st.just(Case(scope.only or POOL[3]))

    def holds(backend, case):
        if case.world == POOL[0]:
            raise Unsupported("not so small")
        raise Violation("wrong")

    found = run_check(drawn(holds, cases), NumPyBackend(), 5)
    assert found.status == "failed"
    assert found.case.world == POOL[1]


def test_a_feature_is_named_only_if_it_tells_failing_examples_from_others():
    def cases(scope):
        return st.sampled_from(POOL[:6]).map(Case)

    def narrow(backend, case):
        c = case.world.config
        return [Comparison("x", 9.0 if c.lru_width != c.width else 0.1, 0)]

    def small(backend, case):
        return [Comparison("x", 9.0 if case.world in POOL[:2] else 0.1, 0)]

    assert run_check(drawn(narrow, cases), NumPyBackend(), 9, shrink=False).violated == ("BLOCK-4",)
    assert run_check(drawn(small, cases), NumPyBackend(), 9, shrink=False).violated == ()


def test_levels_at_which_a_dtype_is_not_judged_are_skipped():
    found = run_check(find_checks(["L5"])[0], NumPyBackend(), 5)
    assert (found.status, found.examples) == ("skipped", 0)
    assert found.reason == "float32 is judged at L0, L1, L2, L3, L4"


# -- a folder of certificates


@pytest.fixture
def few_checks(monkeypatch):
    """The suite has three checks."""
    few = ("gelu-by-tanh", "rms-norms", "multipliers-keep-their-digits")

    def some(levels=(), names=()):
        return [c for c in find_checks(levels, names) if c.name in few]

    monkeypatch.setattr(certificates, "find_checks", some)
    return few


def told(folder: Path, name: str = "numpy-float32") -> dict:
    return reports.load_certificate(folder / f"{name}.json")


def test_a_folder_of_certificates(tmp_path, few_checks):
    folder, lines = tmp_path / "new" / "folder", []
    assert certify_all(folder, ["numpy"], ["default", "smoke"], say=lines.append)
    assert [line.split()[:3] for line in lines] == [
        ["smoke", "numpy", "float32"], ["smoke", "numpy", "float64"],
        ["default", "numpy", "float32"], ["default", "numpy", "float64"],
    ]  # fmt: skip
    assert all("conforms at L0, " in line for line in lines)
    assert sorted(p.name for p in folder.iterdir()) == [
        "index.html", "numpy-float32.badge.json", "numpy-float32.json",
        "numpy-float64.badge.json", "numpy-float64.json", "summary.md",
    ]  # fmt: skip
    assert told(folder)["profile"] == "default"
    assert "numpy float64" in (folder / "summary.md").read_text()
    assert "numpy" in (folder / "index.html").read_text()


def test_resuming_skips_what_is_there_of_the_same_kind(tmp_path, few_checks):
    def certified(*profiles, resume=True) -> list[str]:
        lines = []
        certify_all(tmp_path, ["numpy:float32"], profiles, resume=resume, say=lines.append)
        return [line.split()[0] for line in lines]

    assert certified("smoke") == ["smoke"]
    assert certified("smoke") == []
    assert certified("smoke", resume=False) == ["smoke"]
    assert certified("smoke", "default") == ["default"]
    assert certified("smoke") == [], "there is a more thorough one"
    path = tmp_path / "numpy-float32.json"
    right = json.loads(path.read_text())
    failed = json.loads(path.read_text())
    failed["checks"][0]["status"] = "failed"
    nothing = json.loads(path.read_text())
    for entry in nothing["checks"]:
        entry["status"] = "skipped"
    for changed in (
        right | {"versions": right["versions"] | {"numpy": "1.0"}},
        right | {"spec": "0.1"},
        right | {"profile": "custom"},
        right | {"checks_asked": ["gates"]},
        right | {"levels_asked": ["L0"]},
        right | {"stale_xfails": {"gates": "passed"}},
        failed,
        nothing,
    ):
        path.write_text(json.dumps(changed))
        assert certified("smoke") == ["smoke"]


def test_known_failures_are_read_and_surprises_go_no_further(tmp_path, few_checks, monkeypatch):
    lines = []
    monkeypatch.setattr(certifying, "known_failures", lambda name: {"rms-norms": "it is said"})
    good = certify_all(tmp_path, ["numpy:float32"], ["smoke", "default"], say=lines.append)
    assert not good
    assert [line.split()[0] for line in lines] == ["smoke", "default"], "few examples prove nothing"
    assert "known failures that are none: {'rms-norms': 'passed'}" in lines[1]
    lines.clear()
    monkeypatch.setattr(certifying, "known_failures", lambda name: {"nothing": "it is said"})
    certify_all(tmp_path, ["numpy:float32"], ["smoke", "default"], say=lines.append)
    assert [line.split()[0] for line in lines] == ["smoke"]
    monkeypatch.setattr(certifying, "known_failures", lambda name: {"rms-norms": "it is said"})
    certify_all(tmp_path, ["numpy:float32"], ["default"], say=lines.append)
    assert told(tmp_path)["stale_xfails"] == {"rms-norms": "passed"}


def test_other_certificates_stay_and_are_in_the_report(tmp_path, few_checks):
    certify_all(tmp_path, ["numpy:float64"], ["smoke"], say=lambda line: None)
    before = (tmp_path / "numpy-float64.json").read_bytes()
    certify_all(tmp_path, ["numpy:float32"], ["smoke"], say=lambda line: None)
    assert (tmp_path / "numpy-float64.json").read_bytes() == before
    text = (tmp_path / "summary.md").read_text()
    assert "numpy float32" in text and "numpy float64" in text


def test_a_folder_with_something_else_in_it_is_refused_before_anything_runs(tmp_path, few_checks):
    (tmp_path / "package.json").write_text('{"name": "mine"}')
    lines = []
    with pytest.raises(CertificateError, match="package.json is JSON but no certificate"):
        certify_all(tmp_path, ["numpy"], ["smoke"], say=lines.append)
    assert lines == []


def test_what_is_installed(monkeypatch):
    assert installed(["numpy"]) == [("numpy", "float32"), ("numpy", "float64")]
    assert installed(["numpy:float64"]) == [("numpy", "float64")]
    with pytest.raises(ValueError, match="no dtype 'int3'"):
        installed(["numpy:int3"])
    with pytest.raises(ValueError, match="no backend 'nope'"):
        installed(["nope"])
    found = {"numpy": "", "jax": "the extra is missing"}
    monkeypatch.setattr(certifying, "available", lambda: found)
    assert installed() == [("numpy", "float32"), ("numpy", "float64")]


# -- two backends, step by step


@pytest.fixture
def few_models(monkeypatch):
    monkeypatch.setattr(evolution, "POOL", POOL[:3])


def test_a_backend_does_not_drift_from_itself(few_models):
    found = evolve(NumPyBackend(), NumPyBackend(), (0, 1))
    assert found.worlds == 6
    assert found.steps == 2 * sum(4 * w.config.window + 5 for w in POOL[:3])
    told = found.to_dict()
    for kind in ("logits", "states"):
        assert told[kind]["equal_bits"] == 1
        assert told[kind]["max"] == told[kind]["99.9"] == told[kind]["observed_over_allowed"] == 0
        assert told[kind]["histogram"] == [["0.0", told[kind]["values"]]]
    assert told["logits"]["values"] == sum(
        2 * w.config.vocab_size * (4 * w.config.window + 5) for w in POOL[:3]
    )


def test_a_wrong_one_drifts(few_models):
    found = evolve(NumPyBackend(), mutate(MUTANT["state in bfloat16"]), (0,)).to_dict()
    for kind in ("logits", "states"):
        assert found[kind]["equal_bits"] < 0.7
        assert found[kind]["max"] > 1000
        assert found[kind]["observed_over_allowed"] > 10


def test_empty_slots_of_rings_do_not_count_as_equal(few_models):
    """Only what the tokens read have left is compared; else most of a large ring would agree."""
    evolved = evolve(NumPyBackend(), mutate(MUTANT["rotary angles in bfloat16"]), (0,)).ulps[
        "states"
    ]
    every = sum(
        int(np.prod(shape))
        for w in POOL[:3] for shape in w.state_shapes().values()
        for _ in range(4 * w.config.window + 5)
    )  # fmt: skip
    assert sum(evolved.counts) < every


def test_results_that_are_no_numbers_are_json_all_the_same(few_models):
    class Broken(NumPyBackend):
        def model(self, config, flat):
            return super().model(config, flat | {"final_norm": flat["final_norm"] * np.nan})

    found = evolve(NumPyBackend(), Broken(), (0,)).to_dict()
    told = json.loads(json.dumps(found, allow_nan=False))
    assert told["logits"]["observed_over_allowed"] == told["logits"]["max"] == "inf"
    assert told["states"]["max"] == 0


def test_states_that_show_nothing_cannot_be_compared(few_models):
    class Bare:
        def __init__(self, model):
            self.model = model

        def __call__(self, tokens, positions=None, state=None):
            values, after = self.model(tokens, positions, state and state.inner)
            return values, SimpleNamespace(inner=after)

    class Opaque(NumPyBackend):
        def model(self, config, flat):
            return Bare(super().model(config, flat))

    for pair in ((NumPyBackend(), Opaque()), (Opaque(), NumPyBackend())):
        with pytest.raises(Unsupported, match="its state has no arrays"):
            evolve(*pair, (0,))


def test_nothing_compared_is_no_evolution():
    assert Evolution().to_dict() == {"worlds": 0, "steps": 0}
    assert Layout((((0, 1),),)).width == 1
