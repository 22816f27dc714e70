"""The embedded demo model: what its card promises, and that every trap shows in it."""

import json
import math
import re

import numpy as np
import pytest
from support import assert_close

import griffin_np as gnp
from griffin_conformance.envelope import FACTOR, Envelope, longest_chain
from griffin_conformance.oracle import Oracle
from griffin_conformance.rounding import FLOAT32, FLOAT64
from griffin_conformance.simulation import Simulation
from griffin_np.backends import DEMO
from griffin_np.chat import Conversation
from griffin_np.config import round_to_bfloat16
from griffin_np.params import flatten

FIVE_GRAM_BITS = 1.0849
"""Held-out bits per byte of a 5-gram model: the best of those that the card names."""


@pytest.fixture(scope="module")
def demo():
    return gnp.load(backend="numpy")


def test_it_has_the_architecture_of_2b_in_small(demo):
    c, big = demo.config, gnp.PRESETS["recurrentgemma-2b"]
    for name in ("block_pattern", "num_kv_heads", "conv_width", "logits_soft_cap", "scale_embeddings",
                 "rope_fraction", "rope_base", "norm_eps", "pad_id", "eos_id", "bos_id"):  # fmt: skip
        assert getattr(c, name) == getattr(big, name), name
    assert c == gnp.PRESETS["demo"]
    assert c.depth % 3 == 2
    assert round_to_bfloat16(math.sqrt(c.width)) != math.sqrt(c.width)
    assert 3e6 <= c.num_parameters() <= 6e6
    assert 2000 <= c.vocab_size <= 4096


def test_it_fits_the_package():
    files = [p for p in DEMO.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 16e6
    assert {"config.json", "model.safetensors", "tokenizer.model", "README.md"} <= {
        p.name for p in files
    }


def test_its_vocabulary_has_bytes_turns_and_the_usual_ids(demo):
    tok = demo.tokenizer
    assert (tok.pad_id, tok.eos_id, tok.bos_id, tok.unk_id) == (0, 1, 2, 3)
    assert tok.vocab_size == demo.config.vocab_size
    assert len(tok.byte_values) == 256
    assert tok.piece_to_id("<start_of_turn>") is not None
    assert tok.end_of_turn_id is not None
    text = "Zoë's 汉字 cost 42 €."
    assert tok.decode(tok.encode(text)) == text


def test_it_writes_sentences_of_english_words(demo):
    result = demo.generate("Once upon a time", max_tokens=120, temperature=0.7, seed=1)
    words = re.findall(r"[A-Za-z']+", result.text)
    assert len(words) > 60
    assert result.text.count(".") >= 4
    assert len({w.lower() for w in words}) > 30


def test_a_seed_gives_the_same_text_again(demo):
    options = {"max_tokens": 40, "temperature": 1.0, "seed": 3}
    assert demo.generate("One day", **options).text == demo.generate("One day", **options).text


def test_it_can_talk(demo):
    talk = Conversation(demo)
    answer = talk.say("Tell me a story about a dog.", max_tokens=200, temperature=0.5, seed=0)
    text = "".join(answer)
    talk.finish("Tell me a story about a dog.", answer)
    assert "dog" in text.lower()
    assert "<" not in text


def test_what_is_said_long_ago_is_held_in_constant_space(demo):
    ids = demo.tokenizer.encode("Once upon a time there was a boy named Tim. " * 40)
    _, short = demo([ids[:20]], logits="none")
    _, long = demo([ids], logits="none")
    assert short.nbytes == long.nbytes == demo.config.state_bytes()


def test_every_channel_counts(demo):
    """Traps show only where weights are not idle: turning a part off must change the logits.

    By more than the suite allows for rounding, which is measured against float64 here.
    """
    ids = demo.tokenizer.encode("Lily and Tom went to the park. " * 30)
    logits, _ = demo([ids])
    rounding = np.abs(gnp.load(dtype="float64")([ids])[0] - logits).max()
    for change in ({"window": 127}, {"logits_soft_cap": 0.0}, {"norm_eps": 1e-3},
                   {"rope_fraction": 1.0}, {"scale_embeddings": False}):  # fmt: skip
        from griffin_np.model import NumPyModel

        other = NumPyModel(demo.config.replace(**change), demo.parameters)
        gap = np.abs(other([ids])[0] - logits).max()
        assert gap > FACTOR * rounding, change


def test_float64_and_float32_agree(demo):
    ids = demo.tokenizer.encode("The little cat was very happy to see the big red ball. " * 12)
    double = gnp.load(dtype="float64")
    assert double.fingerprint == demo.fingerprint
    chain = longest_chain(demo.config, len(ids))
    assert_close(demo([ids])[0], double([ids])[0], "float32", chain=chain)


@pytest.mark.parametrize("profile", [FLOAT32, FLOAT64], ids=lambda p: p.name)
def test_logits_lie_inside_the_envelope(demo, profile):
    """On the few tokens that the oracle reads in a second."""
    ids = demo.tokenizer.encode("The little cat was")
    flat = {name: array.astype(np.float64) for name, array in flatten(demo.parameters).items()}
    truth = Oracle(flat, demo.config).read(ids, range(len(ids)))
    samples = Simulation(profile, 4).run(flat, demo.config, ids, np.arange(len(ids)))
    envelope = Envelope.of(truth, samples["logits"], profile)
    model = gnp.load(backend="numpy", dtype=profile.name)
    assert envelope.compare("logits", model([ids])[0][0]).ratio <= 0.5


def test_the_card_tells_what_it_must():
    card = (DEMO / "README.md").read_text()
    for part in ("CDLA-Sharing-1.0", "CC BY", "seed", "steps", "tokens", "bits per byte", "5-gram", "xz",
                 "griffin-np train", "cannot"):  # fmt: skip
        assert part in card, part


def test_held_out_text_costs_at_most_three_quarters_of_a_5_gram(demo, test_data):
    """On some of the held-out stories, through the reference."""
    import importlib.util
    from pathlib import Path

    script = Path(__file__).parent.parent / "kernels" / "demo" / "prepare_corpus.py"
    spec = importlib.util.spec_from_file_location("prepare_corpus", script)
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    texts = [
        text
        for text in prepare.documents(test_data / "corpus" / "tinystories.txt")
        if prepare.draw(text, "hold-out").random() < 0.05
    ][:60]
    nats, size = 0.0, 0
    for text in texts:
        ids = [*demo.tokenizer.encode(text), demo.tokenizer.eos_id]
        nats += demo.loss([ids], [ids]) * (len(ids) - 1)
        size += len(text.encode())
    assert len(texts) == 60
    assert nats / math.log(2) / size <= 0.75 * FIVE_GRAM_BITS


def test_transformers_finds_all_its_files():
    values = json.loads((DEMO / "tokenizer_config.json").read_text())
    assert "<start_of_turn>" in values["chat_template"]
    assert json.loads((DEMO / "generation_config.json").read_text())["eos_token_id"] == 1
