"""The JAX model behind the call contract: against the reference in float64, over drawn layouts.

Every shape costs a compilation, so configurations come from a fixed list, texts stay short, and
almost all batches have two rows.
"""

import subprocess
import sys

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from hypothesis import event, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from support import SMALL, assert_close, random_model, random_parameters, tokens_for  # noqa: E402

import griffin_np as gnp  # noqa: E402
from griffin_kernels.xla import attention, engine, rope  # noqa: E402
from griffin_kernels.xla.engine import JaxModel  # noqa: E402
from griffin_kernels.xla.layout import Layout  # noqa: E402
from griffin_np.errors import ConfigError, PositionError, StateError  # noqa: E402
from griffin_np.params import flatten  # noqa: E402
from griffin_np.state import State  # noqa: E402

R, A = "recurrent", "attention"
CONFIGS = {
    "lru_width is not width": SMALL.replace(depth=3),
    "window 1, no cap, key-value heads": gnp.GriffinConfig(
        width=16, depth=2, num_heads=4, num_kv_heads=2, vocab_size=11, lru_width=20, mlp_width=7,
        window=1, block_pattern=(R, A), conv_width=1, logits_soft_cap=0.0, rope_fraction=1.0,
        scale_embeddings=False,
    ),
    "window larger than the text": gnp.GriffinConfig(
        width=24, depth=2, num_heads=3, vocab_size=23, lru_width=9, window=64,
        block_pattern=(A, R), conv_width=2,
    ),
    "recurrent only": gnp.GriffinConfig(
        width=10, depth=1, num_heads=3, vocab_size=17, lru_width=12, block_pattern=(R,),
        conv_width=5,
    ),  # 3 heads do not divide its width, and need not: nothing attends
    "attention only, no rotation, no epsilon": gnp.GriffinConfig(
        width=8, depth=1, num_heads=2, num_kv_heads=2, vocab_size=13, window=3,
        block_pattern=(A,), rope_fraction=0.0, logits_soft_cap=5.0, norm_eps=0.0,
    ),
    "attention first, fast rotation": gnp.GriffinConfig(
        width=48, depth=2, num_heads=6, num_kv_heads=3, vocab_size=19, lru_width=18, window=5,
        block_pattern=(A, R), rope_base=20.0, rope_fraction=1.0,
    ),
}  # fmt: skip

names = st.sampled_from(sorted(CONFIGS))
seeds = st.integers(0, 2**32 - 1)
some = settings(max_examples=60, deadline=None)
LONGEST = 8


def pair(name: str, seed: int) -> tuple:
    """The JAX model and the reference in float64, with the same weights."""
    config = CONFIGS[name]
    return JaxModel(config, random_parameters(config, seed)), random_model(config, seed, "float64")


def assert_states_close(actual, expected) -> None:
    """Positions and float32 dtypes exactly, arrays to rounding."""
    np.testing.assert_array_equal(actual.position, expected.position)
    theirs = expected.arrays()
    for name, array in actual.arrays().items():
        assert array.dtype == np.float32, name
        assert_close(array, theirs[name], "float32", name)


def draw_positions(data, starts) -> np.ndarray:
    """A row for each start: documents, the first of which may go on, and padding in between."""
    rows = []
    for start in starts:
        sizes = data.draw(st.lists(st.sampled_from([1, 1, 2, 3, 8]), max_size=4), label="documents")
        goes_on = data.draw(st.booleans(), label="goes on")
        row: list[int] = []
        for n, size in enumerate(sizes):
            first = int(start) if goes_on and n == 0 else 0
            row += range(first, first + size)
        for gap in data.draw(st.lists(st.integers(0, 20), max_size=3), label="padding"):
            row.insert(min(gap, len(row)), -1)
        rows.append(row[:LONGEST])
    width = max(map(len, rows))
    left = data.draw(st.booleans(), label="left")
    pads = [[-1] * (width - len(row)) for row in rows]
    rows = [pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)]
    return np.array(rows, np.int64).reshape(len(starts), width)


def draw_cuts(data, length: int) -> list[int]:
    """Steps of one to three tokens, or chunks of any size, empty ones included."""
    step = data.draw(st.sampled_from([0, 0, 1, 2, 3]), label="steps")
    anywhere = data.draw(st.lists(st.integers(0, length), max_size=4), label="cuts")
    return np.diff([0, *(range(0, length, step) if step else sorted(anywhere)), length]).tolist()


def read(some_model, tokens, positions, state, sizes):
    """Read in chunks; logits of all of them, and the state after the last."""
    parts, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        logits, state = some_model(tokens[:, part], positions[:, part], state)
        parts.append(logits)
        start += size
    return np.concatenate(parts, axis=1), state


@settings(max_examples=80, deadline=None)
@given(name=names, seed=seeds, data=st.data())
def test_any_layout_in_any_chunks_is_as_in_the_reference(name, seed, data):
    """From a state of the reference, through packed documents and padding, and back to it."""
    found, reference = pair(name, seed)
    before = data.draw(st.lists(st.integers(0, 14), min_size=2, max_size=2), label="before")
    earlier = np.where(np.arange(14) < np.array(before)[:, None], np.arange(14), -1)
    _, state = reference(tokens_for(reference.config, (2, 14), seed + 1), earlier)

    positions = draw_positions(data, before)
    tokens = tokens_for(reference.config, positions.shape, seed)
    sizes = draw_cuts(data, positions.shape[1])
    event(f"{positions.shape[1]} columns in {len(sizes)} chunks")
    logits, after = read(found, tokens, positions, state, sizes)
    expected, end = reference(tokens, positions, state)
    assert logits.dtype == np.float32
    assert_close(logits, expected, "float32", "logits")
    assert (logits[positions < 0] == 0).all()
    assert_states_close(after, end)

    more = tokens_for(reference.config, (2, 3), seed + 2)
    expected, last = reference(more, state=end)
    decoded, after_more = read(found, more, end.position[:, None] + np.arange(3), after, [1, 1, 1])
    assert_close(decoded, expected, "float32", "logits of further tokens")
    assert_states_close(after_more, last)
    assert_close(reference(more, state=after)[0], expected, "float32", "the reference, taking over")


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_long_texts_cross_many_windows(name):
    found, reference = pair(name, 3)
    tokens = tokens_for(reference.config, (2, 60), 0)
    positions = np.arange(60)[None].repeat(2, axis=0)
    positions[0, 41:] -= 41
    expected, end = reference(tokens, positions)
    for sizes in ([60], [8] * 7 + [4]):
        logits, state = read(found, tokens, positions, None, sizes)
        assert_close(logits, expected, "float32")
        assert_states_close(state, end)


@pytest.mark.parametrize("before", [0, 8])
def test_attention_over_a_long_text_is_not_quadratic(before):
    """No intermediate result is larger than a few windows for each token."""
    T, W, d = 1024, 8, 4
    shape, ring = (1, T, 2, d), np.zeros((1, W, 2, d), np.float32)
    x = np.zeros(shape, np.float32)
    past = (ring, ring) if before else None
    program = jax.make_jaxpr(
        lambda x: attention.local_attention(x, x, x, np.zeros((1, T), np.int32), W, past)
    )(x)
    largest = max(v.aval.size for e in program.jaxpr.eqns for v in e.outvars)
    assert largest <= 4 * T * W


@some
@given(name=names, seed=seeds, tokens=st.integers(1, 4), data=st.data())
def test_late_positions(name, seed, tokens, data):
    """Up to the last position there is, where float32 angles would be off by whole turns."""
    found, reference = pair(name, seed)
    _, state = reference(tokens_for(reference.config, (2, 70), seed))  # no part of it is empty
    late = st.integers(2**30, 2**31 - tokens) | st.integers(2**11, 2**23)
    start = [2**31 - tokens, data.draw(late, label="start")]
    state = State(state.layers, np.array(start), reference.config)
    text = tokens_for(reference.config, (2, tokens), seed + 1)
    logits, after = found(text, state=state)
    expected, end = reference(text, state=state)
    assert_close(logits, expected, "float32")
    assert_states_close(after, end)
    again = tokens_for(reference.config, (2, 1), seed + 2)
    assert_close(found(again, [[0], [0]], after)[0], reference(again)[0], "float32")


def test_positions_end_below_2_to_the_31():
    found, _ = pair("lru_width is not width", 0)
    late = State(found.init_state().layers, np.array([2**31 - 1]), found.config)
    _, state = found([[1]], state=late)
    assert state.position == 2**31
    assert found([[1]], [[-1]], state)[1].position == 2**31
    with pytest.raises(PositionError, match="position 2147483648 in row 0, column 0"):
        found([[1]], state=state)


@pytest.mark.parametrize("limit", [1, 2**11, 2**11 + 1, 2**22, 2**22 + 1, 2**31])
@pytest.mark.parametrize(("base", "rotary_dim"), [(10_000.0, 64), (1.5, 4), (1.0, 2)])
def test_rotation_angles_are_exact(base, rotary_dim, limit):
    mpmath = pytest.importorskip("mpmath")
    drawn = np.random.default_rng(0).integers(0, limit, 6)
    positions = np.array([0, limit // 2, limit - 1, *drawn])
    cos, sin = rope.rotation(positions[None].astype(np.int32), base, rotary_dim, limit)
    half = rotary_dim // 2
    with mpmath.workdps(40):
        for i, p in enumerate(positions.tolist()):
            for j in range(half):
                angle = p * mpmath.power(base, mpmath.mpf(-j) / half)
                off = mpmath.mpc(float(cos[0, i, j]), float(sin[0, i, j])) * mpmath.expj(-angle)
                assert abs(off - 1) < 1e-6, (p, j)


@some
@given(name=names, seed=seeds, bad=st.sampled_from([np.inf, -np.inf, np.nan]), data=st.data())
def test_position_0_forgets_even_a_damaged_state(name, seed, bad, data):
    found, _ = pair(name, seed)
    length = data.draw(st.integers(1, 8))
    tokens = tokens_for(found.config, (2, 8), seed)
    _, state = found(tokens)
    for array in state.arrays().values():
        array[...] = bad
    positions = np.arange(length)[None].repeat(2, axis=0)
    positions[1, 0] = -1  # a row that starts later, if at all
    positions[1, 1:] -= 1
    logits, after = found(tokens[:, :length], positions, state)
    expected, end = found(tokens[:, :length], positions)
    np.testing.assert_array_equal(logits, expected)
    for key, array in after.arrays().items():
        np.testing.assert_array_equal(array[0], end.arrays()[key][0])
        expected_ = end.arrays()[key] if length > 1 else state.arrays()[key]
        np.testing.assert_array_equal(array[1], expected_[1])


@some
@given(name=names, seed=seeds, data=st.data())
def test_rows_do_not_depend_on_their_neighbours(name, seed, data):
    found, _ = pair(name, seed)
    positions = draw_positions(data, [0, 0])
    tokens = tokens_for(found.config, positions.shape, seed)
    logits, end = found(tokens, positions)
    state = found.init_state(2)
    for array in state.arrays().values():
        array[1] = np.nan
    beside, after = found(tokens, positions, state)
    np.testing.assert_array_equal(beside[0], logits[0])
    swapped, swapped_end = found(tokens[::-1], positions[::-1])
    np.testing.assert_array_equal(swapped[::-1], logits)
    alone, one = found(tokens, np.where([[True], [False]], positions, -1))
    assert_close(alone[0], logits[0], "float32")
    assert_states_close(one.select([0]), end.select([0]))
    for key, array in end.arrays().items():
        np.testing.assert_array_equal(after.arrays()[key][0], array[0])
        np.testing.assert_array_equal(swapped_end.arrays()[key][::-1], array)


def test_batches_of_any_size():
    found, reference = pair("lru_width is not width", 1)
    tokens = tokens_for(found.config, (3, 8), 0)
    expected, _ = reference(tokens)
    for rows in (1, 3):
        logits, state = found(tokens[:rows])
        assert_close(logits, expected[:rows], "float32")
        assert state.batch == rows


@some
@given(seed=seeds, data=st.data())
def test_what_stands_at_padding_is_never_read(seed, data):
    """Token ids that do not exist, embeddings that are no numbers. Without an epsilon, what JAX
    computes at padding is no number either.
    """
    config = CONFIGS["attention only, no rotation, no epsilon"]
    found = JaxModel(config, random_parameters(config, seed))
    positions = draw_positions(data, [0, 0])
    tokens = tokens_for(config, positions.shape, seed)
    logits, _ = found(tokens, positions)
    assert np.isfinite(logits).all()
    junk = np.where(positions < 0, data.draw(st.sampled_from([-1, -100, 10**9])), tokens)
    np.testing.assert_array_equal(found(junk, positions)[0], logits)
    embeds = flatten(found.parameters)["embedding"][tokens].astype(np.float64)
    embeds[positions < 0] = data.draw(st.sampled_from([np.nan, np.inf, 1e300]))
    assert_close(found(inputs_embeds=embeds, positions=positions)[0], logits, "float32")


@some
@given(name=names, seed=seeds, data=st.data())
def test_the_callers_arrays_are_never_changed(name, seed, data):
    found, _ = pair(name, seed)
    tokens = tokens_for(found.config, (2, 8), seed)
    positions = np.arange(8)[None].repeat(2, axis=0)
    weights = {k: v.copy() for k, v in flatten(found.parameters).items()}
    _, state = found(tokens, positions)
    kept, tokens_before, positions_before = state.fork(1), tokens.copy(), positions.copy()
    first, after = found(tokens, state=state)
    for array in (first, *after.arrays().values()):
        array[...] = 7  # what is returned belongs to the caller, and to nobody else
    after.position[...] = 7
    second, after = found(tokens, state=state)
    assert_close(second[:, :1], found(tokens[:, :1], state=state)[0], "float32")
    np.testing.assert_array_equal(tokens, tokens_before)
    np.testing.assert_array_equal(positions, positions_before)
    np.testing.assert_array_equal(state.position, kept.position)
    for key, array in kept.arrays().items():
        np.testing.assert_array_equal(state.arrays()[key], array)
        assert not np.shares_memory(array, after.arrays()[key])
    for key, array in flatten(found.parameters).items():
        np.testing.assert_array_equal(array, weights[key])


def test_logits_of_all_tokens_the_last_or_none():
    found, reference = pair("lru_width is not width", 1)
    positions = np.array([[-1, 0, 1, -1, 2, 3, 0], [-1] * 7])
    tokens = tokens_for(found.config, positions.shape, 0)
    for state in (None, found(tokens[:, 2:5])[1]):
        logits, end = found(tokens, positions, state)
        last, same = found(tokens, positions, state, "last")
        nothing, also = found(tokens, positions, state, "none")
        assert nothing is None
        assert last.shape == (2, found.config.vocab_size) and last.dtype == np.float32
        assert_close(last[0], logits[0, 6], "float32")
        assert (last[1] == 0).all()
        assert_close(last, reference(tokens, positions, state, "last")[0], "float32")
        for other in (same, also):
            assert_states_close(other, end)


def test_empty_chunks_rows_and_batches_are_the_identity():
    found, _ = pair("lru_width is not width", 2)
    _, state = found(tokens_for(found.config, (2, 8), 0))
    for tokens, positions in ((np.zeros((2, 0), int), None), ([[5], [-7]], [[-1], [-1]])):
        length = len(tokens[0])
        logits, after = found(tokens, positions, state)
        assert logits.shape == (2, length, found.config.vocab_size)
        assert (logits == 0).all()
        last, _ = found(tokens, positions, state, "last")
        assert last.shape == (2, found.config.vocab_size)
        assert (last == 0).all()
        np.testing.assert_array_equal(after.position, state.position)
        for name, array in state.arrays().items():
            np.testing.assert_array_equal(after.arrays()[name], array)
        hidden = found.hidden_states(tokens, positions, state)
        assert [h.shape for h in hidden] == [(2, length, 24)] * (found.config.depth + 1)
    for length in (0, 3):
        logits, after = found(np.zeros((0, length), int))
        assert logits.shape == (0, length, found.config.vocab_size)
        assert after.batch == 0


@pytest.mark.parametrize("name", sorted(CONFIGS)[-3:])
def test_what_is_watched_is_what_the_reference_shows(name):
    found, reference = pair(name, 4)
    before = tokens_for(found.config, (2, 3), 1)
    positions = np.array([[3, 4, -1, 5, 6, 7, 8], [-1, 3, 0, 1, 0, 1, 2]])
    tokens = tokens_for(found.config, positions.shape, 2)
    _, state = reference(before)
    theirs, ours = {}, {}
    reference(tokens, positions, state, trace=theirs.__setitem__)
    found(tokens, positions, state, "none", trace=ours.__setitem__)
    assert list(ours) == list(theirs)
    for key, array in theirs.items():
        assert_close(ours[key], array, "float32", key)
    hidden = found.hidden_states(tokens, positions, state)
    for ours_, theirs_ in zip(
        hidden, reference.hidden_states(tokens, positions, state), strict=True
    ):
        assert_close(ours_, theirs_, "float32")


def test_losses_agree():
    found, reference = pair("lru_width is not width", 5)
    tokens = tokens_for(found.config, (2, 8), 0)
    assert found.loss(tokens, tokens) == pytest.approx(reference.loss(tokens, tokens), rel=1e-5)


def test_states_are_saved_and_refused_as_everywhere(tmp_path):
    found, reference = pair("lru_width is not width", 6)
    tokens = tokens_for(found.config, (1, 15), 0)
    _, state = found(tokens[:, :8])
    assert state.fingerprint == reference.fingerprint
    assert state.nbytes == found.config.state_bytes(1, 4)
    state.save(tmp_path / "x.state")
    again, _ = found(tokens[:, 8:], state=State.load(tmp_path / "x.state"))
    np.testing.assert_array_equal(again, found(tokens[:, 8:], state=state)[0])
    with pytest.raises(StateError, match="model with other weights"):
        pair("lru_width is not width", 7)[0]([[1]], state=state)


@settings(max_examples=100)
@given(data=st.data(), batch=st.integers(0, 3), length=st.integers(0, 9))
def test_layouts_gather_and_scatter(data, batch, length):
    """Real tokens move to the left in order, into a shape that is one of few, and back."""
    real = np.array(
        data.draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length)), bool
    ).reshape(batch, length)
    layout = Layout(np.where(real, 1, -1))
    array = np.arange(batch * length).reshape(batch, length) + 100
    padded = layout.gather(array, -5)
    assert padded.shape == layout.shape
    for size, needed in zip(layout.shape, (batch, real.sum(axis=1).max(initial=0)), strict=True):
        assert size & (size - 1) == 0
        assert max(needed, 1) <= size < 2 * max(needed, 1)
    for row in range(batch):
        n = int(real[row].sum())
        assert padded[row].tolist() == [*array[row][real[row]], *[-5] * (layout.shape[1] - n)]
    np.testing.assert_array_equal(layout.scatter(padded), np.where(real, array, 0))
    assert (padded[batch:] == -5).all()


def test_models_of_one_configuration_share_their_programs():
    first, second = (pair("lru_width is not width", seed)[0] for seed in (8, 9))
    first(tokens_for(first.config, (1, 8), 0))
    programs = engine.read_text._cache_size()
    for length in (5, 6, 7, 8):
        logits, _ = second(tokens_for(second.config, (1, length), 0))
    assert engine.read_text._cache_size() == programs
    assert np.abs(logits - first(tokens_for(first.config, (1, 8), 0))[0]).max() > 0.01


def test_matrix_products_have_full_precision():
    """Accelerators would round the factors of float32 products to 8 or 11 bits by default."""
    found, _ = pair("lru_width is not width", 0)
    layers = [vars(layer) for layer in found.init_state().layers]
    tokens = np.zeros((1, 2), np.int32)
    program = engine.read_text.lower(
        found.parameters,
        tokens,
        tokens,
        layers,
        config=found.config,
        scan=found.scan,
        logits="all",
        watch=False,
        step=False,
        gather=False,
    )
    products = [line for line in program.as_text().splitlines() if "dot_general" in line]
    assert len(products) > 20
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_the_demo_model_writes_the_same_text():
    prompts, options = ["Once upon a time", "The big dog"], {"max_tokens": 24, "temperature": 0.0}
    found = gnp.load(backend="jax", dtype="float32")
    texts = [g.text for g in found.generate(prompts, **options)]
    assert texts == [g.text for g in gnp.load().generate(prompts, **options)]
    assert len(texts[0]) > 40
    assert repr(found).startswith("<griffin_np.Model jax float32: 4,")
    assert found.weight_bytes == 4 * found.config.num_parameters()


def test_weights_come_back_as_they_were(tmp_path):
    config = CONFIGS["attention first, fast rotation"].replace(rope_base=1e4, rope_fraction=0.5)
    made = gnp.init(config, seed=1, backend="jax")
    weights = flatten(gnp.init(config, seed=1).parameters)
    for name, array in flatten(made.parameters).items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, weights[name])
    gnp.save(made, tmp_path / "m")
    again = gnp.load(tmp_path / "m", backend="jax")
    assert again.fingerprint == made.fingerprint
    np.testing.assert_array_equal(again([[3, 4]])[0], made([[3, 4]])[0])


def test_other_dtypes_are_refused():
    with pytest.raises(ConfigError, match="the jax backend has no dtype 'float64'"):
        gnp.load(backend="jax", dtype="float64")
    with pytest.raises(ConfigError, match="computes in float32 or bfloat16, got float64"):
        JaxModel(SMALL, random_parameters(SMALL, 0, "float64"))
    with pytest.raises(ConfigError, match="choose one of numpy, numba, jax"):
        gnp.load(backend="tpu")


def test_without_jax_the_extra_is_named():
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "import griffin_np as gnp\n"
        "from griffin_np.cli import main\n"
        "try: gnp.load(backend='jax')\n"
        "except gnp.errors.MissingExtraError as error: print(error)\n"
        "print(main(['generate', 'a', '--backend', 'jax']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message = "'jax', which is not installed: run  pip install \"griffin-np[jax]\""
    assert message in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1] == "2"
    assert message in done.stderr
