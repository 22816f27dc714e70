"""The CPU engine's laws, to the bit; its numbers against the reference; its folders and threads.

Rounded activations (bfloat16, and integers in groups of 64) are held against a reference whose
products round their inputs in the same way. What is left is float32 rounding, but for an activation
near the middle of two steps, which may go either way: that is the case in few of many short texts.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    SMALL,
    assert_close,
    assert_states_close,
    random_model,
    random_parameters,
    tokens_for,
)

import griffin_kernels
import griffin_np as gnp
from griffin_conformance.envelope import FACTOR, chain_bound, longest_chain
from griffin_conformance.strategies import configurations
from griffin_kernels.cpu import engine, folder, pool
from griffin_kernels.cpu.engine import NumbaModel
from griffin_kernels.cpu.weights import Layout
from griffin_np import attention, backends, layers, model, rg_lru
from griffin_np.errors import CheckpointError, ConfigError, ParameterError
from griffin_np.model import NumPyModel
from griffin_np.state import State

DTYPES = ("float32", "bfloat16", "int8", "int4")
WHOLE = SMALL.replace(width=192, lru_width=384, mlp_width=64, depth=3)
"""Widths that int4 takes."""

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
seeds = st.integers(0, 2**16)
some = settings(max_examples=30, deadline=None)


@pytest.fixture(autouse=True)
def _usual_threads():
    yield
    pool.set_threads(None)


@lru_cache(maxsize=8)
def model_of(config: gnp.GriffinConfig, dtype: str, seed: int = 0) -> NumbaModel:
    return NumbaModel(config, random_parameters(config, seed), "", dtype)


def draw_model(data, dtype: str) -> NumbaModel:
    """Any configuration that the dtype takes."""
    config = data.draw(configurations(), label="config")
    if dtype == "int4":
        heads = config.num_heads
        lru = 64 if 64 % heads == 0 and data.draw(st.booleans(), label="narrow") else 64 * heads
        config = config.replace(
            width=64 * heads, lru_width=lru, mlp_width=64 * data.draw(st.integers(1, 3))
        )
    elif data.draw(st.sampled_from([False, False, False, True]), label="whole heads"):
        # No array of a state is padded: it is changed where it stands.
        config = config.replace(width=64 * config.num_heads, lru_width=64 * config.num_heads)
    return model_of(config, dtype, data.draw(st.integers(0, 9), label="seed"))


def draw_texts(data, starts, longest: int = 45) -> np.ndarray:
    """Positions (rows, T): documents, the first of which may go on, with padding anywhere."""
    rows = []
    for start in starts:
        sizes = data.draw(
            st.lists(st.sampled_from([1, 2, 3, 8, 20]), max_size=4), label="documents"
        )
        goes_on = data.draw(st.booleans(), label="goes on")
        row: list[int] = []
        for n, size in enumerate(sizes):
            first = int(start) if goes_on and n == 0 else 0
            row += range(first, first + size)
        for gap in data.draw(st.lists(st.integers(0, 40), max_size=4), label="padding"):
            row.insert(min(gap, len(row)), -1)
        rows.append(row[:longest])
    width = max(map(len, rows))
    left = data.draw(st.booleans(), label="left")
    pads = [[-1] * (width - len(row)) for row in rows]
    rows = [pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)]
    return np.array(rows, np.int64).reshape(len(starts), width)


def begun(found, data, rows: int) -> State:
    """A state after some tokens, as many as each row has drawn."""
    before = data.draw(st.lists(st.integers(0, 50), min_size=rows, max_size=rows), label="before")
    at = np.arange(max(before))
    earlier = np.where(at < np.array(before)[:, None], at, -1)
    return found(tokens_for(found.config, earlier.shape, 1), earlier, logits="none")[1]


def copied(state: State) -> State:
    return state.select(range(state.batch))


def assert_same(actual: State, expected: State) -> None:
    """Every bit of two states."""
    np.testing.assert_array_equal(actual.position, expected.position)
    theirs = expected.arrays()
    for name, array in actual.arrays().items():
        assert array.dtype == np.float32, name
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def read(found, tokens, positions, state, sizes):
    parts, at = [], 0
    for size in sizes:
        part = slice(at, at + size)
        logits, state = found(tokens[:, part], positions[:, part], state)
        parts.append(logits)
        at += size
    return np.concatenate(parts, axis=1), state


# -- laws


@every_dtype
@some
@given(data=st.data())
def test_cuts_slabs_and_threads_change_no_bit(dtype, data):
    found = draw_model(data, dtype)
    state = begun(found, data, data.draw(st.integers(1, 3), label="rows"))
    positions = draw_texts(data, state.position)
    tokens, T = tokens_for(found.config, positions.shape, 2), positions.shape[1]
    pool.set_threads(1)
    expected, end = found(tokens, positions, state)
    assert (expected[positions < 0] == 0).all()
    step = data.draw(st.sampled_from([0, 0, 1, 2, 3]), label="step")
    anywhere = data.draw(st.lists(st.integers(0, T), max_size=4), label="cuts")
    cuts = [0, *(range(0, T, step) if step else sorted(anywhere)), T]
    pool.set_threads(data.draw(st.integers(1, 3), label="threads"))
    with mock.patch.object(
        engine, "SLAB", data.draw(st.sampled_from([1, 5, 17, 512]), label="slab")
    ):
        logits, after = read(found, tokens, positions, state, np.diff(cuts))
    np.testing.assert_array_equal(logits, expected)
    assert_same(after, end)


@every_dtype
@some
@given(data=st.data())
def test_rows_do_not_meet(dtype, data):
    found = draw_model(data, dtype)
    rows = data.draw(st.integers(2, 4), label="rows")
    state = begun(found, data, rows)
    positions = draw_texts(data, state.position)
    tokens = tokens_for(found.config, positions.shape, 2)
    logits, end = found(tokens, positions, state)
    for row in range(rows):
        alone, after = found(tokens[[row]], positions[[row]], state.select([row]))
        np.testing.assert_array_equal(alone[0], logits[row])
        assert_same(after, end.select([row]))
    order = data.draw(st.permutations(range(rows)), label="order")
    turned, after = found(tokens[order], positions[order], state.select(order))
    np.testing.assert_array_equal(turned, logits[order])
    assert_same(after, end.select(order))


@every_dtype
@some
@given(data=st.data())
def test_packed_documents_and_padding_change_no_bit(dtype, data):
    found = draw_model(data, dtype)
    positions = draw_texts(data, [0])
    tokens = tokens_for(found.config, positions.shape, 2)
    tokens[positions < 0] = data.draw(st.sampled_from([-1, 0, 10**9]), label="token of padding")
    logits, end = found(tokens, positions)
    columns = np.flatnonzero(positions[0] >= 0)
    assert (np.delete(logits, columns, axis=1) == 0).all()
    starts = np.flatnonzero(positions[0, columns] == 0)
    for document in np.split(columns, starts[1:]):
        alone, after = found(tokens[:, document])
        np.testing.assert_array_equal(logits[:, document], alone)
    assert_same(end, after)


@every_dtype
@some
@given(data=st.data())
def test_last_logits_and_advance(dtype, data):
    found = draw_model(data, dtype)
    state = begun(found, data, data.draw(st.integers(1, 3), label="rows"))
    positions = draw_texts(data, state.position)
    tokens = tokens_for(found.config, positions.shape, 2)
    expected, end = found(tokens, positions, state)
    slab = data.draw(st.sampled_from([3, 512]), label="slab")
    with mock.patch.object(engine, "SLAB", slab):
        last, after = found(tokens, positions, state, "last")
        none, after_none = found(tokens, positions, state, "none")
        traced = found(tokens, positions, state, "last", trace=lambda *_: None)[0]
        advanced, moved = found.advance(tokens, positions, copied(state), "all")
        in_place, moved_last = found.advance(tokens, positions, copied(state))
    for row in range(len(positions)):
        real = np.flatnonzero(positions[row] >= 0)
        wanted = expected[row, real[-1]] if len(real) else np.zeros(found.config.vocab_size)
        np.testing.assert_array_equal(last[row], wanted)
    assert none is None
    np.testing.assert_array_equal(traced, last)
    np.testing.assert_array_equal(advanced, expected)
    np.testing.assert_array_equal(in_place, last)
    for other in (after, after_none, moved, moved_last):
        assert_same(other, end)


@every_dtype
def test_six_hundred_tokens_in_slabs(dtype):
    found = model_of(WHOLE, dtype)
    tokens = tokens_for(WHOLE, (2, 600), 0)
    positions = np.arange(600)[None].repeat(2, axis=0)
    positions[1, 250:] -= 250
    whole, end = found(tokens, positions)
    logits, after = read(found, tokens, positions, None, [1, 16, 63, 520])
    np.testing.assert_array_equal(logits, whole)
    assert_same(after, end)
    np.testing.assert_array_equal(found(tokens, positions, logits="last")[0], whole[:, -1])


@every_dtype
@pytest.mark.parametrize("config", [SMALL, WHOLE], ids=["padded", "whole"])
def test_nothing_that_is_passed_is_changed(dtype, config):
    config = WHOLE if dtype == "int4" else config
    found, tokens = model_of(config, dtype), tokens_for(config, (2, 9), 0)
    _, state = found(tokens)
    positions = np.array([[9, 10, -1, 11], [0, 1, 2, -1]])
    given, more = state.arrays(), tokens[:, :4].copy()
    for array in (*given.values(), state.position, more, positions):
        array.flags.writeable = False
    kept = {name: array.copy() for name, array in given.items()}
    expected, after = found(more, positions, state)
    logits, moved = found.advance(more, positions, state, "all")
    found.hidden_states(more, positions, state)
    np.testing.assert_array_equal(logits, expected)
    assert_same(moved, after)
    for name, array in given.items():
        np.testing.assert_array_equal(array, kept[name], err_msg=name)
        assert not np.shares_memory(array, after.arrays()[name])
    np.testing.assert_array_equal(more, tokens[:, :4])
    np.testing.assert_array_equal(state.position, [9, 9])
    np.testing.assert_array_equal(positions, [[9, 10, -1, 11], [0, 1, 2, -1]])


@every_dtype
def test_an_empty_call_and_a_damaged_state(dtype):
    found = model_of(WHOLE, dtype)
    _, state = found(tokens_for(WHOLE, (2, 9), 0))
    logits, after = found(np.zeros((2, 0), int), state=state)
    assert logits.shape == (2, 0, 61)
    assert_same(after, state)
    assert (found(np.zeros((2, 0), int), state=state, logits="last")[0] == 0).all()
    assert found(np.zeros((0, 3), int))[0].shape == (0, 3, 61)
    for array in state.arrays().values():
        array[...] = np.nan
    text = tokens_for(WHOLE, (2, 12), 1)
    logits, after = found(text, np.arange(12)[None].repeat(2, axis=0), state)
    expected, end = found(text)
    np.testing.assert_array_equal(logits, expected)
    assert_same(after, end)


# -- numbers


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_float32_is_as_in_the_reference(data):
    found = draw_model(data, "float32")
    config, reference = found.config, NumPyModel(found.config, found.parameters, found.fingerprint)
    state = begun(reference, data, data.draw(st.integers(1, 3), label="rows"))
    positions = draw_texts(data, state.position)
    tokens = tokens_for(config, positions.shape, 2)
    chain = longest_chain(config, int(positions.max(initial=0)) + 1)
    logits, after = found(tokens, positions, state)
    expected, end = reference(tokens, positions, state)
    assert logits.dtype == np.float32
    assert_close(logits, expected, "float32", "logits", chain=chain)
    assert_states_close(after, end, "float32")
    if not (positions >= 0).any():
        return  # the reference reports no hidden states of no tokens
    hidden = found.hidden_states(tokens, positions, state)
    theirs = reference.hidden_states(tokens, positions, state)
    for i, (ours, right) in enumerate(zip(hidden, theirs, strict=True)):
        assert_close(ours, right, "float32", f"hidden state {i}", chain=chain)
    rows = found.parameters["embedding"][np.where(positions < 0, 0, tokens)]
    embedded, same = found(None, positions, state, inputs_embeds=rows)
    np.testing.assert_array_equal(embedded, logits)
    assert_same(same, after)


@pytest.mark.parametrize("config", [SMALL, WHOLE], ids=["padded", "whole"])
def test_parameters_come_back(config):
    """float32 as they were; the decay's parameter, which is kept as a rate, to rounding."""
    given = gnp.params.flatten(random_parameters(config, 0))
    found = gnp.params.flatten(model_of(config, "float32").parameters)
    assert list(found) == list(given)
    for name, array in given.items():
        if name.endswith(("a_param", "norm")):
            assert_close(found[name], array, "float32", name, chain=8)
        else:
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def rounded(x: np.ndarray, dtype: str, at: np.ndarray | None) -> np.ndarray:
    """Activations as products take them: ``at`` says which channel stands at each place, -1 none."""
    if dtype == "bfloat16":
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)
    at = np.arange(x.shape[-1]) if at is None else at
    wide = np.where(at < 0, np.float32(0), x[:, np.maximum(at, 0)])
    groups = wide.reshape(len(x), -1, 64)
    most = np.abs(groups).max(axis=-1, keepdims=True)
    inverse = np.float32(127) / np.where(most > 0, most, np.float32(np.inf))
    whole = np.rint(groups.astype(np.float64) * inverse)  # float64 holds the products exactly
    back = (whole.astype(np.float32) * (most / np.float32(127))).reshape(wide.shape)
    return back[:, at >= 0]


@contextlib.contextmanager
def products_of(found: NumbaModel, params: dict):
    """The reference with the activations of all products of packed weights rounded."""
    layout, names = Layout(found.config), {}
    for i, block in enumerate(params["blocks"]):
        for part in ("recurrent", "attention", "mlp"):
            for name, p in block.get(part, {}).items():
                if isinstance(p, dict) and f"{part}.{name}" in layout.matrices:
                    names[id(p)] = f"{part}.{name}"
        assert i < found.config.depth
    linear, head = layers.linear, model.head

    def rounding_linear(p, x):
        return linear(p, rounded(x, found.dtype, layout.matrices[names[id(p)]][1]))

    def rounding_head(params, config, x):
        return head(params, config, rounded(x, found.dtype, layout.matrices["embedding"][1]))

    with (
        mock.patch.object(layers, "linear", rounding_linear),
        mock.patch.object(attention, "linear", rounding_linear),
        mock.patch.object(model, "head", rounding_head),
    ):
        yield


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("letters", ["R", "A", "RA", "AR"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_rounded_activations_are_as_in_a_reference_that_rounds_them(dtype, letters, data):
    """Most of many short texts to float32's rounding; all within what rounding does at all.

    A text of three tokens rounds some thousand activations, a float32 error of 1e-6 or so before
    it. One in ten thousand may fall on the other side of a step, and then its text differs by a
    step of one activation: far less than all activations together, which make the distance between
    the references with and without rounding.
    """
    config = data.draw(configurations(letters), label="config")
    if dtype == "int4":
        config = config.replace(
            width=64 * config.num_heads, lru_width=64 * config.num_heads, mlp_width=64
        )
    found = model_of(config, dtype, data.draw(st.integers(0, 9), label="seed"))
    params = found.parameters
    reference, tokens = NumPyModel(config, params), tokens_for(config, (24, 3), 0)
    logits, _ = found(tokens)
    plain, _ = reference(tokens)
    with products_of(found, params):
        expected, _ = reference(tokens)
    error = np.abs(logits - expected).max(axis=(1, 2))
    sharp = chain_bound(longest_chain(config, 3), "float32")
    sharp *= max(1.0, float(np.abs(expected).max()))
    assert np.median(error) <= sharp, f"{np.sort(error)}, allowed {sharp:.3g}"
    rounding = float(np.abs(plain - expected).max())
    assert error.max() <= max(FACTOR * rounding, sharp)


def test_the_engine_computes_on_its_own(monkeypatch):
    """Not one function of the reference's mathematics is called."""

    def refuse(*args, **kwargs):
        raise AssertionError("the reference was called")

    found = {dtype: model_of(WHOLE, dtype) for dtype in DTYPES}
    for module in (model, layers, attention, rg_lru):
        for name, function in vars(module).copy().items():
            if callable(function) and getattr(function, "__module__", "") in (
                "griffin_np.model", "griffin_np.layers", "griffin_np.attention", "griffin_np.rg_lru",
            ) and not isinstance(function, type):  # fmt: skip
                monkeypatch.setattr(module, name, refuse)
    with pytest.raises(AssertionError, match="the reference was called"):
        random_model(WHOLE)([[1]])
    for some_model in found.values():
        _, state = some_model([[1, 2, 3]])
        some_model.advance([[4]], state=state)
        some_model.hidden_states([[1, 2]])
        some_model.generate([1, 2, 3], max_tokens=3)


# -- states


@every_dtype
def test_states_go_to_the_reference_and_back(dtype, tmp_path):
    found = model_of(WHOLE, dtype)
    reference = NumPyModel(WHOLE, found.parameters, found.fingerprint)
    tokens = tokens_for(WHOLE, (2, 30), 0)
    _, state = found(tokens[:, :12])
    state.save(tmp_path / "state")
    loaded = State.load(tmp_path / "state")
    assert_same(loaded, state)
    expected, end = found(tokens[:, 12:20], state=state)
    resumed, after = found(tokens[:, 12:20], state=loaded)
    np.testing.assert_array_equal(resumed, expected)
    assert_same(after, end)

    middle, theirs = reference(tokens[:, 12:20], state=loaded)
    theirs.save(tmp_path / "theirs")
    rest, last = found(tokens[:, 20:], state=State.load(tmp_path / "theirs"))
    exact, exact_last = reference(tokens[:, 20:], state=theirs)
    if dtype == "float32":
        chain = longest_chain(WHOLE, 30)
        assert_close(middle, expected, "float32", chain=chain)
        assert_close(rest, exact, "float32", chain=chain)
        assert_states_close(last, exact_last, "float32")
    else:  # activations are rounded in one of them: half a step of 1/127, or of 2^-8, at a time
        for ours, right in ((expected, middle), (rest, exact)):
            distance = np.abs(ours - right).max()
            assert 0 < distance < 0.1 * np.abs(right).max()


@every_dtype
def test_forks_part(dtype):
    found = model_of(WHOLE, dtype)
    _, state = found(tokens_for(WHOLE, (1, 11), 0))
    kept = copied(state)
    branches = state.fork(3)
    texts = tokens_for(WHOLE, (3, 5), 1)
    logits, moved = found.advance(texts, state=branches, logits="all")
    assert_same(state, kept)
    for i in range(3):
        alone, end = found(texts[[i]], state=state)
        np.testing.assert_array_equal(logits[i], alone[0])
        assert_same(moved.select([i]), end)


def test_a_state_of_another_dtype_is_converted():
    exact = random_model(WHOLE, dtype="float64")
    _, state = exact(tokens_for(WHOLE, (1, 9), 0))
    found = model_of(WHOLE, "float32")
    logits, after = found([[1, 2]], state=state)
    assert {a.dtype for a in after.arrays().values()} == {np.dtype("float32")}
    assert_close(logits, exact([[1, 2]], state=state)[0], "float32", chain=longest_chain(WHOLE, 11))


# -- folders


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "checkpoint"
    source = random_model(WHOLE)
    source.generation = gnp.base.GenerationDefaults(0.7, 40, 0.9, (1,))
    gnp.save(source, path)
    return path


@pytest.fixture(scope="module")
def converted(checkpoint) -> Path:
    path = checkpoint.with_name("int8")
    backends.convert(checkpoint, path, "int8")
    return path


@every_dtype
def test_a_packed_folder_holds_the_bits_of_quantising_on_load(dtype, checkpoint, tmp_path):
    names = []
    backends.convert(checkpoint, tmp_path / "packed", dtype, progress=names.append)
    loaded = gnp.load(tmp_path / "packed")
    direct = gnp.load(checkpoint, "numba", dtype)
    assert (loaded.backend, loaded.dtype) == ("numba", dtype)
    assert loaded.fingerprint == direct.fingerprint
    assert loaded.config == direct.config
    assert loaded.generation == direct.generation
    assert names == list(loaded.arrays) == list(direct.arrays)
    for name, array in direct.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array, err_msg=name)
        assert loaded.arrays[name].ctypes.data % 64 == 0, name
    tokens = tokens_for(WHOLE, (2, 20), 0)
    logits, state = loaded(tokens)
    expected, end = direct(tokens)
    np.testing.assert_array_equal(logits, expected)
    assert_same(state, end)
    narrow = gnp.load(tmp_path / "packed", "numba", dtype, window=3)
    assert narrow.config.window == 3
    wanted = gnp.load(checkpoint, "numba", dtype, window=3)(tokens)[0]
    np.testing.assert_array_equal(narrow(tokens)[0], wanted)


@pytest.mark.parametrize("wanted", ["float32", "int4"])
def test_a_packed_folder_has_one_dtype(wanted, converted):
    with pytest.raises(ConfigError, match="holds int8 weights"):
        gnp.load(converted, dtype=wanted)


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_a_packed_folder_is_for_one_backend(backend, converted):
    with pytest.raises(ConfigError, match="packed for the numba backend"):
        gnp.load(converted, backend)


def damaged(source: Path, target: Path, change) -> Path:
    """A copy of a packed folder with its header, or the whole file, changed."""
    shutil.copytree(source, target)
    path = target / folder.FILE
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    content = change(header, content) or (
        content[:8] + json.dumps(header).encode().ljust(size) + content[8 + size :]
    )
    path.write_bytes(content)
    return target


def test_every_call_has_the_same_types():
    """The engine calls machine code without looking at types again, so there may be one form only."""
    from griffin_kernels.cpu.step import run

    with mock.patch.object(engine, "without_dispatch", lambda kernel: kernel):
        for config, dtype in ((SMALL, "float32"), (WHOLE, "int8"), (WHOLE, "bfloat16")):
            some = NumbaModel(config, random_parameters(config, 0), "", dtype)
            tokens = tokens_for(config, (2, 9), 0)
            for logits in ("all", "last", "none"):
                _, state = some(tokens, None, None, logits)
                some.advance(tokens[:, :1], None, state, logits)
            some(inputs_embeds=np.ones((1, 3, config.width), np.float64))
            some(tokens, np.full((2, 9), -1))
            some.hidden_states(tokens)
    assert len(run.overloads) == 1


def renamed(header, old: str, new: str) -> None:
    header[new] = header.pop(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, c: h["__metadata__"].update(version="1"), "packed in version 1; .* convert the original"),
        (lambda h, c: h["__metadata__"].update(format="other"), "no file of packed weights"),
        (lambda h, c: h["__metadata__"].update(dtype="int9"), "unknown dtype 'int9'"),
        (lambda h, c: h["__metadata__"].update(config="{}"), "damaged header"),
        (lambda h, c: h["__metadata__"].pop("fingerprint") and None, "damaged header"),
        (lambda h, c: c[: len(c) // 2], "no complete safetensors file"),
        (lambda h, c: c[:100], "no complete safetensors file"),
        (lambda h, c: renamed(h, "final_norm", "final_morn"), "lacks final_norm"),
        (
            lambda h, c: h["__metadata__"].update(config=h["__metadata__"]["config"].replace("61", "99")),
            "embedding is uint8 with",
        ),
    ],
)  # fmt: skip
def test_damaged_packed_folders_are_refused(change, message, converted, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        gnp.load(damaged(converted, tmp_path / "damaged", change))


def test_folders_that_exist_are_kept(checkpoint, converted, tmp_path):
    before = (converted / folder.FILE).stat().st_mtime_ns
    with pytest.raises(CheckpointError, match="exists already"):
        backends.convert(checkpoint, converted, "int8")
    assert (converted / folder.FILE).stat().st_mtime_ns == before
    (tmp_path / "empty").mkdir()
    backends.convert(checkpoint, tmp_path / "empty", "int8")
    gnp.load(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="cannot write"):
        backends.convert(checkpoint, tmp_path / "empty" / folder.FILE / "below", "int8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]


@pytest.mark.parametrize("width", ["width", "lru_width", "mlp_width"])
def test_int4_needs_whole_groups(width, tmp_path):
    config = WHOLE.replace(**{width: 96})
    with pytest.raises(ConfigError, match=f"int4 needs inputs in groups of 64, but {width} is 96"):
        NumbaModel(config, random_parameters(config, 0), "", "int4")
    gnp.save(random_model(config), tmp_path / "source")
    with pytest.raises(ConfigError, match="int4 needs inputs in groups of 64"):
        backends.convert(tmp_path / "source", tmp_path / "packed", "int4")
    assert not (tmp_path / "packed").exists()


def test_unknown_dtypes_are_refused(checkpoint, tmp_path):
    for wanted in ("float64", "int2"):
        with pytest.raises(ConfigError, match=f"numba backend has no dtype '{wanted}'"):
            NumbaModel(WHOLE, random_parameters(WHOLE, 0), "", wanted)
        with pytest.raises(ConfigError, match=f"numba backend has no dtype '{wanted}'"):
            gnp.load(checkpoint, "numba", wanted)
        with pytest.raises(ConfigError, match=f"numba backend has no dtype '{wanted}'"):
            backends.convert(checkpoint, tmp_path / "packed", wanted)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_weights_that_are_not_finite_are_not_quantised(dtype):
    params = random_parameters(WHOLE, 0)
    params["blocks"][1]["mlp"]["up"]["weight"][3, 5] = np.inf
    with pytest.raises(ParameterError, match=r"blocks\.1\.mlp\.up\.weight"):
        NumbaModel(WHOLE, params, "", dtype)


# -- threads, processes, and places that cannot be written


def test_python_threads_may_call_models_at_once():
    models = [model_of(WHOLE, dtype) for dtype in DTYPES] + [model_of(SMALL, "int8")]
    tokens = [tokens_for(m.config, (2, 20), 0) for m in models]
    expected = [m(t)[0] for m, t in zip(models, tokens, strict=True)]

    def call(n: int) -> bool:
        which = n % len(models)
        if n % 7 == 0:
            pool.set_threads(1 + n // 7 % 3)
        return np.array_equal(models[which](tokens[which])[0], expected[which])

    with ThreadPoolExecutor(6) as threads:
        made = threads.map(
            lambda n: NumbaModel(WHOLE, random_parameters(WHOLE, n), "", "int8"), range(4)
        )
        assert all(threads.map(call, range(120)))
        assert len({m.fingerprint for m in made}) == 4


def run_script(code: str, **environment: str) -> str:
    tests = os.path.dirname(os.path.abspath(__file__))
    code = f"import sys; sys.path.insert(0, {tests!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


CHILD = """
import os, warnings
import numpy as np
from test_cpu_engine import WHOLE, NumbaModel, random_parameters, tokens_for
from griffin_kernels.cpu import pool
warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads, which this is about
pool.set_threads(2)
tokens, params = tokens_for(WHOLE, (2, 20), 0), random_parameters(WHOLE, 0)
model = NumbaModel(WHOLE, params, "", "int8")
expected = model(tokens)[0]
child = os.fork()
if child == 0:
    again = NumbaModel(WHOLE, params, "", "int8")
    same = np.array_equal(model(tokens)[0], expected) and np.array_equal(again(tokens)[0], expected)
    os._exit(0 if same else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(model(tokens)[0], expected)
print("both")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_may_call_and_make_models():
    assert run_script(CHILD) == "both"


READ_ONLY = """
import hashlib
from test_cpu_engine import SMALL, NumbaModel, random_parameters, tokens_for
model = NumbaModel(SMALL, random_parameters(SMALL, 0), "", "int8")
print(hashlib.sha256(model(tokens_for(SMALL, (2, 9), 0))[0].tobytes()).hexdigest())
"""


@pytest.mark.skipif(os.name != "posix", reason="paths below a file, as POSIX has them")
@pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "explore",
    reason="compiles everything twice: HYPOTHESIS_PROFILE=explore runs it",
)
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    """Neither beside the sources, nor in the user's folder: then in a temporary one."""
    sources, file = tmp_path / "griffin_kernels", tmp_path / "file"
    file.write_text("no folder")
    shutil.copytree(
        griffin_kernels.__path__[0], sources, ignore=shutil.ignore_patterns("__pycache__")
    )
    for place in (sources, sources / "cpu", sources / "cpu" / "isa"):
        (place / "__pycache__").write_text("no folder")
    below = str(file / "below")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    found = run_script(
        f"import griffin_kernels as g; assert g.__path__[0] == {str(sources)!r}, g.__path__\n"
        + READ_ONLY,
        HOME=below, XDG_CACHE_HOME=below, NUMBA_CACHE_DIR="", PYTHONPATH=path,
    )  # fmt: skip
    assert found == run_script(READ_ONLY)


NOWHERE = """
import tempfile
tempfile.tempdir = {below!r}
from griffin_kernels.cpu import compiled
assert compiled.cache_folder() is None
@compiled.kernel
def twice(x):
    return 2 * x
with compiled.announced(twice, "twice"):
    print(twice(21))
"""


def test_kernels_compile_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    below = str(tmp_path / "file" / "below")
    code = NOWHERE.format(below=below)
    assert run_script(code, HOME=below, XDG_CACHE_HOME=below, NUMBA_CACHE_DIR="") == "42"


def test_threads_are_at_least_one():
    with pytest.raises(ConfigError, match="threads must be at least 1, got 0"):
        pool.set_threads(0)
    pool.set_threads(3)
    assert pool.pool().threads == 3
    assert pool.pool() is pool.pool()
