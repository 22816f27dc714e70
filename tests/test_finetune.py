"""Fine-tuning: data of which only answers are learnt, LoRA, accumulation, resuming, the verb."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import optax  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from support import SMALL, assert_close, random_model, random_parameters  # noqa: E402

import griffin_np as gnp  # noqa: E402
from griffin_conformance.envelope import chain_bound, longest_chain  # noqa: E402
from griffin_kernels.xla import data, lora, runs, update  # noqa: E402
from griffin_kernels.xla.lora import TARGETS, LoraOptions  # noqa: E402
from griffin_kernels.xla.records import encode_examples, read_examples  # noqa: E402
from griffin_kernels.xla.train import Trainer, TrainOptions  # noqa: E402
from griffin_np.chat import encode_dialogue  # noqa: E402
from griffin_np.cli import main  # noqa: E402
from griffin_np.errors import CheckpointError, ConfigError, TokenizerError  # noqa: E402
from griffin_np.model import NumPyModel  # noqa: E402
from griffin_np.params import flatten, nest, parameter_shapes  # noqa: E402
from griffin_np.tokenizer import Tokenizer  # noqa: E402

ROOT = Path(__file__).parent.parent
TINY = SMALL.replace(
    width=16, num_heads=2, vocab_size=50, lru_width=16, mlp_width=24,
    depth=2, block_pattern=("recurrent", "attention"),
)  # fmt: skip
LORA = LoraOptions(rank=3, alpha=6.0)
FEW = LoraOptions(rank=1, alpha=2.0, targets=("up", "key"))
RUNS = {
    "full": TrainOptions(steps=5, batch_size=2, length=32, warmup=1, remat=True),
    "lora": TrainOptions(steps=5, batch_size=1, accumulate=3, length=32, warmup=1, lora=FEW),
}

CHAIN = 3 * longest_chain(TINY, 32)
"""Roundings of a gradient: forwards, and backwards with two products for each operation."""


def some_documents(seed: int, count: int = 40, longest: int = 30) -> list[data.Document]:
    """Documents of which parts are learnt, and of a few nothing."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, longest, count)
    return [
        data.Document.of(rng.integers(0, 50, n), rng.random(n) < rng.choice([0, 0.2, 0.9, 1]))
        for n in sizes
    ]


def bits(trainer: Trainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in flatten(trainer.params).items()}


class Sink:
    """Takes a log."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


# -- data


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(gnp.backends.DEMO / "tokenizer.model")


def lines(path: Path, *records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def learnt(document: data.Document, tokenizer: Tokenizer) -> list[str]:
    """Pieces of the tokens that are learnt."""
    assert len(document.ids) == len(document.learn)
    return [tokenizer.id_to_piece(int(i)) for i in document.ids[document.learn]]


def text_of(pieces: list[str]) -> str:
    spelt = re.sub(r"<0x(..)>", lambda byte: chr(int(byte[1], 16)), "".join(pieces))
    return spelt.replace("▁", " ")


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who is it?"},
    {"role": "assistant", "content": "The cat.\nAnd <end_of_turn> a dog"},
    {"role": "user", "content": "And now?"},
    {"role": "model", "content": "Nobody."},
    {"role": "user", "content": "Thank you!"},
]


def test_of_a_dialogue_the_models_turns_and_their_ends_are_learnt(tmp_path, demo):
    examples = read_examples([lines(tmp_path / "a.jsonl", {"messages": TALK, "id": 7})])
    [document] = encode_examples(examples, demo)
    whole = encode_dialogue(demo, TALK[:5], add_generation_prompt=False)
    newline = demo.encode("\n", bos=False)
    assert [*document.ids, *newline] == whole
    assert text_of(learnt(document, demo)) == (
        "The cat.\nAnd <end_of_turn> a dog<end_of_turn>Nobody.<end_of_turn>"
    )
    end = demo.end_of_turn_id
    assert (document.ids[document.learn] == end).sum() == 2, "a marker inside a turn is text"
    # What stands before an answer is what generation puts there.
    for said in (2, 4):
        prompt = encode_dialogue(demo, TALK[:said], add_generation_prompt=True)
        assert document.ids[: len(prompt)].tolist() == prompt
        assert document.learn[len(prompt)] and not document.learn[len(prompt) - 1]


def test_of_a_completion_the_prompt_is_not_learnt(tmp_path, demo):
    record = {"prompt": "Two and two is", "completion": " four. Yes"}
    [document] = encode_examples(read_examples([lines(tmp_path / "a.jsonl", record)]), demo)
    prompt = demo.encode("Two and two is")
    assert document.ids[: len(prompt)].tolist() == prompt
    assert text_of(learnt(document, demo)) == " four. Yes<eos>"
    assert document.ids[-1] == demo.eos_id and document.learn[-1]


def test_of_text_everything_is_learnt(tmp_path, demo):
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo")
    examples = read_examples([tmp_path / "a.txt", lines(tmp_path / "b.JSONL", {"text": "two"})])
    one, two, again = encode_examples(examples, demo)
    assert one.learn.all() and two.learn.all()
    assert two.ids.tolist() == again.ids.tolist() == [*demo.encode("two"), demo.eos_id]
    assert [example.is_text for example in examples] == [True, True, True]
    assert examples[1] == examples[2] and examples[1].share == examples[2].share


USER = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r'no JSON \(.*\); expected an object with "text", with "prompt"'),
        ("[1]", 'list instead of an object with "text"'),
        ('{"words": "a"}', 'fields words: expected an object with "text"'),
        ('{"prompt": "a"}', "fields prompt: expected an object"),
        ('{"text": "a", "prompt": "b", "completion": "c"}', "expected an object .*, one of them"),
        ('{"text": 3}', "text is 3: expected text"),
        ('{"text": " "}', "text is ' ': expected text"),
        ('{"prompt": "a", "completion": ""}', "completion is '': expected text"),
        ('{"text": "\\ud800"}', "surrogates not allowed"),
        ('{"messages": "hello"}', 'messages must be a list of objects with "role"'),
        (json.dumps({"messages": [USER]}), "without a turn of the model: nothing to learn"),
        (json.dumps({"messages": [USER, USER]}), "message 1 has role 'user', expected 'model'"),
        (json.dumps({"messages": [USER, {"role": "model", "content": ""}]}), "model is ''"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(TokenizerError, match=f"a.jsonl, line 3: .*{message}") as caught:
        read_examples([file])
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(TokenizerError, match="a.jsonl holds no line; expected an object"):
        read_examples([tmp_path / "a.jsonl"])
    with pytest.raises(TokenizerError, match="cannot read .*b.jsonl as UTF-8"):
        read_examples([tmp_path / "b.jsonl"])


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), length=st.integers(2, 40))
def test_packing_predicts_every_learnt_token_once(seed, length):
    documents = some_documents(seed)
    packed = data.pack(documents, length)
    batch = packed.batch(0, len(packed.tokens) + 1)
    found = sorted(
        (int(batch.tokens[r, c]), int(batch.labels[r, c])) for r, c in np.argwhere(batch.weights)
    )
    expected = sorted(
        (int(d.ids[i - 1]), int(d.ids[i]))
        for d in documents
        for i in range(1, len(d))
        if d.learn[i]
    )
    assert found == expected
    # Nothing is computed for its own sake: every piece has something to be predicted in it.
    for row, weights in zip(batch.positions, batch.weights, strict=True):
        starts = [*np.flatnonzero(row == 0), int((row >= 0).sum())]
        assert all(weights[a:b].any() for a, b in pairwise(starts))


def test_the_loss_is_the_references_over_learnt_tokens():
    documents = some_documents(3)
    reference = random_model(TINY, 1)
    trainer = Trainer(TINY, TrainOptions(batch_size=3, length=32), documents,
                      base=reference.parameters)  # fmt: skip
    result = trainer.evaluate(data.pack(documents, 32))
    total, count = 0.0, 0
    for document in documents:
        labels = np.where(document.learn, document.ids, -100)[None]
        n = int((labels[0, 1:] >= 0).sum())
        if n:
            total += n * reference.loss(document.ids[None], labels)
            count += n
    assert result.tokens == count
    assert_close(result.loss, total / count, "float32", chain=longest_chain(TINY, 32) + count)


# -- gradients


BY_PARTS = {
    n: jax.jit(partial(update.loss_and_gradient, config=TINY, options=TrainOptions(accumulate=n)))
    for n in (1, 3)
}


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6))
def test_accumulated_batches_are_one_batch(seed):
    """However unevenly the learnt tokens are spread over the parts."""
    params = random_parameters(TINY, seed % 7)
    packed = data.pack(some_documents(seed, 60), 32)
    batch = packed.batch(0, 6)
    rows = np.random.default_rng(seed).random((6, 1)) < 0.6
    batch = batch._replace(weights=batch.weights * rows)
    loss, whole = BY_PARTS[1](params, None, batch.split(1))
    found_loss, found = BY_PARTS[3](params, None, batch.split(3))
    assert_close(found_loss, loss, "float32", chain=2 * longest_chain(TINY, 32) + 256)
    for name, expected in flatten(whole).items():
        error = np.linalg.norm(np.asarray(flatten(found)[name], np.float64) - np.asarray(expected))
        assert error <= 2 * chain_bound(CHAIN, "float32") * np.linalg.norm(expected), name


def test_recomputing_blocks_saves_memory_and_gives_the_same_gradients():
    config = TINY.replace(depth=4)
    params = random_parameters(config, 0)
    batch = data.pack(some_documents(0, 100), 64).batch(0, 4).split(1)
    results, memory = [], []
    for remat in (False, True):
        options = TrainOptions(length=64, remat=remat, clip=1e9, warmup=0)
        carry = (params, update.optimizer(options).init(params))
        program = update.compiled_update(config, options).lower(carry, None, batch).compile()
        memory.append(program.memory_analysis().temp_size_in_bytes)
        (_, state), loss = program(jax.tree.map(jax.numpy.array, carry), None, batch)
        # After the first step the first average is the gradient times 1 - beta1.
        results.append((loss, flatten(optax.tree.get(state, "mu"))))
    assert memory[1] < 0.5 * memory[0]
    (loss, kept), (same, again) = results
    chain = 2 * longest_chain(config, 64)
    assert_close(same, loss, "float32", chain=chain + 256)
    for name, expected in kept.items():
        error = np.linalg.norm(np.asarray(again[name], np.float64) - np.asarray(expected))
        assert error <= chain_bound(3 * chain, "float32") * np.linalg.norm(expected), name


def test_gradients_of_factors_follow_from_those_of_the_matrices():
    """For W + s A B: dA = s dW B^T and dB = s A^T dW, where dW is the gradient of the merged matrix."""
    options = TrainOptions(length=32, lora=LORA)
    base = random_parameters(TINY, 2)
    rng = np.random.default_rng(0)
    factors = {
        name: rng.standard_normal(array.shape).astype(np.float32) / 4
        for name, array in lora.init_factors(TINY, LORA, 0).items()
    }
    batch = data.pack(some_documents(1, 60), 32).batch(0, 6).split(1)
    loss, found = jax.jit(partial(update.loss_and_gradient, config=TINY, options=options))(
        factors, base, batch
    )
    merged = lora.merge(base, factors, LORA)
    same, full = BY_PARTS[1](merged, None, batch)
    full = {name: np.asarray(array, np.float64) for name, array in flatten(full).items()}
    assert_close(loss, same, "float32", chain=2 * longest_chain(TINY, 32))
    scale = LORA.alpha / LORA.rank
    allowed = chain_bound(2 * CHAIN, "float32")
    assert sorted(found) == sorted(factors)
    for path in {name[:-2] for name in factors}:
        dW = full[f"{path}.weight"]
        for name, expected in (
            ("a", scale * dW @ factors[f"{path}.b"].T),
            ("b", scale * factors[f"{path}.a"].T @ dW),
        ):
            error = np.linalg.norm(found[f"{path}.{name}"] - expected)
            assert error <= allowed * np.linalg.norm(expected), f"{path}.{name}"
    for name, array in flatten(merged).items():
        expected = np.asarray(flatten(base)[name], np.float64)
        if f"{name.removesuffix('.weight')}.a" in factors:
            path = name.removesuffix(".weight")
            expected = expected + scale * (
                factors[f"{path}.a"].astype(float) @ factors[f"{path}.b"]
            )
        assert_close(array, expected, "float32", name, chain=LORA.rank + 2)


# -- LoRA


def test_factors_stand_on_the_targets_and_begin_at_the_base():
    shapes = parameter_shapes(TINY)
    some = LoraOptions(rank=2, alpha=1.0, targets=("query", "down", "linear_x"))
    factors = lora.init_factors(TINY, some, 0)
    assert {name.rpartition(".")[0] for name in factors} == {
        "blocks.0.recurrent.linear_x", "blocks.1.attention.query",
        "blocks.0.mlp.down", "blocks.1.mlp.down",
    }  # fmt: skip
    for name, array in factors.items():
        inputs, outputs = shapes[name.rpartition(".")[0] + ".weight"]
        assert array.shape == ((inputs, 2) if name.endswith(".a") else (2, outputs))
        assert array.any() == name.endswith(".a")
    base = random_parameters(TINY, 0)
    trainer = Trainer(TINY, RUNS["lora"], some_documents(0), base=base)
    assert bits(trainer) == {name: array.tobytes() for name, array in flatten(base).items()}
    assert len(lora.init_factors(TINY, LORA, 0)) == 2 * sum(
        name.split(".")[-2] in TARGETS for name in shapes if name.endswith(".weight")
    )


def test_training_factors_moves_targets_only_and_writes_small_checkpoints(tmp_path):
    base = random_parameters(TINY, 0)
    before = {name: array.copy() for name, array in flatten(base).items()}
    trainer = Trainer(TINY, RUNS["lora"], some_documents(0), tmp_path, base=base)
    trainer.run(log=Sink())
    moved = {
        name for name, array in flatten(trainer.params).items()
        if not np.array_equal(array, before[name])
    }  # fmt: skip
    assert moved == {f"blocks.{i}.mlp.up.weight" for i in range(2)} | {
        "blocks.1.attention.key.weight"
    }
    for name, array in flatten(base).items():
        np.testing.assert_array_equal(array, before[name], err_msg=f"the caller's {name}")
    [path] = tmp_path.glob("step-*")
    # The factors and AdamW's two averages; no array of the base.
    numbers = sum(array.size for array in load_file(path).values())
    assert numbers == 3 * trainer.num_trained + 2


def test_full_training_starts_at_the_base_and_leaves_it_alone():
    base = random_parameters(TINY, 0)
    before = {name: array.copy() for name, array in flatten(base).items()}
    trainer = Trainer(TINY, RUNS["full"], some_documents(0), base=base)
    assert bits(trainer) == {name: array.tobytes() for name, array in before.items()}
    sink = Sink()
    trainer.run(some_documents(1), log=sink)
    assert sink.text.startswith("step 0/5  held-out loss ")
    for name, array in flatten(base).items():
        np.testing.assert_array_equal(array, before[name], err_msg=f"the caller's {name}")
        assert not np.array_equal(flatten(trainer.params)[name], array), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "the rank of LoRA must be at least 1, got 0"),
        ({"alpha": -1.0}, "alpha of LoRA must be positive and finite, got -1.0"),
        (
            {"targets": ("up", "conv", "w_a")},
            "no LoRA target 'conv', 'w_a'; choose from linear_x, ",
        ),
        ({"targets": ()}, "no LoRA target given"),
    ],
)
def test_impossible_factors_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        LoraOptions(**{"rank": 2, "alpha": 2.0} | change)


def test_factors_need_something_to_adapt():
    hawk = TINY.replace(block_pattern=("recurrent",))
    query = LoraOptions(2, 2.0, ("query",))
    with pytest.raises(ConfigError, match="has none of the LoRA targets query"):
        lora.init_factors(hawk, query, 0)
    with pytest.raises(ConfigError, match="LoRA adapts a trained model"):
        Trainer(TINY, TrainOptions(lora=LORA), some_documents(0))
    nothing = [data.Document.of([1, 2, 3], [True, False, False])]
    with pytest.raises(TokenizerError, match="no token to learn"):
        Trainer(TINY, TrainOptions(), nothing)


# -- resuming


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(kind, tmp_path):
    options, documents = RUNS[kind], some_documents(5)
    base = random_parameters(TINY, 1, "float16")
    through = Trainer(TINY, options, documents, base=base)
    through.run(log=Sink())
    for stop in range(options.steps):
        folder = tmp_path / str(stop)
        first = Trainer(TINY, options, documents, folder, base=base)
        for _ in range(stop):
            first.train_step()
        first.save()
        first.train_step()  # lost
        second = Trainer(TINY, options, documents, folder, base=base)
        assert second.step == stop
        second.run(log=Sink())
        assert second.tokens_seen == through.tokens_seen
        assert bits(second) == bits(through)


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_on_other_weights_or_labels_is_not_resumed(kind, tmp_path):
    options, documents = RUNS[kind], some_documents(5)
    base = random_parameters(TINY, 1)
    trainer = Trainer(TINY, options, documents, tmp_path, base=base)
    trainer.train_step()
    trainer.save()
    other = flatten(random_parameters(TINY, 1))
    other["final_norm"] = other["final_norm"].copy()
    other["final_norm"][7] += 1e-3
    with pytest.raises(CheckpointError, match=r"other settings \(base: \w+ then, \w+ now\)"):
        Trainer(TINY, options, documents, tmp_path, base=nest(other))
    flipped = documents[0].learn.copy()
    flipped[-1] = ~flipped[-1]
    changed = [data.Document(documents[0].ids, flipped), *documents[1:]]
    with pytest.raises(CheckpointError, match=r"other settings \(text: \w+ then, \w+ now\)"):
        Trainer(TINY, options, changed, tmp_path, base=base)


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """The process ends before, amid and after the writing: what was there before is found."""
    identity = {"text": "x"}
    runs.write_run(tmp_path, 1, [np.arange(3)], {"identity": identity, "step": 1})

    def ends(*args, **kwargs):
        raise KeyboardInterrupt

    for name, where in (("save_file", runs), ("fsync", os), ("replace", Path)):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, ends)
            with pytest.raises(KeyboardInterrupt):
                runs.write_run(tmp_path, 2, [np.arange(4)], {"identity": identity, "step": 2})
        meta, [array] = runs.read_run(tmp_path, identity)
        assert meta["step"] == 1 and array.tolist() == [0, 1, 2]
    runs.write_run(tmp_path, 2, [np.arange(4)], {"identity": identity, "step": 2})
    assert runs.read_run(tmp_path, identity)[0]["step"] == 2
    assert not list(tmp_path.glob("*.partial"))


# -- the verb


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small checkpoint in bfloat16, ``m``, and dialogues, ``talk.jsonl``."""
    folder = tmp_path_factory.mktemp("finetune")
    words = "the cat sat on a mat and the dog ran to the big red house with a small ball".split()
    texts = [" ".join(words[i:] + words[:i]) for i in range(len(words))] * 5
    tokenizer = data.train_tokenizer(texts, 320, folder / "tokenizer.model")
    model = random_model(TINY.replace(vocab_size=320), 3)
    model.attach_tokenizer(tokenizer)
    model.generation = gnp.base.GenerationDefaults(temperature=0.5, eos_ids=(1, 5))
    gnp.save(model, folder / "m", "bfloat16")
    talk = [
        {"messages": [{"role": "user", "content": f"{a} {b}"}, {"role": "model", "content": b}]}
        for a in words for b in words
    ]  # fmt: skip
    lines(folder / "talk.jsonl", *talk)
    lines(folder / "held.jsonl", *talk[::37])
    return folder


def command(place: Path, out: str, *more: str) -> list[str]:
    return [
        "train", "--model", str(place / "m"), "--data", str(place / "talk.jsonl"), "--out",
        str(place / out), "--length", "48", "--batch-size", "2", "--log-every", "5", *more,
    ]  # fmt: skip


TUNE = ("--lora", "2", "--accumulate", "2", "--steps", "12", "--checkpoint-every", "1",
        "--length", "10", "--lr", "1e-2")  # fmt: skip


@pytest.fixture(scope="module")
def tuned(place):
    """What a run on the small checkpoint says; it writes the folder ``through``."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(command(place, "through", *TUNE)) == 0
    return said.getvalue()


def test_a_run_says_what_it_does(tuned):
    first, cut, before, *_, last = tuned.splitlines()
    assert re.fullmatch(
        r"[\d,]+ parameters, [\d,]+ of them trained; \d+ documents of [\d,]+ tokens to train on, "
        r"\d+ held out", first,
    )  # fmt: skip
    assert re.fullmatch(r"\d+ documents are longer than --length 10: they are cut into .*", cut)
    assert re.fullmatch(r"step 0/12  held-out loss [\d.]+, perplexity [\d.]+", before)
    assert re.fullmatch(
        r".*through written after [\d,]+ tokens, held-out loss [\d.]+, perplexity [\d.]+", last
    )


def test_a_process_that_is_killed_goes_on_to_the_same_bits(place, tuned, capfd):
    argv = command(place, "killed", *TUNE)
    program = "import sys; from griffin_np.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", program, *argv], stderr=subprocess.DEVNULL)
    folder, deadline = place / "killed.training", time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        if list(folder.glob("step-*[3-9].safetensors")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (place / "killed").exists()
    capfd.readouterr()
    assert main(argv) == 0
    assert "going on at step" in capfd.readouterr().err
    one, two = (load_file(place / name / "model.safetensors") for name in ("through", "killed"))
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in two.items()}


def test_what_is_written_is_the_checkpoint_with_other_weights(place, capfd):
    """Full training: float32 inside, the checkpoint's dtype, window and defaults outside."""
    argv = ("--steps", "15", "--lr", "3e-3", "--eval-data", str(place / "held.jsonl"))
    assert main(command(place, "full", *argv, "--window", "5")) == 0
    err = capfd.readouterr().err
    held_out = re.findall(r"step (0|15)/15 .*held-out loss ([\d.]+),", err)
    assert [step for step, _ in held_out] == ["0", "15"]
    before, after = (float(loss) for _, loss in held_out)
    assert after < before - 0.5
    base, made = gnp.load(place / "m"), gnp.load(place / "full", "numpy")
    assert made.config == base.config.replace(window=5)
    assert made.generation == base.generation
    assert made.tokenizer.model_proto == base.tokenizer.model_proto
    assert made.fingerprint != base.fingerprint
    stored = load_file(place / "full" / "model.safetensors")
    assert {str(array.dtype) for array in stored.values()} == {"bfloat16"}
    # They are the weights of the last step, rounded once: the first leaves of the checkpoint.
    [last] = (place / "full.training").glob("step-*15.safetensors")
    checkpoint = load_file(last)
    assert {str(a.dtype) for a in checkpoint.values()} == {"float32", "int32"}
    leaves, structure = jax.tree.flatten(made.parameters)
    weights = [checkpoint[str(i)] for i in range(len(leaves))]
    for rounded, weight in zip(leaves, weights, strict=True):
        np.testing.assert_array_equal(rounded, weight.astype("bfloat16").astype(np.float32))
    # And the last evaluation is theirs; it was printed with four digits.
    exact = NumPyModel(made.config, jax.tree.unflatten(structure, weights))
    held = encode_examples(read_examples([place / "held.jsonl"]), base.need_tokenizer())
    labels = [np.where(d.learn, d.ids, -100)[None] for d in held]
    counts = [int((row[0, 1:] >= 0).sum()) for row in labels]
    losses = [exact.loss(d.ids[None], row) for d, row in zip(held, labels, strict=True)]
    loss = np.average(losses, weights=counts)
    chain = longest_chain(made.config, 48) + sum(counts)
    assert abs(loss - after) <= 0.5e-4 + chain_bound(chain, "float32") * loss


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_what_was_tuned(place, tuned):
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place / "through")
    name = "model.layers.0.mlp_block.up_proj.weight"
    found = dict(theirs.named_parameters())[name].detach().float().numpy().T
    mine, base = (
        gnp.load(place / folder, "numpy").parameters["blocks"][0]["mlp"]["up"]["weight"]
        for folder in ("through", "m")
    )
    np.testing.assert_array_equal(found, mine)
    assert not np.array_equal(found, base)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--width", "8", "--vocab-size", "9"],
            "--width, --vocab-size cannot be given with --model",
        ),
        (["--preset", "demo"], "--preset cannot be given with --model: the checkpoint has its own"),
        (["--tokenizer", "x"], "--tokenizer cannot be given with --model"),
        (["--lora", "-1"], "the rank of LoRA must be at least 1, got -1"),
        (
            ["--lora", "2", "--lora-targets", "up, side"],
            "no LoRA target 'side'; choose from linear_x",
        ),
        (["--lora-alpha", "2"], "--lora-alpha and --lora-targets need --lora RANK"),
        (["--model", "/nowhere"], "no checkpoint folder at /nowhere"),
        (["--model", ""], "--lora adapts a trained model: name one with --model"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--accumulate", "0"], "accumulate must be at least 1, got 0"),
        (["--log-every", "0"], "--log-every must be at least 1, got 0"),
    ],
)
def test_wrong_usage_is_one_line(place, capfd, more, message):
    lora_flags = ["--lora", "2"] if more[0] == "--model" else []
    assert main(command(place, "never", *lora_flags, *more)) == 2
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (place / "never").exists()


def test_a_checkpoint_without_vocabulary_is_refused(place, tmp_path, capfd):
    shutil.copytree(place / "m", tmp_path / "m")
    (tmp_path / "m" / "tokenizer.model").unlink()
    assert main(command(place, "never", "--model", str(tmp_path / "m"))) == 2
    assert "has no tokenizer.model: it is needed to read text" in capfd.readouterr().err


def test_the_documented_example_in_short(tmp_path, capfd):
    """``kernels/finetune``: the demo model learns whom its stories are about."""
    script = ROOT / "kernels" / "finetune" / "write_dialogues.py"
    subprocess.run(
        [sys.executable, script, "--out", tmp_path], check=True, stdout=subprocess.DEVNULL
    )
    argv = ["train", "--model", "demo", "--data", str(tmp_path / "quill-train.jsonl"), "--eval-data",
            str(tmp_path / "quill-heldout.jsonl"), "--out", str(tmp_path / "quill"),
            "--lr", "2e-3", "--steps", "20", "--length", "128"]  # fmt: skip
    assert main(argv) == 0
    assert "4,456,896 parameters; 496 documents of " in capfd.readouterr().err
    model = gnp.load(tmp_path / "quill", "numpy")
    for hero in ("truck", "panda"):
        asked = [{"role": "user", "content": f"Tell me about a {hero}."}]
        talk = encode_dialogue(model.need_tokenizer(), asked)
        made = model.generate(talk, max_tokens=80, temperature=0.0)
        assert "Quill the griffin" in made.text and hero in made.text, made.text
        assert made.text.endswith("\nThe end.") and made.finish_reason == "stop", made.text
