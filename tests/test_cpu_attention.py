"""Attention on the CPU: right, and the same bits for any cut, number of threads and neighbours."""

import hashlib
import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close

from griffin_kernels.cpu.attention import attend, attention, scratch_size, store_ring
from griffin_np.attention import roll

WINDOWS = (1, 3, 16, 17, 40, 64, 100)
HEADS = ((4, 1), (6, 2), (3, 3), (11, 1))
APART = 5
"""Numbers that are none, around everything that a kernel may touch."""


@dataclass
class Text:
    """A text of ``T`` tokens after ``past`` others, with documents that start at ``starts``."""

    seed: int
    T: int
    heads: tuple[int, int]
    d: int
    W: int
    past: int = 0
    starts: tuple[int, ...] = ()
    scale: float = 1.0
    q: np.ndarray = field(init=False)
    k: np.ndarray = field(init=False)
    v: np.ndarray = field(init=False)
    positions: np.ndarray = field(init=False)

    def __post_init__(self):
        rng, (H, Q) = np.random.default_rng(self.seed), self.heads
        shapes = [(self.T, H), (self.past + self.T, Q), (self.past + self.T, Q)]
        self.q, self.k, self.v = (
            rng.standard_normal((*shape, self.d)).astype(np.float32) for shape in shapes
        )
        self.q *= np.float32(self.scale / np.sqrt(self.d))
        self.positions = self.past + np.arange(self.T)
        for start in sorted(self.starts):
            self.positions[start:] = np.arange(self.T - start)

    @property
    def chain(self) -> int:
        """Roundings of a result: of a score, of the sums over the keys, and a few more."""
        return self.d + 2 * min(self.past + self.T, self.W + 1) + 10

    def truth(self) -> np.ndarray:
        """The definition in float64."""
        (H, Q), result = self.heads, np.empty(self.q.shape)
        for t, position in enumerate(self.positions):
            now = self.past + t
            seen = slice(now - min(position, self.W), now + 1)
            for h in range(H):
                k, v = (z[seen, h * Q // H].astype(np.float64) for z in (self.k, self.v))
                scores = k @ self.q[t, h]
                weights = np.exp(scores - scores.max())
                result[t, h] = weights / weights.sum() @ v
        return result

    def run(self, cuts=(), parts: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Output and rings, in several calls; nothing else may be written, nor read with effect."""
        (H, Q), d, W = self.heads, self.d, self.W
        rings = [amid_nothing(roll(z[: self.past], self.past, W)) for z in (self.k, self.v)]
        y = np.full(self.q.shape, np.nan, np.float32)
        edges = [0, *sorted(cuts), self.T]
        for first, last in itertools.pairwise(edges):
            tokens = slice(self.past + first, self.past + last)
            slabs = [
                with_neighbours(z) for z in (self.q[first:last], self.k[tokens], self.v[tokens])
            ]
            positions = np.concatenate([[0, 7, 8], self.positions[first:last], [9, 0]])
            out, bounds = np.full_like(slabs[0], np.nan), (3, 3 + last - first)
            for part in range(parts):
                scratch = np.full(scratch_size(H, Q, d) + 16 + APART, np.nan, np.float32)
                scratch[len(scratch) - APART :] = APART
                attend(
                    part, parts, *slabs, out, *rings, APART, positions, *bounds, H, Q, d, W,
                    scratch[: scratch_size(H, Q, d)],
                )  # fmt: skip
                assert (scratch[len(scratch) - APART :] == APART).all()
            for part in range(parts):
                store_ring(part, parts, *slabs[1:], *rings, APART, positions, *bounds, Q, d, W)
            rows = out.reshape(-1, H, d)
            assert np.isnan(rows[:3]).all() and np.isnan(rows[bounds[1] :]).all()
            y[first:last] = rows[3 : bounds[1]]
        for ring in rings:
            assert np.isnan(ring[:APART]).all() and np.isnan(ring[-APART:]).all()
        return y, *(ring[APART:-APART].reshape(W, Q, d) for ring in rings)

    def rings(self) -> list[np.ndarray]:
        """What the rings should hold after the text."""
        seen = int(self.positions[-1]) + 1
        return [roll(z[len(z) - min(seen, len(z)) :], seen, self.W) for z in (self.k, self.v)]


def amid_nothing(ring: np.ndarray) -> np.ndarray:
    """A ring with NaN before and after it."""
    return np.pad(ring.ravel(), APART, constant_values=np.nan)


def with_neighbours(rows: np.ndarray) -> np.ndarray:
    """Rows of a slab in which other texts are NaN."""
    return np.pad(rows, ((3, 2), (0, 0), (0, 0)), constant_values=np.nan).ravel()


def assert_same(found, expected):
    """Equal in every bit."""
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))


@st.composite
def texts(draw):
    T = draw(st.integers(1, 12) | st.integers(1, 170))
    return Text(
        seed=draw(st.integers(0, 99)),
        T=T,
        heads=draw(st.sampled_from(HEADS)),
        d=draw(st.sampled_from([16, 80])),
        W=draw(st.sampled_from(WINDOWS)),
        past=draw(st.sampled_from([0, 1, 15, 50, 64, 129, 200])),
        starts=tuple(draw(st.lists(st.integers(0, T - 1), max_size=3, unique=True))),
    )


@settings(max_examples=60, deadline=None)
@given(text=texts())
def test_it_is_attention(text):
    y, *rings = text.run()
    assert_close(y, text.truth(), "float32", chain=text.chain)
    assert_same(rings, text.rings())


@settings(max_examples=100, deadline=None)
@given(text=texts(), parts=st.integers(1, 3), data=st.data())
def test_cuts_and_threads_change_no_bit(text, parts, data):
    cuts = data.draw(st.sets(st.integers(1, max(text.T - 1, 1)), max_size=4)) - {text.T}
    assert_same(text.run(cuts, parts), text.run())


@pytest.mark.parametrize("W", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
def test_token_by_token_is_the_same(W, heads):
    text = Text(seed=W, T=90, heads=heads, d=32, W=W, past=70, starts=(37,))
    assert_same(text.run(range(1, text.T), parts=2), text.run())


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_heads_as_large_as_the_models(parts):
    """Slices of the channels, and queries that fill a tile."""
    text = Text(seed=1, T=21, heads=(10, 1), d=256, W=128, past=300)
    y, *rings = text.run(parts=parts)
    assert_close(y, text.truth(), "float32", chain=text.chain)
    assert_same((y, *rings), text.run(range(1, 21)))


def test_many_queries_on_one_key_value_head():
    text = Text(seed=2, T=5, heads=(97, 1), d=16, W=9, past=20)
    assert_close(text.run()[0], text.truth(), "float32", chain=text.chain)
    assert_same(text.run((2,), parts=3), text.run())


@settings(max_examples=30, deadline=None)
@given(text=texts(), data=st.data())
def test_documents_do_not_meet(text, data):
    """A document has the bits that it has alone, whatever comes before and after it."""
    y, *rings = text.run()
    start = data.draw(st.sampled_from([0, *text.starts]))
    if text.positions[start]:
        return
    later = [s for s in text.starts if s > start]
    stop = min(later, default=text.T)
    alone = Text(text.seed, stop - start, text.heads, text.d, text.W)
    tokens = slice(text.past + start, text.past + stop)
    alone.q, alone.k, alone.v = text.q[start:stop], text.k[tokens], text.v[tokens]
    z, *ends = alone.run()
    assert_same([z], [y[start:stop]])
    if stop == text.T:
        assert_same(ends, rings)


@settings(max_examples=40, deadline=None)
@given(text=texts(), data=st.data())
def test_what_is_not_seen_may_be_anything(text, data):
    """NaN in one key and value reaches the tokens that see it, and no other."""
    y, *_ = text.run()
    at = data.draw(st.integers(0, text.past + text.T - 1))
    text.k[at] = text.v[at] = np.nan
    z, *_ = text.run()
    back = text.past + np.arange(text.T) - at
    sees = (back >= 0) & (back <= np.minimum(text.W, text.positions))
    assert np.isnan(z[sees]).all()
    assert_same([z[~sees]], [y[~sees]])


@pytest.mark.parametrize("scale", [1e-30, 1e3, 1e4, 1e6])
def test_scores_of_any_size(scale):
    """The largest score may lie anywhere; all weights are relative to it."""
    text = Text(seed=3, T=100, heads=(4, 1), d=16, W=40, past=30, scale=scale)
    y, *_ = text.run()
    assert np.isfinite(y).all()
    for t in range(text.T):
        v = text.v[max(30 + t - 40, 0) : 30 + t + 1, 0]
        slack = 1 + text.chain * np.finfo(np.float32).eps
        assert (y[t] <= v.max(0) + slack - 1).all() and (y[t] >= v.min(0) - slack + 1).all()
    text.v[:] = 3
    np.testing.assert_allclose(text.run()[0], 3, rtol=slack - 1)
    # One key that stands out is all that counts, whether it comes first or last.
    text.q[:], text.k[:] = scale, -1
    for at in (20, 60, 129):
        text.k[at], text.v[at], text.v[at + 1 :] = 1, 5, 7
        if scale < 1:
            continue
        sees = (at - 30 <= np.arange(100)) & (np.arange(100) <= at - 30 + 40)
        np.testing.assert_array_equal(text.run()[0][sees], 5)
        text.k[at] = -1


def test_infinite_and_missing_numbers_end_in_numbers_of_some_kind():
    for bad in (np.inf, -np.inf, np.nan):
        text = Text(seed=4, T=40, heads=(3, 3), d=16, W=17)
        text.q[3] = text.k[9] = text.v[20] = bad
        y, *_ = text.run()
        assert np.isfinite(y[:3]).all()
        assert not np.isfinite(y[20:38]).all(axis=(1, 2)).any()
        assert_same(text.run((4, 11), parts=2), text.run())


@pytest.mark.parametrize("d", [1, 16, 24])
def test_arrays_of_any_size(d):
    text = Text(seed=5, T=70, heads=(6, 2), d=d, W=17, starts=(30,))
    q = text.q.astype(np.float64) * np.sqrt(d)
    y = attention(q, text.k, text.v, text.positions, 17)
    assert y.shape == (70, 6, d) and y.dtype == np.float32
    assert_close(y, text.truth(), "float32", chain=text.chain + 2)
    with pytest.raises(ValueError, match="start"):
        attention(q, text.k, text.v, text.positions + 1, 17)


def digest() -> str:
    """Bits of a few texts."""
    result = hashlib.sha256()
    for seed, heads in enumerate(HEADS):
        text = Text(seed, T=30, heads=heads, d=80, W=40, past=90, starts=(25,))
        for array in text.run((9, 10)):
            result.update(array.tobytes())
    return result.hexdigest()


@pytest.mark.parametrize("processor", ["haswell", "x86-64"])
def test_other_processors_give_the_same_bits(processor):
    """Compiled for AVX2, with fewer sums in registers, and for no more than SSE2."""
    if os.uname().machine != "x86_64":
        pytest.skip("compiles for x86")
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nimport test_cpu_attention as t; print(t.digest())"
    environment = {**os.environ, "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment, check=True)  # fmt: skip
    assert done.stdout.strip() == digest()
