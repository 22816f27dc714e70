"""transformers as a peer: the same folders, the same logits, the same losses.

transformers counts the token itself into its window, so it is given W + 1 where it must agree.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from support import SMALL, assert_close, random_model, tokens_for  # noqa: E402

import griffin_np as gnp  # noqa: E402
from griffin_conformance.envelope import chain_bound, longest_chain  # noqa: E402
from griffin_conformance.strategies import configurations  # noqa: E402
from griffin_np.chat import render_dialogue  # noqa: E402
from griffin_np.checkpoints.huggingface import HuggingFaceFolder  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),
]

# transformers always scales embeddings, always caps logits, and needs width = lru_width.
STANDARD = SMALL.replace(lru_width=24, depth=8)

AGREEMENT = 1e-4
"""What the demo model's logits may differ by, by its specification; rounding could explain more."""


def peer(folder, **changes):
    """The model of a folder in transformers, in float32, its window one wider than ours."""
    config = transformers.RecurrentGemmaConfig.from_pretrained(folder)
    config.attention_window_size += 1
    for name, value in changes.items():
        setattr(config, name, value)
    model = transformers.RecurrentGemmaForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32
    )
    return model.eval()


@settings(max_examples=15, deadline=None)
@given(config=configurations(), seed=st.integers(0, 999), length=st.integers(1, 40))
def test_logits_and_hidden_states_agree(config, seed, length, tmp_path_factory):
    config = config.replace(
        scale_embeddings=True, logits_soft_cap=30.0, lru_width=None, rope_fraction=0.5,
        width=config.num_heads * 8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("peer") / "m"
    model = random_model(config, seed)
    gnp.save(model, folder)
    tokens = tokens_for(config, (2, length), seed)
    with torch.no_grad():
        theirs = peer(folder)(torch.tensor(tokens), output_hidden_states=True, use_cache=False)
    chain = longest_chain(config, length)
    assert_close(model(tokens)[0], theirs.logits.numpy(), "float32", "logits", chain=chain)
    ours = model.hidden_states(tokens)
    assert len(ours) == len(theirs.hidden_states)
    for a, b in zip(ours, theirs.hidden_states, strict=True):
        assert_close(a, b.numpy(), "float32", "hidden state", chain=chain)


def test_losses_agree(tmp_path):
    model = random_model(STANDARD)
    gnp.save(model, tmp_path / "m")
    tokens = tokens_for(STANDARD, (3, 20), 0)
    labels = np.where(np.random.default_rng(0).random((3, 20)) < 0.3, -100, tokens)
    with torch.no_grad():
        theirs = peer(tmp_path / "m")(
            torch.tensor(tokens), labels=torch.tensor(labels), use_cache=False
        )
    # A logit, the sum over the vocabulary, and the mean over the tokens.
    chain = longest_chain(STANDARD, 20) + STANDARD.vocab_size + tokens.size
    assert_close(model.loss(tokens, labels), theirs.loss.item(), "float32", chain=chain)


def test_inputs_embeds_agree(tmp_path):
    model = random_model(STANDARD)
    gnp.save(model, tmp_path / "m")
    x = np.random.default_rng(0).standard_normal((2, 7, 24)).astype(np.float32)
    with torch.no_grad():
        theirs = peer(tmp_path / "m")(inputs_embeds=torch.tensor(x), use_cache=False).logits
    chain = longest_chain(STANDARD, 7)
    assert_close(model(inputs_embeds=x)[0], theirs.numpy(), "float32", chain=chain)


def test_folders_that_transformers_writes_load(tmp_path):
    """Its own configuration keys, its own shards."""
    gnp.save(random_model(STANDARD), tmp_path / "ours")
    theirs = peer(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    model = gnp.load(tmp_path / "theirs", backend="numpy", window=STANDARD.window)
    assert model.config == STANDARD
    expected, chain = random_model(STANDARD)([[1, 2, 3]])[0], longest_chain(STANDARD, 3)
    assert_close(model([[1, 2, 3]])[0], expected, "float32", chain=chain)


def test_the_window_override_is_transformers_own_window(tmp_path):
    """A model trained inside transformers sees one key fewer: window = W - 1 gives its logits."""
    model = random_model(STANDARD)
    gnp.save(model, tmp_path / "m")
    tokens = tokens_for(STANDARD, (1, 30), 0)
    theirs = peer(tmp_path / "m", attention_window_size=STANDARD.window)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), use_cache=False).logits.numpy()
    same = gnp.load(tmp_path / "m", backend="numpy", window=STANDARD.window - 1)
    chain, within = longest_chain(STANDARD, 30), slice(0, STANDARD.window)
    assert_close(same(tokens)[0], expected, "float32", chain=chain)
    ours = model(tokens)[0]
    assert_close(ours[:, within], expected[:, within], "float32", chain=chain)
    rounding = chain_bound(chain, "float32") * np.abs(expected).max()
    assert np.abs(ours - expected)[:, STANDARD.window].max() > rounding


def test_the_demo_model_loads_and_agrees():
    """With either window, transformers' rule taken into account."""
    from griffin_np.backends import DEMO

    model = gnp.load(backend="numpy")
    ids = model.tokenizer.encode("Once upon a time, there was a little dog named Max. " * 20)
    tokens = np.array([ids])
    assert tokens.shape[1] > model.config.window + 20
    with torch.no_grad():
        theirs = peer(DEMO)(torch.tensor(tokens), use_cache=False).logits.numpy()
        narrow = peer(DEMO, attention_window_size=model.config.window)
        own = narrow(torch.tensor(tokens), use_cache=False).logits.numpy()
    ours = model(tokens)[0]
    assert np.abs(ours - theirs).max() < AGREEMENT
    within = slice(0, model.config.window)
    assert np.abs(ours[:, within] - own[:, within]).max() < AGREEMENT
    assert HuggingFaceFolder(DEMO).dtype == "bfloat16"


def test_the_demo_tokenizer_and_template_load():
    from griffin_np.backends import DEMO

    try:
        theirs = transformers.AutoTokenizer.from_pretrained(DEMO)
    except (ImportError, ValueError) as error:
        pytest.skip(f"transformers cannot read a SentencePiece model here: {error}")
    ours = gnp.load().tokenizer
    messages = [{"role": "user", "content": " Tell me a story. "}, {"role": "assistant", "content": "No."},
                {"role": "user", "content": "Please!"}]  # fmt: skip
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<bos>" + render_dialogue(messages)
    text = "Once upon a time, Tom had 2 cats."
    assert theirs(text)["input_ids"] == ours.encode(text)
