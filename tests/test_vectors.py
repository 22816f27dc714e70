"""Golden vectors: the shipped files are whole, right, reproducible, and tell right from wrong."""

import json
import math
import shutil
import struct

import numpy as np
import pytest

from griffin_conformance.backends import Unsupported, find_backend
from griffin_conformance.backends.reference import NumPyBackend
from griffin_conformance.clauses import read_clauses, version
from griffin_conformance.envelope import chain_bound, longest_chain, norms
from griffin_conformance.mutants import MUTANTS, NO_FAULT, mutate
from griffin_conformance.vectors import DATA, VectorsError, check_files, export, verify
from griffin_conformance.vectors.files import Folder
from griffin_conformance.vectors.operations import OPERATIONS
from griffin_conformance.vectors.truths import block_truth, greedy_truth, truth_of
from griffin_np.config import GriffinConfig

SHIPPED = Folder(DATA)
VECTORS = {entry["id"]: entry for entry in SHIPPED.manifest["vectors"]}
MOST_BYTES = 600_000
RIGHT = 0.5
"""Observed over allowed that a right program may come to at most, by the project's definition."""


def config_of(entry: dict) -> GriffinConfig:
    return GriffinConfig.from_dict(SHIPPED.manifest["worlds"][entry["world"]]["config"])


# -- the shipped files


def test_the_shipped_vectors_are_whole_and_small():
    manifest = check_files()
    assert manifest["spec"] == version()
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= MOST_BYTES
    named = {*manifest["files"], "manifest.json", "README.md"}
    assert {path.name for path in DATA.iterdir()} == named


def test_vectors_cite_clauses_that_exist_and_cover_the_model():
    clauses = read_clauses()
    cited = {clause for entry in VECTORS.values() for clause in entry["clauses"]}
    assert cited <= set(clauses)
    families = {clauses[i].family for i in cited}
    assert families >= set(
        "EMBED NORM LIN MLP BLOCK CONV GATE RGLRU ROPE ATTN HEAD DOC PAD BATCH CALL STATE GEN".split()
    )
    assert {entry["level"] for entry in VECTORS.values()} == {"L0", "L1", "L2", "L3"}
    assert {entry.get("operation") for entry in VECTORS.values()} >= set(OPERATIONS)


def test_states_are_followed_through_four_windows():
    followed = set()
    for entry in VECTORS.values():
        if entry["kind"] == "steps":
            config = config_of(entry)
            assert SHIPPED.inputs(entry)["tokens"].shape[1] >= 4 * config.window
            followed |= set(config.block_types)
    assert followed == {"recurrent", "attention"}


def recomputed(entry: dict) -> dict:
    """The oracle's answer to a vector's inputs as they are in the file."""
    i = SHIPPED.inputs(entry)
    if entry["kind"] == "operation":
        operation = OPERATIONS[entry["operation"]]
        return dict(zip(operation.results, operation.truth(i), strict=True))
    config, flat = config_of(entry), SHIPPED.weights(entry["world"])
    if entry["kind"] == "block":
        return {"y": block_truth(flat, config, entry["block"], i["x"])}
    if entry["kind"] == "greedy":
        tokens, margin, _ = greedy_truth(flat, config, i["prompts"], 6)
        return {"tokens": tokens, "margin": margin}
    return truth_of(
        flat, config, i["tokens"], i["positions"], entry.get("start", 0),
        streams=entry["id"].endswith("/whole"), after_each=entry["kind"] == "steps",
    )  # fmt: skip


@pytest.mark.parametrize("entry", VECTORS.values(), ids=list(VECTORS))
def test_truths_are_the_oracles(entry):
    """To the roundings of the longest chain: elementary functions are the machine's own.

    The envelope of float64 would be no measure: it has algorithms in it that lose digits, and the
    oracle has none.
    """
    found, expected = recomputed(entry), SHIPPED.expectations(entry)
    assert {e.name for e in expected} == set(found)
    i = SHIPPED.inputs(entry)
    if "world" in entry:
        tokens = max(np.size(i[name][-1]) for name in ("tokens", "prompts", "x") if name in i)
        chain = longest_chain(config_of(entry), tokens)
    else:
        chain = sum(np.size(value) for value in i.values())
    place = entry["precisions"].index("float64")
    for e in expected:
        if e.allowed is None:
            assert np.array_equal(found[e.name], e.truth)
            continue
        positions = e.allowed[place].size
        error = norms((found[e.name] - e.truth).reshape(positions, -1))
        size = norms(e.truth.reshape(positions, -1))
        # A lead is the difference of two logits, which may be much larger than it.
        size = np.maximum(size, 1) if e.name == "margin" else size
        assert (error <= chain_bound(chain, "float64") * size).all(), e.name


def test_what_is_allowed_grows_as_bits_get_fewer():
    for entry in VECTORS.values():
        for e in SHIPPED.expectations(entry):
            if e.allowed is not None:
                float64, float32, *fewer = e.allowed
                somewhere = float64 > 0  # padding and empty places must be exact in all of them
                assert (float32 > float64)[somewhere].all(), f"{entry['id']}: {e.name}"
                assert not float32[~somewhere].any()
                # The recurrence has as many bits in bfloat16, and the same samples.
                assert all((a >= float32).all() for a in fewer), f"{entry['id']}: {e.name}"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "fresh"
    export(folder)
    return Folder(folder)


def test_a_fresh_export_is_the_same_but_for_rounding(fresh):
    """Inputs to the bit; allowances nearly: elementary functions take part in drawing them."""
    mine, theirs = fresh.manifest, SHIPPED.manifest
    for key in ("schema", "spec", "rule", "precisions", "worlds", "vectors"):
        assert mine[key] == theirs[key], f"{key} of the manifest: export the vectors again"
    for entry in VECTORS.values():
        old, new = SHIPPED.inputs(entry), fresh.inputs(entry)
        for name, value in old.items():
            assert np.array_equal(value, new[name]), f"{entry['id']}: {name}"
        for a, b in zip(SHIPPED.expectations(entry), fresh.expectations(entry), strict=True):
            if a.allowed is not None:
                where = f"what is allowed for {a.name} of {entry['id']}: export the vectors again"
                assert (b.allowed <= 2 * a.allowed).all(), where
                assert (a.allowed <= 2 * b.allowed).all(), where
    for world in theirs["worlds"]:
        old, new = SHIPPED.weights(world), fresh.weights(world)
        assert all(np.array_equal(old[name], new[name]) for name in old)


def test_exporting_again_gives_the_same_bytes(tmp_path, fresh):
    export(tmp_path / "again", worlds=["hawk"])
    for name in ("operations.safetensors", "hawk.safetensors", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (fresh.path / name).read_bytes()


def test_larger_worlds_are_made_on_request(tmp_path, monkeypatch):
    """One of them made smaller, for their truth takes a while."""
    from dataclasses import replace

    from griffin_conformance.vectors import exporting, models

    wide = models.LARGE["wide"]
    config = wide.config.replace(width=24, depth=3, lru_width=24, mlp_width=20, window=5)
    wide = replace(wide, config=config, lengths=(21, 9, 4))
    monkeypatch.setattr(exporting, "LARGE", {"wide": wide})
    manifest = export(tmp_path / "large", worlds=[], large=True)
    assert set(manifest["worlds"]) == {"wide"}
    check_files(tmp_path / "large")
    results = verify(tmp_path / "large", NumPyBackend())
    assert {r.status for r in results if r.id.startswith("wide/")} == {"passed"}


# -- right and wrong backends


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_passes_every_vector(dtype):
    results = verify(None, NumPyBackend(dtype))
    assert [r.id for r in results] == list(VECTORS)
    assert {r.status for r in results} == {"passed"}
    assert not any(r.not_compared for r in results)
    assert max(r.worst.ratio for r in results if r.worst) <= RIGHT


def test_a_bfloat16_program_passes_those_that_are_for_it():
    results = verify(DATA, mutate(NO_FAULT, "bfloat16"))
    assert {r.status for r in results} == {"passed", "skipped"}
    for r in results:
        assert (r.status == "passed") == ("bfloat16" in VECTORS[r.id]["precisions"]), r.reason
    assert max(r.worst.ratio for r in results if r.worst) <= RIGHT


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("window of W keys", {"attention/multi-query", "local/whole", "griffin/whole"}),
        ("damped start", {"rg_lru/from-the-start", "hawk/whole"}),
        ("convolution cache not cleared", {"griffin/packed", "griffin/short-documents"}),
        ("padding in the convolution", {"griffin/padded-left"}),
        ("chunks overwrite the convolution cache", {"griffin/chunked", "hawk/chunked"}),
        ("short documents not reset", {"griffin/short-documents"}),
        ("ring too short", {"local/steps"}),
        ("exact embedding scale", {"embed/width-10", "griffin/whole"}),
        ("key-value heads in turn", {"attention/two-key-value-heads", "local/whole"}),
        ("a cap of 0 is a cap", {"logits/no-cap", "hawk/whole"}),
        ("rotary angles in float32", {"rope/last-positions", "griffin/late"}),
        ("naive softplus", {"decay/any"}),
        ("second best token", {"griffin/greedy", "hawk/greedy"}),
    ],
)
def test_mutants_fail_the_vectors_of_their_fault(name, ids):
    (mutant,) = (m for m in MUTANTS if m.name == name)
    results = verify(DATA, mutate(mutant))
    failed = {r.id for r in results if r.status == "failed"}
    assert failed >= ids
    assert len(failed) < len(VECTORS), "what has nothing to do with the fault passes"
    assert all(r.reason for r in results if r.status == "failed")


def test_the_other_engines_pass():
    results = verify(DATA, find_backend("numba", "float32"))
    assert {r.status for r in results} == {"passed"}


class Partial(NumPyBackend):
    """Has one operation, raises in another, and gives NaN and a wrong shape in two more."""

    def model(self, config, flat):
        raise Unsupported("it has no models today")

    def block(self, config, flat, i, x, positions):
        raise RuntimeError("out of cheese")

    def gelu(self, x):
        return super().gelu(x) * np.where(np.arange(x.shape[1]) == 1, np.nan, 1)

    def embed(self, rows):
        return super().embed(rows)[:-1]


def test_what_is_missing_is_skipped_and_what_breaks_fails():
    results = {r.id: r for r in verify(DATA, Partial())}
    assert results["griffin/whole"].status == "skipped"
    assert results["griffin/whole"].reason == "it has no models today"
    assert results["griffin/recurrent-block-1"].status == "failed"
    assert "out of cheese" in results["griffin/recurrent-block-1"].reason
    assert results["gelu/ordinary"].worst.ratio == math.inf
    assert "expected (3, 10)" in results["embed/width-10"].reason
    assert results["rms_norm/tiny"].status == "passed"


def test_empty_places_must_be_exactly_empty():
    """Padding has no logits, however small: what is allowed there is 0."""

    class Nearly(NumPyBackend):
        def model(self, config, flat):
            right = super().model(config, flat)

            def call(tokens, positions=None, state=None):
                logits, state = right(tokens, positions, state)
                return logits + np.float32(1e-30) * (np.asarray(positions) < 0)[..., None], state

            return call

    results = {r.id: r for r in verify(DATA, Nearly())}
    assert results["griffin/padded-left"].status == "failed"
    assert results["griffin/packed"].status == "passed"
    assert results["griffin/late"].status == "skipped"


# -- without Python's libraries


def test_the_readme_is_enough_to_read_and_use_a_vector():
    """A reader of a few lines, and RMSNorm in scalar arithmetic."""

    def tensor(file: str, name: str):
        content = (DATA / file).read_bytes()
        (n,) = struct.unpack("<Q", content[:8])
        entry = json.loads(content[8 : 8 + n])[name]
        begin, end = entry["data_offsets"]
        code, size = {"F64": ("d", 8), "F32": ("f", 4), "I64": ("q", 8)}[entry["dtype"]]
        values = struct.unpack(
            f"<{(end - begin) // size}{code}", content[8 + n + begin : 8 + n + end]
        )
        assert len(values) == math.prod(entry["shape"])
        return entry["shape"], values

    manifest = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))
    done = 0
    for vector in manifest["vectors"]:
        if vector.get("operation") != "rms_norm":
            continue
        (T, D), x = tensor(vector["file"], vector["inputs"]["x"]["tensor"])
        _, scale = tensor(vector["file"], vector["inputs"]["scale"]["tensor"])
        (expected,) = vector["expect"]
        _, truth = tensor(vector["file"], expected["tensor"])
        shape, allowed = tensor(vector["file"], expected["allowed"])
        place = vector["precisions"].index("float64")
        assert shape == [len(vector["precisions"]), T]
        for t in range(T):
            row = x[t * D : (t + 1) * D]
            root = math.sqrt(sum(v * v for v in row) / D + vector["inputs"]["eps"])
            y = [v / root * (1 + s) for v, s in zip(row, scale, strict=True)]
            distance = math.dist(y, truth[t * D : (t + 1) * D])
            assert distance <= allowed[place * T + t]
            done += 1
    assert done > 5


# -- damage


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(DATA, tmp_path / "copy")
    return tmp_path / "copy"


def changed(folder, **entries):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) | entries
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_a_changed_file_is_found_by_its_hash(copy):
    path = copy / "hawk.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(VectorsError, match=r"hawk\.safetensors has SHA-256 .* export it again"):
        check_files(copy)
    with pytest.raises(VectorsError, match="SHA-256"):
        verify(copy, NumPyBackend())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "edges.safetensors").unlink(), "edges.safetensors is missing"),
        (lambda f: (f / "manifest.json").unlink(), "no manifest.json in"),
        (lambda f: (f / "manifest.json").write_text("{"), "no readable JSON"),
        (lambda f: changed(f, schema="griffin-vectors/2"), "schema 'griffin-vectors/2'"),
        (lambda f: changed(f, rule=3), "breaks its schema: the manifest.rule: 3 is not of type"),
        (lambda f: changed(f, vectors=[{**VECTORS["hawk/whole"], "world": "x"}]), "of no world"),
        (lambda f: changed(f, vectors=[VECTORS["hawk/whole"]] * 2), "two vectors of one id"),
        (
            lambda f: changed(f, vectors=[{**VECTORS["hawk/whole"], "file": "edges.safetensors"}]),
            "edges.safetensors has no tensor hawk/whole/tokens",
        ),
        (
            lambda f: changed(
                f, vectors=[{**VECTORS["hawk/whole"], "precisions": ["float32", "float64"]}]
            ),
            r"what is allowed for logits has shape \(3, 1, 18\)",
        ),
    ],
)
def test_damaged_folders_are_refused_by_name(copy, damage, message):
    damage(copy)
    with pytest.raises(VectorsError, match=message):
        check_files(copy)


def test_exports_go_into_new_folders_or_over_old_vectors(tmp_path, copy):
    with pytest.raises(VectorsError, match="no world 'moon'; choose some of griffin"):
        export(tmp_path / "x", worlds=["moon"])
    with pytest.raises(VectorsError, match="there is no folder"):
        export(tmp_path / "a" / "b", worlds=[])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("dear")
    with pytest.raises(VectorsError, match=r"holds diary\.txt, which is no vector"):
        export(tmp_path / "home", worlds=[])
    with pytest.raises(VectorsError, match="is a file"):
        export(tmp_path / "home" / "diary.txt", worlds=[])
    manifest = export(copy, worlds=[])
    assert list(manifest["files"]) == ["operations.safetensors"]
    assert not (copy / "hawk.safetensors").exists(), "what belonged to the old vectors goes"
    check_files(copy)
