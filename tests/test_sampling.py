"""Sampling: every option against its definition, written here once more in plain loops."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import assert_close

from griffin_conformance.envelope import chain_bound
from griffin_np.errors import SamplingError
from griffin_np.sampling import Sampler, log_probability, log_softmax

# Ties are likely (few values), as are logits far apart, tokens ruled out, and plain real numbers.
logit = st.one_of(
    st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 0.0, 1.0, 1.0, 1.5]),
    st.sampled_from([-1e300, -1e4, -745.0, 700.0, 1e4, 1e300, 1e-300, -1e-17]),
    st.floats(-30, 30),
)
distributions = st.lists(logit, min_size=1, max_size=12).filter(lambda z: max(z) > -math.inf)
temperatures = st.sampled_from([1e-300, 1e-3, 0.3, 1.0, 1.0, 2.5, 1e6])
shares = st.one_of(st.sampled_from([1e-9, 0.25, 0.5, 0.9, 1 - 2**-53, 1.0]), st.floats(1e-6, 1))


def draw_history(data, size: int) -> list[int]:
    return data.draw(st.lists(st.integers(0, size - 1), max_size=12), label="history")


def assert_probabilities(found, expected, what: str = "probability", steps: int = 0) -> None:
    """Compare distributions, on either side a softmax and so many times a sum and quotients.

    A softmax is a difference, a quotient, an exponential and its sum, and a quotient.
    """
    chain = (1 + 1 + 2 + len(expected) + 1) + steps * (len(expected) + 1)
    assert_close(found, expected, "float64", what, chain=2 * chain)


# Definitions.


def softmax(z: list[float], temperature: float = 1.0) -> list[float]:
    """exp(z / temperature) over its sum."""
    top = max(z)
    weights = [math.exp((v - top) / temperature) for v in z]
    return [w / math.fsum(weights) for w in weights]


def biased(z: list[float], bias: dict[int, float]) -> list[float]:
    return [v + bias.get(token, 0.0) for token, v in enumerate(z)]


def penalised(
    z: list[float],
    history: list[int],
    last: int,
    repetition: float,
    presence: float,
    frequency: float,
) -> list[float]:
    recent = history if last == -1 else history[max(0, len(history) - last) :]
    result = []
    for token, v in enumerate(z):
        times = recent.count(token)
        if times:
            v = v / repetition if v > 0 else v * repetition
            v -= presence + frequency * times
        result.append(v)
    return result


def ranking(p: list[float]) -> list[int]:
    """Most probable first; among equals the lower id."""
    return sorted(range(len(p)), key=lambda token: (-p[token], token))


def only(p: list[float], kept) -> list[float]:
    total = math.fsum(p[token] for token in kept)
    return [p[token] / total if token in kept else 0.0 for token in range(len(p))]


def top_k(p: list[float], k: int) -> list[float]:
    return only(p, ranking(p)[: k or len(p)])


def top_p(p: list[float], share: float) -> list[float]:
    kept, total = [], 0.0
    for token in ranking(p):
        kept.append(token)
        total += p[token]
        if total >= share:
            break
    return only(p, kept)


def min_p(p: list[float], ratio: float) -> list[float]:
    return only(p, [token for token in range(len(p)) if p[token] >= ratio * max(p)])


class TestOptions:
    @given(z=distributions, temperature=temperatures)
    def test_temperature_divides(self, z, temperature):
        p = Sampler(temperature=temperature).distribution(z)
        assert p.dtype == np.float64
        assert_probabilities(p, softmax(z, temperature))

    @given(z=distributions)
    def test_temperature_0_takes_the_largest_and_of_equals_the_lowest_id(self, z):
        p = Sampler().distribution(z)
        best = next(token for token, v in enumerate(z) if v == max(z))
        assert p.tolist() == [float(token == best) for token in range(len(z))]

    @given(z=distributions, temperature=temperatures, k=st.integers(0, 14))
    def test_top_k_keeps_the_k_most_probable(self, z, temperature, k):
        p = Sampler(temperature=temperature).distribution(z).tolist()
        found = Sampler(temperature=temperature, top_k=k).distribution(z)
        assert_probabilities(found, top_k(p, k), steps=1)
        assert np.count_nonzero(found) == min(k or len(z), np.count_nonzero(p))

    @given(z=distributions, temperature=temperatures, share=shares)
    def test_top_p_keeps_the_fewest_that_reach_p(self, z, temperature, share):
        p = Sampler(temperature=temperature).distribution(z).tolist()
        found = Sampler(temperature=temperature, top_p=share).distribution(z)
        order = ranking(p)
        count = np.count_nonzero(found)
        kept = order[:count]
        assert_probabilities(found, only(p, kept), steps=1)
        rounding = chain_bound(len(z), "float64")  # of the sampler's running sum
        assert math.fsum(p[token] for token in kept) >= share - rounding
        assert math.fsum(p[token] for token in kept[:-1]) < share + rounding

    @given(z=distributions, temperature=temperatures, ratio=st.one_of(st.just(0.0), shares))
    def test_min_p_keeps_those_close_to_the_best(self, z, temperature, ratio):
        p = Sampler(temperature=temperature).distribution(z).tolist()
        found = Sampler(temperature=temperature, min_p=ratio).distribution(z)
        assert_probabilities(found, min_p(p, ratio), steps=1)
        assert not any(found[token] for token in range(len(z)) if p[token] < ratio * max(p))

    @given(
        z=distributions,
        last=st.integers(-1, 14),
        repetition=st.sampled_from([0.5, 1.0, 1.3, 100.0]),
        presence=st.sampled_from([-1.0, 0.0, 0.7]),
        frequency=st.sampled_from([-0.5, 0.0, 0.25]),
        data=st.data(),
    )
    def test_penalties_count_the_last_n_tokens(
        self, z, last, repetition, presence, frequency, data
    ):
        history = draw_history(data, len(z))
        sampler = Sampler(
            temperature=1.0,
            repetition_penalty=repetition,
            presence_penalty=presence,
            frequency_penalty=frequency,
            repeat_last_n=last,
        )
        changed = penalised(z, history, last, repetition, presence, frequency)
        assert_probabilities(sampler.distribution(z, history), softmax(changed))

    @given(z=distributions, data=st.data())
    def test_bias_is_added_and_minus_infinity_rules_out(self, z, data):
        values = st.one_of(st.just(-math.inf), st.floats(-20, 20))
        bias = data.draw(st.dictionaries(st.integers(0, len(z) - 1), values))
        changed = biased(z, bias)
        assume(max(changed) > -math.inf)
        p = Sampler(temperature=1.0, logit_bias=bias).distribution(z)
        assert_probabilities(p, softmax(changed))
        assert not any(p[token] for token, value in bias.items() if value == -math.inf)

    @settings(max_examples=300)
    @given(z=st.lists(st.integers(-6, 6), min_size=1, max_size=10), data=st.data())
    def test_the_steps_follow_their_documented_order(self, z, data):
        """Bias, penalties, temperature, top-k, top-p, min-p, each on what the one before left."""
        history = draw_history(data, len(z))
        bias = data.draw(st.dictionaries(st.integers(0, len(z) - 1), st.integers(-4, 4)))
        temperature = data.draw(st.sampled_from([0.5, 1.0, 2.0]), label="temperature")
        k = data.draw(st.integers(0, 6), label="k")
        # Values that no sum of probabilities reaches exactly, so that rounding decides nothing.
        share = data.draw(st.sampled_from([0.30103, 0.61803, 0.91429, 1.0]), label="p")
        ratio = data.draw(st.sampled_from([0.0, 0.11317, 0.47113]), label="ratio")
        repetition = data.draw(st.sampled_from([1.0, 2.0]), label="repetition")
        sampler = Sampler(
            temperature, k, share, ratio, repetition, 0.5, 0.25, repeat_last_n=5, logit_bias=bias
        )
        changed = penalised(biased([float(v) for v in z], bias), history, 5, repetition, 0.5, 0.25)
        p = min_p(top_p(top_k(softmax(changed, temperature), k), share), ratio)
        assert_probabilities(sampler.distribution(z, history), p, steps=3)

    @given(
        z=distributions,
        temperature=st.one_of(st.just(0.0), temperatures),
        k=st.integers(0, 5),
        share=shares,
        ratio=st.floats(0, 1),
    )
    def test_what_remains_is_a_distribution(self, z, temperature, k, share, ratio):
        p = Sampler(temperature, k, share, ratio).distribution(z)
        assert p.shape == (len(z),)
        assert (p >= 0).all()
        # Summed for the quotients, and once more here.
        assert_close(p.sum(), 1.0, "float64", chain=2 * len(z) + 1)
        assert not any(p[token] for token, v in enumerate(z) if v == -math.inf)

    def test_the_defaults_are_greedy(self):
        assert Sampler() == Sampler(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 64, {})

    def test_examples(self):
        z = np.log([0.1, 0.4, 0.3, 0.2])
        given = {
            (0.5, 0, 1.0, 0.0): [1 / 30, 16 / 30, 9 / 30, 4 / 30],
            (1.0, 2, 1.0, 0.0): [0, 4 / 7, 3 / 7, 0],
            (1.0, 0, 0.65, 0.0): [0, 4 / 7, 3 / 7, 0],
            (1.0, 0, 0.75, 0.0): [0, 4 / 9, 3 / 9, 2 / 9],
            (1.0, 0, 0.35, 0.0): [0, 1, 0, 0],
            (1.0, 0, 1.0, 0.6): [0, 4 / 7, 3 / 7, 0],
            (1.0, 2, 0.5, 0.0): [0, 1, 0, 0],  # 4/7 reach p; of all tokens 0.4 would not
        }
        for options, expected in given.items():
            assert_probabilities(Sampler(*options).distribution(z), expected, str(options), steps=3)

    def test_of_equal_tokens_the_lower_ids_are_kept(self):
        z = [0.0, 1.0, 1.0, 0.0, 1.0]
        for options in ({"top_k": 2}, {"top_p": 0.4}):
            p = Sampler(temperature=1.0, **options).distribution(z)
            assert_probabilities(p, [0, 0.5, 0.5, 0, 0], str(options), steps=1)
        assert Sampler(temperature=1.0, top_k=4).distribution(z).nonzero()[0].tolist() == [
            0,
            1,
            2,
            4,
        ]
        assert Sampler(temperature=1.0, top_p=0.5).distribution([0.0] * 4).tolist() == [
            0.5,
            0.5,
            0,
            0,
        ]

    def test_penalties_look_back_on_the_documented_64_tokens(self):
        history = [0] + [1] * 64
        p = Sampler(temperature=1.0, presence_penalty=1.0).distribution([0.0] * 3, history)
        assert_probabilities(p, softmax([0.0, -1.0, 0.0]))

    def test_the_logits_given_are_left_alone(self):
        z = np.array([1.0, 2.0, 3.0])
        Sampler(0.5, 2, 0.9, 0.1, 2.0, 1.0, 1.0, logit_bias={0: 1}).distribution(z, [0, 1])
        assert z.tolist() == [1.0, 2.0, 3.0]


class Constant:
    """A generator that draws one number for ever."""

    def __init__(self, value: float):
        self.value = value

    def random(self) -> float:
        return self.value


class TestSample:
    @given(z=distributions, k=st.integers(0, 5), share=shares,
           u=st.one_of(st.sampled_from([0.0, 1 - 2**-53]), st.floats(0, 1 - 2**-53)))  # fmt: skip
    def test_the_token_covers_the_uniform_draw(self, z, k, share, u):
        sampler = Sampler(1.0, k, share)
        p = sampler.distribution(z)
        token = sampler.sample(z, [], Constant(u))
        assert type(token) is int
        assert p[token] > 0
        below = math.fsum(p[:token])
        rounding = chain_bound(len(z) + 1, "float64")  # of the running sum, times u
        assert below - rounding <= u <= below + p[token] + rounding

    @given(z=distributions, seed=st.integers(0, 2**32), k=st.integers(0, 5), share=shares)
    def test_a_token_without_probability_is_never_drawn(self, z, seed, k, share):
        sampler = Sampler(1.0, k, share)
        p, rng = sampler.distribution(z), np.random.default_rng(seed)
        assert all(p[sampler.sample(z, [], rng)] > 0 for _ in range(20))

    @pytest.mark.parametrize(
        "options",
        [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.2}, {"temperature": 3.0},
         {"presence_penalty": 2}],
    )  # fmt: skip
    def test_frequencies_match_the_distribution(self, options):
        """Pearson's statistic stays below its mean by five standard deviations."""
        z = np.random.default_rng(0).standard_normal(12)
        sampler = Sampler(**{"temperature": 1.0} | options)
        p, rng, draws = sampler.distribution(z, [3, 3]), np.random.default_rng(1), 4000
        counts = Counter(sampler.sample(z, [3, 3], rng) for _ in range(draws))
        assert set(counts) <= set(np.flatnonzero(p))
        expected = {token: draws * p[token] for token in np.flatnonzero(p)}
        statistic = sum((counts[t] - e) ** 2 / e for t, e in expected.items())
        freedom = len(expected) - 1
        assert statistic < freedom + 5 * math.sqrt(2 * freedom)

    @given(z=distributions, seed=st.integers(0, 2**32))
    def test_the_same_seed_draws_the_same_tokens(self, z, seed):
        sampler = Sampler(temperature=1.0)
        first, second = np.random.default_rng(seed), np.random.default_rng(seed)
        for _ in range(10):
            assert sampler.sample(z, [], first) == sampler.sample(z, [], second)

    @given(z=distributions)
    def test_greedy_draws_nothing_from_the_generator(self, z):
        rng = np.random.default_rng(0)
        before = rng.bit_generator.state
        assert Sampler().sample(z, [], rng) == z.index(max(z))
        assert rng.bit_generator.state == before


def picked(sampler: Sampler, z, history, rng) -> int:
    """The documented draw, from the whole distribution."""
    cumulative = np.cumsum(sampler.distribution(z, history))
    u = rng.random() * cumulative[-1] if sampler.temperature else 0.0
    return int(np.searchsorted(cumulative, u, side="right"))


@st.composite
def vocabularies(draw):
    """Logits of a few hundred tokens, enough for selection in groups, with ties and gaps."""
    size = draw(st.sampled_from([1, 63, 64, 65, 191, 640, 1000]), label="size")
    rng = np.random.default_rng(draw(st.integers(0, 2**32), label="numbers"))
    z = rng.standard_normal(size) * draw(st.sampled_from([0.0, 0.1, 3.0, 30.0]), label="spread")
    kind = draw(st.sampled_from(["plain", "ties", "ruled out", "sorted", "one group"]))
    if kind == "ties":
        z = np.round(z)
    elif kind == "ruled out":
        z[rng.random(size) < 0.9] = -np.inf
        z[rng.integers(size)] = 1.0
    elif kind == "sorted":
        z = np.sort(z)[:: draw(st.sampled_from([1, -1]))]
    elif kind == "one group":  # the best tokens share a group: those with equal id mod size // 64
        z[:: max(size // 64, 1)] += 100
    return z.astype(draw(st.sampled_from([np.float32, np.float64])))


class TestShortcuts:
    """``sample`` takes shorter ways than ``distribution``, and selection looks at few tokens."""

    @settings(max_examples=300)
    @given(
        z=vocabularies(),
        temperature=st.sampled_from([0.0, 1e-3, 0.7, 1.0, 5.0]),
        k=st.sampled_from([0, 0, 1, 2, 5, 10, 40, 700]),
        share=st.sampled_from([1.0, 1.0, 1 - 2**-53, 0.95, 0.5, 1e-9]),
        ratio=st.sampled_from([0.0, 0.0, 0.05, 1.0]),
        penalties=st.sampled_from([(1.0, 0.0, 0.0), (1.3, 0.0, 0.0), (1.0, 0.5, 0.25)]),
        data=st.data(),
    )
    def test_they_pick_the_token_of_the_whole_distribution(
        self, z, temperature, k, share, ratio, penalties, data
    ):
        history = draw_history(data, len(z))
        values = st.one_of(st.just(-math.inf), st.floats(-20, 20))
        tokens = st.integers(0, len(z) - 1)
        bias = data.draw(st.one_of(st.just({}), st.dictionaries(tokens, values, max_size=3)))
        assume(any(v > -math.inf for v in biased(z.tolist(), bias)))
        sampler = Sampler(
            temperature, k, share, ratio, *penalties,
            repeat_last_n=data.draw(st.sampled_from([0, 5, -1])), logit_bias=bias,
        )  # fmt: skip
        before = z.copy()
        for seed in range(4):
            mine, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
            assert sampler.sample(z, history, mine) == picked(sampler, z, history, theirs)
            assert mine.random() == theirs.random()
        for u in (0.0, 0.5, 1 - 2**-53):
            assert sampler.sample(z, history, Constant(u)) == picked(
                sampler, z, history, Constant(u)
            )
        np.testing.assert_array_equal(z, before)

    @given(
        z=vocabularies(),
        temperature=st.sampled_from([0.7, 1.0, 5.0]),
        k=st.sampled_from([0, 1, 2, 5, 10, 40, 700]),
        share=st.sampled_from([0.30103, 0.61803, 0.91429, 1.0]),
        ratio=st.sampled_from([0.0, 0.11317, 0.47113]),
    )
    def test_selection_of_many_tokens_meets_the_definitions(self, z, temperature, k, share, ratio):
        p = Sampler(temperature).distribution(z).tolist()
        expected = top_k(p, k)
        if share < 1:  # 1 keeps even tokens that a rounded sum no longer needs
            expected = top_p(expected, share)
        expected = min_p(expected, ratio)
        found = Sampler(temperature, k, share, ratio).distribution(z)
        assert np.flatnonzero(found).tolist() == np.flatnonzero(expected).tolist()
        assert_probabilities(found, expected, steps=3)

    @given(z=vocabularies(), data=st.data())
    def test_one_log_probability_is_that_of_all(self, z, data):
        token = data.draw(st.integers(0, len(z) - 1))
        assert log_probability(z, token) == log_softmax(z)[token]

    @pytest.mark.parametrize("wrong", [math.nan, math.inf])
    def test_a_damaged_logit_is_found_wherever_it_stands(self, wrong):
        for token in (0, 500, 999):
            z = np.linspace(-1, 1, 1000, dtype=np.float32)
            z[token] = wrong
            for temperature in (0.0, 1.0):
                with pytest.raises(SamplingError, match=f"the logit of token {token} is {wrong}"):
                    Sampler(temperature).sample(z, [], np.random.default_rng(0))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperature": -0.1}, r"temperature must be in \[0, inf\), got -0.1"),
            ({"temperature": math.nan}, "temperature must be in .* got nan"),
            ({"temperature": math.inf}, "temperature must be in .* got inf"),
            ({"temperature": "1"}, "temperature must be in .* got '1'"),
            ({"temperature": True}, "temperature must be in .* got True"),
            ({"top_p": 0}, r"top_p must be in \(0, 1\], got 0"),
            ({"top_p": 1.01}, r"top_p must be in \(0, 1\], got 1.01"),
            ({"min_p": -1e-9}, r"min_p must be in \[0, 1\], got -1e-09"),
            ({"min_p": 1.5}, r"min_p must be in \[0, 1\], got 1.5"),
            ({"repetition_penalty": 0.0}, r"repetition_penalty must be in \(0, inf\), got 0.0"),
            ({"repetition_penalty": -1}, r"repetition_penalty must be in \(0, inf\), got -1"),
            ({"presence_penalty": math.inf}, "presence_penalty must be in .* got inf"),
            ({"frequency_penalty": math.nan}, "frequency_penalty must be in .* got nan"),
            ({"frequency_penalty": None}, "frequency_penalty must be in .* got None"),
            ({"top_k": -1}, "top_k must be an integer of at least 0, got -1"),
            ({"top_k": 1.5}, "top_k must be an integer of at least 0, got 1.5"),
            ({"top_k": True}, "top_k must be an integer of at least 0, got True"),
            ({"repeat_last_n": -2}, "repeat_last_n must be an integer of at least -1, got -2"),
            ({"logit_bias": {5: math.inf}}, "logit_bias of token 5 must be finite .*, got inf"),
            ({"logit_bias": {7: math.nan}}, "logit_bias of token 7 must be finite .*, got nan"),
            ({"logit_bias": {"5": 1.0}}, "logit_bias must be keyed by token ids, got '5'"),
        ],
    )  # fmt: skip
    def test_options_out_of_range_are_named(self, options, message):
        with pytest.raises(SamplingError, match=message):
            Sampler(**options)

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize(
        ("z", "message"),
        [
            ([0.0, math.nan, math.nan], r"the logit of token 1 is nan \(2 such in all\)"),
            ([0.0, 1.0, math.inf], r"the logit of token 2 is inf \(1 such in all\)"),
            ([-math.inf] * 3, "every token is ruled out"),
            ([], r"logits must have shape \(V,\), got \(0,\)"),
            ([[0.0, 1.0]], r"logits must have shape \(V,\), got \(1, 2\)"),
            (0.0, r"logits must have shape \(V,\), got \(\)"),
        ],
    )
    def test_logits_that_decide_nothing_are_named(self, temperature, z, message):
        sampler = Sampler(temperature=temperature)
        with pytest.raises(SamplingError, match=message):
            sampler.distribution(z)
        with pytest.raises(SamplingError, match=message):
            sampler.sample(z, [], np.random.default_rng(0))

    def test_ruling_out_every_token_by_bias_is_refused(self):
        sampler = Sampler(temperature=1.0, logit_bias={0: -math.inf, 1: -math.inf})
        with pytest.raises(SamplingError, match="every token is ruled out"):
            sampler.distribution([1.0, 2.0])

    @pytest.mark.parametrize("token", [3, -1])
    def test_a_bias_outside_the_vocabulary_is_refused(self, token):
        message = rf"logit_bias names token {token}, the vocabulary is \[0, 3\)"
        with pytest.raises(SamplingError, match=message):
            Sampler(logit_bias={token: 1.0}).distribution([0.0] * 3)

    @pytest.mark.parametrize(
        "sampler",
        [
            Sampler(temperature=1.0, logit_bias={1: 1.5e308}),
            Sampler(temperature=1.0, repetition_penalty=1e-9),
            Sampler(temperature=1.0, presence_penalty=-1.5e308),
        ],
    )
    def test_a_logit_taken_to_infinity_is_refused(self, sampler):
        with pytest.raises(SamplingError, match="the logit of token 1 to infinity"):
            sampler.distribution([0.0, 1e308], [1])


LOG_SOFTMAX = 2 * (1 + 2 + 2 + 1 + 1)
"""Difference, exponential, logarithm, difference, and the quotient by the scale, on either side."""


class TestLogSoftmax:
    @given(rows=st.lists(st.tuples(logit, logit, logit), min_size=1, max_size=4))
    def test_it_is_the_logarithm_of_the_distribution(self, rows):
        assume(all(max(row) > -math.inf for row in rows))
        found = log_softmax(np.array(rows))
        assert found.dtype == np.float64
        for z, log_p in zip(rows, found.tolist(), strict=True):
            log_total = math.log(math.fsum(math.exp(v - max(z)) for v in z))
            for v, value in zip(z, log_p, strict=True):
                if v == -math.inf:
                    assert value == -math.inf
                else:
                    scale = max(1, abs(v))
                    expected = (v - max(z) - log_total) / scale
                    assert_close(value / scale, expected, "float64", chain=LOG_SOFTMAX + 2 * len(z))

    def test_examples(self):
        assert log_softmax([7.0]).tolist() == [0.0]
        expected = [[math.log(0.25), math.log(0.75)]]
        found = log_softmax([[0.0, math.log(3)]])
        assert_close(found, expected, "float64", chain=LOG_SOFTMAX + 2 * 2)
        assert log_softmax(np.float32([1e4, 0.0])).tolist() == [0.0, -1e4]
