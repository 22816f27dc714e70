"""What a certificate becomes: its schema, pages, CI formats, badges and comparisons."""

import base64
import copy
import hashlib
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from griffin_conformance import reports
from griffin_conformance.backends.reference import NumPyBackend
from griffin_conformance.certificate import certify
from griffin_conformance.mutants import MUTANTS, Mutant, mutate
from griffin_conformance.reports.comparing import FLOOR
from griffin_conformance.reports.loading import CertificateError, validator
from griffin_conformance.reports.plot import MOST, WIDTH, plot_series
from griffin_conformance.reports.values import clean, number, shown, span
from griffin_conformance.schemas import Draft202012Validator, wrong_with

HOSTILE = (
    "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)> &lt;b \x00\x1b[31m \ud800"
)


def check(name, status="passed", level="L2", ratio=0.25, **changes):
    """One check of a certificate."""
    worst = {
        "what": f"logits of {name}",
        "entry": 7,
        "observed": 0.125,
        "allowed": 0.5,
        "ulp_percentiles": {"50": 0.5, "99": 3.0, "99.9": 4.0, "100": 5.5},
    }
    failed = status in ("failed", "xfailed")
    told = {
        "check": name,
        "level": level,
        "requirement": "MUST",
        "says": f"What {name} says.",
        "clauses": ["ATTN-1", "CALL-9"],
        "status": status,
        "violated": ["ATTN-1"] if failed else [],
        "cause": "shows W keys" if failed else "",
        "examples": 60,
        "observed_over_allowed": ratio,
        "worst": None if status == "skipped" else worst,
        "reason": "" if status == "passed" else f"{name}: a reason\nin two lines",
        "inconclusive": False,
        "not_compared": ["the state's arrays"],
        "reproducer": f"reproduce({name!r})" if failed else "",
        "xfail": "known since 5.24" if status == "xfailed" else "",
        "strata": {"crosses the window": 11},
        "seconds": 1.5,
        "series": None,
    }
    if failed:
        told["series"] = {
            "name": "h of channel 3",
            "first": 0,
            "truth": [0.0, 1.0, 0.5],
            "found": [0.0, 1.0, 0.75],
            "allowed": [0.01, 0.01, 0.01],
        }
    return told | changes


def clause(status="passed", **changes):
    """What a certificate says about one clause."""
    told = {
        "status": status,
        "requirement": "MUST",
        "title": "A token sees W + 1 keys",
        "observed_over_allowed": 0.25,
        "checks": ["any-chunking"],
    }
    return told | changes


def certificate(*checks, **changes):
    """A certificate; of a backend that conforms if nothing else is said."""
    checks = checks or (check("any-chunking"), check("scans", level="L0"))
    kinds = ("passed", "failed", "skipped", "xfailed")
    levels = {c["level"]: dict.fromkeys(kinds, 0) for c in checks}
    for c in checks:
        levels[c["level"]][c["status"]] += 1
    conforms = not any(
        c["status"] in ("failed", "xfailed") and c["requirement"] == "MUST" for c in checks
    )
    ulp = {"values": 100, "99.9": 2.5, "max": 5.5, "histogram": [["0.25", 90], ["8.0", 10]]}
    told = {
        "schema": "griffin-conformance-certificate/1",
        "spec": "1.0",
        "backend": "numpy",
        "dtype": "float32",
        "versions": {"python": "3.11.7", "numpy": "2.4.6"},
        "profile": "default",
        "seed": 4711,
        "max_examples": 60,
        "levels_asked": [],
        "checks_asked": [],
        "conforms": conforms,
        "outcome": "conforms at L0, L2" if conforms else "VIOLATES the specification",
        "worst_observed_over_allowed": 0.32 if conforms else "inf",
        "levels": dict(sorted(levels.items())),
        "clauses": {
            "ATTN-1": clause("passed" if conforms else "failed"),
            "CALL-9": clause(requirement="SHOULD", title="A refusal names row and column"),
        },
        "violated": [] if conforms else ["ATTN-1"],
        "cause": "" if conforms else "shows W keys",
        "ulp": {"logits": ulp, "states": ulp},
        "stale_xfails": {},
        "checks": list(checks),
        "strata": {"crosses the window": 22},
        "seconds": 12.5,
    }
    return told | changes


WRONG = check("any-chunking", "failed", ratio=720_000.0)
FULL = certificate(
    WRONG,
    check("scans", level="L0"),
    check("gates", "skipped", "L0", 0.0),
    check("whole-texts", "xfailed", ratio="inf"),
    check("refusals", "failed", requirement="SHOULD", ratio="inf", worst=None),
    backend="other",
    stale_xfails={"rms-norms": "passed"},
    clauses={
        "ATTN-1": clause("failed"),
        "CALL-9": clause("failed", requirement="SHOULD", checks=["refusals"]),
        "CONV-1": clause("xfailed", checks=["whole-texts"]),
        "GATE-1": clause("skipped", checks=["gates"]),
        "RGLRU-1": clause(checks=["scans"]),
        "RGLRU-3": clause("failed", requirement="SHOULD", checks=["refusals"]),
    },
    violated=["CONV-1", "ATTN-1", "CALL-9", "RGLRU-3"],
)


@pytest.fixture(scope="module")
def real():
    """Certificates of the reference and of a mutant, at a few checks."""
    names = ["embeddings-are-scaled", "scans", "the-window-shows-w-past-tokens"]
    mutant = next(m for m in MUTANTS if m.name == "window of W keys")
    backends = (NumPyBackend("float32"), mutate(mutant, "float32"))
    return [certify(backend, names=names, max_examples=3) for backend in backends]


# -- the schema


def places(value, path=()):
    """Paths of all objects in a certificate."""
    if isinstance(value, dict):
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        if isinstance(entry, dict | list):
            yield from places(entry, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


FREE = ("versions", "levels", "clauses", "ulp", "stale_xfails", "strata")
"""Objects that may have any keys, or lack some."""


def test_real_certificates_satisfy_the_schema(real):
    for told in (one.to_dict() for one in real):
        # Through a file, because JSON has no tuples, no infinity and no integer keys.
        assert wrong_with(json.loads(json.dumps(told, allow_nan=False)), validator()) == ""
    assert real[0].conforms and not real[1].conforms


def test_a_backend_without_numbers_has_a_certificate_all_the_same():
    mutant = Mutant("nan", "gives NaN", (), {"gelu": lambda x: x * np.nan})
    told = certify(mutate(mutant, "float32"), names=["whole-texts"], max_examples=2).to_dict()
    assert wrong_with(json.loads(json.dumps(told, allow_nan=False)), validator()) == ""
    assert told["ulp"]["logits"]["max"] == "inf"
    everything(told)


@pytest.mark.parametrize("told", [certificate(), FULL], ids=["conforms", "violates"])
def test_made_up_certificates_satisfy_the_schema(told):
    assert wrong_with(told, validator()) == ""


def test_every_key_is_required_and_no_other_is_allowed():
    tried = 0
    for path in places(FULL):
        free = bool(path) and path[-1] in FREE
        for key in [] if free else at(FULL, path):
            broken = copy.deepcopy(FULL)
            del at(broken, path)[key]
            assert f"{key!r} is a required property" in wrong_with(broken, validator()), (path, key)
            tried += 1
        if not free or path[-1] == "ulp":
            broken = copy.deepcopy(FULL)
            at(broken, path)["another"] = 1
            assert "'another'" in wrong_with(broken, validator()), path
    assert tried > 100


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("seed",), "0", "it.seed: '0' is not of type 'integer'"),
        (("seed",), True, "it.seed: True is not of type 'integer'"),
        (("max_examples",), 0, "it.max_examples: 0 is less than the minimum of 1"),
        (("conforms",), 1, "it.conforms: 1 is not of type 'boolean'"),
        (("backend",), "", "it.backend: '' should be non-empty"),
        (("levels_asked",), ["L0", "L0"], "it.levels_asked: ['L0', 'L0'] has non-unique elements"),
        (("levels_asked",), ["0"], "it.levels_asked[0]: '0' does not match"),
        (
            ("worst_observed_over_allowed",),
            "infinite",
            "it.worst_observed_over_allowed: 'infinite'",
        ),
        (("levels", "L2", "passed"), -1, "it.levels.L2.passed: -1 is less than"),
        (("clauses", "attention"), clause(), "it.clauses: 'attention' does not match"),
        (("checks", 0, "status"), "xpassed", "it.checks[0].status: 'xpassed' is not one of"),
        (("checks", 0, "requirement"), "MAY", "it.checks[0].requirement: 'MAY' is not one of"),
        (("checks", 0, "worst"), {}, "it.checks[0].worst: "),
        (("checks", 0, "series", "truth", 1), None, "it.checks[0].series.truth[1]: None"),
        (("checks", 0, "clauses"), "ATTN-1", "it.checks[0].clauses: 'ATTN-1' is not of type"),
        (("strata", "x"), 0.5, "it.strata.x: 0.5 is not of type 'integer'"),
        (
            ("ulp", "logits", "histogram", 0),
            ["1"],
            "histogram[0]: ['1'] is too short",
        ),
        (("schema",), "griffin-conformance-certificate/2", "it.schema: "),
    ],
)
def test_wrong_values_are_named(path, value, told):
    broken = copy.deepcopy(FULL)
    at(broken, path[:-1])[path[-1]] = value
    assert told in wrong_with(broken, validator())


def test_a_whole_number_may_be_written_with_a_point():
    assert wrong_with(certificate(seed=3.0), validator()) == ""


def test_the_schema_is_one():
    Draft202012Validator.check_schema(reports.read_schema())


def test_long_values_are_cut_in_messages():
    told = wrong_with(certificate(seed="9" * 5000), validator())
    assert told.startswith("it.seed: '999") and "characters)" in told and len(told) < 200


# -- loading


def test_a_certificate_is_read_as_it_was_written(tmp_path, real):
    reports.write_json(real[1], tmp_path / "a.json")
    loaded = reports.load_certificate(tmp_path / "a.json")
    assert loaded == json.loads(json.dumps(real[1].to_dict()))
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        ("hello", "not JSON at line 1, column 1"),
        ("[1, 2]", "no key schema"),
        ('{"a": 1}', "no key schema"),
        ('{"schema": 1}', "no key schema"),
        ('{"schema": "griffin-vectors/1"}', "no key schema"),
        ('{"schema": "griffin-conformance-certificate/9"}', "certificate/9', and this version"),
        (
            '{"schema": "griffin-conformance-certificate/1"}',
            "breaks the schema.*is a required property",
        ),
        ('{"a": NaN}', "JSON has no NaN"),
        ("[" * 100_000, "nested too deeply|not JSON"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
    ],
)
def test_files_that_are_no_certificates(tmp_path, content, told):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CertificateError, match=told) as error:
        reports.load_certificate(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_certificate_that_is_cut_off_anywhere_is_told_as_such(tmp_path):
    text = json.dumps(FULL, indent=1)
    for end in range(1, len(text) - 1, 97):
        (tmp_path / "a.json").write_text(text[:end])
        with pytest.raises(CertificateError, match="is cut off after"):
            reports.load_certificate(tmp_path / "a.json")


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(CertificateError, match="there is no file"):
        reports.load_certificate(tmp_path / "none.json")
    with pytest.raises(CertificateError, match="cannot be read"):
        reports.load_certificate(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        reports.write_html([FULL], path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["page.html"]


# -- the page


class Page(HTMLParser):
    """Elements with their attributes, and all text outside style and script."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts, self.faults = [], [], [], []
        self.feed(html)
        self.close()
        self.faults += [f"{tag} is not closed" for tag in self.open]
        self.text = " ".join(self.texts)
        self.attributes = [(t, k, v or "") for t, attrs in self.elements for k, v in attrs]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, attrs))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)


def page_of(*certificates):
    return Page(reports.as_html(certificates))


def test_the_page_is_well_formed_and_its_names_are_its_own(real):
    for page in (page_of(FULL), page_of(*(r.to_dict() for r in real), FULL, certificate())):
        assert not page.faults
        names = [v for _, k, v in page.attributes if k == "id"]
        assert len(names) == len(set(names))


def test_the_page_loads_nothing():
    html = reports.as_html([FULL, certificate()])
    page = Page(html)
    assert not {t for t, _ in page.elements} & {"link", "img", "iframe", "object", "embed", "base"}
    assert not [v for _, k, v in page.attributes if k in ("src", "srcset", "action", "data")]
    assert all(v.startswith("#") for _, k, v in page.attributes if k in ("href", "xlink:href"))
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|import\(", html)


def test_the_policy_lets_in_its_own_style_and_script_alone():
    html = reports.as_html([FULL])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    # What the policy would keep out.
    assert not [a for a in Page(html).attributes if a[1] == "style" or a[1].startswith("on")]


def hostile(value):
    """The same value with hostile words in every string, keys included where they are free."""
    if isinstance(value, dict):
        return {k: hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    kept = ("passed", "failed", "skipped", "xfailed", "MUST", "SHOULD", "inf", "nan")
    return value + HOSTILE if isinstance(value, str) and value not in kept else value


def test_nothing_that_a_backend_says_becomes_markup():
    told = hostile(FULL)
    told["versions"][HOSTILE] = told["strata"][HOSTILE] = 1
    told["clauses"][HOSTILE] = clause("failed")
    told["levels"][HOSTILE] = {"passed": 1}
    told[HOSTILE] = HOSTILE
    for c in told["checks"]:
        c["strata"][HOSTILE] = 1
        c[HOSTILE] = HOSTILE
    html = reports.as_html([told, told])
    page = Page(html)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1 and "img" not in tags and not page.faults
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert page.text.count("<img src=x onerror=alert(2)> &lt;b") > 20  # told as it is
    assert "\x00" not in html and "\x1b" not in html
    html.encode("utf-8")


def leaves(value, path=()):
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            yield from leaves(entry, (*path, key))
    else:
        yield path, value


def test_every_value_of_a_certificate_is_on_the_page():
    told = copy.deepcopy(FULL)
    numbers = iter(range(101, 10_000))
    for path, value in list(leaves(FULL)):
        key, inside = path[-1], path[-2] if len(path) > 1 else ""
        if isinstance(value, bool) or key in ("status", "requirement", "schema", "level"):
            continue
        if inside in ("truth", "found", "allowed") or "histogram" in path:
            continue
        if isinstance(value, str) and "observed_over_allowed" not in str(key):
            at(told, path[:-1])[key] = f"w{next(numbers)}w"
        elif isinstance(value, int | float):
            at(told, path[:-1])[key] = next(numbers)
    # Names by which clauses, checks and links are found stay what they are.
    for c, original in zip(told["checks"], FULL["checks"], strict=True):
        c["check"] = original["check"]
    for name, c in told["clauses"].items():
        c["checks"] = FULL["clauses"][name]["checks"]
    told["violated"] = FULL["violated"]
    page = page_of(told)
    everything = page.text + " ".join(v for _, _, v in page.attributes)
    missing = [
        (path, value)
        for path, value in leaves(told)
        if not isinstance(value, bool) and value is not None and "histogram" not in path
        and str(value) not in ("", "inf") and str(value) not in everything
        # What was skipped has no size.
        and (path[-1] != "observed_over_allowed" or at(told, path[:-1])["status"] != "skipped")
    ]  # fmt: skip
    assert not missing


def test_links_lead_to_clauses_checks_and_backends():
    page = page_of(FULL, certificate())
    links = {v for _, k, v in page.attributes if k == "href"}
    for name in ("ATTN-1", "CALL-9"):
        assert {f"#{name}/other", f"#{name}/numpy"} <= links
    names = {v for _, k, v in page.attributes if k == "id"}
    assert {f"check/{c['check']}/other" for c in FULL["checks"]} <= names
    of_checks = {link[1:] for link in links if link.startswith("#check/")}
    assert of_checks and of_checks <= names


def test_certificates_of_one_backend_have_links_of_their_own():
    page = page_of(certificate(), certificate(dtype="bfloat16"), certificate())
    links = [v for _, k, v in page.attributes if k == "href" and "ATTN-1" in v]
    assert links == ["#ATTN-1/numpy:float32", "#ATTN-1/numpy:bfloat16", "#ATTN-1/numpy:float32:2"]


def test_cells_are_read_without_colours():
    cells = re.findall(r'<a class="cell (\w+)" href="#([A-Z]+-\d+)/other"[^>]*>(.)</a>',
                       reports.as_html([FULL]))  # fmt: skip
    assert {(name, kind, sign) for kind, name, sign in cells} == {
        ("ATTN-1", "failed", "✕"),
        ("CALL-9", "should", "!"),
        ("CONV-1", "xfailed", "≠"),
        ("GATE-1", "skipped", "-"),
        ("RGLRU-1", "passed", "✓"),
        ("RGLRU-3", "should", "!"),
    }


def test_what_was_not_asked_is_no_cell():
    html = reports.as_html([FULL, certificate()])
    assert html.count('title="not asked"') == 4 + 3  # clauses and checks that only one has


def test_the_head_says_what_came_out():
    page = page_of(FULL, certificate())
    assert "1 of 2 backends conforms to specification 1.0." in page.text
    assert "violates 2 of 6 clauses" in page.text  # the known failure too, the SHOULD not
    assert "conforms at L0, L2" in page.text
    assert "rms-norms passed" in page.text
    assert "other does not conform to specification 1.0." in page_of(FULL).text


def test_ten_certificates_make_a_page_of_less_than_a_megabyte():
    checks = [check(f"check-number-{i}-of-many", level=f"L{i % 6}") for i in range(70)]
    wrong = [check(c["check"], "failed", c["level"], reason="wrong " * 40) for c in checks]
    clauses = {f"CLAUSE-{i}": clause(checks=[checks[i % 70]["check"]]) for i in range(95)}
    many = [certificate(*checks, clauses=clauses) for _ in range(8)]
    many += [certificate(*wrong[:35], *checks[35:], clauses=clauses) for _ in range(2)]
    assert len(reports.as_html(many).encode()) < 1_000_000


def test_a_page_needs_a_certificate():
    with pytest.raises(ValueError, match="no certificates"):
        reports.as_html([])


# -- the plot


def series(truth, found, allowed, first=0):
    return {"name": "h", "first": first, "truth": truth, "found": found, "allowed": allowed}


def test_curves_stay_within_the_picture():
    truth = [math.sin(i / 5) for i in range(80)]
    found = [*truth[:40], *(1e9 * t for t in truth[40:])]
    text = plot_series(series(truth, found, [1e-6] * 80))
    (height,) = re.findall(rf'viewBox="0 0 {WIDTH} (\d+)"', text)
    paths = re.findall(r' d="([^"]*)"', text)
    places = [p for d in paths for p in re.findall(r"([\d.-]+) ([\d.-]+)", d)]
    assert len(places) > 200
    assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= float(height) for x, y in places)


def test_a_backend_without_numbers_is_drawn_as_far_as_it_has_some():
    text = plot_series(series([0, 1, 2, 3], [0, "nan", 2, "inf"], [0.1, 0.1, "inf", 0.1]))
    assert text.count('class="found"') == 2 and 'class="lost"' in text
    assert "nan" not in re.sub(r'data-points="[^"]*"', "", text)


def test_the_band_is_as_wide_as_is_allowed():
    text = plot_series(series([0.0, 0.0], [0.0, 0.0], [1.0, 1.0]))
    text = text[: text.index('class="truth"')]  # before the strip below, which has a 1 too
    (band,) = re.findall(r'class="band" d="([^"]*)"', text)
    heights = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", band)]
    labels = re.findall(r'<text class="y"[^>]* y="([\d.]+)">([^<]*)<', text)
    ticks = {float(label): float(y) - 3.5 for y, label in labels}
    assert max(heights) == pytest.approx(ticks[-1], abs=0.2)
    assert min(heights) == pytest.approx(ticks[1], abs=0.2)


def test_of_a_long_series_the_part_where_it_goes_wrong_is_drawn():
    truth = [0.0] * 4000
    found = [0.0] * 3000 + [1.0] * 1000
    text = plot_series(series(truth, found, [0.1] * 4000, first=100))
    told = re.search(r"steps (\d+) to (\d+)", text)
    first, last = int(told[1]), int(told[2])
    assert first < 3100 < last and last - first + 1 == MOST


@pytest.mark.parametrize("told", [None, {}, series([], [], []), series(["nan"], [1], [1]), "x"])
def test_nothing_to_draw(told):
    assert plot_series(told) == ""


def test_one_step_and_constants_are_drawn():
    for told in (
        series([1], [2], [0]),
        series([0, 0], [0, 0], [0, 0]),
        series([5] * 3, [5] * 3, [1e-9] * 3),
    ):
        assert "<svg" in plot_series(told)


# -- JUnit


def test_junit_has_a_suite_for_each_level_and_counts_what_is_in_it():
    root = ElementTree.fromstring(reports.as_junit(FULL).encode())
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["L0 operations", "L2 the model's laws"]
    for i, suite in enumerate(root):
        tests = suite.findall("testcase")
        assert suite.get("id") == str(i) and suite.get("tests") == str(len(tests))
        for key, tag in (("failures", "failure"), ("skipped", "skipped"), ("errors", "error")):
            assert int(suite.get(key)) == sum(test.find(tag) is not None for test in tests)
        # The order that Ant's schema wants.
        tags = [child.tag for child in suite]
        assert tags == ["properties", *["testcase"] * len(tests), "system-out", "system-err"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp"))
    told = {p.get("name"): p.get("value") for p in root.iter("property")}
    assert told["backend"] == "other" and told["dtype"] == "float32" and told["seed"] == "4711"
    assert told["version of numpy"] == "2.4.6"


def test_only_what_a_backend_must_is_a_junit_failure():
    root = ElementTree.fromstring(reports.as_junit(FULL).encode())
    tests = {test.get("name"): test for test in root.iter("testcase")}
    failure = tests["any-chunking"].find("failure")
    assert failure.get("message") == "ATTN-1: any-chunking: a reason"
    assert "in two lines" in failure.text and "reproduce('any-chunking')" in failure.text
    assert "likely cause: it shows W keys" in failure.text
    assert tests["scans"].find("*") is None
    skipped = {name: test.find("skipped").get("message") for name, test in tests.items()
               if test.find("skipped") is not None}  # fmt: skip
    assert skipped == {
        "gates": "gates: a reason",
        "whole-texts": "known failure: known since 5.24",
        "refusals": "SHOULD, and does not: refusals: a reason",
    }


def test_too_few_examples_are_told_as_such_in_junit():
    told = certificate(check("scans", "failed", inconclusive=True))
    root = ElementTree.fromstring(reports.as_junit(told).encode())
    assert root.find(".//failure").get("type") == "inconclusive"


def test_junit_holds_any_words():
    text = reports.as_junit(hostile(FULL))
    root = ElementTree.fromstring(text.encode())
    (failure,) = root.iter("failure")
    assert "<script>alert(1)</script>" in failure.text and "\x1b" not in text


# -- badges


@pytest.mark.parametrize(
    ("told", "message", "color"),
    [
        (certificate(), "L0, L2 float32 · 0.32", "brightgreen"),
        (certificate(*(check(f"c{i}", level=f"L{i}") for i in range(5))), "L0-L4 float32 · 0.32", "brightgreen"),
        (FULL, "fails 2 clauses", "red"),
        (certificate(WRONG), "fails 1 clause", "red"),
        (certificate(WRONG, clauses={}), "fails 1 check", "red"),
        (certificate(check("scans", "failed", inconclusive=True)), "too few examples", "lightgrey"),
        (certificate(conforms=False), "not certified", "lightgrey"),
        ({}, "not certified", "lightgrey"),
    ],
)  # fmt: skip
def test_badges(told, message, color):
    badge = reports.badge(told)
    assert badge["message"] == message and badge["color"] == color and badge["schemaVersion"] == 1
    picture = ElementTree.fromstring(reports.badge_svg(told))
    assert message in "".join(picture.itertext())


def test_a_badge_names_the_specification_and_holds_any_words():
    assert reports.badge(certificate())["label"] == "griffin-conformance 1.0"
    ElementTree.fromstring(reports.badge_svg(certificate(dtype=HOSTILE, spec=HOSTILE)))


# -- comparisons


def changes_of(a, b, **options):
    difference = reports.compare(a, b, **options)
    assert json.loads(json.dumps(difference.to_dict(), allow_nan=False))
    difference.as_text()
    return difference, {c.name: (c.kind, c.worse) for c in difference.checks}


def test_a_certificate_does_not_differ_from_itself():
    difference, changes = changes_of(FULL, FULL)
    assert not difference.worse and not changes and not difference.notes
    assert "no check and no clause changed" in difference.as_text()


@pytest.mark.parametrize(
    ("before", "after", "kind", "worse"),
    [
        ("passed", "failed", "worse", True),
        ("passed", "skipped", "worse", True),
        ("skipped", "failed", "worse", True),
        ("skipped", "xfailed", "worse", True),
        ("xfailed", "failed", "worse", True),
        ("xfailed", "skipped", "changed", False),
        ("failed", "passed", "better", False),
        ("failed", "xfailed", "changed", False),
        ("failed", "skipped", "changed", False),
    ],
)
def test_statuses_that_change(before, after, kind, worse):
    a, b = (certificate(check("scans", status), conforms=True) for status in (before, after))
    difference, changes = changes_of(a, b)
    assert changes == {"scans": (kind, worse)} and difference.worse is worse


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (0.2, 0.39, {}),
        (0.2, 0.41, {"scans": ("higher", True)}),
        (0.41, 0.2, {"scans": ("lower", False)}),
        (0.0, 0.9 * FLOOR, {}),
        (0.0, 1.9 * FLOOR, {}),
        (0.0, 2.1 * FLOOR, {"scans": ("higher", True)}),
    ],
)
def test_ratios_that_move(before, after, told):
    a, b = (certificate(check("scans", ratio=ratio)) for ratio in (before, after))
    difference, changes = changes_of(a, b)
    assert changes == told and difference.worse == any(worse for _, worse in told.values())


def test_how_wrong_a_failure_is_makes_nothing_worse():
    a, b = (certificate(check("scans", "failed", ratio=ratio)) for ratio in (10.0, "inf"))
    difference, changes = changes_of(a, b)
    assert changes == {"scans": ("higher", False)} and not difference.worse
    assert not changes_of(b, b)[1]


def test_checks_that_are_new_or_gone():
    a, b = certificate(check("old"), check("scans")), certificate(check("scans"), check("new"))
    difference, changes = changes_of(a, b)
    assert changes == {"old": ("removed", False), "new": ("new", False)} and not difference.worse
    b = certificate(check("scans"), check("new", "failed"), conforms=True)
    assert changes_of(a, b)[0].worse
    b = certificate(check("scans"), check("new", "failed", requirement="SHOULD"), conforms=True)
    assert not changes_of(a, b)[0].worse


def test_clauses_that_change_and_certificates_that_are_lost():
    a = certificate()
    b = certificate(clauses=a["clauses"] | {"ATTN-1": clause("failed")})
    difference, _ = changes_of(a, b)
    assert [(c.name, c.kind) for c in difference.clauses] == [("ATTN-1", "worse")]
    assert difference.worse and "it got worse" in difference.as_text()
    assert changes_of(a, a | {"conforms": False})[0].worse


def test_what_makes_a_comparison_unfair_is_said():
    b = certificate(seed=1, max_examples=5, spec="1.1", dtype="bfloat16", levels_asked=["L0"],
                    versions={"python": "3.13", "jax": "0.10"})  # fmt: skip
    notes = "\n".join(reports.compare(certificate(), b).notes)
    for told in ("seed differs: 4711 and 1", "examples of each check differs: 60 and 5",
                 "version of the specification differs: 1.0 and 1.1", "levels asked for differs: all and L0",
                 "version of python differs: 3.11.7 and 3.13", "version of jax differs: none and 0.10"):  # fmt: skip
        assert told in notes


def test_the_table_of_a_comparison():
    a, b = certificate(check("scans")), certificate(check("scans", "failed", ratio="inf"))
    text = reports.compare(a, b).as_text()
    assert re.search(r"^scans +worse +passed +failed +0\.25 -> ∞$", text, re.MULTILINE)
    assert text.endswith("1 check got worse")


def test_a_factor_is_above_1():
    with pytest.raises(ValueError, match="factor must be above 1, got 1"):
        reports.compare(FULL, FULL, factor=1)


# -- Markdown and text


def test_markdown_tells_levels_violations_and_worst_ratios():
    text = reports.as_markdown([FULL, certificate()])
    lines = text.splitlines()
    assert "| backend | verdict | L0 | L2 | worst observed / allowed |" in lines
    assert "| numpy float32 | ✓ conforms at L0, L2 | 1 passed | 1 passed | 0.32 |" in lines
    assert "**other float32 violates 2**, the most suspicious first:" in lines
    known, worse = (lines.index(f"- **{name}** A token sees W + 1 keys ({note}0.25 x allowed)")
                    for name, note in (("CONV-1", "known, "), ("ATTN-1", "")))  # fmt: skip
    assert known < worse  # in order of suspicion
    assert "Likely cause: it shows W keys" in lines
    assert "| any-chunking | L2 | ✕ failed | 7.2e5 |" in lines
    assert len(lines) < 60


def test_markdown_holds_any_words():
    told = FULL | {"backend": "a|b\n<script>x</script>", "cause": "`x` | *y*"}
    text = reports.as_markdown([told])
    assert "<script>" not in text and r"\`x\` \| \*y\*" in text
    rows = [line for line in text.splitlines() if line.startswith("| a\\")]
    assert len(rows) == 1 and len(re.findall(r"(?<!\\)\|", rows[0])) == 6


def test_text_names_the_violated_clauses(real):
    text = reports.as_text(real[1])
    assert "violated, most suspicious first: ATTN-1" in text
    verdict = next(v for v in real[1].verdicts if v.status == "failed")
    assert "FAILED" in reports.as_line(verdict)
    verdict = copy.copy(verdict)
    verdict.status = "xfailed"
    assert "xfailed" in reports.as_line(verdict)


# -- all of them


def everything(told):
    reports.as_html([told, certificate()])
    reports.as_html([told])
    reports.as_junit(told)
    reports.as_markdown([told])
    reports.badge_svg(told)
    reports.compare(told, certificate()).as_text()
    json.dumps(reports.compare(certificate(), told).to_dict(), allow_nan=False)


def test_what_a_certificate_lacks_is_left_out():
    everything({})
    everything({"checks": [{}], "clauses": {"ATTN-1": {}}, "levels": {"L0": {}}})
    for key in FULL:
        everything({k: v for k, v in FULL.items() if k != key})
        everything(FULL | {key: None})
    for key in WRONG:
        everything(certificate({**WRONG, key: None}) if key not in ("level", "status", "requirement")
                   else FULL | {"checks": [{k: v for k, v in WRONG.items() if k != key}]})  # fmt: skip


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "0"), (0.25, "0.25"), (1.0, "1"), (12.345, "12.3"), (4804.2, "4804"), (19338, "1.9e4"),
     (720_000, "7.2e5"), (800_000, "8e5"), (6e-9, "6e-9"), ("inf", "∞"), ("nan", "nan"), (None, "nan"),
     (-0.5, "-0.5"), (0.9996, "1"), (1e300, "1e300")],
)  # fmt: skip
def test_numbers_are_short(value, told):
    assert shown(value) == told


def test_levels_in_short():
    assert span(["L0", "L1", "L2", "L4"]) == "L0-L2, L4" and span([]) == ""


def test_characters_that_no_file_can_hold():
    assert clean("a\x00b\ud800c\r\nd\ufffe") == "a\ufffdb\ufffdc\nd\ufffd"
    assert math.isnan(number("x")) and number("inf") == math.inf
