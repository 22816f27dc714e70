"""State: rows, files, refusals. The laws about its content are in test_laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file
from support import SMALL, random_model, tokens_for

from griffin_conformance.strategies import configurations
from griffin_np.errors import StateError
from griffin_np.state import State


def some_state(batch=3, seed=0, config=SMALL, dtype="float32") -> State:
    model = random_model(config, seed, dtype)
    return model(tokens_for(config, (batch, 11), seed), logits="none")[1]


def assert_same(a: State, b: State) -> None:
    np.testing.assert_array_equal(a.position, b.position)
    for name, array in a.arrays().items():
        assert array.dtype == b.arrays()[name].dtype
        np.testing.assert_array_equal(array, b.arrays()[name])


@settings(max_examples=30)
@given(config=configurations(), batch=st.integers(0, 3), seed=st.integers(0, 99),
       dtype=st.sampled_from(["float32", "float64", bfloat16]))  # fmt: skip
def test_files_hold_every_bit(config, batch, seed, dtype, tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "x.state"
    state = some_state(batch, seed, config).astype(dtype)
    state.save(path)
    again = State.load(path)
    assert_same(again, state)
    assert again.config == config
    assert again.fingerprint == state.fingerprint
    assert again.nbytes == state.nbytes == config.state_bytes(batch, np.dtype(dtype).itemsize)


def test_layout_is_the_documented_one():
    state = some_state(2)
    assert state.layers[0].conv.shape == (2, 3, 36)
    assert state.layers[0].rg_lru.shape == (2, 36)
    assert state.layers[2].keys.shape == state.layers[2].values.shape == (2, 8, 1, 8)
    assert state.position.dtype == np.int64
    assert state.position.tolist() == [11, 11]
    assert list(state.arrays())[:3] == ["layers.0.conv", "layers.0.rg_lru", "layers.1.conv"]


def test_the_recurrent_state_keeps_32_bits():
    dtypes = {n: a.dtype for n, a in some_state().astype(bfloat16).arrays().items()}
    assert all(d == (np.float32 if n.endswith("rg_lru") else bfloat16) for n, d in dtypes.items())


def test_rows_are_selected_copied_and_joined():
    state = some_state(3)
    a, b, c = state
    assert_same(State.concat([a, b, c]), state)
    assert_same(state.select([2, 0, 2]), State.concat([c, a, c]))
    assert_same(state.select(np.array([True, False, True])), State.concat([a, c]))
    assert_same(state.fork(2), State.concat([a, a, b, b, c, c]))
    assert_same(state.select([-1]), c)
    assert len(state.select([])) == 0
    copy = state.select([0, 1, 2])
    for name, array in copy.arrays().items():
        assert not np.shares_memory(array, state.arrays()[name])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda s: s.select([3]), r"row 3 does not exist in a state of 3 row\(s\)"),
        (lambda s: s.select([0.5]), "rows must be a list of row numbers"),
        (lambda s: s.select([[0]]), "rows must be a list of row numbers"),
        (lambda s: s.fork(0), "fork needs at least 1 copy, got 0"),
        (lambda s: s.fork(1.5), "fork needs at least 1 copy, got 1.5"),
        (lambda s: State.concat([State.zeros(SMALL), s, some_state(1, 7)]), "state 2 of concat belongs to"),
        (lambda s: State.concat([]), "concat needs at least one state"),
        (lambda s: State.concat([s, some_state(1, 7)]), "state 1 of concat belongs to"),
        (lambda s: State.concat([s, s.astype("float64")]), "state 1 of concat has layers.0"),
        (lambda s: s.check_model(SMALL.replace(window=9), ""), r"window 8 \(model: 9\)"),
    ],
)  # fmt: skip
def test_impossible_requests_are_refused(action, message):
    with pytest.raises(StateError, match=message):
        action(some_state())


def test_a_state_without_fingerprint_fits_any_weights():
    model = random_model(SMALL)
    model([[1]], state=State.zeros(SMALL))


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "x.state"
    some_state(1).save(path)
    content, arrays = path.read_bytes(), load_file(path)
    metadata = State.read_metadata(path)

    def write(changes=(), drop=(), **header):
        kept = {k: v for k, v in {**arrays, **dict(changes)}.items() if k not in drop}
        save_file(kept, path, {**metadata, **header})

    with pytest.raises(StateError, match="no file at"):
        State.load(tmp_path / "none.state")
    for size in (0, 9, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(StateError, match="no complete safetensors file"):
            State.load(path)
    write(format="something else")
    with pytest.raises(StateError, match="is no griffin-np state file"):
        State.load(path)
    write(version="2")
    with pytest.raises(StateError, match="format version 2; this griffin-np reads version 1"):
        State.load(path)
    write(config="{}")
    with pytest.raises(StateError, match="no valid configuration"):
        State.load(path)
    write(drop=["layers.1.conv"])
    with pytest.raises(StateError, match="layers.1.conv is missing or unknown"):
        State.load(path)
    write({"layers.2.keys": np.zeros((1, 7, 1, 8), np.float32)})
    with pytest.raises(
        StateError, match=r"layers.2.keys of .* is float32 \(1, 7, 1, 8\), expected"
    ):
        State.load(path)
    for position in (np.array([-1]), np.array([1.0]), np.array([[1]])):
        write({"position": position})
        with pytest.raises(StateError, match="'position' must be"):
            State.load(path)


def test_saving_replaces_a_file_whole_or_not_at_all(tmp_path, monkeypatch):
    from griffin_np.checkpoints import files

    path = tmp_path / "x.state"
    first = some_state(1, 0)
    first.save(path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(ValueError, match="disk full"):
        some_state(1, 1).save(path)
    monkeypatch.undo()
    assert_same(State.load(path), first)
    assert [p.name for p in tmp_path.iterdir()] == ["x.state"]
    with pytest.raises(ValueError, match="there is no folder"):
        first.save(tmp_path / "no" / "x.state")
    assert files.SafetensorsFile(path).metadata["format"] == "griffin-np state"
