"""The reference equation by equation, its trace and its loss.

Whole texts are held against the oracle by the suite: :mod:`griffin_conformance.laws`.
"""

import inspect
import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SMALL, assert_close, assert_exact, random_model, tokens_for

from griffin_conformance.envelope import chain_bound, longest_chain
from griffin_np import attention, layers, rg_lru
from griffin_np.state import State

ANGLE = 1e-6
"""Radians by which the specification lets a rotary angle differ at positions below 2^31."""

# Roundings that a result goes through; an elementary function counts as two.
SIGMOID = 2 + 1 + 1  # exp, sum, quotient
SOFTPLUS = 2 + 2 + 1  # exp, log1p, sum
LOG_DECAY = SOFTPLUS + 1  # 8 is a power of two
MULTIPLIER = 2 + 1  # expm1, square root


def draw_positions(data, length: int, start: int = 0) -> list[int]:
    """Positions of a row: documents of all lengths, padding anywhere."""
    positions, position = [], start
    for _ in range(length):
        kind = data.draw(st.sampled_from(["go", "go", "go", "go", "new", "pad"]))
        if kind == "pad":
            positions.append(-1)
            continue
        position = 0 if kind == "new" else position
        positions.append(position)
        position += 1
    return positions


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_have_the_dtype_of_the_weights(dtype):
    logits, state = random_model(SMALL, dtype=dtype)([[1, 2, 3]])
    assert {logits.dtype, *(a.dtype for a in state.arrays().values())} == {np.dtype(dtype)}


@settings(max_examples=200, deadline=None)
@given(st.floats(-700, 700))
def test_sigmoid_and_softplus_keep_relative_accuracy(z):
    with mpmath.workdps(40):
        exact = 1 / (1 + mpmath.exp(-mpmath.mpf(z)))
        soft = mpmath.log1p(mpmath.exp(mpmath.mpf(z)))
    z = np.array([z])
    assert_exact(rg_lru.sigmoid(z)[0], exact, "float64", "sigmoid", chain=SIGMOID)
    assert_exact(rg_lru.softplus(z)[0], soft, "float64", "softplus", chain=SOFTPLUS)


@pytest.mark.parametrize("a_param", [-30, -17, -12, -8, -6.9, -2.2, 0, 5, 30, 100])
@pytest.mark.parametrize("r", [1e-6, 1e-3, 0.1, 0.5, 1.0])
def test_decay_and_multiplier_at_the_extremes(a_param, r):
    """float32 keeps all but a few bits of both, also where 1 - exp(2 log a) keeps none."""
    a_param, r = np.float32(a_param), np.float32(r)
    log_a = rg_lru.log_decay({"a_param": a_param[None]}, r[None, None])
    with mpmath.workdps(60):
        exact = -8 * mpmath.mpf(float(r)) * mpmath.log1p(mpmath.exp(mpmath.mpf(float(a_param))))
        gain = mpmath.sqrt(-mpmath.expm1(2 * exact))
    assert_exact(log_a[0, 0], exact, "float32", "log a", chain=LOG_DECAY)
    found = rg_lru.multiplier(log_a)[0, 0]
    assert_exact(found, gain, "float32", "multiplier", chain=LOG_DECAY + MULTIPLIER)


def test_a_param_is_minus_the_papers_lambda():
    """``softplus(a_param)`` with a_param = -Lambda is ``-log sigmoid(Lambda)``."""
    lam = np.linspace(-30, 30, 121)
    decay = np.exp(rg_lru.log_decay({"a_param": -lam}, np.full((1, 121), 1 / 8)))[0]
    # An error of log a, which is -30 at most, is one of a times its size.
    chain = 30 * LOG_DECAY + 2 + SIGMOID
    np.testing.assert_allclose(decay, 1 / (1 + np.exp(-lam)), rtol=chain_bound(chain, "float64"))


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 30), channels=st.integers(1, 8), seed=st.integers(0, 999))
def test_scan_is_its_definition(length, channels, seed):
    rng = np.random.default_rng(seed)
    a, x = rng.uniform(0, 1, (length, channels)), rng.standard_normal((length, channels))
    h = rng.standard_normal(channels)
    found = rg_lru.scan(a, x, h)
    for c in range(channels):
        value = h[c]
        for t in range(length):
            value = a[t, c] * value + x[t, c]
            assert found[t, c] == value


def test_step_is_one_token_of_the_sequence():
    rng = np.random.default_rng(0)
    model = random_model(SMALL, dtype="float64")
    p = model.parameters["blocks"][0]["recurrent"]["rg_lru"]
    x, h = rng.standard_normal((7, 36)), rng.standard_normal(36)
    positions = np.array([3, 4, 0, 1, 2, 0, 0])
    # A gate's products and bias, decay, multiplier and gated input; product and sum at each step.
    chain = SMALL.gate_width + 1 + SIGMOID + LOG_DECAY + MULTIPLIER + 2 + 2 * 7
    y, last = rg_lru.rg_lru(p, x, positions, h)
    for t in range(7):
        h = rg_lru.step(p, x[t], positions[t], h)
        assert_close(h, y[t], "float64", chain=chain)
    assert_close(last, h, "float64", chain=chain)


@pytest.mark.parametrize("position", [1, 1000, 10**6, 2**31 - 1])
def test_rope_angles_are_exact_at_any_position(position):
    """A unit vector turned by the angle, compared with 60-digit arithmetic."""
    d = 64
    x = np.zeros((1, 1, d))
    x[..., : d // 4] = 1
    turned = attention.rope(x, np.array([position]), 10000.0, d // 2)[0, 0]
    for j in range(d // 4):
        with mpmath.workdps(60):
            angle = position * mpmath.power(10000, -mpmath.mpf(j) / (d // 4))
            cos, sin = float(mpmath.cos(angle)), float(mpmath.sin(angle))
        assert math.hypot(turned[j] - cos, turned[j + d // 4] - sin) < ANGLE
    np.testing.assert_array_equal(turned[d // 2 :], 0)


def test_window_shows_one_key_more_than_its_size():
    """Trap T01 and T02: a change W tokens back is seen, W + 1 back is not."""
    config = SMALL.replace(block_pattern=("attention",), depth=1)
    model = random_model(config, dtype="float64")
    W, tokens = config.window, tokens_for(config, (1, 30), 1)
    before = model(tokens)[0][0]
    changed = tokens.copy()
    changed[0, 5] = (tokens[0, 5] + 1) % config.vocab_size
    moved = np.flatnonzero(np.abs(model(changed)[0][0] - before).max(axis=1) > 0)
    assert moved.tolist() == list(range(5, 5 + W + 1))


def test_attention_weights_are_traced_by_distance():
    model = random_model(SMALL, dtype="float64")
    seen = {}
    model(tokens_for(SMALL, (2, 300), 0), trace=lambda name, array: seen.update({name: array}))
    weights = seen["blocks.2.attention.weights"]
    assert weights.shape == (2, 300, 3, SMALL.window + 1)
    # Summed once for the softmax, which divides, and once here.
    chain = 2 * (SMALL.window + 1) + 1
    assert_close(weights.sum(axis=-1), np.ones((2, 300, 3)), "float64", chain=chain)
    for t in range(SMALL.window):
        assert (weights[:, t, :, t + 1 :] == 0).all()
    assert (weights[:, SMALL.window :] > 0).all()


def test_trace_names_every_intermediate_and_changes_nothing():
    model = random_model(SMALL)
    tokens = tokens_for(SMALL, (2, 9), 0)
    positions = np.array([[0, 1, 2, -1, 3, 0, 1, -1, -1], [-1, -1, 0, 1, 2, 3, 4, 5, 6]])
    seen = {}
    logits, _ = model(tokens, positions, trace=lambda name, array: seen.update({name: array}))
    np.testing.assert_array_equal(logits, model(tokens, positions)[0])
    for part in ("conv", "rg_lru.r", "rg_lru.i", "rg_lru.a", "rg_lru.h"):
        array = seen[f"blocks.0.recurrent.{part}"]
        assert array.shape == (2, 9, 36)
        assert (array[positions == -1] == 0).all()
        assert (array[positions > 0] != 0).all()
    assert seen["embedding"].shape == seen["final_norm"].shape == (2, 9, 24)
    assert {f"blocks.{i}.residual" for i in range(5)} <= set(seen)


def test_hidden_states_have_transformers_layout():
    model = random_model(SMALL)
    tokens = tokens_for(SMALL, (2, 7), 0)
    states = model.hidden_states(tokens)
    assert len(states) == SMALL.depth + 1
    assert {s.shape for s in states} == {(2, 7, 24)}
    embedding = model.parameters["embedding"][tokens]
    assert_close(states[0], embedding * SMALL.embedding_scale, "float32", chain=1)
    logits = states[-1] @ model.parameters["embedding"].T
    # Products and cap, here and there.
    chain = 2 * (SMALL.width + 4)
    assert_close(30 * np.tanh(logits / 30), model(tokens)[0], "float32", chain=chain)


def test_inputs_embeds_are_embeddings_before_their_scale():
    model = random_model(SMALL)
    tokens = tokens_for(SMALL, (2, 7), 0)
    logits, state = model(tokens)
    embedded, other = model(inputs_embeds=model.parameters["embedding"][tokens])
    np.testing.assert_array_equal(logits, embedded)
    for name, array in state.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), data=st.data())
def test_loss_is_the_mean_negative_log_probability(seed, data):
    rng = np.random.default_rng(seed)
    model = random_model(SMALL, dtype="float64")
    tokens = tokens_for(SMALL, (2, 8), seed)
    positions = np.array([draw_positions(data, 8), draw_positions(data, 8)])
    labels = np.where(rng.random((2, 8)) < 0.3, -100, tokens)
    logits, _ = model(tokens, positions)
    terms = []
    for row in range(2):
        real = [t for t in range(8) if positions[row, t] >= 0]
        for before, t in pairwise(real):
            if labels[row, t] != -100:
                z = logits[row, before]
                terms.append(math.log(sum(math.exp(v) for v in z)) - z[labels[row, t]])
    if terms:
        expected = sum(terms) / len(terms)
        # exp, sum over the vocabulary, log, difference, and mean over the tokens, here and there.
        chain = 2 * (2 + SMALL.vocab_size + 2 + 1 + tokens.size)
        loss = model.loss(tokens, labels, positions=positions)
        assert_close(loss, expected, "float64", chain=chain)
    else:
        with pytest.raises(ValueError, match="no label counts"):
            model.loss(tokens, labels, positions=positions)


def test_loss_refuses_labels_outside_the_vocabulary():
    model = random_model(SMALL)
    with pytest.raises(ValueError, match="label 61 in row 0, column 1"):
        model.loss([[1, 2, 3]], [[1, 61, 3]])
    with pytest.raises(ValueError, match=r"labels have shape \(1, 2\)"):
        model.loss([[1, 2, 3]], [[1, 2]])


def test_prompt_of_any_length_attends_in_blocks(monkeypatch):
    """The block of queries bounds memory and changes nothing else."""
    model = random_model(SMALL, dtype="float64")
    tokens = tokens_for(SMALL, (1, 50), 0)
    expected = model(tokens)[0]
    for size in (1, 3, 7):
        monkeypatch.setattr(attention, "QUERY_BLOCK", size)
        assert_close(model(tokens)[0], expected, "float64", chain=longest_chain(SMALL, 50))


def test_shapes_in_signatures_hold():
    """Every function with annotated shapes is called once, and its letters must agree."""
    from griffin_np.notation import no_trace

    calls = []

    def checked(function):
        signature = inspect.signature(function)

        def wrapper(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            sizes: dict[str, int] = {}
            for name, value in bound.arguments.items():
                unify(
                    signature.parameters[name].annotation,
                    value,
                    sizes,
                    f"{function.__name__}: {name}",
                )
            result = function(*args, **kwargs)
            annotation = signature.return_annotation
            parts = (
                getattr(annotation, "__args__", ()) if isinstance(result, tuple) else (annotation,)
            )
            results = result if isinstance(result, tuple) else (result,)
            for part, value in zip(parts, results, strict=True):
                unify(part, value, sizes, f"{function.__name__}: result")
            calls.append(function.__name__)
            return result

        return wrapper

    def unify(annotation, value, sizes, what):
        letters = getattr(annotation, "__metadata__", [None])[0]
        if not isinstance(letters, str) or not isinstance(value, np.ndarray):
            return
        names = letters.split()
        assert len(names) == value.ndim, f"{what} has shape {value.shape}, annotated {letters}"
        for name, size in zip(names, value.shape, strict=True):
            letter, _, less = name.partition("-")
            assert sizes.setdefault(letter, size + int(less or 0)) == size + int(less or 0), (
                f"{what}: {letters} is {value.shape} where {sizes}"
            )

    import griffin_np.model as model_module

    with pytest.MonkeyPatch.context() as patch:
        for module in (rg_lru, layers, attention, model_module):
            for name, function in list(vars(module).items()):
                if inspect.isfunction(function) and function.__module__.startswith("griffin_np."):
                    patch.setattr(module, name, checked(function))
        random_model(SMALL)(tokens_for(SMALL, (1, 20), 0), trace=lambda name, array: None)
        rg = random_model(SMALL).parameters["blocks"][0]["recurrent"]["rg_lru"]
        rg_lru.step(rg, np.ones(36, np.float32), 3, np.ones(36, np.float32))
    assert no_trace("x", np.zeros(1)) is None
    wanted = """rg_lru scan step recurrence_gate input_gate log_decay multiplier causal_conv mlp
    rms_norm recurrent_block rope local_attention attention_block forward residual_block head embed
    unroll roll""".split()
    assert set(wanted) <= set(calls)


def test_state_starts_at_zero_everywhere():
    state = State.zeros(SMALL, 3)
    assert all((array == 0).all() and len(array) == 3 for array in state.arrays().values())
