"""Every scan of the JAX engine against a loop in float64, and RG-LRU as one Pallas kernel.

Shapes are drawn; each of them is compiled, so an ordinary run draws few, and
``HYPOTHESIS_PROFILE=explore`` draws 200 of every kind.
"""

import os

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from jax.experimental.pallas import tpu as pltpu  # noqa: E402
from jax.sharding import Mesh  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from support import assert_close  # noqa: E402

from griffin_kernels.xla import layers, recurrent  # noqa: E402
from griffin_kernels.xla.blocks_pallas import choose_blocks  # noqa: E402
from griffin_kernels.xla.rg_lru_pallas import decay_of, fused_rg_lru  # noqa: E402
from griffin_kernels.xla.scan_pallas import linear_scan  # noqa: E402
from griffin_kernels.xla.scan_xla import SCANS  # noqa: E402
from griffin_np import rg_lru as reference  # noqa: E402

MANY = 200 if os.environ.get("HYPOTHESIS_PROFILE") == "explore" else 4

lengths = st.one_of(st.integers(1, 40), st.integers(1, 600))
widths = st.one_of(st.integers(1, 9), st.integers(1, 400))
shapes = st.tuples(st.integers(1, 5), lengths, widths)
dtypes = st.sampled_from(["float32", "bfloat16"])
seeds = st.integers(0, 2**32 - 1)


def blocks_for(length: int, rng) -> tuple[int, int] | None:
    """The kernel's own choice, or blocks that leave several of them in a small array."""
    if rng.random() < 0.3:
        return None
    whole = -(-length // 16) * 16
    return (whole if whole < 128 else int(rng.choice([128, 256])), int(rng.choice([128, 256])))


def exact(array, dtype="float32") -> np.ndarray:
    """Float64 numbers that the dtype holds, so that a kernel and the loop get the same ones."""
    return np.asarray(jnp.asarray(array, dtype).astype("float32"), np.float64)


def loop(a, x, h, starts):
    """The recurrence in float64, (B, T, R): states and the states before every step."""
    states, before = np.empty_like(x), np.empty_like(x)
    for t in range(x.shape[1]):
        h = before[:, t] = np.where(starts[:, t, None], 0, h)
        h = states[:, t] = a[:, t] * h + x[:, t]
    return states, before


def loop_backwards(a, dh, after, starts):
    """Gradients that reach each state, and the one that reaches the state before the first."""
    g = np.empty_like(dh)
    for t in reversed(range(dh.shape[1])):
        g[:, t] = dh[:, t] + after
        after = np.where(starts[:, t, None], 0, a[:, t] * g[:, t])
    return g, after


def value_and_gradients(run, arguments, cotangents):
    """Results of a function of arrays, and what they make of the cotangents."""

    def both(arguments, cotangents):
        results, pull = jax.vjp(run, *arguments)
        return results, pull(cotangents)

    return jax.jit(both)(arguments, cotangents)


def chain_of(dtype: str, chain: int, roundings: int = 1) -> tuple[int, str]:
    """A bfloat16 result is a float32 one that has been rounded; the float32 part counts as one."""
    return (chain, dtype) if dtype == "float32" else (roundings + 1, dtype)


def scan_case(shape, dtype: str, seed: int):
    """Inputs, weights of the loss, and starts; what comes just before a start may be anything."""
    rng = np.random.default_rng(seed)
    batch, length, width = shape
    a = rng.uniform(0, 1, shape) ** rng.choice([0, 0.01, 1, 20], size=(batch, 1, width))
    a = exact(np.where(rng.random((batch, length, 1)) < 0.05, 0, a), dtype)
    x, dh = (exact(rng.standard_normal(shape), dtype) for _ in range(2))
    h0, dlast = (exact(rng.standard_normal((batch, width))) for _ in range(2))
    starts = rng.random((batch, length)) < rng.choice([0, 0.02, 0.3])
    lost = starts & (rng.random((batch, length)) < 0.5)
    h0[lost[:, 0]] = rng.choice([np.nan, np.inf])
    x[:, :-1][lost[:, 1:]] = -np.inf
    return rng, (a, x, h0), (dh, dlast), starts


def check_scan(run, shape, dtype, seed, **options):
    rng, inputs, cotangents, starts = scan_case(shape, dtype, seed)
    a, x, h0 = inputs
    if run is linear_scan:
        options.setdefault("block", blocks_for(shape[1], rng))
    given_starts = starts if starts.any() else None
    arguments = (jnp.asarray(a, dtype), jnp.asarray(x, dtype), jnp.asarray(h0, "float32"))
    weights = (jnp.asarray(cotangents[0], dtype), jnp.asarray(cotangents[1], "float32"))
    (h, last), gradients = value_and_gradients(
        lambda *z: run(*z, given_starts, **options), arguments, weights
    )
    with np.errstate(invalid="ignore"):
        states, before = loop(*inputs, starts)
        g, dh0 = loop_backwards(a, *cotangents, starts)
        da = np.where(starts[..., None], 0, g * before)
    assert h.dtype == dtype and last.dtype == "float32"
    infinite = np.isinf(states)
    np.testing.assert_array_equal(np.isinf(np.asarray(h, np.float64)), infinite)
    # A step has a product and a sum; the gradient of a is a product of two such scans.
    chain = 2 * shape[1]
    found = np.where(infinite, 0, np.asarray(h, np.float64))
    size, unit = chain_of(dtype, chain)
    assert_close(found, np.where(infinite, 0, states), unit, "h", chain=size)
    ends = np.where(infinite[:, -1], 0, states[:, -1])
    assert_close(np.where(infinite[:, -1], 0, last), ends, "float32", "last", chain=chain)
    # In bfloat16 the states before are rounded as well.
    size, unit = chain_of(dtype, 2 * chain + 1, roundings=2)
    assert_close(np.asarray(gradients[0], np.float64), da, unit, "da", chain=size)
    size, unit = chain_of(dtype, chain)
    assert_close(np.asarray(gradients[1], np.float64), g, unit, "dx", chain=size)
    assert_close(gradients[2], dh0, "float32", "dh0", chain=chain)


class TestScans:
    """All of them are one function."""

    @settings(max_examples=min(MANY, 30))
    @given(shape=shapes, dtype=dtypes, seed=seeds)
    @pytest.mark.parametrize("name", ["sequential", "associative"])
    def test_in_plain_xla(self, name, shape, dtype, seed):
        if name == "associative":  # whose programs grow with the length
            shape = (shape[0], min(shape[1], 33), shape[2])
        check_scan(SCANS[name], shape, dtype, seed)

    @settings(max_examples=MANY)
    @given(shape=shapes, dtype=dtypes, seed=seeds)
    @example(shape=(3, 600, 400), dtype="float32", seed=0)
    @example(shape=(2, 513, 257), dtype="bfloat16", seed=1)
    @example(shape=(1, 1, 1), dtype="float32", seed=2)
    def test_as_a_pallas_kernel(self, shape, dtype, seed):
        check_scan(SCANS["pallas"], shape, dtype, seed, interpret=True)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (1, 17, 130), (3, 9, 2), (1, 130, 3)])
    def test_in_simulated_tpu_memory(self, shape, dtype):
        check_scan(linear_scan, shape, dtype, 0, interpret=pltpu.InterpretParams())

    def test_without_races(self, capfd):
        params = pltpu.InterpretParams(detect_races=True)
        check_scan(linear_scan, (2, 9, 130), "float32", 0, block=(16, 128), interpret=params)
        assert "RACE DETECTED" not in capfd.readouterr().out


def fused_case(shape, dtypes, seed: int):
    """Pre-activations with long tails, every kind of decay, positions with padding anywhere."""
    rng = np.random.default_rng(seed)
    batch, length, width = shape
    z_r, z_i = (exact(rng.standard_normal(shape) * rng.choice([1, 8]), dtypes[0]) for _ in range(2))
    u, dy = (exact(rng.standard_normal(shape), dtypes[1]) for _ in range(2))
    h0, dlast = (exact(rng.standard_normal((batch, width))) for _ in range(2))
    a_param = exact(rng.choice([-100, -30, -12, -6, -3, 0, 3, 30], size=width))
    kinds = rng.choice([0, -1, 1], size=(batch, length), p=[0.05, 0.15, 0.8])
    positions = np.where(kinds > 0, rng.integers(1, 2**31 - 1, (batch, length)), kinds)
    h0[(positions[:, 0] == 0) & (rng.random(batch) < 0.5)] = np.inf
    return rng, (z_r, z_i, u, a_param, h0), positions, (dy, dlast)


def fused_loop(z_r, z_i, u, a_param, h0, positions):
    """Equations (1) to (4) in float64 with the reference's formulas; all that gradients need."""
    real, starts = (positions >= 0)[..., None], (positions == 0)[..., None]
    r, i = reference.sigmoid(z_r), reference.sigmoid(z_i)
    log_a = -reference.C * r * reference.softplus(a_param)
    a = np.where(starts, 0, np.where(real, np.exp(log_a), 1))
    multiplier = np.where(starts, 1, reference.multiplier(log_a))
    states, before = loop(a, np.where(real, multiplier * i * u, 0), h0, positions == 0)
    return r, i, log_a, a, multiplier, states, before


def fused_gradients(inputs, positions, dy, dlast):
    """Gradients of z_r, z_i, u, a_param and h0 in float64, and the terms of a_param's, as sizes."""
    z_r, z_i, u, a_param, _ = inputs
    r, i, log_a, a, multiplier, _, before = fused_loop(*inputs, positions)
    real, starts = (positions >= 0)[..., None], (positions == 0)[..., None]
    middle = real & ~starts
    g, dh0 = loop_backwards(a, dy, dlast, positions == 0)
    dgated = np.where(real, g * multiplier, 0)
    with np.errstate(divide="ignore"):
        droot = np.minimum(0.5 / multiplier, 1000)  # of the square root
    square = np.exp(2 * log_a)
    direct, through = a * g * before, -2 * square * g * i * u * droot
    dlog_a = np.where(middle, direct + through, 0)
    rate = -reference.C * reference.softplus(a_param)
    slope = reference.C * reference.sigmoid(a_param)
    sizes = np.where(middle, (abs(direct) + abs(through)) * r, 0)
    return (
        (dlog_a * rate * r * reference.sigmoid(-z_r), dgated * u * i * reference.sigmoid(-z_i),
         dgated * i, -np.sum(dlog_a * r, (0, 1)) * slope, dh0),
        np.sum(sizes, (0, 1)) * slope,
    )  # fmt: skip


def check_fused(shape, dtypes, seed, **options):
    rng, inputs, positions, (dy, dlast) = fused_case(shape, dtypes, seed)
    options.setdefault("block", blocks_for(shape[1], rng))
    names = (dtypes[0], dtypes[0], dtypes[1], "float32", "float32")
    pads = (positions < 0)[..., None]
    anything = rng.choice([np.nan, np.inf, -np.inf, 3.0])
    dirty = [np.where(pads, anything, z) for z in inputs[:3]] + list(inputs[3:])
    arguments = tuple(jnp.asarray(z, name) for z, name in zip(dirty, names, strict=True))
    (y, last), gradients = value_and_gradients(
        lambda z_r, z_i, u, a_param, h0: fused_rg_lru(
            z_r, z_i, u, a_param, jnp.asarray(positions), h0, **options
        ),
        arguments,
        (jnp.asarray(dy, dtypes[1]), jnp.asarray(dlast, "float32")),
    )
    assert y.dtype == dtypes[1] and last.dtype == "float32"
    *_, states, _ = fused_loop(*inputs, positions)
    expected, sizes = fused_gradients(inputs, positions, dy, dlast)
    # A gate 2, softplus and c 3, their product 1, the exponential 2, a step 2; the input has a
    # difference, a root and three products beside that.
    T, batch = shape[1], shape[0]
    chain = 10 * T + 20
    size, unit = chain_of(dtypes[1], chain)
    assert_close(np.asarray(y, np.float64), states, unit, "y", chain=size)
    assert_close(last, states[:, -1], "float32", "last", chain=chain)
    for name, dtype, found, exactly in zip(
        ("dz_r", "dz_i", "du", "da_param", "dh0"), names, gradients, expected, strict=True
    ):
        found = np.asarray(found, np.float64)
        # In bfloat16 the states before are rounded, and so is the result.
        worst = dtypes[1] if name in ("dz_r", "da_param") else dtype
        size, unit = chain_of("bfloat16" if "bfloat16" in (dtype, worst) else "float32",
                              3 * chain + batch * T, roundings=2)  # fmt: skip
        if name == "da_param":  # many terms cancel, so it is their sizes that count
            scale = np.maximum(sizes, 1)
            found, exactly = found / scale, exactly / scale
        assert_close(found, exactly, unit, name, chain=size)
        if name in ("dz_r", "dz_i", "du"):
            assert not found[np.broadcast_to(pads, found.shape)].any(), name


class TestFused:
    @settings(max_examples=MANY)
    @given(
        shape=shapes,
        dtypes=st.sampled_from([("float32",) * 2, ("bfloat16",) * 2, ("float32", "bfloat16")]),
        seed=seeds,
    )
    @example(shape=(2, 600, 300), dtypes=("float32", "float32"), seed=0)
    @example(shape=(2, 300, 140), dtypes=("float32", "bfloat16"), seed=1)
    @example(shape=(1, 1, 1), dtypes=("float32", "float32"), seed=2)
    def test_against_the_formulas_in_float64(self, shape, dtypes, seed):
        check_fused(shape, dtypes, seed, interpret=True)

    @pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 130), (1, 130, 3)])
    def test_in_simulated_tpu_memory(self, shape):
        check_fused(shape, ("float32", "bfloat16"), 3, interpret=pltpu.InterpretParams())

    def test_without_races(self, capfd):
        params = pltpu.InterpretParams(detect_races=True)
        check_fused((2, 9, 130), ("float32",) * 2, 0, block=(16, 128), interpret=params)
        assert "RACE DETECTED" not in capfd.readouterr().out

    def test_the_formulas_gradients_are_finite_differences(self):
        """Of the loop in float64 that the kernel is held against; no root is clipped here."""
        rng = np.random.default_rng(0)
        shape, positions = (
            (2, 9, 4),
            np.array([[0, 1, 2, -1, 3, 0, 1, 2, 3], [5, 6, 0, 1, -1, -1, 2, 3, 4]]),
        )
        inputs = [rng.standard_normal(s) for s in (shape, shape, shape, (4,), (2, 4))]
        dy, dlast = rng.standard_normal(shape), rng.standard_normal((2, 4))
        gradients, _ = fused_gradients(inputs, positions, dy, dlast)
        step = np.finfo(float).eps ** (1 / 3)

        def total(changed):
            *_, states, _ = fused_loop(*changed, positions)
            return np.sum(states * dy) + np.sum(states[:, -1] * dlast)

        for n, gradient in enumerate(gradients):
            direction = rng.standard_normal(gradient.shape)
            ahead, behind = (
                total([z + s * direction if k == n else z for k, z in enumerate(inputs)])
                for s in (step, -step)
            )
            expected = (ahead - behind) / (2 * step)
            # Both the rounding of a difference and the rest of the series are of this order.
            scale = np.abs(gradient).sum() + np.abs(dy).sum()
            assert abs(np.sum(gradient * direction) - expected) <= 10 * step**2 * scale

    def test_the_roots_derivative_is_clipped(self):
        """Where a is 1 to the last digit, the multiplier's derivative is 1000 and not infinite."""
        _, pull = jax.vjp(
            lambda a_param: fused_rg_lru(
                jnp.zeros((1, 1, 1)), jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1)), a_param,
                jnp.ones((1, 1), int), jnp.zeros((1, 1)), interpret=True,
            )[1],
            jnp.full(1, -40.0),
        )  # fmt: skip
        (found,) = pull(jnp.ones((1, 1)))
        # d log a / d a_param = -8 r sigmoid(a_param); d(1 - a^2) / d log a = -2; input gate 1/2.
        expected = 8 * 0.5 * np.exp(-40.0) * 2 * 1000 * 0.5
        assert_close(found / expected, np.ones(1), "float32", chain=20)

    def test_decays_keep_their_digits(self):
        """1 - a^2 is right to the last digits for every a (facts on numerics: expm1 is not there)."""
        log_a = exact(-np.logspace(-30, 1.5, 20001))
        a, square = (np.asarray(z, np.float64) for z in decay_of(jnp.asarray(log_a, jnp.float32)))
        # The exponential 2; its square, which counts twice, and the difference of halves: 7.
        assert_close(a / np.exp(log_a), np.ones_like(a), "float32", "a", chain=2)
        expected = -np.expm1(2 * log_a)
        assert_close(square / expected, np.ones_like(a), "float32", "1 - a^2", chain=7)


class TestInTheModel:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_all_scans_make_the_same_rg_lru(self, dtype):
        """Values against the reference; all that is watched; gradients against each other."""
        rng = np.random.default_rng(0)
        H, G, T = 3, 5, 24
        R = H * G
        p = {"w_a": rng.standard_normal((H, G, G)), "w_x": rng.standard_normal((H, G, G)),
             "b_a": rng.standard_normal((H, G)), "b_x": rng.standard_normal((H, G)),
             "a_param": rng.uniform(-7, -2, R)}  # fmt: skip
        p = {name: exact(array, dtype) for name, array in p.items()}
        x, h0 = exact(rng.standard_normal((2, T, R)), dtype), exact(rng.standard_normal((2, R)))
        positions = np.stack([np.arange(7, 7 + T), np.r_[np.arange(11), np.arange(T - 11)]])
        seen = {"r": [], "i": [], "a": [], "h": []}
        rows = [
            reference.rg_lru(p, *row, trace=lambda name, array: seen[name].append(array))
            for row in zip(x, positions, h0, strict=True)
        ]
        weight = rng.standard_normal(x.shape)
        single = {name: jnp.asarray(array, dtype) for name, array in p.items()}
        results = {}
        for scan in SCANS:

            def run(p, x, h0, watch=layers.no_watch, scan=scan):
                return recurrent.rg_lru(p, x, jnp.asarray(positions), h0, scan, watch)

            arguments = (single, jnp.asarray(x, dtype), jnp.asarray(h0, "float32"))

            def watching(*z, run=run):
                found = {}
                return run(*z, watch=found.__setitem__), found

            (y, last), watched = jax.jit(watching)(*arguments)
            assert y.dtype == dtype and last.dtype == "float32"
            # Sums of G products and what the fused kernel's tests count.
            chain = 10 * (T + G) + 20
            size, unit = chain_of(dtype, chain)
            assert_close(
                np.asarray(y, np.float64), np.stack([y for y, _ in rows]), unit, chain=size
            )
            assert_close(last, np.stack([h for _, h in rows]), "float32", chain=chain)
            for name in ("r", "i", "a"):
                assert watched[name].dtype == "float32"
                assert_close(watched[name], np.stack(seen[name]), "float32", name, chain=G + 12)
            found = np.asarray(watched["h"], np.float64)
            assert_close(found, np.stack(seen["h"]), unit, "h", chain=size)
            results[scan] = jax.jit(jax.grad(
                lambda *z, run=run: jnp.sum(run(*z)[0].astype(jnp.float32) * weight), (0, 1, 2)
            ))(*arguments)  # fmt: skip
        expected = jax.tree.leaves(results["sequential"])
        for scan in ("associative", "pallas"):
            # Sums over all tokens, which bfloat16 rounds before and after.
            size, unit = chain_of(dtype, 3 * chain + 2 * T, roundings=4)
            for one, other in zip(jax.tree.leaves(results[scan]), expected, strict=True):
                assert_close(
                    np.asarray(one, np.float64),
                    np.asarray(other, np.float64),
                    unit,
                    scan,
                    chain=size,
                )

    def test_inside_everything_that_training_puts_around_it(self):
        """A scan over layers, recomputation, and a mesh of one device."""
        rng = np.random.default_rng(0)
        shape = (2, 20, 6)
        _, inputs, positions, _ = fused_case(shape, ("float32",) * 2, 0)
        arrays = [jnp.asarray(z, jnp.float32) for z in inputs]
        arrays[4] = jnp.asarray(rng.standard_normal((2, 6)), jnp.float32)
        mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))

        def stack(z_r, z_i, u, a_param, h0):
            def layer(u, _):
                return jax.checkpoint(fused_rg_lru)(
                    z_r, z_i, u, a_param, jnp.asarray(positions), h0
                )

            return jax.lax.scan(layer, u, None, length=2)

        one, state = P("data", None, "model"), P("data", "model")
        cut = jax.shard_map(
            stack, mesh=mesh, in_specs=(one, one, one, P("model"), state),
            out_specs=(one, P(None, "data", "model")), check_vma=False,
        )  # fmt: skip

        def plain(z_r, z_i, u, a_param, h0):
            lasts = []
            for _ in range(2):
                u, last = fused_rg_lru(z_r, z_i, u, a_param, jnp.asarray(positions), h0)
                lasts.append(last)
            return u, jnp.stack(lasts)

        found, expected = (
            jax.jit(jax.grad(lambda *z, f=f: sum(map(jnp.sum, f(*z))), (0, 1, 2, 3, 4)))(*arrays)
            for f in (cut, plain)
        )
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, "float32", chain=2 * (10 * 20 + 20))


@pytest.mark.parametrize("width", [1, 128, 200, 1280, 1281, 2560, 4096, 10_000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_fit_into_memory_and_waste_little(width, dtype):
    for length in (1, 100, 129, 2048):
        M, N = choose_blocks(length, width, [dtype] * 8)
        bytes_of = 2 * 8 * jnp.dtype(dtype).itemsize + 2 * 4
        assert M * N * bytes_of <= 12 * 2**20
        blocks = -(-width // N)
        assert blocks * N - width < 128 * blocks
        assert M % 16 == 0 and N % 128 == 0


def test_blocks_that_no_kernel_has_are_refused():
    a = jnp.ones((1, 200, 3))
    for block in ((100, 128), (16, 128), (128, 100)):
        with pytest.raises(ValueError, match="no kernel for blocks of"):
            linear_scan(a, a, jnp.zeros((1, 3)), block=block, interpret=True)
