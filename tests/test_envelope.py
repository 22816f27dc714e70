"""The rounding envelope: right computations lie well inside, wrong ones far outside."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from support import SMALL

from griffin_conformance import oracle, rounding
from griffin_conformance.envelope import FACTOR, Envelope, chain_bound, longest_chain, norms
from griffin_conformance.rounding import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    PROFILES,
    SAMPLES,
    Arithmetic,
    round_to,
)
from griffin_conformance.simulation import Simulation
from griffin_conformance.worlds import World
from griffin_np import rg_lru
from griffin_np.model import NumPyModel
from griffin_np.params import nest

DIRECTIONS = (-1, 0, 1)


def name(profile) -> str:
    return profile.name


each_profile = pytest.mark.parametrize("profile", PROFILES.values(), ids=name)


@st.composite
def numbers(draw, bits: int, extra: int = 53) -> float:
    """Any number of ``extra`` bits, and those on and next to the middle between two of ``bits``."""
    if draw(st.booleans()):
        middle = 2 * draw(st.integers(2 ** (bits - 1), 2**bits - 1)) + 1
        value = (middle << extra - bits - 1) + draw(st.sampled_from([-1, 0, 1]))
    else:
        value = draw(st.integers(2 ** (extra - 1), 2**extra - 1))
    return draw(st.sampled_from([1.0, -1.0])) * value * 2.0 ** draw(st.integers(-60, 60))


class TestRounding:
    @settings(max_examples=300)
    @given(numbers(24))
    def test_to_nearest_is_float32s_own(self, value):
        assert round_to(np.array([value]), 24, 0)[0] == float(np.float32(value))

    @settings(max_examples=300)
    @given(numbers(8, 24))
    def test_to_nearest_is_bfloat16s_own(self, value):
        # ml_dtypes goes from float64 by way of float32, so only that step is compared.
        assert float(np.float32(value)) == value
        assert round_to(np.array([value]), 8, 0)[0] == float(np.float32(value).astype(bfloat16))

    @settings(max_examples=300)
    @given(st.sampled_from([8, 24, 41, 52]), st.data())
    def test_down_and_up_are_the_neighbours(self, bits, data):
        value = data.draw(numbers(bits))
        down, nearest, up = round_to(np.array([value]), bits, np.array(DIRECTIONS))
        _, exponent = np.frexp(value)
        step = np.ldexp(1.0, int(exponent) - bits)
        assert down <= value <= up
        assert up - down == (0 if down == value else step)
        assert nearest in (down, up)
        assert abs(nearest - value) <= step / 2
        for rounded in (down, nearest, up):
            assert rounded / step == round(rounded / step)

    @given(st.sampled_from([8, 24, 41]), st.sampled_from(DIRECTIONS), st.data())
    def test_values_of_few_bits_stay(self, bits, direction, data):
        value = float(data.draw(st.integers(-(2**bits), 2**bits))) * 2.0 ** data.draw(
            st.integers(-300, 300)
        )
        assert round_to(np.array([value]), bits, direction)[0] == value

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_zeros_infinities_and_nan_stay(self, direction):
        x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan])
        y = round_to(x, 24, direction)
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(np.signbit(y), np.signbit(x))

    def test_a_carry_goes_into_the_exponent(self):
        x = np.array([2 - 2.0**-30, -(2 - 2.0**-30)])
        np.testing.assert_array_equal(round_to(x, 24, np.array([1, -1])), [2, -2])
        np.testing.assert_array_equal(round_to(x, 24, 0), [2, -2])

    @each_profile
    def test_directions_are_frozen_over_time_and_differ_among_samples(self, profile):
        x = np.broadcast_to(np.random.default_rng(0).standard_normal(50), (SAMPLES, 9, 50))
        y = Arithmetic(profile).rounded(x)
        np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
        assert len(np.unique(y[:, 0], axis=0)) == SAMPLES
        assert set(np.sign(y - x).ravel()) == {-1, 1}


def scattered(truth, distance: float, samples: int = 5):
    """Samples of which one has one position at a distance, and the others are exact."""
    x = np.repeat(truth[None], samples, axis=0)
    x[3, 2, 0] += distance
    return x


class TestEnvelope:
    truth = np.random.default_rng(0).standard_normal((4, 3)) + np.array([4, 0, 0])

    def exact(self, profile=FLOAT32) -> Envelope:
        return Envelope.of(self.truth, np.repeat(self.truth[None], 3, axis=0), profile)

    @each_profile
    def test_nothing_is_held_to_less_than_a_roundoff(self, profile):
        expected = FACTOR * profile.unit * norms(self.truth)
        np.testing.assert_array_equal(self.exact(profile).allowed, expected)

    def test_an_array_may_have_a_unit_of_its_own(self):
        """As the recurrent state has, where activations are bfloat16."""
        samples = np.repeat(self.truth[None], 3, axis=0)
        envelope = Envelope.of(self.truth, samples, BFLOAT16, FLOAT32.unit)
        np.testing.assert_array_equal(envelope.allowed, self.exact(FLOAT32).allowed)

    # Distances as small as float64's smallest numbers are 0 when they are squared.
    @pytest.mark.parametrize("profile", [FLOAT32, BFLOAT16], ids=name)
    def test_nor_to_less_than_the_smallest_normal_number(self, profile):
        zero = np.zeros((2, 9))
        envelope = Envelope.of(zero, zero[None], profile)
        np.testing.assert_array_equal(envelope.allowed, FACTOR * profile.tiny * 3)
        assert envelope.compare("x", zero).ratio == 0
        assert envelope.compare("x", zero + profile.tiny).passed
        assert not envelope.compare("x", zero + 5 * profile.tiny).passed

    def test_the_largest_deviation_among_samples_counts_at_its_position(self):
        envelope = Envelope.of(self.truth, scattered(self.truth, 0.5), FLOAT32)
        moved = np.abs((self.truth[2, 0] + 0.5) - self.truth[2, 0])
        assert envelope.allowed[2] == FACTOR * moved
        others = [0, 1, 3]
        np.testing.assert_array_equal(envelope.allowed[others], self.exact().allowed[others])

    def test_coarser_samples_are_scaled_down(self):
        samples = scattered(self.truth, 0.5)
        wide, narrow = (Envelope.of(self.truth, samples, p).allowed[2] for p in (FLOAT32, FLOAT64))
        assert narrow == wide * 2.0**-FLOAT64.coarsening

    def test_the_ratio_is_a_distance_over_what_is_allowed(self):
        envelope = self.exact()
        found = self.truth.copy()
        found[1] += [0, 3e-6, 4e-6]
        result = envelope.compare("x", found)
        observed = norms(found - self.truth)[1]
        assert (result.position, result.observed) == (1, observed)
        assert result.ratio == observed / envelope.allowed[1]
        assert not result.passed
        assert "x: " in str(result)
        assert "entry 1" in str(result)
        edge = replace(envelope, allowed=norms(found - self.truth))
        assert edge.compare("x", found).ratio == 1
        assert edge.compare("x", found).passed

    def test_the_position_told_is_the_worst_of_what_is_allowed_there(self):
        envelope = replace(self.exact(), allowed=np.array([1.0, 1.0, 100.0, 1.0]))
        found = self.truth.copy()
        found[:, 0] += [0, 3, 50, 2]
        result = envelope.compare("x", found)
        assert result.position == 1
        assert result.ratio == result.observed

    def test_two_arrays_are_compared_with_each_other(self):
        envelope = self.exact()
        both = self.truth + 1.0
        assert envelope.between("x", both, both).ratio == 0
        assert envelope.between("x", both, self.truth).ratio > 1e5
        assert envelope.between("x", self.truth, both).ratio > 1e5

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_never_passes(self, value):
        broken = self.truth.copy()
        broken[3, 1] = value
        for result in (
            self.exact().compare("x", broken),
            self.exact().between("x", broken, broken),
            self.exact().between("x", self.truth, broken),
        ):
            assert result.ratio == np.inf
            assert result.position == 3
            assert not result.passed

    @pytest.mark.parametrize("shape", [(4, 2), (3, 3), (2, 4), ()])
    def test_other_shapes_are_refused(self, shape):
        message = rf"x has shape \({', '.join(map(str, shape))}\), expected \(4, 3\)"
        with pytest.raises(ValueError, match=message):
            self.exact().compare("x", np.zeros(shape))

    def test_axes_behind_the_first_are_one(self):
        truth = np.arange(24.0).reshape(2, 3, 4)
        envelope = Envelope.of(truth, truth[None], FLOAT32)
        assert envelope.truth.shape == (2, 12)
        assert envelope.compare("x", truth).ratio == 0

    def test_nothing_agrees_with_nothing(self):
        assert self.exact().rows(slice(0)).compare("x", np.zeros((0, 3))).passed

    def test_ulps_are_those_of_the_largest_value(self):
        truth = np.array([[1.0, 0.25], [4.0, 0.0]])
        envelope = Envelope.of(truth, truth[None], FLOAT32)
        found = truth + np.array([[0, 2.0**-23], [0, 3 * 2.0**-21]])
        assert envelope.compare("x", found).ulps == (0, 1, 1, 3)

    def test_positions_can_be_chosen(self):
        part = self.exact().rows([2, 0])
        np.testing.assert_array_equal(part.truth, self.truth[[2, 0]])
        np.testing.assert_array_equal(part.allowed, self.exact().allowed[[2, 0]])

    def test_the_largest_value_is_clear_beyond_twice_what_is_allowed(self):
        """Both values may move towards each other."""
        truth = np.array([[0.0, 5.0, 3.0]] * 3)
        envelope = replace(self.exact(), truth=truth, allowed=np.array([0.9, 1.0, 1.1]))
        np.testing.assert_array_equal(envelope.argmax_is_clear(), [True, False, False])
        tied = replace(envelope, truth=np.array([[2.0, 2.0]]), allowed=np.zeros(1))
        assert not tied.argmax_is_clear().any()
        single = replace(envelope, truth=np.zeros((2, 1)), allowed=np.ones(2))
        assert single.argmax_is_clear().all()


WORLD = World(SMALL, "ordinary", 0, (24,))


def reference(dtype: str, **fault):
    """Logits of the world's text, with changes to the configuration."""
    params = nest({name: array.astype(dtype) for name, array in WORLD.parameters().items()})
    return NumPyModel(SMALL.replace(**fault), params)(WORLD.tokens(0)[None])[0][0]


class TestModels:
    @pytest.mark.parametrize("profile", [FLOAT32, FLOAT64], ids=name)
    def test_the_reference_lies_inside(self, profile):
        found = WORLD.history(profile, 0)["logits"].compare("logits", reference(profile.name))
        assert 0.01 < found.ratio <= 0.5
        assert found.ulps == tuple(sorted(found.ulps))

    @pytest.mark.parametrize(
        "fault",
        [{"window": 7}, {"norm_eps": 1e-4}, {"logits_soft_cap": 0.0}, {"rope_fraction": 1.0}],
        ids=str,
    )
    def test_faults_lie_far_outside(self, fault):
        wrong = reference("float32", **fault)
        assert WORLD.history(FLOAT32, 0)["logits"].compare("logits", wrong).ratio > 10

    def test_bfloat16_allows_more_than_float32(self):
        wide, narrow = (WORLD.history(p, 0)["logits"].allowed for p in (BFLOAT16, FLOAT32))
        wider = wide / narrow
        assert wider.min() > 1e3
        assert wider.max() < 1e6

    def test_a_seed_gives_the_same_samples(self):
        flat, at = WORLD.parameters(), np.arange(24)
        first, again, other = (
            Simulation(FLOAT32, 3, seed).run(flat, SMALL, WORLD.tokens(0), at)["logits"]
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()


def test_rounding_of_a_long_recurrence_is_systematic():
    """Directions are frozen because a right program would be called wrong with others.

    At a_param = -12 and a gate that is almost closed, a is 1 - 2^-24. A state of 2/3 is taken down
    by a whole unit in its last place at every step, 20,000 times, where two thirds of one would be
    right. With directions drawn anew at each step these errors average out.
    """
    steps = 20_000
    a = np.full((steps, 1), float(np.float32(np.exp(oracle.log_decay(-12.0, 1.2e-3)))))
    assert a[0, 0] == 1 - 2.0**-24
    x, h = np.zeros((steps, 1)), np.array([float(np.float32(2 / 3))])
    truth = rg_lru.scan(a, x, h)
    found = rg_lru.scan(*(z.astype(np.float32) for z in (a, x, h)))
    simulation = Simulation(FLOAT32)
    simulation.tree = np.zeros(SAMPLES, bool)  # all in sequence, as the reference
    shape = (SAMPLES, steps, 1)
    frozen = simulation.scan(np.broadcast_to(a, shape), np.broadcast_to(x, shape), h)
    drift = (frozen[:, -1, 0] - truth[-1]) / 2.0**-24 / steps
    assert set(np.round(3 * drift)) == {-1, 2}  # thirds of a unit at each step: by 1 down, or 0
    assert Envelope.of(truth, frozen, FLOAT32).compare("h", found).ratio <= 0.5

    redrawn, state = np.empty(shape), np.broadcast_to(h, (SAMPLES, 1))
    for t, direction in enumerate(simulation.draw(steps, SAMPLES, 1)):
        state = redrawn[:, t] = round_to(a[t] * state, FLOAT32.state, direction)
    assert Envelope.of(truth, redrawn, FLOAT32).compare("h", found).ratio > 5


class TestChains:
    @pytest.mark.parametrize("dtype", PROFILES)
    def test_the_bound_is_the_textbooks(self, dtype):
        u = PROFILES[dtype].unit
        bounds = [chain_bound(n, dtype) for n in range(20)]
        assert bounds[0] == 0
        assert all(bound >= n * u for n, bound in enumerate(bounds))
        assert (np.diff(bounds) >= u).all()
        # A sum of n terms has n - 1 roundings; the bound is the next larger of its kind.
        assert bounds[10] == 10 * u / (1 - 10 * u)
        assert bounds[10] >= (1 + u) ** 10 - 1

    def test_it_holds_for_sums(self):
        for seed in range(20):
            x = np.random.default_rng(seed).random(200).astype(np.float32)
            total = np.float32(0)
            for value in x:
                total += value
            exact = float(np.sum(x, dtype=np.longdouble))
            assert abs(float(total) - exact) <= chain_bound(len(x) - 1, "float32") * exact

    @pytest.mark.parametrize(
        "change",
        [{"width": 27}, {"lru_width": 39}, {"mlp_width": 41}, {"depth": 6}, {"conv_width": 5}],
        ids=str,
    )
    def test_longer_sums_make_longer_chains(self, change):
        assert longest_chain(SMALL.replace(**change), 9) > longest_chain(SMALL, 9)

    def test_texts_count_once_for_each_token_and_in_attention_up_to_the_window(self):
        lengths = [1, 2, 9, 10, 30]
        recurrent, attention = (
            [longest_chain(SMALL.replace(block_pattern=(kind,)), n) for n in lengths]
            for kind in ("recurrent", "attention")
        )
        assert (np.diff(recurrent) > 0).all()
        assert (np.diff(attention)[:2] > 0).all()
        assert (np.diff(attention)[2:] == 0).all()  # window 8: no more than 9 keys
        assert longest_chain(SMALL) == longest_chain(SMALL, 1)

    def test_it_is_more_than_any_single_part(self):
        """A logit goes through every block, and in each through the longer sum of either branch."""
        assert longest_chain(SMALL) > SMALL.depth * (2 * SMALL.width + SMALL.mlp_width)


def test_samples_sum_in_orders_of_their_own():
    orders = Arithmetic(FLOAT32, SAMPLES).orders(9)
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    assert len(np.unique(orders, axis=0)) > SAMPLES // 2


def test_rounding_is_the_same_without_numba(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 5, 3)) * 10.0 ** rng.integers(-9, 9, (16, 5, 3))
    directions = rng.integers(-1, 2, (16, 1, 3))
    compiled = round_to(x, 24, directions)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(rounding, "_rounding", rounding._rounding.__wrapped__)
    np.testing.assert_array_equal(round_to(x, 24, directions), compiled)
