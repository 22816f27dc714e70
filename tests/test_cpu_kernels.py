"""The CPU kernels: accuracy, and the same bits whatever the lane, the cut or the number of threads."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from griffin_conformance.backends import find_backend
from griffin_conformance.checks import find_checks
from griffin_conformance.runner import run_check
from griffin_kernels.cpu import elementary
from griffin_kernels.cpu import scan as cpu_scan
from griffin_kernels.cpu.compiled import kernel
from griffin_kernels.cpu.pool import pool, set_threads
from griffin_kernels.cpu.scan import decay, rg_lru, scan, softplus_8
from griffin_kernels.cpu.simd import LANES, load, store
from griffin_kernels.cpu.sync import barrier, claim

STEPS = 1 << 20


def applied(function):
    """A function of vectors, over an array of whole vectors."""

    @njit(error_model="numpy")
    def run(x, y):
        for i in range(0, len(x), LANES):
            store(y, i, function(load(x, i)))

    def over(x):
        y = np.empty_like(x)
        run(x, y)
        return y

    return over


def sizes(low: float, high: float) -> np.ndarray:
    """Negative numbers of every size between minus ``high`` and minus ``low``."""
    return -np.exp(np.linspace(np.log(low), np.log(high), STEPS)).astype(np.float32)


def sigmoid64(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("function", "exact", "arguments", "ulps"),
    [
        (elementary.exp, np.exp, np.linspace(-87.3, 88.7, STEPS), 1.1),
        (elementary.exp, np.exp, sizes(1e-30, 87.3), 1.1),
        (elementary.expm1, np.expm1, np.linspace(-100, 0, STEPS), 1.1),
        (elementary.expm1, np.expm1, sizes(1e-37, 100), 1.1),
        (elementary.sigmoid, sigmoid64, np.linspace(-87, 87, STEPS), 2.5),
        (elementary.sigmoid, sigmoid64, np.linspace(-5, 5, STEPS), 2.5),
    ],
)
def test_elementary_functions_are_as_exact_as_they_say(function, exact, arguments, ulps):
    x = arguments.astype(np.float32)
    with np.errstate(over="ignore"):
        truth = exact(x.astype(np.float64))
    error = np.abs(applied(function)(x) - truth) / np.spacing(np.abs(truth).astype(np.float32))
    worst = int(error.argmax())
    assert error[worst] <= ulps, f"{error[worst]:.2f} ulp at {x[worst]!r}"


def test_elementary_functions_at_the_edges():
    x = np.array([-np.inf, -1e30, -88, -0.0, 0, 1e-40, -1e-40, 89.5, np.inf, np.nan] + [0] * 6,
                 np.float32)  # fmt: skip
    e, s = applied(elementary.exp)(x), applied(elementary.sigmoid)(x)
    np.testing.assert_array_equal(e[:10], [0, 0, 0, 1, 1, 1, 1, np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(s[:10], [0, 0, 0, 0.5, 0.5, 0.5, 0.5, 1, 1, np.nan])
    m = applied(elementary.expm1)(np.minimum(x, 0))
    np.testing.assert_array_equal(m[[0, 1, 3, 4, 9]], [-1, -1, 0, 0, np.nan])


@pytest.mark.parametrize(
    "name",
    ["decays", "multipliers-keep-their-digits", "recurrences", "scans", "long-scans"],
)
def test_the_kernels_conform(name):
    (check,) = find_checks(names=[name])
    verdict = run_check(check, find_backend("numba"))
    assert verdict.status == "passed", verdict.explain()
    assert verdict.ratio <= 0.5


def draw(seed: int, T: int, R: int) -> tuple[np.ndarray, ...]:
    """Arguments of :func:`rg_lru`: two documents in a row."""
    rng = np.random.default_rng(seed)
    u, z_r, z_i = rng.standard_normal((3, T, R)).astype(np.float32) * 3
    positions = np.arange(5, 5 + T)
    positions[T // 2 :] -= positions[T // 2]
    rate = softplus_8(rng.uniform(-12, 5, R))
    return u, z_r, z_i, rate, positions, rng.standard_normal(R).astype(np.float32)


cases = {"seed": st.integers(0, 99), "T": st.integers(1, 12), "R": st.integers(1, 700)}


@settings(max_examples=60, deadline=None)
@given(**cases, data=st.data())
def test_channels_do_not_meet(seed, T, R, data):
    """A channel alone has the bits that it has among others, in whatever lane or tail."""
    u, z_r, z_i, rate, positions, h = draw(seed, T, R)
    y, last = rg_lru(u, z_r, z_i, rate, positions, h)
    states = scan(z_r, u, h)
    first = data.draw(st.integers(0, R - 1))
    part = slice(first, data.draw(st.integers(first + 1, R)))
    cut = [z[:, part] for z in (u, z_r, z_i)]
    z, end = rg_lru(*cut, rate[part], positions, h[part])
    np.testing.assert_array_equal(z, y[:, part])
    np.testing.assert_array_equal(end, last[part])
    np.testing.assert_array_equal(scan(cut[1], cut[0], h[part]), states[:, part])
    a, gain = decay(np.abs(z_r), rate)
    for whole, alone in zip((a, gain), decay(np.abs(cut[1]), rate[part]), strict=True):
        np.testing.assert_array_equal(alone, whole[:, part])


@settings(max_examples=60, deadline=None)
@given(**cases, data=st.data())
def test_cuts_and_threads_change_no_bit(seed, T, R, data):
    u, z_r, z_i, rate, positions, h = given_arrays = draw(seed, T, R)
    kept = [array.copy() for array in given_arrays]
    y, last = rg_lru(*given_arrays)
    at = data.draw(st.integers(0, T))
    before, state = rg_lru(u[:at], z_r[:at], z_i[:at], rate, positions[:at], h)
    after, state = rg_lru(u[at:], z_r[at:], z_i[at:], rate, positions[at:], state)
    np.testing.assert_array_equal(np.concatenate([before, after]), y)
    np.testing.assert_array_equal(state, last)
    try:
        for threads in (1, 3):
            set_threads(threads)
            np.testing.assert_array_equal(rg_lru(*given_arrays)[0], y)
    finally:
        set_threads(None)
    for array, copy in zip(given_arrays, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("R", [16, 48, 37])
def test_long_scans_are_written_around_the_caches(R, monkeypatch):
    _, a, x, _, _, h = draw(1, 11, R)
    expected = scan(a, x, h)
    monkeypatch.setattr(cpu_scan, "LARGE", 0)
    np.testing.assert_array_equal(scan(a, x, h), expected)
    shifted = np.empty(11 * R + 1, np.float32)[1:].reshape(11, R)
    assert scan(a, x, h, shifted) is shifted
    np.testing.assert_array_equal(shifted, expected)


@kernel
def _counted(part, parts, sync, counts, longest, pieces, most, kinds):
    """Several phases, each with several kinds of work; every thread counts what it was given."""
    for phase in range(len(counts)):
        for kind in range(kinds):
            while True:
                first, last = claim(sync, parts, pieces, most, kind)
                if first == last:
                    break
                longest[part] = max(longest[part], last - first)
                for piece in range(first, last):
                    counts[phase, kind, piece] += 1
        barrier(sync, parts)


@settings(max_examples=40, deadline=None)
@given(threads=st.integers(1, 4), pieces=st.integers(0, 300), most=st.integers(1, 40))
def test_every_piece_of_work_is_done_once(threads, pieces, most):
    counts, longest = np.zeros((5, 3, pieces), np.int64), np.zeros(threads, np.int64)
    set_threads(threads)
    try:
        pool().run(_counted, counts, longest, pieces, most, 3)
    finally:
        set_threads(None)
    assert (counts == 1).all()
    assert longest.max() <= most


def test_a_document_forgets_a_state_that_is_not_finite():
    u, z_r, z_i, rate, _, _ = draw(0, 6, 20)
    positions = np.array([3, 4, 0, 1, 2, 3])
    y, last = rg_lru(u, z_r, z_i, rate, positions, np.full(20, np.nan, np.float32))
    assert np.isnan(y[:2]).all()
    fresh, end = rg_lru(u[2:], z_r[2:], z_i[2:], rate, positions[2:], np.zeros(20, np.float32))
    np.testing.assert_array_equal(y[2:], fresh)
    np.testing.assert_array_equal(last, end)


def digest() -> str:
    """Bits of all kernels on drawn arguments."""
    text = hashlib.sha256()
    for R in (16, 37):
        arguments = draw(R, 9, R)
        for array in (*rg_lru(*arguments), scan(arguments[1], arguments[0], arguments[5])):
            text.update(array.tobytes())
    return text.hexdigest()


@pytest.mark.parametrize("processor", ["haswell", "x86-64"])
def test_other_processors_give_the_same_bits(processor):
    """Compiled for AVX2, and for no more than SSE2, where a fused multiply-add is a call."""
    if os.uname().machine != "x86_64":
        pytest.skip("compiles for x86")
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nimport test_cpu_kernels as t; print(t.digest())"
    environment = {**os.environ, "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment, check=True)  # fmt: skip
    assert done.stdout.strip() == digest()
