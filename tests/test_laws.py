"""The laws that every backend obeys, as Hypothesis properties of the reference.

In the reference they hold to the rounding of the dtype; rows do not even share an operation, so
neighbours and padding leave every bit alone.
"""

import copy

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support import SMALL, assert_close, assert_states_close, configs, random_model, tokens_for

from griffin_np.errors import PositionError, StateError
from griffin_np.params import flatten
from griffin_np.state import State

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["float32", "float64"])
few = settings(max_examples=60, deadline=None)


def cut(data, length: int) -> list[int]:
    """A way of cutting a text: steps of one to three tokens, or anywhere, empty chunks included."""
    step = data.draw(st.sampled_from([0, 0, 0, 1, 2, 3]), label="steps")
    anywhere = data.draw(st.lists(st.integers(0, length), max_size=8), label="cuts")
    cuts = range(0, length, step) if step else sorted(anywhere)
    return np.diff([0, *cuts, length]).tolist()


def run_in_chunks(model, tokens, sizes, positions=None, state=None):
    parts, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        steps = None if positions is None else positions[:, part]
        logits, state = model(tokens[:, part], steps, state)
        parts.append(logits)
        start += size
    return np.concatenate(parts, axis=1), state


@few
@given(config=configs(), seed=seeds, dtype=dtypes, length=st.integers(1, 40), data=st.data())
def test_any_chunking_gives_the_full_forward(config, seed, dtype, length, data):
    model = random_model(config, seed, dtype)
    tokens = tokens_for(config, (1, length), seed)
    sizes = cut(data, length)
    event(f"crosses the window: {length > config.window + 1}")
    full, end = model(tokens)
    parts, state = run_in_chunks(model, tokens, sizes)
    assert_close(parts, full, dtype, f"logits in chunks of {sizes}")
    assert_states_close(state, end, dtype)


@few
@given(config=configs(), seed=seeds, dtype=dtypes, data=st.data())
def test_packed_documents_are_as_documents_apart(config, seed, dtype, data):
    """Also when the last one has one or two tokens and decoding goes on."""
    model = random_model(config, seed, dtype)
    lengths = data.draw(st.lists(st.sampled_from([1, 1, 2, 3, 5, 14]), min_size=2, max_size=5))
    event(f"last document of {lengths[-1]}")
    more = 3
    documents = [tokens_for(config, (1, n + more), seed + i) for i, n in enumerate(lengths)]
    packed = np.concatenate([d[:, :n] for d, n in zip(documents, lengths, strict=True)], axis=1)
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    together, state = run_in_chunks(model, packed, cut(data, packed.shape[1]), positions)
    apart = [model(d[:, :n]) for d, n in zip(documents, lengths, strict=True)]
    assert_close(together, np.concatenate([logits for logits, _ in apart], axis=1), dtype)
    assert_states_close(state, apart[-1][1], dtype)
    tail = documents[-1][:, lengths[-1] :]
    assert_close(model(tail, state=state)[0], model(tail, state=apart[-1][1])[0], dtype)


@few
@given(config=configs(), seed=seeds, data=st.data())
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
    assert_close(model(padded, positions, logits="last")[0], expected[:, -1], "float32")
    for name, array in end.arrays().items():
        np.testing.assert_array_equal(state.arrays()[name], array)


@few
@given(config=configs(), seed=seeds, data=st.data())
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
@given(config=configs(), seed=seeds, data=st.data())
def test_nothing_sees_the_future(config, seed, data):
    model = random_model(config, seed)
    tokens = tokens_for(config, (1, 16), seed)
    changed_at = data.draw(st.integers(1, 15))
    changed = tokens.copy()
    changed[0, changed_at] = (changed[0, changed_at] + 1) % config.vocab_size
    before, after = model(tokens)[0], model(changed)[0]
    np.testing.assert_array_equal(before[:, :changed_at], after[:, :changed_at])


@few
@given(config=configs(), seed=seeds, data=st.data())
def test_the_callers_arrays_are_never_changed(config, seed, data):
    model = random_model(config, seed)
    tokens = tokens_for(config, (2, 12), seed)
    positions = np.tile(np.arange(12), (2, 1))
    weights = copy.deepcopy(flatten(model.parameters))
    _, state = model(tokens[:, :5])
    kept = state.fork(1)
    tokens_before, positions_before = tokens.copy(), positions.copy()
    model(tokens, positions)
    first = model(tokens[:, 5:], state=state)[0]
    second = model(tokens[:, 5:], state=state)[0]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(tokens, tokens_before)
    np.testing.assert_array_equal(positions, positions_before)
    for name, array in kept.arrays().items():
        np.testing.assert_array_equal(state.arrays()[name], array)
    for name, array in flatten(model.parameters).items():
        np.testing.assert_array_equal(array, weights[name])


@few
@given(config=configs(), seed=seeds, data=st.data())
def test_saved_states_go_on_and_forks_are_independent(config, seed, data, tmp_path_factory):
    model = random_model(config, seed)
    n = data.draw(st.integers(0, 20))
    tokens = tokens_for(config, (2, n + 5), seed)
    _, state = model(tokens[:, :n])
    path = tmp_path_factory.mktemp("state") / "x.state"
    state.save(path)
    expected, _ = model(tokens[:, n:], state=state)
    np.testing.assert_array_equal(model(tokens[:, n:], state=State.load(path))[0], expected)
    forks = state.fork(3)
    assert [s.batch for s in forks] == [1] * 6
    other = tokens_for(config, (6, 5), seed + 1)
    moved, _ = model(other, state=forks)
    for i in range(6):
        one, _ = model(other[[i]], state=state.select([i // 3]))
        np.testing.assert_array_equal(moved[[i]], one)
    np.testing.assert_array_equal(model(tokens[:, n:], state=state)[0], expected)


@few
@given(config=configs(), seed=seeds, lengths=st.tuples(st.integers(0, 9), st.integers(10, 60)))
def test_state_bytes_do_not_depend_on_the_length(config, seed, lengths):
    model = random_model(config, seed)
    sizes = {model(tokens_for(config, (2, n), seed), logits="none")[1].nbytes for n in lengths}
    assert sizes == {config.state_bytes(2, 4)}


@few
@given(config=configs(), seed=seeds, data=st.data())
def test_sessions_may_be_interleaved(config, seed, data):
    model = random_model(config, seed)
    texts = tokens_for(config, (3, 14), seed)
    expected = [model(texts[[i]])[0] for i in range(3)]
    states, done = [None] * 3, [0] * 3
    for i in data.draw(st.permutations([0, 1, 2] * 7)):
        part = texts[[i], done[i] : done[i] + 2]
        logits, states[i] = model(part, state=states[i])
        assert_close(logits, expected[i][:, done[i] : done[i] + 2], "float32")
        done[i] += 2


@few
@given(config=configs(), seed=seeds, length=st.integers(0, 30))
def test_entries_outside_the_document_are_zero(config, seed, length):
    model = random_model(config, seed)
    _, state = model(tokens_for(config, (1, 25), seed))
    tokens = tokens_for(config, (1, length), seed + 1)
    _, state = (
        model(tokens, np.arange(length)[None], state) if length else model([[0]], [[0]], state)
    )
    seen = int(state.position[0])
    for name, array in state.arrays().items():
        if name.endswith("conv"):
            assert (array[0, : max(config.conv_width - 1 - seen, 0)] == 0).all()
        elif not name.endswith("rg_lru"):
            assert (array[0, min(seen, config.window) :] == 0).all()


def test_a_state_of_another_dtype_is_converted():
    model32, model64 = random_model(SMALL, dtype="float32"), random_model(SMALL, dtype="float64")
    tokens = tokens_for(SMALL, (1, 30), 0)
    _, state = model64(tokens[:, :20])
    logits, after = model32(tokens[:, 20:], state=state)
    assert_close(logits, model64(tokens)[0][:, 20:], "float32")
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
