"""Level 4 of the suite and the ends of generation: right loaders pass, wrong ones are named."""

import hashlib
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

import griffin_conformance
from griffin_conformance import (
    checkpoint_files,
    checkpoints,
    continuations,
    damage,
    loader_readings,
    nf4,
    stopping,
    tokenizers,
)
from griffin_conformance.backends import Backend
from griffin_conformance.backends.reference import NumPyBackend, Vocabulary
from griffin_conformance.checkpoint_files import FolderCase, Form, Spelling, stored
from griffin_conformance.checks import CHECKS, Scope
from griffin_conformance.loader_readings import MISREADINGS, misreading_of
from griffin_conformance.mutants import NO_FAULT, mutate
from griffin_conformance.mutants.loaders import right_nf4
from griffin_conformance.mutants.of_checkpoints import MUTANTS
from griffin_conformance.rounding import FLOAT32
from griffin_conformance.runner import run_check
from griffin_conformance.strategies import POOL
from griffin_np.params import parameter_shapes

MODULES = (checkpoints, damage, nf4, stopping, tokenizers)
NAMES = sorted(n for n, c in CHECKS.items() if c.holds.__module__ in {m.__name__ for m in MODULES})


class ReadsNF4(NumPyBackend):
    """The reference, with a reader of nf4."""

    def nf4(self, parts, shape):
        return right_nf4(parts, shape)


# -- right is right, and wrong is named


@pytest.mark.parametrize("name", NAMES)
def test_right_loaders_pass(name):
    verdict = run_check(CHECKS[name], ReadsNF4())
    assert verdict.status == "passed", verdict.explain()
    assert verdict.ratio <= 0.5


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "nf4-tensors"])
def test_right_loaders_of_other_precisions_pass(name, dtype):
    verdict = run_check(CHECKS[name], mutate(NO_FAULT, dtype), 8, survey=True)
    assert verdict.status == "passed", verdict.explain()
    assert verdict.ratio <= 0.5


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_faults_are_found_and_named(mutant):
    for name in mutant.caught_by:
        verdict = run_check(CHECKS[name], mutate(mutant), shrink=False)
        assert verdict.status == "failed", f"{name} does not catch: {mutant.fault}"
        assert not verdict.inconclusive
        assert verdict.ratio >= 10
        assert mutant.clause in verdict.suspects[:3], verdict.reason


def test_every_check_is_failed_by_some_mutant():
    assert {name for mutant in MUTANTS for name in mutant.caught_by} == set(NAMES)
    traps = {mutant.trap for mutant in MUTANTS}
    assert {"T13", "T25", "T26", "T27", "T28", "T29", "T31", "T32"} <= traps


def test_what_a_backend_does_not_read_is_skipped():
    for name in NAMES:
        assert run_check(CHECKS[name], Backend(), 1).status == "skipped"


def test_failures_shrink_to_the_one_choice_that_matters():
    mutant = next(m for m in MUTANTS if m.name == "loader: scales where told")
    verdict = run_check(CHECKS["configurations-are-read"], mutate(mutant), 30)
    assert verdict.case.spelling == Spelling(scale="left out")
    assert "right where scale is 'told'" in verdict.reason


@settings(max_examples=30, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_cases_are_made_again_from_their_repr(data, name):
    case = data.draw(CHECKS[name].cases(Scope()))
    space = {n: getattr(griffin_conformance, n) for n in griffin_conformance.__all__}
    assert eval(repr(case), space) == case


# -- the folders themselves


def test_the_plain_config_is_that_of_the_released_2b_model():
    """The values of that file; other tests have them too, typed in from it."""
    world = checkpoints.small("RRA", 0, width=2560, depth=26, num_heads=10, vocab_size=256000)
    written = checkpoint_files.settings_of(FolderCase(world))
    released = {
        "_block_types": ["recurrent", "recurrent", "attention"], "attention_bias": False,
        "attention_dropout": 0.0, "attention_window_size": 2048, "conv1d_width": 4,
        "embeddings_scale_by_sqrt_dim": True, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2560, "intermediate_size": 15360,
        "logits_soft_cap": 30.0, "lru_width": 2560, "num_attention_heads": 10,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 256000,
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    assert released.items() <= written.items()


def test_patterns_of_the_released_depths():
    """Trap T27."""
    counts = {}
    for world in checkpoints.DEEP:
        kinds = world.config.block_types
        counts[world.config.depth] = kinds.count("recurrent"), kinds.count("attention")
        assert kinds[-2:] == ("recurrent", "recurrent")
    assert counts == {26: (18, 8), 38: (26, 12)}


def test_every_parameter_has_a_tensor_of_its_own():
    for world in (*checkpoints.SQUARE, *checkpoints.SHAPES, *POOL):
        flat = world.parameters()
        tensors = checkpoint_files.tensors_of(flat)
        assert len(tensors) == len(flat) == len(parameter_shapes(world.config))
        assert sum(t.size for t in tensors.values()) == world.config.num_parameters()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_stored_weights_lose_nothing(dtype):
    flat = stored(checkpoints.SQUARE[0], FLOAT32, dtype)
    for array in flat.values():
        again = array.astype(checkpoint_files.numpy_dtype(dtype)).astype(np.float32)
        np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("mistake", MISREADINGS, ids=lambda m: m.title)
def test_misreadings_are_far_from_the_truth_and_told_apart(mistake):
    """In one of the models whose weights have one shape; or, for the depth, in a deep one."""
    seen = 0
    for world in (*checkpoints.SQUARE, checkpoints.DEEP[0]):
        case = FolderCase(world)
        wrong = loader_readings.logits_of(case, FLOAT32, mistake)
        if wrong is None:
            continue
        truth = checkpoints.truth_of(case, FLOAT32)
        assert truth.compare("logits", wrong).ratio > 1000
        found = misreading_of(case, FLOAT32, wrong, truth)
        assert found is not None and found.clause == mistake.clause
        seen += 1
    assert seen


def test_transformers_reads_and_writes_the_same_folders(tmp_path):
    """Another program's word on names and layouts: nothing missing, nothing left over."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from griffin_conformance.backends.transformers_model import quiet

    world = checkpoints.SQUARE[1]
    spellings = (
        Spelling(pattern="block_types", rotary="rope_parameters", dtype_key="dtype"),
        Spelling(pattern="block_types", rotary="both", lru_width="null", decoys=True),
    )
    for i, told in enumerate(spellings):
        case = FolderCase(world, told, Form(shards=2 * i, head=bool(i)))
        flat, folder = stored(world, FLOAT32, "float32"), tmp_path / str(i)
        folder.mkdir()
        checkpoint_files.write_folder(folder, case, flat)
        settings = json.loads((folder / "config.json").read_text())
        settings["attention_window_size"] += 1  # there it counts the token itself
        (folder / "config.json").write_text(json.dumps(settings))
        with quiet():
            model, told_by = transformers.AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, attn_implementation="eager"
            )
            assert not any(told_by[k] for k in ("missing_keys", "unexpected_keys"))
            found = model.eval()(torch.tensor(world.tokens(0)[None]), use_cache=False).logits[0]
            model.save_pretrained(tmp_path / f"again {i}")
        assert checkpoints.truth_of(case, FLOAT32).compare("logits", found.numpy()).ratio <= 1
        from safetensors.numpy import load_file

        again = load_file(tmp_path / f"again {i}" / "model.safetensors")
        expected = checkpoint_files.tensors_of(flat)
        assert set(again) - {"lm_head.weight"} == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(again[name], array, err_msg=name)


# -- damage


def test_all_damage_is_done_to_every_kind_of_tensor(tmp_path):
    """Each damaged folder differs from the whole one, and in nothing but what is named."""
    world = checkpoints.SHAPES[1]
    count = len(checkpoint_files.tensors_of(world.parameters()))
    for kind in damage.DAMAGES:
        for which in (0, count // 2, count - 1):
            folder = tmp_path / f"{kind} {which}"
            folder.mkdir()
            case = damage.DamageCase(world, (kind,), which, 2)
            names = damage.write(folder, case, kind, NumPyBackend())
            assert names
            error, _ = damage.refusal(NumPyBackend(), case, kind)
            assert error is not None


# -- nf4


@settings(max_examples=30, deadline=None)
@given(nf4.matrices(Scope()))
def test_two_ways_to_dequantise_agree(case):
    parts = nf4.parts_of(case)
    found = right_nf4(parts, (case.outputs, case.inputs)).astype(np.float64)
    assert nf4.hold(found.ravel(), parts, "float32").ratio <= 0.5


def test_the_codes_are_in_order_and_the_wrong_readings_wrong():
    assert all(a < b for a, b in pairwise(nf4.NF4)) and len(nf4.NF4) == 16
    case = nf4.NF4Case(300, 64, double=True)
    parts = nf4.parts_of(case)
    for other in nf4.wrong_readings(parts).values():
        found = nf4.dequantised(other)[0]
        assert nf4.hold(found, parts, "float16").ratio > 100


@pytest.mark.parametrize("shape", [(24, 40), (300, 90), (5, 10), (64, 192)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_means_the_same(shape, dtype, double):
    """What it writes we read, and what we write it reads; with its blocks of 64."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    theirs = pytest.importorskip("bitsandbytes.functional", reason="no bitsandbytes")
    weights = torch.randn(*shape).to(getattr(torch, dtype))
    packed, state = theirs.quantize_4bit(
        weights, blocksize=64, compress_statistics=double, quant_type="nf4"
    )
    told = {name: part.numpy() for name, part in state.as_dict(packed=True).items()}
    parts = {"weight": packed.numpy(), **told}
    found = theirs.dequantize_4bit(packed, state).double().numpy()
    assert nf4.hold(found.ravel(), parts, dtype).ratio <= 1
    assert tuple(parts["quant_map"]) == tuple(np.float32(nf4.NF4))

    ours = nf4.parts_of(nf4.NF4Case(*shape, double=double, dtype=dtype))
    assert {n: (a.dtype, a.shape) for n, a in ours.items() if n != nf4.STATE} == {
        n: (a.dtype, a.shape) for n, a in parts.items() if n != nf4.STATE
    }
    state = theirs.QuantState.from_dict(
        {f"x.{n}": torch.tensor(a) for n, a in ours.items() if n != "weight"},
        device=torch.device("cpu"),
    )
    found = theirs.dequantize_4bit(torch.tensor(ours["weight"]), state).double().numpy()
    assert nf4.hold(found.ravel(), ours, dtype).ratio <= 1


# -- texts


def test_the_stored_encodings_are_of_this_vocabulary_and_sentencepiece_agrees():
    told = json.loads(tokenizers.GOLDEN.read_text("utf-8"))
    assert told["sha256"] == hashlib.sha256(tokenizers.vocabulary()).hexdigest()
    assert len(tokenizers.golden()) == len(told["texts"]) > 100
    for text, ids in tokenizers.golden().items():
        assert tokenizers.pieces().encode(text) == ids, text
        assert tokenizers.pieces().decode(ids) == text
    met = set().union(*(tokenizers.TextCase(text).strata() for text in tokenizers.golden()))
    assert {*tokenizers.SPECIAL, "nothing", "<bos> in front"} <= met


def test_the_checks_hold_with_the_vocabulary_of_the_released_models(test_data, monkeypatch):
    """256,000 pieces, and encodings that Google's own tokenizer gave."""
    folder = test_data / "gemma_tokenizer"
    content = (folder / "tokenizer.model").read_bytes()
    lines = (folder / "golden.jsonl").read_text("utf-8").splitlines()
    known = {line["text"]: line["ids"] for line in map(json.loads, lines)}
    processor = SentencePieceProcessor(model_proto=content)
    monkeypatch.setattr(tokenizers, "vocabulary", lambda: content)
    monkeypatch.setattr(tokenizers, "pieces", lambda: processor)
    monkeypatch.setattr(tokenizers, "golden", lambda: known)
    vocabulary = Vocabulary(content)  # one for all: it takes seconds to read

    class Gemma(NumPyBackend):
        def tokenizer(self, folder):
            return vocabulary

    others = [line["text"] for line in json.loads(tokenizers.GOLDEN.read_text("utf-8"))["texts"]]
    for text in (*known, *others):
        for name in ("texts-encode", "texts-decode", "one-bos"):
            CHECKS[name].holds(Gemma(), tokenizers.TextCase(text))
    for turns in (("Knock knock.",), ("Tell me a story.", "Once upon a time.", "Go on!\n\n1 2")):
        CHECKS["dialogues-are-written"].holds(Gemma(), tokenizers.DialogueCase(turns))


# -- the ends of generation


def test_a_row_is_judged_by_its_own_text():
    world = POOL[3]
    text = world.tokens(0)[:3].tolist()
    row = list(continuations.greedy(world, tuple(text), 6))

    def judge(tokens, end, most=6):
        return continuations.judge(world, FLOAT32, text, tokens, {end}, most)

    never = next(t for t in range(world.config.vocab_size) if t not in row)
    assert judge(row, never) == (None, None)
    assert judge(row[:3], never) == (None, 3)
    assert judge([], never) == (None, 0)
    first = row.index(row[-1])
    assert judge(row[:first], row[-1]) == judge(row[: first + 1], row[-1]) == (None, None)
    if first + 1 < len(row):
        assert judge(row, row[-1]) == (first, None)
    other = next(t for t in range(world.config.vocab_size) if t not in (row[0], never))
    assert judge([other, other], row[0], 2) == (0, None)


@pytest.mark.parametrize("seed", stopping.SEEDS)
@pytest.mark.parametrize("turn", range(4))
def test_talkers_say_the_marker_when_they_should(seed, turn):
    talker = stopping.TurnCase(seed, turn).talker
    said = continuations.greedy(talker, stopping.PROMPT, turn + 1)
    assert said.index(stopping.MARKER) == turn
    assert stopping.EOS not in said
    assert len(set(said)) == turn + 1
    text = [*stopping.PROMPT, *said[:-1]]
    envelope = continuations.Written.of(talker, text).history(FLOAT32, 0)["logits"]
    assert envelope.argmax_is_clear()[-turn - 1 :].all()
