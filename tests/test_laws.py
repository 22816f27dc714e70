"""The laws where the reference is stricter than any backend must be: to the bit, and by message.

The laws themselves are :mod:`griffin_conformance.laws` and its neighbours, and hold to rounding. In
the reference rows do not share an operation, so neighbours and padding leave every bit alone.
"""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SMALL, assert_close, assert_states_close, random_model, tokens_for

from griffin_conformance.envelope import longest_chain
from griffin_conformance.strategies import configurations
from griffin_np.errors import PositionError, StateError
from griffin_np.params import flatten
from griffin_np.state import State

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=60, deadline=None)


@few
@given(config=configurations(), seed=seeds, data=st.data())
def test_padding_anywhere_changes_nothing(config, seed, data):
    model = random_model(config, seed)
    length = data.draw(st.integers(1, 20))
    tokens = tokens_for(config, (1, length), seed)
    expected, end = model(tokens)
    gaps = data.draw(st.lists(st.integers(0, 2), min_size=length + 1, max_size=length + 1))
    columns = np.cumsum(gaps[:-1]) + np.arange(length)
    width = int(columns[-1]) + 1 + gaps[-1]
    padded = np.full((1, width), data.draw(st.sampled_from([0, -1, -100, 10**9])))
    positions = np.full((1, width), -1)
    padded[:, columns], positions[:, columns] = tokens, np.arange(length)
    logits, state = model(padded, positions)
    np.testing.assert_array_equal(logits[:, columns], expected)
    np.testing.assert_array_equal(np.delete(logits, columns, axis=1), 0)
    last, _ = model(padded, positions, logits="last")
    assert_close(last, expected[:, -1], "float32", chain=longest_chain(config, length))
    for name, array in end.arrays().items():
        np.testing.assert_array_equal(state.arrays()[name], array)


@few
@given(config=configurations(), seed=seeds, data=st.data())
def test_a_row_does_not_depend_on_its_neighbours(config, seed, data):
    model = random_model(config, seed)
    rows = data.draw(st.integers(2, 4))
    lengths = data.draw(st.lists(st.integers(0, 15), min_size=rows, max_size=rows))
    width = max([*lengths, 1])
    tokens = tokens_for(config, (rows, width), seed)
    left = data.draw(st.booleans())
    positions = np.full((rows, width), -1)
    for row, n in enumerate(lengths):
        columns = slice(width - n, width) if left else slice(0, n)
        positions[row, columns] = np.arange(n)
    logits, state = model(tokens, positions)
    for row in range(rows):
        alone, end = model(tokens[[row]], positions[[row]])
        np.testing.assert_array_equal(logits[row], alone[0])
        for name, array in end.arrays().items():
            np.testing.assert_array_equal(state.arrays()[name][row], array[0])
    order = data.draw(st.permutations(range(rows)))
    np.testing.assert_array_equal(model(tokens[order], positions[order])[0], logits[order])


@few
@given(config=configurations(), seed=seeds, data=st.data())
def test_nothing_sees_the_future(config, seed, data):
    model = random_model(config, seed)
    tokens = tokens_for(config, (1, 16), seed)
    changed_at = data.draw(st.integers(1, 15))
    changed = tokens.copy()
    changed[0, changed_at] = (changed[0, changed_at] + 1) % config.vocab_size
    before, after = model(tokens)[0], model(changed)[0]
    np.testing.assert_array_equal(before[:, :changed_at], after[:, :changed_at])


def test_the_callers_weights_are_never_changed():
    model = random_model(SMALL)
    weights = copy.deepcopy(flatten(model.parameters))
    tokens = tokens_for(SMALL, (2, 12), 0)
    _, state = model(tokens[:, :5])
    model(tokens[:, 5:], state=state)
    model.hidden_states(tokens)
    for name, array in flatten(model.parameters).items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_convolution_of_width_1_carries_nothing(size):
    config = SMALL.replace(conv_width=1)
    model, tokens = random_model(config, dtype="float64"), tokens_for(SMALL, (1, 20), 0)
    expected, end = model(tokens)
    assert end.layers[0].conv.shape == (1, 0, 36)
    parts, state = [], None
    for start in range(0, 20, size):
        logits, state = model(tokens[:, start : start + size], state=state)
        parts.append(logits)
    found = np.concatenate(parts, axis=1)
    assert_close(found, expected, "float64", chain=longest_chain(config, 20))
    assert_states_close(state, end, "float64")


def test_a_state_of_another_dtype_is_converted():
    model32, model64 = random_model(SMALL, dtype="float32"), random_model(SMALL, dtype="float64")
    tokens = tokens_for(SMALL, (1, 30), 0)
    _, state = model64(tokens[:, :20])
    logits, after = model32(tokens[:, 20:], state=state)
    expected = model64(tokens)[0][:, 20:]
    assert_close(logits, expected, "float32", chain=longest_chain(SMALL, 30))
    assert {a.dtype for a in after.arrays().values()} == {np.dtype("float32")}
    assert {a.dtype for a in state.arrays().values()} == {np.dtype("float64")}


def test_an_empty_chunk_is_the_identity():
    model = random_model(SMALL)
    _, state = model(tokens_for(SMALL, (2, 9), 0))
    logits, after = model(np.zeros((2, 0), int), state=state)
    assert logits.shape == (2, 0, 61)
    assert_states_close(after, state, "float32")
    assert (model(np.zeros((2, 0), int), state=state, logits="last")[0] == 0).all()
    assert model([[1]], logits="none")[0] is None


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[0, 2, 3]], "position 2 in row 0, column 1: expected 1"),
        ([[1, 2, 3]], "position 1 in row 0, column 0: expected 0"),
        ([[0, -1, 2]], "position 2 in row 0, column 2: expected 1"),
        ([[0, 1, -2]], "position -2 in row 0, column 2"),
        ([[0, 0, 2]], "position 2 in row 0, column 2: expected 1"),
        ([[0, 1]], r"positions have shape \(1, 2\), the input \(1, 3\)"),
        ([[0.0, 1.0, 2.0]], "positions must be integers, got float64"),
    ],
)
def test_impossible_positions_are_refused(positions, message):
    with pytest.raises(PositionError, match=message):
        random_model(SMALL)([[1, 2, 3]], positions)


def test_positions_continue_the_state():
    model = random_model(SMALL)
    _, state = model([[1, 2, 3], [4, 5, 6]], [[0, 1, 2], [0, 1, -1]])
    model([[1], [1]], [[3], [2]], state)
    with pytest.raises(PositionError, match="position 3 in row 1, column 0: expected 2"):
        model([[1], [1]], [[3], [3]], state)


def test_positions_end_below_2_to_the_31():
    model = random_model(SMALL)
    late = State(model.init_state().layers, np.array([2**31 - 1]), SMALL)
    _, state = model([[1]], state=late)
    with pytest.raises(PositionError, match="position 2147483648 in row 0, column 0"):
        model([[1]], state=state)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1, 61]], "token 61 in row 0, column 1 is outside the vocabulary"),
        ([[1], [-1]], "token -1 in row 1, column 0"),
        ([1, 2], r"tokens must have shape \(B, T\), got \(2,\)"),
        ([[0.5]], "tokens must be integers, got float64"),
        ([["a"]], "tokens must be integers"),
        ([[1, 2], [3]], "tokens must be rows of one length; pad shorter ones"),
    ],
)
def test_impossible_tokens_are_refused(tokens, message):
    with pytest.raises(PositionError, match=message):
        random_model(SMALL)(tokens)


def test_wrong_calls_are_refused():
    model = random_model(SMALL)
    with pytest.raises(PositionError, match="either tokens or inputs_embeds"):
        model()
    with pytest.raises(PositionError, match=r"inputs_embeds must be floats of shape \(B, T, 24\)"):
        model(inputs_embeds=np.zeros((1, 2, 23)))
    with pytest.raises(PositionError, match="logits must be 'all', 'last' or 'none', got 'first'"):
        model([[1]], logits="first")
    with pytest.raises(StateError, match=r"the state has 2 row\(s\) and the input 1"):
        model([[1]], state=model.init_state(2))
    with pytest.raises(StateError, match=r"must be a griffin_np.State, got dict"):
        model([[1]], state={})


def test_a_state_of_another_model_is_refused():
    model, other = random_model(SMALL, 0), random_model(SMALL, 1)
    _, state = other([[1, 2]])
    with pytest.raises(StateError, match="model with other weights"):
        model([[1]], state=state)
    wide = random_model(SMALL.replace(window=9))
    with pytest.raises(StateError, match=r"window 9 \(model: 8\)"):
        model([[1]], state=wide([[1]])[1])


def test_position_0_forgets_even_a_damaged_state():
    model = random_model(SMALL)
    _, state = model([[1, 2, 3]])
    for array in state.arrays().values():
        array[...] = np.inf
    np.testing.assert_array_equal(model([[4, 5]], [[0, 1]], state)[0], model([[4, 5]])[0])


def test_a_state_of_other_arrays_is_refused_or_converted():
    model = random_model(SMALL)
    _, state = model([[1, 2, 3]])
    arrays = state.arrays()
    short = {**arrays, "layers.0.conv": arrays["layers.0.conv"][:, 1:]}
    with pytest.raises(
        StateError, match=r"layers.0.conv of this state is float32 \(1, 2, 36\), expected"
    ):
        model([[1]], state=state.with_arrays(short, state.position))
    whole = {**arrays, "layers.0.conv": arrays["layers.0.conv"].astype(int)}
    with pytest.raises(StateError, match="layers.0.conv of this state is int64"):
        model([[1]], state=state.with_arrays(whole, state.position))
    mixed = {**arrays, "layers.0.rg_lru": arrays["layers.0.rg_lru"].astype(np.float64)}
    logits, after = model([[1]], state=state.with_arrays(mixed, state.position))
    assert logits.dtype == after.layers[0].rg_lru.dtype == np.float32


def test_unsigned_positions_do_not_wrap_into_padding():
    with pytest.raises(PositionError, match="positions must fit into 64 signed bits"):
        random_model(SMALL)([[1, 2]], np.array([[0, 2**64 - 1]], np.uint64))


def test_hidden_states_of_padding_alone_are_zero():
    model = random_model(SMALL)
    for stream in model.hidden_states([[5, 6]], [[-1, -1]]):
        assert stream.shape == (1, 2, SMALL.width) and not stream.any()
    assert len(model.hidden_states([[5, 6]], [[-1, -1]])) == SMALL.depth + 1
