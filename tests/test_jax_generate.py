"""Sampling and generation on the device against the same on the host; what happens to states."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from hypothesis import assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from support import SMALL, assert_close, random_model, random_parameters, tokens_for  # noqa: E402

import griffin_np as gnp  # noqa: E402
from griffin_kernels.xla import generate, model  # noqa: E402
from griffin_kernels.xla.engine import JaxModel  # noqa: E402
from griffin_kernels.xla.sampling import Steps, choose, options_of  # noqa: E402
from griffin_np.errors import ConfigError, PositionError, SamplingError, StateError  # noqa: E402
from griffin_np.params import flatten  # noqa: E402
from griffin_np.sampling import Sampler, log_softmax  # noqa: E402
from griffin_np.state import State  # noqa: E402

V = 19
pick = jax.jit(choose, static_argnames="steps")

samplers = st.builds(
    Sampler,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 5, V - 1, V, 100]),
    top_p=st.sampled_from([1e-6, 0.3, 0.75, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.5]),
    presence_penalty=st.sampled_from([0.0, 0.25, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    repeat_last_n=st.just(8),
    logit_bias=st.dictionaries(
        st.integers(0, V - 1), st.sampled_from([-np.inf, -1.0, 2.0]), max_size=3
    ),
)
# Quarters, so that many are equal, and -0 among them.
all_logits = st.lists(
    st.integers(-12, 12).map(lambda i: i / 4) | st.just(-0.0) | st.just(-np.inf),
    min_size=V,
    max_size=V,
)


@settings(max_examples=300, deadline=None)
@given(
    sampler=samplers,
    logits=all_logits,
    history=st.lists(st.integers(0, V - 1), max_size=8),
    data=st.data(),
)
def test_the_device_chooses_what_the_host_chooses(sampler, logits, history, data):
    """Every token that the host leaves is chosen by the numbers in the middle of its share."""
    logits = np.array(logits, np.float32)
    try:
        p = sampler.distribution(logits, history)
    except SamplingError:
        assume(False)
    steps, options = options_of(sampler, V)
    if data.draw(st.integers(0, 9)):  # mostly one program with every step, some of them idle
        steps = Steps(steps.greedy, *[True] * (len(steps) - 1))
        options = options._replace(bias=np.broadcast_to(options.bias, (V,)))
    recent = np.full((V, 8), -1, np.int32)
    recent[:, : len(history)] = history
    middle = (np.cumsum(p) - p / 2).astype(np.float32)
    token, logprob, fault = pick(np.tile(logits, (V, 1)), middle, recent, options, steps=steps)
    assert not np.any(fault)
    # Far from the edges of a share, single precision decides as double does.
    kept = np.flatnonzero(p > 1e-5)
    assert np.asarray(token)[kept].tolist() == kept.tolist()
    assert (p[np.asarray(token)] > 0).all()
    expected = log_softmax(logits)[kept]
    # A difference, an exponential and a sum over the vocabulary, a logarithm.
    assert_close(np.asarray(logprob)[kept], expected, "float32", chain=V + 8)


def test_what_cannot_be_sampled_is_named():
    steps, options = options_of(Sampler(), V)
    z = np.zeros((4, V), np.float32)
    z[0, 3], z[1, 2], z[2] = np.nan, np.inf, -np.inf
    fault = pick(z, np.zeros(4, np.float32), np.full((4, 1), -1), options, steps=steps)[2]
    assert fault.tolist() == [1, 1, 3, 0]
    with pytest.raises(
        SamplingError, match=r"logit_bias names token 19, the vocabulary is \[0, 19\)"
    ):
        options_of(Sampler(logit_bias={V: 1.0}), V)
    weights = flatten(random_parameters(SMALL, 0))
    weights["final_norm"] = np.full_like(weights["final_norm"], np.nan)
    with pytest.raises(SamplingError, match="weights or state are damaged"):
        JaxModel(SMALL, gnp.params.nest(weights)).generate([[3, 4]], max_tokens=3)


def test_no_token_without_probability_is_chosen():
    """Sums in parallel over a large vocabulary are not monotonic: numbers at the edges of shares."""
    n, rng = 4096, np.random.default_rng(0)
    logits = 2 * rng.standard_normal(n).astype(np.float32)
    steps, options = options_of(Sampler(temperature=1.0, top_k=40), n)
    best = set(np.argsort(logits)[-40:].tolist())
    p = Sampler(temperature=1.0, top_k=40).distribution(logits)
    assert set(np.flatnonzero(p).tolist()) == best
    edges = np.cumsum(p)[p > 0].astype(np.float32)[:-1]
    ulps = np.arange(-12, 13, dtype=np.float32) * np.finfo(np.float32).epsneg
    uniforms = (edges[:, None] + ulps).ravel()
    many = np.broadcast_to(logits, (len(uniforms), n))
    token, _, _ = pick(many, uniforms, np.full((len(uniforms), 1), -1), options, steps=steps)
    assert set(token.tolist()) <= best


@pytest.mark.parametrize("extreme", [{"temperature": 1e-50}, {"temperature": 1.0, "top_p": 1e-46}])
def test_options_that_single_precision_cannot_hold(extreme):
    logits = np.random.default_rng(0).standard_normal((1, V)).astype(np.float32)
    steps, options = options_of(Sampler(**extreme), V)
    token, _, _ = pick(logits, np.float32([0.9]), np.full((1, 1), -1), options, steps=steps)
    assert token[0] == logits.argmax()


def test_generation_ends_where_positions_do():
    ours = JaxModel(SMALL, random_parameters(SMALL, 0))
    state = ours.init_state()
    state = state.with_arrays(state.arrays(), np.array([2**31 - 3]))
    assert len(ours.generate([[5]], state=state, max_tokens=2, ignore_eos=True)[0].tokens) == 2
    with pytest.raises(PositionError, match="positions must be below 2"):
        ours.generate([[5]], state=state, max_tokens=8, ignore_eos=True)


def test_a_mesh_of_somebody_elses_is_no_mesh():
    ours = JaxModel(SMALL, random_parameters(SMALL, 0))
    tokens = tokens_for(SMALL, (1, 3), 0)
    expected, _ = ours(tokens)
    with jax.set_mesh(jax.make_mesh((1,), ("x",))):
        found, _ = ours(tokens)
    np.testing.assert_array_equal(found, expected)


PROMPTS = ["Once upon a time", "The big dog was", "Lily"]


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 20, "temperature": 0.0},
        {"max_tokens": 45, "temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "stop": ["was", "."]},
        {"max_tokens": 20, "temperature": 0.7, "repetition_penalty": 1.3, "repeat_last_n": -1,
         "frequency_penalty": 0.1},
        {"max_tokens": 300, "temperature": 0.0},
        {"max_tokens": 1, "temperature": 1.0},
        {"max_tokens": 0},
    ],
    ids=["greedy", "stop strings", "penalties", "to the end token", "one token", "none"],
)  # fmt: skip
def test_the_device_writes_what_the_host_writes(demo, options):
    ours, reference = demo
    assert type(ours.new_run([[3]])) is generate.DeviceRun
    found = ours.generate(PROMPTS, seed=5, **options)
    expected = reference.generate(PROMPTS, seed=5, **options)
    for a, b in zip(found, expected, strict=True):
        assert (a.text, a.tokens, a.finish_reason) == (b.text, b.tokens, b.finish_reason)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


@pytest.fixture(scope="module")
def demo():
    return gnp.load(backend="jax", dtype="float32"), gnp.load(backend="numpy", dtype="float32")


def test_a_sampler_of_ones_own_is_asked_on_the_host(demo):
    class Always(Sampler):
        def sample(self, logits, history, rng):
            return 77

    assert demo[0].generate([[3, 4]], max_tokens=3, sampler=Always())[0].tokens == [77] * 3


def test_generation_goes_on_from_a_state_and_leaves_it(demo):
    ours, reference = demo
    tokens = tokens_for(ours.config, (2, 30), 0)
    _, state = ours(tokens)
    before = {name: array.copy() for name, array in state.arrays().items()}
    _, theirs = reference(tokens)
    found = ours.generate([[5], [6, 7]], state=state, max_tokens=9, ignore_eos=True)
    expected = reference.generate([[5], [6, 7]], state=theirs, max_tokens=9, ignore_eos=True)
    assert [g.tokens for g in found] == [g.tokens for g in expected]
    for name, array in state.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_states_stay_on_the_device_until_they_are_looked_at():
    ours = JaxModel(SMALL, random_parameters(SMALL, 0))
    tokens = tokens_for(SMALL, (3, 9), 0)
    _, state = ours(tokens)
    assert state.device is not None
    again, _ = ours(tokens, None, state)  # which leaves the state as it is
    changed, _ = ours(tokens, None, state)
    np.testing.assert_array_equal(again, changed)
    state.layers[0].rg_lru[...] = 0  # NumPy arrays that may be changed, and count from now on
    assert state.device is None
    changed, _ = ours(tokens, None, state)
    assert np.abs(changed - again).max() > 0.01

    _, state = ours(tokens)
    _, after = ours.advance(tokens, None, state)
    with pytest.raises(StateError, match="given to advance"):
        state.arrays()
    assert after.select([2, 0]).batch == 2
    assert type(after.fork(2)) is State
    assert type(type(after).zeros(SMALL)) is State  # what the class makes is on no device
    np.testing.assert_array_equal(after.position, [18] * 3)


def test_a_state_of_another_shape_of_program_is_brought_over():
    params = random_parameters(SMALL, 0)
    tokens = tokens_for(SMALL, (2, 12), 0)
    first, second = (
        JaxModel(SMALL, params),
        JaxModel(SMALL, params, stacked=True, scan="associative"),
    )
    _, state = first(tokens)
    found, _ = second(tokens, None, state)
    expected, _ = first(tokens, None, state)
    assert_close(found, expected, "float32")


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 7])
def test_stacking_is_undone_by_unstacking(depth):
    config = SMALL.replace(depth=depth)
    blocks = random_parameters(config, 0)["blocks"]
    stacked = model.stack(blocks, config)
    assert len(stacked["blocks"]) == depth % 3
    assert len(stacked["groups"]) == (3 if depth >= 3 else 0)
    for a, b in zip(model.unstack(stacked), blocks, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("scan", "depth"), [("sequential", 2), ("pallas", 7)])
def test_stacked_blocks_compute_and_show_the_same(scan, depth):
    config = SMALL.replace(depth=depth)
    reference = random_model(config, 0, "float64")
    ours = JaxModel(config, random_parameters(config, 0), stacked=True, scan=scan)
    for name, array in flatten(ours.parameters).items():
        np.testing.assert_array_equal(array, flatten(reference.parameters)[name].astype(np.float32))
    tokens = tokens_for(config, (2, 11), 1)
    seen, expected = {}, {}
    logits, state = ours(tokens, trace=seen.__setitem__)
    truth, their_state = reference(tokens, trace=expected.__setitem__)
    assert_close(logits, truth, "float32")
    assert set(seen) == set(expected)
    for name, array in expected.items():
        assert_close(seen[name], array, "float32", name)
    logits, state = ours(tokens[:, :1], None, state)
    truth, their_state = reference(tokens[:, :1], None, their_state)
    assert_close(logits, truth, "float32")
    for name, array in their_state.arrays().items():
        assert_close(state.arrays()[name], array, "float32", name)


def test_bfloat16_weights_states_and_text(demo):
    ours = gnp.load(backend="jax")
    assert ours.dtype == "bfloat16" and ours.weight_bytes == 2 * ours.config.num_parameters()
    tokens = tokens_for(ours.config, (1, 40), 0)
    _, state = ours(tokens)
    dtypes = {str(array.dtype) for array in state.arrays().values()}
    assert dtypes == {"bfloat16", "float32"}
    assert state.layers[0].rg_lru.dtype == np.float32
    assert ours.generate("Once upon a time", max_tokens=20).text.startswith(", there was")
    with pytest.raises(ConfigError, match="no scan 'parallel'; choose one of sequential, assoc"):
        gnp.load(backend="jax", scan="parallel")
    with pytest.raises(ConfigError, match="the numpy backend has no option 'mesh'; it has: none"):
        gnp.load(backend="numpy", mesh=None)
    with pytest.raises(ConfigError, match="no option 'meshes'; it has: mesh, scan, stacked"):
        gnp.load(backend="jax", meshes=None)
