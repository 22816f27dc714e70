"""The JAX model against the reference, its gradients, and training that can be resumed."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from support import SMALL, assert_close, random_model, random_parameters, tokens_for  # noqa: E402

import griffin_np as gnp  # noqa: E402
from griffin_conformance.envelope import chain_bound, longest_chain  # noqa: E402
from griffin_kernels.xla import data, loss, model  # noqa: E402
from griffin_kernels.xla.train import Trainer, TrainOptions, decay_mask  # noqa: E402
from griffin_kernels.xla.update import loss_and_gradient  # noqa: E402
from griffin_np.cli import main  # noqa: E402
from griffin_np.errors import CheckpointError, ConfigError, TokenizerError, TrainingError  # noqa: E402
from griffin_np.params import flatten, nest  # noqa: E402


def packed_positions(rng, batch: int, length: int) -> np.ndarray:
    """Rows of documents, some of one token, with padding at the end of some rows."""
    positions = np.full((batch, length), -1)
    for row in positions:
        column, real = 0, length - int(rng.integers(0, 4))
        while column < real:
            size = min(int(rng.choice([1, 2, 3, 9, 20])), real - column)
            row[column : column + size] = np.arange(size)
            column += size
    return positions


NAMES = {"R": "recurrent", "A": "attention"}


@pytest.mark.parametrize(
    ("kind", "length", "scan", "cap", "kv_heads"),
    [
        ("RRA", 40, "sequential", 30.0, 1),
        ("RRA", 17, "associative", 0.0, 3),
        ("A", 8, "sequential", 30.0, 3),
        ("A", 9, "sequential", 0.0, 1),
        ("R", 5, "associative", 30.0, 1),
        ("R", 1, "sequential", 30.0, 1),
    ],
)
def test_the_jax_model_agrees_with_the_reference(kind, length, scan, cap, kv_heads):
    """Texts shorter than a window, as long, one longer, and of several."""
    config = SMALL.replace(block_pattern=tuple(NAMES[k] for k in kind), depth=len(kind),
                           logits_soft_cap=cap, num_kv_heads=kv_heads)  # fmt: skip
    run = jax.jit(lambda p, t, s: model.forward(p, t, s, config, scan=scan, remat=length == 17))
    for seed in range(5):
        reference = random_model(config, seed)
        tokens = tokens_for(config, (2, length), seed)
        positions = packed_positions(np.random.default_rng(seed), 2, length)
        found = run(reference.parameters, tokens, positions)
        expected, _ = reference(tokens, positions)
        found = np.where((positions >= 0)[..., None], found, 0)
        chain = longest_chain(config, length)
        assert_close(found, expected, "float32", f"logits with seed {seed}", chain=chain)


@pytest.mark.parametrize("cap", [0.0, 30.0])
@pytest.mark.parametrize("tokens", [1, 511, 700])
def test_cross_entropy_in_chunks_is_cross_entropy(cap, tokens):
    rng = np.random.default_rng(tokens)
    e, x = rng.standard_normal((19, 6)), rng.standard_normal((tokens, 6)) * 3
    labels, weights = rng.integers(0, 19, tokens), (rng.random(tokens) > 0.3) * 1.0

    def plain(e, x):
        z = x @ e.T
        z = cap * jnp.tanh(z / cap) if cap else z
        return jnp.sum(weights * (jax.nn.logsumexp(z, -1) - z[jnp.arange(tokens), labels]))

    def chunked(e, x):
        return loss.cross_entropy_sum(e, x, jnp.asarray(labels), jnp.asarray(weights), cap)

    e, x = jnp.asarray(e, jnp.float32), jnp.asarray(x, jnp.float32)
    # A logit and its cap, the sum over the vocabulary, and the one over tokens, on either side; the
    # gradient has the cap's derivative and a sum over the vocabulary or over the tokens in addition.
    chain = 2 * (6 + 4 + (19 + 5) + tokens)
    assert_close(chunked(e, x), plain(e, x), "float32", chain=chain)
    found, expected = jax.grad(chunked, (0, 1))(e, x), jax.grad(plain, (0, 1))(e, x)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, "float32", "gradient", chain=2 * chain)


def test_gradients_agree_with_finite_differences_of_the_reference():
    """Along random directions through every kind of weight, in float64 on the reference's side."""
    config = SMALL.replace(depth=3, vocab_size=20)
    reference = random_model(config, 5, "float64")
    tokens = tokens_for(config, (2, 12), 0)
    flat = flatten(reference.parameters)

    def total(params):
        x = model.hidden(params, tokens, jnp.tile(jnp.arange(12), (2, 1)), config)
        return loss.cross_entropy_sum(
            params["embedding"], x[:, :-1].reshape(-1, 24), jnp.asarray(tokens[:, 1:].ravel()),
            jnp.ones(22), config.logits_soft_cap,
        ) / 22  # fmt: skip

    single = nest({k: jnp.asarray(v, jnp.float32) for k, v in flat.items()})
    gradient = flatten(jax.grad(total)(single))
    rng, step = np.random.default_rng(0), np.finfo(float).eps ** (1 / 3)
    # Forwards, and backwards with two products for each operation.
    allowed = chain_bound(3 * longest_chain(config, 12), "float32")
    for name, array in flat.items():
        direction = rng.standard_normal(array.shape)
        direction /= np.linalg.norm(direction)

        def at(size, name=name, array=array, direction=direction):
            from griffin_np.model import NumPyModel

            changed = nest({**flat, name: array + size * direction})
            return NumPyModel(config, changed, "x").loss(tokens, tokens)

        expected = (at(step) - at(-step)) / (2 * step)
        found = float(np.sum(np.asarray(gradient[name], np.float64) * direction))
        scale = float(np.linalg.norm(np.asarray(gradient[name])))
        assert abs(found - expected) <= allowed * scale, name


def near_one(flat: dict, seed: int) -> dict:
    """The same weights, the decays of the first block so close to 1 that the clip acts on most."""
    name = "blocks.0.recurrent.rg_lru.a_param"
    low = np.random.default_rng(seed).uniform(-20, -16, flat[name].shape)
    return {**flat, name: low.astype(flat[name].dtype)}


def our_gradient(flat: dict, tokens, config) -> dict:
    """Gradient of the mean loss of whole rows, in float32, by flat name."""
    documents = [data.Document.of(row) for row in tokens]
    packed = data.pack(documents, tokens.shape[1])
    batch = packed.batch(0, len(tokens)).split(1)
    single = nest({name: jnp.asarray(array, jnp.float32) for name, array in flat.items()})
    options = TrainOptions(length=tokens.shape[1])
    _, gradient = jax.jit(partial(loss_and_gradient, config=config, options=options))(
        single, None, batch
    )
    return {k: np.asarray(v, np.float64) for k, v in flatten(gradient).items()}


class Linearised:
    """The multiplier sqrt(u) as a straight line in u: its own value, the clipped slope.

    The clipped gradient is the gradient of no function of the weights. But around given weights it
    is that of the reference whose multiplier, at every place where it was computed, is replaced by
    this line through its value there.
    """

    def __init__(self, clip: float):
        self.clip, self.points, self.calls = clip, [], None

    def __call__(self, log_a):
        u = -np.expm1(2 * log_a)
        if self.calls is None:
            self.points.append(u)
            return np.sqrt(u)
        at = self.points[self.calls % len(self.points)]
        self.calls += 1
        return np.sqrt(at) + np.minimum(0.5 / np.sqrt(at), self.clip) * (u - at)


def test_where_the_clip_acts_gradients_are_those_of_the_clipped_formula(monkeypatch):
    """Finite differences in float64 of the reference with :class:`Linearised` roots."""
    from griffin_np import rg_lru
    from griffin_np.model import NumPyModel

    config = SMALL.replace(depth=3, vocab_size=20)
    flat = near_one(flatten(random_parameters(config, 5, "float64")), 0)
    tokens = tokens_for(config, (2, 12), 0)
    gradient = our_gradient(flat, tokens, config)
    allowed = chain_bound(3 * longest_chain(config, 12), "float32")
    through_the_root = ("w_a", "b_a", "a_param")

    def differences(clip: float) -> dict:
        """Deviation of our gradient along random directions, over what rounding explains."""
        roots = Linearised(clip)
        monkeypatch.setattr(rg_lru, "multiplier", roots)
        NumPyModel(config, nest(flat), "x").loss(tokens, tokens)
        roots.calls = 0
        if clip < np.inf:
            first_of_two = roots.points[::2]
            acts = np.mean([(u < 2.5e-7).mean() for u in first_of_two])
            assert 0.5 < acts < 1, "the clip acts on most places of the first block, not on all"
        rng, ratios = np.random.default_rng(1), {}
        h = np.finfo(float).eps ** (1 / 5)  # for a formula of fourth order
        for name, array in flat.items():
            direction = rng.standard_normal(array.shape)
            direction /= np.linalg.norm(direction)

            def at(size, name=name, array=array, direction=direction):
                changed = nest({**flat, name: array + size * direction})
                return NumPyModel(config, changed, "x").loss(tokens, tokens)

            expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
            error = abs(float(np.sum(gradient[name] * direction)) - expected)
            ratios[name] = error / (allowed * float(np.linalg.norm(gradient[name])))
        return ratios

    clipped, free = differences(1000.0), differences(np.inf)
    assert max(clipped.values()) <= 1, clipped
    first = [f"blocks.0.recurrent.rg_lru.{name}" for name in through_the_root]
    assert min(free[name] for name in first) > 1, "without the clip the gradient is another one"


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clip_acts", [False, True])
def test_gradients_agree_with_transformers(transformers_in_double, clip_acts):
    """Its automatic differentiation in float64, its own clip included, array by array."""
    from griffin_np.checkpoints.hf_names import tensor_names

    torch = transformers_in_double.torch
    config = SMALL.replace(depth=3, vocab_size=20, lru_width=24)
    for seed in range(3):
        flat = flatten(random_parameters(config, seed, "float32"))
        if clip_acts:
            flat = near_one(flat, seed)
        # Id 0 is padding to transformers, whose gradient it leaves out.
        tokens = np.maximum(tokens_for(config, (2, config.window), seed), 1)
        peer = transformers_in_double.build(config, flat).double()
        peer.tie_weights()
        assert peer.lm_head.weight is peer.model.embed_tokens.weight
        ids = torch.tensor(tokens)
        logits = peer(ids, use_cache=False).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        theirs = {name: weight.grad.numpy() for name, weight in peer.named_parameters()}
        found = our_gradient(flat, tokens, config)
        allowed = chain_bound(3 * longest_chain(config, config.window), "float32")
        for name, (their_name, load, _) in tensor_names(config).items():
            expected = load(theirs[their_name])
            assert expected.dtype == np.float64
            error = np.linalg.norm(found[name] - expected)
            assert error <= allowed * np.linalg.norm(expected), name


def test_the_square_roots_derivative_is_clipped():
    x = jnp.asarray([0.0, 1e-12, 2.4e-7, 2.6e-7, 0.25, 1.0])
    derivative = jax.vmap(jax.grad(model.sqrt_clipped))(x)
    roots = np.sqrt(np.asarray(x, np.float64))
    with np.errstate(divide="ignore"):
        expected = np.minimum(0.5 / roots, 1000)
    # A root counts as two roundings, the quotient and product by a half as one each.
    np.testing.assert_allclose(derivative, expected, rtol=chain_bound(4, "float32"))
    np.testing.assert_allclose(model.sqrt_clipped(x), roots, rtol=chain_bound(2, "float32"))


def test_weight_decay_spares_recurrence_norms_and_biases():
    mask = flatten(decay_mask(random_parameters(SMALL, 0)))
    decayed = {name for name, decays in mask.items() if decays}
    assert "embedding" in decayed
    assert "blocks.0.recurrent.conv.weight" in decayed
    assert all(name == "embedding" or name.endswith(".weight") for name in decayed)
    assert not any("rg_lru" in name for name in decayed)


documents_of_ids = st.lists(
    st.lists(st.integers(3, 40), min_size=2, max_size=60), min_size=1, max_size=30
)


@settings(max_examples=60)
@given(documents=documents_of_ids, length=st.integers(2, 24), seed=st.integers(0, 99))
def test_packing_loses_and_invents_nothing(documents, length, seed):
    """Every token after a document's first is a label exactly once, from its own predecessor."""
    order = np.random.default_rng(seed).permutation(len(documents))
    packed = data.pack(documents, length, order)
    batch = packed.batch(0, len(packed.tokens) + 1)
    found = []
    for r, c in np.argwhere(batch.weights):
        assert batch.positions[r, c] >= 0
        found.append((int(batch.tokens[r, c]), int(batch.labels[r, c])))
    expected = [pair for d in documents for pair in pairwise(d)]
    assert sorted(found) == sorted(expected)
    for row in packed.positions:
        real = row[row >= 0]
        assert (row[len(real) :] == -1).all()
        assert ((real == 0) | (np.diff(real, prepend=-1) == 1)).all()


@settings(max_examples=30)
@given(documents=documents_of_ids, skip=st.integers(0, 25), batch_size=st.integers(1, 4))
def test_batches_can_be_taken_up_anywhere(documents, skip, batch_size):
    from itertools import islice

    whole = data.batches(documents, 16, batch_size, seed=3)
    rest = data.batches(documents, 16, batch_size, seed=3, skip=skip)
    for expected, found in zip(islice(whole, skip, skip + 3), rest, strict=False):
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.positions, expected.positions)


def test_documents_are_read_as_they_are_separated(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n<|endoftext|>\n\n<|endoftext|>\n three\n")
    assert data.read_documents([file]) == ["one\ntwo", " three"]
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match=r"cannot read .*a.txt as UTF-8"):
        data.read_documents([file])
    file.write_text("\n<|endoftext|>\n")
    with pytest.raises(TokenizerError, match="holds no text"):
        data.read_documents([file])


TINY = SMALL.replace(width=16, num_heads=2, depth=3, vocab_size=50, lru_width=16, mlp_width=24)
TEXTS = [[2, *(3 + (np.arange(n) * 7 + n) % 40).tolist(), 1] for n in range(5, 60)]


def weights(trainer) -> dict:
    return {name: np.array(array) for name, array in flatten(trainer.params).items()}


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    options = TrainOptions(steps=7, batch_size=2, length=32, warmup=2, seed=4)
    through = Trainer(TINY, options, TEXTS)
    through.run(log=_Sink())
    for stop in (1, 4, 6):
        folder = tmp_path / str(stop)
        first = Trainer(TINY, options, TEXTS, folder)
        for _ in range(stop):
            first.train_step()
        first.save()
        first.train_step()  # lost: the run is killed before its next checkpoint
        second = Trainer(TINY, options, TEXTS, folder)
        assert second.step == stop
        second.run(log=_Sink())
        assert second.tokens_seen == through.tokens_seen
        for name, array in weights(through).items():
            np.testing.assert_array_equal(weights(second)[name], array, err_msg=name)


class _Sink:
    def __init__(self):
        self.lines = []

    def write(self, text):
        self.lines.append(text)

    def flush(self):
        pass


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    options = TrainOptions(steps=4, batch_size=2, length=32, warmup=1)
    trainer = Trainer(TINY, options, TEXTS, tmp_path)
    for _ in range(3):
        trainer.train_step()
        last = trainer.save()
    assert len(list(tmp_path.glob("step-*"))) == 2
    last.write_bytes(last.read_bytes()[:1000])
    assert Trainer(TINY, options, TEXTS, tmp_path).step == 2


def test_a_run_with_other_settings_is_not_resumed(tmp_path):
    options = TrainOptions(steps=4, batch_size=2, length=32, warmup=1)
    trainer = Trainer(TINY, options, TEXTS, tmp_path)
    trainer.train_step()
    trainer.save()
    with pytest.raises(CheckpointError, match="options.seed: 0 then, 1 now"):
        Trainer(
            TINY, TrainOptions(steps=4, batch_size=2, length=32, warmup=1, seed=1), TEXTS, tmp_path
        )
    with pytest.raises(CheckpointError, match="text: "):
        Trainer(TINY, options, [[*TEXTS[0][:-2], 5, 1], *TEXTS[1:]], tmp_path)


def test_training_learns_and_reports(tmp_path):
    options = TrainOptions(steps=60, batch_size=4, length=64, warmup=5, learning_rate=1e-2)
    trainer = Trainer(TINY, options, TEXTS)
    before = trainer.evaluate(data.pack(TEXTS, 64))
    sink = _Sink()
    result = trainer.run(TEXTS, 1000, log=sink, log_every=20, evaluate_every=30)
    after = trainer.evaluate(data.pack(TEXTS, 64))
    assert before.tokens == after.tokens == sum(len(t) - 1 for t in TEXTS)
    assert after.loss < 0.5 * before.loss
    # Two quotients, here and there; an exponential counts two.
    assert_close(result.bits_per_byte, after.nats / np.log(2) / 1000, "float64", chain=4)
    assert_close(result.perplexity, np.exp(after.nats / after.tokens), "float64", chain=6)
    lines = "".join(sink.lines).splitlines()
    assert [line.split()[1] for line in lines] == ["20/60", "40/60", "60/60"]
    assert "held-out" in lines[-1]
    assert "tokens/s" in lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"length": 1}, "length must be at least 2 tokens, got 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"warmup": 2000}, r"warmup must be in \[0, steps=1000\], got 2000"),
    ],
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TrainOptions(**change)


def test_the_train_verb_writes_a_model_that_generates(tmp_path, capsys):
    text = "\n<|endoftext|>\n".join(
        f"the cat number {n} sat on the mat with a hat" for n in range(80)
    )
    (tmp_path / "text.txt").write_text(text)
    argv = ["train", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "m"), "--steps", "12",
            "--width", "32", "--num-heads", "2", "--depth", "2", "--vocab-size", "300", "--window", "16",
            "--length", "32", "--batch-size", "2", "--dtype", "float32", "--log-every", "6", "--checkpoint-every", "5"]  # fmt: skip
    assert main(argv) == 0
    err = capsys.readouterr().err
    assert "step 12/12" in err
    assert "held-out" in err
    made = gnp.load(tmp_path / "m")
    assert made.config.lru_width == 32
    assert made.tokenizer.vocab_size == 300
    assert made.tokenizer.piece_to_id("<start_of_turn>") is not None
    assert made.generate("the cat", max_tokens=3, ignore_eos=True).text
    assert main(argv) == 2
    assert "exists already" in capsys.readouterr().err
    import shutil

    first = load_file(tmp_path / "m" / "model.safetensors")
    shutil.rmtree(tmp_path / "m")
    assert main(argv) == 0
    assert "going on at step 12 of 12" in capsys.readouterr().err
    again = load_file(tmp_path / "m" / "model.safetensors")
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in first.items()}


def test_a_vocabulary_is_a_function_of_its_text(tmp_path):
    texts = [f"the cat number {n} sat on the mat with a hat" for n in range(80)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        data.train_tokenizer(texts, 300, tmp_path / name / "x.model")
    content = (tmp_path / "a" / "x.model").read_bytes()
    assert content == (tmp_path / "b" / "x.model").read_bytes()
    assert str(tmp_path).encode() not in content
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.model"]
    with pytest.raises(TokenizerError, match="no vocabulary of 9000 pieces can be trained"):
        data.train_tokenizer(texts, 9000, tmp_path / "y.model")


def test_a_run_that_blows_up_says_so_and_keeps_its_last_checkpoint(tmp_path):
    options = TrainOptions(
        steps=30, batch_size=2, length=32, warmup=0, learning_rate=1e30, clip=1e30
    )
    trainer = Trainer(TINY, options, TEXTS, tmp_path)
    with pytest.raises(
        TrainingError, match=r"the loss became (nan|inf) at step \d+: lower the learning"
    ):
        trainer.run(log=_Sink(), checkpoint_every=1)
    names = [p.name for p in tmp_path.iterdir()]
    assert f"step-{trainer.step:08d}.safetensors" not in names
