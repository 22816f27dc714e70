"""Generation: against loops over the model's call that are written here once more."""

import copy
import itertools
import re
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import SMALL, assert_close, assert_states_close, random_model

import griffin_np.generate
from griffin_conformance.envelope import longest_chain
from griffin_kernels.xla.data import train_tokenizer
from griffin_np.base import GenerationDefaults
from griffin_np.errors import PositionError, SamplingError, StateError, TokenizerError
from griffin_np.sampling import Sampler

WORDS = "the cat sat on a mat and the dog ran to the big red house with a small blue ball".split()

ENDS = {1, 5}  # end of sequence, end of turn

few = settings(max_examples=25)
some_text = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
seeds = st.just(0) | st.integers(0, 2**32)
# Bytes beyond ASCII are most of a small vocabulary: left in, texts are full of broken characters.
kinds = st.sampled_from(["any bytes", "text"])


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    text = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 5
    tokenizer = train_tokenizer(text, 330, tmp_path_factory.mktemp("vocabulary") / "t.model")
    model = random_model(SMALL.replace(vocab_size=tokenizer.vocab_size))
    model.attach_tokenizer(tokenizer)
    assert {model.config.eos_id, tokenizer.end_of_turn_id} == ENDS
    return model


@pytest.fixture(scope="session")
def bare(model):
    """The same model without a tokenizer."""
    bare = copy.copy(model)
    bare.tokenizer = None
    return bare


def assert_logprobs_close(found, expected, model, tokens: int) -> None:
    """Log probabilities after texts of so many tokens: a logit, and the sum over all of them."""
    chain = 2 * longest_chain(model.config, tokens) + model.config.vocab_size
    assert_close(found, expected, "float32", "log probability", chain=chain)


def with_defaults(model, **defaults):
    changed = copy.copy(model)
    changed.generation = GenerationDefaults(**defaults)
    return changed


def options_of(model, kind: str, seed: int) -> dict:
    """Sampling that gives varied text; seed 0 is greedy."""
    bytes_ = model.tokenizer.byte_values
    ruled_out = (
        [i for i, value in bytes_.items() if not 32 <= value < 127] if kind == "text" else []
    )
    return {
        "temperature": 1.0 if seed else 0.0,
        "seed": seed,
        "logit_bias": dict.fromkeys(ruled_out, -np.inf),
    }


def loop(model, prompt, count, options, row=0, state=None, ends=()) -> list[int]:
    """Generation as its documentation says, one call for each token."""
    rng = np.random.default_rng([options["seed"], row])
    sampler = Sampler(options["temperature"], logit_bias=options["logit_bias"])
    tokens: list[int] = []
    logits, state = model([prompt], state=state, logits="last")
    while len(tokens) < count:
        token = sampler.sample(logits[0], prompt + tokens, rng)
        if token in ends:
            break
        tokens.append(token)
        logits, state = model([[token]], state=state, logits="last")
    return tokens


def first_stop(model, tokens, stops) -> tuple[int, str] | None:
    """After how many tokens the text first holds a stop string, and the text before it."""
    decoder, text = model.tokenizer.decoder(), ""
    for count, token in enumerate(tokens, 1):
        text += decoder.push(token)
        if count == len(tokens):
            text += decoder.flush()
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            return count, text[: min(found)]
    return None


class TestTokens:
    @few
    @given(prompt=some_text, count=st.integers(1, 20))
    def test_greedy_is_the_loop_of_argmax(self, model, prompt, count):
        ids, tokens = model.tokenizer.encode(prompt), []
        for _ in range(count):
            logits, _ = model([ids + tokens], logits="last")
            tokens.append(int(np.argmax(logits[0])))
        assert model.generate(prompt, max_tokens=count, ignore_eos=True).tokens == tokens

    @few
    @given(prompt=some_text, seed=seeds, kind=kinds)
    def test_sampling_is_the_loop_of_the_sampler(self, model, prompt, seed, kind):
        options = options_of(model, kind, seed)
        expected = loop(model, model.tokenizer.encode(prompt), 16, options, ends=ENDS)
        assert model.generate(prompt, max_tokens=16, **options).tokens == expected

    @few
    @given(
        prompts=st.lists(some_text, min_size=1, max_size=4),
        seed=seeds,
        step=st.sampled_from([1, 2, 5, 512]),
    )
    def test_a_batch_is_each_row_on_its_own(self, model, prompts, seed, step):
        """Prompts of any lengths, read in steps of any size; a row draws from [seed, row]."""
        options = options_of(model, "any bytes", seed)
        with mock.patch.object(griffin_np.generate, "PREFILL_STEP", step):
            found = model.generate(prompts, max_tokens=12, **options)
        for row, (prompt, generation) in enumerate(zip(prompts, found, strict=True)):
            ids = model.tokenizer.encode(prompt)
            expected = loop(model, ids, 12, options, row, ends=ENDS)
            assert generation.tokens == expected
            assert generation.prompt_tokens == len(ids)
            if row == 0 or not seed:
                alone = model.generate(prompt, max_tokens=12, **options)
                assert (alone.tokens, alone.text) == (generation.tokens, generation.text)
                assert alone.finish_reason == generation.finish_reason
                assert_logprobs_close(generation.logprobs, alone.logprobs, model, len(ids) + 12)

    def test_equal_prompts_in_a_batch_draw_different_texts(self, model):
        found = model.generate(["the cat"] * 3, max_tokens=12, temperature=1.0, seed=1)
        assert len({tuple(generation.tokens) for generation in found}) == 3

    @few
    @given(prompts=st.lists(some_text, min_size=2, max_size=4), seed=seeds, data=st.data())
    def test_rows_end_on_their_own(self, model, prompts, seed, data):
        """End tokens and a stop string taken from one row end the others where they occur."""
        options = options_of(model, "text", seed) | {"max_tokens": 14}
        free = model.generate(prompts, ignore_eos=True, **options)
        ends = data.draw(st.sets(st.sampled_from(free[0].tokens), max_size=2), label="ends")
        stop = data.draw(st.sampled_from(["e", " ", free[1].text[3:5] or "q"]), label="stop")
        ending = with_defaults(model, eos_ids=tuple(ends))
        found = ending.generate(prompts, stop=stop, **options)
        for whole, part in zip(free, found, strict=True):
            tokens = whole.tokens
            end = [i for i, token in enumerate(tokens) if token in (ends or {1}) | {5}]
            tokens = tokens[: end[0]] if end else tokens
            text, reason = model.tokenizer.decode(tokens), "stop" if end else "length"
            if stopped := first_stop(model, tokens, [stop]):
                tokens, text, reason = tokens[: stopped[0]], stopped[1], "stop"
            assert (part.tokens, part.text, part.finish_reason) == (tokens, text, reason)
            assert part.logprobs == whole.logprobs[: len(tokens)]

    @few
    @given(prompt=some_text, seed=seeds, kind=kinds)
    def test_logprobs_are_the_models_own(self, model, prompt, seed, kind):
        """Log softmax of the logits at each step, whatever the sampling options."""
        options = options_of(model, kind, seed) | {"presence_penalty": 0.5, "top_k": 40}
        found = model.generate(prompt, max_tokens=10, ignore_eos=True, **options)
        ids = model.tokenizer.encode(prompt)
        logits = model([ids + found.tokens])[0][0, len(ids) - 1 : -1].astype(np.float64)
        expected = [
            z[token] - z.max() - np.log(np.exp(z - z.max()).sum())
            for z, token in zip(logits, found.tokens, strict=True)
        ]
        assert_logprobs_close(found.logprobs, expected, model, len(ids) + 10)

    def test_the_seed_reported_gives_the_text_again(self, model):
        found = [model.generate("the cat", max_tokens=20, temperature=1.0) for _ in range(3)]
        assert len({generation.seed for generation in found}) == 3
        for generation in found:
            again = model.generate("the cat", max_tokens=20, temperature=1.0, seed=generation.seed)
            assert (again.tokens, again.seed) == (generation.tokens, generation.seed)

    def test_penalties_look_back_into_the_prompt(self, model):
        likeliest = model.generate("the cat", max_tokens=1, ignore_eos=True).tokens
        prompt = [*likeliest, *model.tokenizer.encode("the cat")]
        first = model.generate(prompt, max_tokens=1, ignore_eos=True).tokens
        prompt = [*first, *prompt]
        penalised = {"presence_penalty": 1e3, "max_tokens": 1, "ignore_eos": True}
        found = model.generate(prompt, repeat_last_n=-1, **penalised).tokens
        assert found[0] not in prompt
        unseen = model.generate(prompt, repeat_last_n=0, **penalised).tokens
        assert unseen == model.generate(prompt, max_tokens=1, ignore_eos=True).tokens

    def test_penalties_look_back_on_the_text(self, model):
        options = {"max_tokens": 40, "ignore_eos": True, "presence_penalty": 1e3}
        tokens = model.generate("a", **options).tokens
        assert len(set(tokens)) == 40
        tokens = model.generate("a", repeat_last_n=3, **options).tokens
        assert all(len(set(tokens[i : i + 4])) == 4 for i in range(37))
        assert len(set(tokens)) < 40


class TestText:
    @few
    @given(prompt=some_text, seed=seeds, kind=kinds)
    def test_pieces_make_the_text_of_the_tokens(self, model, prompt, seed, kind):
        options = options_of(model, kind, seed) | {"max_tokens": 16}
        whole = model.generate(prompt, **options)
        stream = model.stream(prompt, **options)
        pieces = list(stream)
        assert "".join(pieces) == whole.text == model.tokenizer.decode(whole.tokens)
        assert str(whole) == whole.text
        assert [token for piece in pieces for token in piece.tokens] == whole.tokens
        assert [value for piece in pieces for value in piece.logprobs] == whole.logprobs
        assert all(pieces[:-1])
        assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish_reason == whole.finish_reason
        assert stream.result.text == whole.text
        assert stream.result.tokens == whole.tokens

    @few
    @given(prompt=some_text, seed=seeds)
    def test_a_piece_is_given_as_soon_as_it_is_certain(self, model, prompt, seed):
        """Without stop strings only bytes of unfinished characters wait."""
        stream = model.stream(prompt, max_tokens=12, **options_of(model, "any bytes", seed))
        decoder, text, count = model.tokenizer.decoder(), "", 0
        for piece in stream:
            text += piece
            count += len(piece.tokens)
            certain = "".join(map(decoder.push, piece.tokens))
            assert piece == certain + (decoder.flush() if piece.finish_reason else "")
            assert stream.result.text == text
            assert len(stream.result.tokens) == count

    @settings(max_examples=60)
    @given(prompt=some_text, seed=seeds, kind=kinds, data=st.data())
    def test_a_stop_string_ends_the_text_before_it(self, model, prompt, seed, kind, data):
        """Any part of a text, wherever tokens meet in it, ends the text at its first occurrence."""
        options = options_of(model, kind, seed) | {"max_tokens": 14}
        whole = model.generate(prompt, **options)
        assume(whole.text)
        start = data.draw(st.integers(0, len(whole.text) - 1), label="start")
        stop = data.draw(st.sampled_from([whole.text[start : start + n] for n in (1, 2, 3, 9)]))
        expected = whole.text[: whole.text.index(stop)]
        stream = model.stream(prompt, stop=stop, **options)
        shown = ""
        for piece in stream:
            shown += piece
            assert expected.startswith(shown)
        assert shown == stream.result.text == expected
        assert stream.result.finish_reason == "stop"
        count, before = first_stop(model, whole.tokens, [stop])
        assert before == expected
        assert stream.result.tokens == whole.tokens[:count]

    @few
    @given(prompt=some_text, seed=seeds, data=st.data())
    def test_of_several_stop_strings_the_first_complete_one_counts(self, model, prompt, seed, data):
        options = options_of(model, "text", seed) | {"max_tokens": 14}
        whole = model.generate(prompt, **options)
        part = st.builds(lambda i, n: whole.text[i : i + n], st.integers(0, 30), st.integers(1, 6))
        stops = data.draw(st.lists(part.filter(bool) | st.just("no such text"), max_size=3))
        found = model.generate(prompt, stop=stops, **options)
        stopped = first_stop(model, whole.tokens, stops)
        count, text = stopped or (len(whole.tokens), whole.text)
        assert (found.text, found.tokens) == (text, whole.tokens[:count])
        assert found.finish_reason == ("stop" if stopped else whole.finish_reason)

    def test_of_stop_strings_in_one_token_the_leftmost_counts(self, model):
        the = model.tokenizer.piece_to_id("▁the")
        found = model.generate("a", stop=["he", "t", "e"], logit_bias={the: 1e3})
        assert (found.text, found.tokens, found.finish_reason) == (" ", [the], "stop")

    def test_a_stop_string_may_be_what_was_left_of_a_character(self, model):
        byte = model.tokenizer.piece_to_id("<0xE2>")
        found = model.generate("a", stop="\ufffd", logit_bias={byte: 1e3}, max_tokens=1)
        assert (found.text, found.tokens, found.finish_reason) == ("", [byte], "stop")

    def test_what_only_began_a_stop_string_is_given_at_the_end(self, model):
        whole = model.generate("the cat", max_tokens=8, ignore_eos=True)
        stop = whole.text[-3:] + "no such text"
        stream = model.stream("the cat", max_tokens=8, ignore_eos=True, stop=stop)
        *_, last = stream
        assert last.endswith(whole.text[-3:])
        assert last.finish_reason == "length"
        assert stream.result.text == whole.text

    def test_a_stop_string_in_the_prompt_is_none(self, model):
        whole = model.generate("the cat", max_tokens=8, ignore_eos=True)
        assert "cat" not in whole.text
        found = model.generate("the cat", max_tokens=8, ignore_eos=True, stop="cat")
        assert found.tokens == whole.tokens

    def test_one_prompt_gives_one_result_and_a_list_a_list(self, model):
        ids = model.tokenizer.encode("the cat")
        one = model.generate("the cat", max_tokens=3)
        for prompt in (ids, tuple(ids), np.array(ids)):
            assert model.generate(prompt, max_tokens=3).tokens == one.tokens
        for prompts in (["the cat"], [ids], np.array([ids])):
            (row,) = model.generate(prompts, max_tokens=3)
            assert (row.tokens, row.text) == (one.tokens, one.text)
        mixed = model.generate(["the cat", ids], max_tokens=3)
        assert [row.tokens for row in mixed] == [one.tokens] * 2


class TestEnds:
    @pytest.mark.parametrize("count", [0, 1])
    def test_no_token_and_one_token(self, model, count):
        found = model.generate("the cat", max_tokens=count, ignore_eos=True)
        assert len(found.tokens) == len(found.logprobs) == count
        assert found.finish_reason == "length"
        assert found.text == model.tokenizer.decode(found.tokens)
        assert found.prompt_tokens == len(model.tokenizer.encode("the cat"))
        pieces = list(model.stream("the cat", max_tokens=count, ignore_eos=True))
        assert [piece.finish_reason for piece in pieces] == ["length"]
        assert pieces == [found.text]

    def test_no_token_for_a_batch(self, model):
        found = model.generate(["the cat", "a"], max_tokens=0)
        assert [(g.text, g.tokens, g.finish_reason) for g in found] == [("", [], "length")] * 2

    @pytest.mark.parametrize("token", ["eos", "end of turn"])
    def test_an_end_token_ends_the_text_and_is_no_part_of_it(self, model, token):
        token = {"eos": model.config.eos_id, "end of turn": model.tokenizer.end_of_turn_id}[token]
        bias = {"logit_bias": {token: 1e3}, "max_tokens": 3}
        found = model.generate("the cat", **bias)
        assert (found.tokens, found.text, found.finish_reason) == ([], "", "stop")
        found = model.generate("the cat", ignore_eos=True, **bias)
        assert (found.tokens, found.finish_reason) == ([token] * 3, "length")
        assert found.text == model.tokenizer.decode([token] * 3)

    def test_the_checkpoints_end_tokens_replace_eos(self, model):
        ending = with_defaults(model, eos_ids=(9, 10))
        for token in (9, 10):
            assert ending.generate("a", logit_bias={token: 1e3}).finish_reason == "stop"
        found = ending.generate("a", logit_bias={model.config.eos_id: 1e3}, max_tokens=2)
        assert (len(found.tokens), found.finish_reason) == (2, "length")

    def test_the_last_token_may_also_stop(self, model):
        whole = model.generate("the cat", max_tokens=5, ignore_eos=True)
        stop = whole.text[-1]
        count, text = first_stop(model, whole.tokens, [stop])
        found = model.generate("the cat", max_tokens=count, ignore_eos=True, stop=stop)
        assert (found.finish_reason, found.text, len(found.tokens)) == ("stop", text, count)

    def test_256_tokens_are_the_default(self, bare):
        assert len(bare.generate([2, 7], ignore_eos=True).tokens) == 256


class TestState:
    @few
    @given(prompt=some_text, seed=seeds, kind=kinds, stop=st.sampled_from([(), "e", "th"]))
    def test_it_is_the_state_after_prompt_and_tokens(self, model, prompt, seed, kind, stop):
        """Whatever ended the text: length, an end token, or a stop string."""
        options = options_of(model, kind, seed)
        stream = model.stream(prompt, max_tokens=12, stop=stop, **options)
        for _ in stream:
            pass
        ids = model.tokenizer.encode(prompt) + stream.result.tokens
        expected = model([ids], logits="none")[1]
        assert_states_close(stream.state, expected, "float32")
        assert_states_close(stream.state, expected, "float32")

    @few
    @given(prompt=some_text, seed=seeds, after=st.integers(0, 8))
    def test_it_may_be_read_at_any_time(self, model, prompt, seed, after):
        """And changes nothing about what comes next."""
        options = options_of(model, "any bytes", seed) | {"max_tokens": 8}
        stream = model.stream(prompt, **options)
        text = "".join(itertools.islice(stream, after))
        assert text == stream.result.text
        ids = model.tokenizer.encode(prompt) + stream.result.tokens
        assert_states_close(stream.state, model([ids], logits="none")[1], "float32")
        text += "".join(stream)
        whole = model.generate(prompt, **options)
        assert (text, stream.result.tokens) == (whole.text, whole.tokens)

    @few
    @given(prompt=some_text, before=st.integers(0, 9), after=st.integers(1, 9))
    def test_going_on_from_it_is_one_long_run(self, model, prompt, before, after):
        """A continuation needs a token to read, so the one between the two runs is given."""
        options = {"ignore_eos": True}
        whole = model.generate(prompt, max_tokens=before + 1 + after, **options).tokens
        first = model.stream(prompt, max_tokens=before, **options)
        assert len("".join(first)) == len(first.result.text)
        between = [whole[before]]
        rest = model.generate(between, state=first.state, max_tokens=after, **options)
        assert first.result.tokens + between + rest.tokens == whole

    def test_a_batch_goes_on_row_by_row(self, model):
        texts = ["the cat sat", "a", "the big red house"]
        streams = [model.stream(text, max_tokens=4, ignore_eos=True) for text in texts]
        for stream in streams:
            for _ in stream:
                pass
        states = [stream.state for stream in streams]
        joined = type(states[0]).concat(states)
        ids = [[7], [8, 9, 10], [11, 12]]
        found = model.generate(ids, state=joined, max_tokens=5, ignore_eos=True)
        for row, state in enumerate(states):
            alone = model.generate(ids[row], state=state, max_tokens=5, ignore_eos=True)
            assert found[row].tokens == alone.tokens

    def test_a_state_given_is_left_alone(self, model):
        state = model([[2, 7, 8]])[1]
        arrays = {name: array.copy() for name, array in state.arrays().items()}
        model.generate([9], state=state, max_tokens=4)
        assert state.position.tolist() == [3]
        for name, array in state.arrays().items():
            np.testing.assert_array_equal(array, arrays[name])

    def test_text_gets_bos_unless_it_continues(self, model):
        size = len(model.tokenizer.encode("the cat", bos=False))
        options = {"max_tokens": 2, "ignore_eos": True}
        fresh = model.generate("the cat", **options)
        assert fresh.prompt_tokens == size + 1
        started = model.generate("the cat", state=model.init_state(), **options)
        assert (started.prompt_tokens, started.tokens) == (size + 1, fresh.tokens)
        state = model([[2, 7]])[1]
        continued = model.generate("the cat", state=state, **options)
        assert continued.prompt_tokens == size
        ids = [2, 7, *model.tokenizer.encode("the cat", bos=False)]
        assert continued.tokens == model.generate(ids, **options).tokens

    def test_an_interrupted_prompt_is_read_again_as_a_whole(self, model):
        ids, calls = model.tokenizer.encode("the cat sat on a mat"), []

        def interrupt(done, total):
            calls.append((done, total))
            if len(calls) == 2:
                raise KeyboardInterrupt

        with mock.patch.object(griffin_np.generate, "PREFILL_STEP", 2):
            stream = model.stream(ids, max_tokens=4, progress=interrupt)
            with pytest.raises(KeyboardInterrupt):
                next(stream)
            state = stream.state
        assert calls[:2] == [(2, len(ids)), (4, len(ids))]
        assert_states_close(state, model([ids], logits="none")[1], "float32")


class TestDefaults:
    def test_the_checkpoints_sampling_is_followed(self, model):
        sampled = with_defaults(model, temperature=1.3, top_k=7, top_p=0.9)
        given = {"max_tokens": 12, "seed": 3, "ignore_eos": True}
        explicit = {"temperature": 1.3, "top_k": 7, "top_p": 0.9}
        expected = model.generate("the cat", **explicit, **given).tokens
        assert sampled.generate("the cat", **given).tokens == expected
        assert sampled.generate("the cat", top_k=None, temperature=None, **given).tokens == expected
        one = sampled.generate("the cat", top_k=1, **given).tokens
        assert one == model.generate("the cat", **given).tokens != expected
        greedy = sampled.generate("the cat", temperature=0, **given).tokens
        assert greedy == model.generate("the cat", **given).tokens

    def test_without_any_it_is_greedy(self, model):
        given = {"max_tokens": 8, "ignore_eos": True}
        expected = model.generate("the cat", temperature=0.0, **given).tokens
        assert model.generate("the cat", **given).tokens == expected

    def test_a_sampler_may_be_given_instead_of_options(self, model):
        given = {"max_tokens": 8, "seed": 1}
        expected = model.generate("the cat", temperature=0.8, min_p=0.01, **given).tokens
        sampler = Sampler(temperature=0.8, min_p=0.01)
        assert model.generate("the cat", sampler=sampler, **given).tokens == expected

    def test_progress_tells_the_prompt_read(self, model):
        calls = []
        prompt = [7] * 1100
        model.generate(prompt, max_tokens=0, progress=lambda *call: calls.append(call))
        assert calls == [(512, 1100), (1024, 1100), (1100, 1100)]

    def test_times_and_speeds_are_told(self, model):
        found = model.generate("the cat", max_tokens=4, ignore_eos=True)
        assert found.prompt_seconds > 0
        assert found.generation_seconds > 0
        assert found.prompt_tokens_per_second == found.prompt_tokens / found.prompt_seconds
        assert found.tokens_per_second == 4 / found.generation_seconds


class TestWithoutTokenizer:
    def test_ids_give_ids(self, model, bare):
        ids = model.tokenizer.encode("the cat")
        found = bare.generate(ids, max_tokens=6, ignore_eos=True)
        assert found.tokens == model.generate(ids, max_tokens=6, ignore_eos=True).tokens
        assert found.text == ""
        pieces = list(bare.stream(ids, max_tokens=6, ignore_eos=True))
        assert [list(piece.tokens) for piece in pieces] == [[token] for token in found.tokens]
        assert [value for piece in pieces for value in piece.logprobs] == found.logprobs

    def test_eos_still_ends(self, bare):
        found = bare.generate([2, 7], logit_bias={bare.config.eos_id: 1e3})
        assert (found.tokens, found.finish_reason) == ([], "stop")

    @pytest.mark.parametrize(("prompt", "stop"), [("the cat", ()), ([2, 7], "a")])
    def test_text_is_refused(self, bare, prompt, stop):
        with pytest.raises(TokenizerError, match="this model has no tokenizer"):
            bare.generate(prompt, stop=stop)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_tokens": -1}, "max_tokens must be .* at least 0, got -1"),
            ({"max_tokens": 2.0}, "max_tokens must be .* at least 0, got 2.0"),
            ({"max_tokens": True}, "max_tokens must be .* at least 0, got True"),
            ({"max_tokens": None}, "max_tokens must be .* at least 0, got None"),
            ({"seed": -3}, "seed must be an integer of at least 0, got -3"),
            ({"seed": 0.5}, "seed must be an integer of at least 0, got 0.5"),
            ({"seed": "1"}, "seed must be an integer of at least 0, got '1'"),
            ({"stop": ""}, r"stop strings must be non-empty text, got \[''\]"),
            ({"stop": ["a", 5]}, r"must be non-empty text, got \['a', 5\]"),
            ({"temprature": 1}, r"unknown option\(s\) \['temprature'\]; known: .*'top_p'"),
            ({"temperature": -1.0}, "temperature must be in .* got -1.0"),
            ({"logit_bias": {330: 1.0}}, "logit_bias names token 330"),
            (
                {"sampler": Sampler(), "top_k": 3},
                r"pass a sampler or options, not both: \['top_k'\]",
            ),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("how", ["generate", "stream"])
    def test_options_that_cannot_be_used_are_named(self, model, how, options, message):
        with pytest.raises(SamplingError, match=message):
            list(getattr(model, how)("the cat", **options))

    @pytest.mark.parametrize("prompt", [[], [[]], [[2, 7], []], ["the cat", []]])
    def test_an_empty_prompt_is_refused(self, model, prompt):
        with pytest.raises(SamplingError, match="a prompt has no tokens"):
            model.generate(prompt)

    def test_empty_text_is_a_prompt_only_at_the_beginning(self, model):
        assert model.generate("", max_tokens=1).prompt_tokens == 1
        with pytest.raises(SamplingError, match="a prompt has no tokens"):
            model.generate("", state=model([[2, 7]])[1])

    @pytest.mark.parametrize("token", [-1, 330])
    def test_ids_outside_the_vocabulary_are_refused(self, model, token):
        message = rf"token {token} in row 1, column 1 is outside the vocabulary \[0, 330\)"
        with pytest.raises(PositionError, match=message):
            model.generate([[2, 7], [2, token]])

    def test_a_state_of_another_batch_is_refused(self, model):
        state = model([[2, 7], [2, 8]])[1]
        with pytest.raises(StateError, match=re.escape("the state has 2 row(s) for 1 prompt(s)")):
            model.generate("the cat", state=state)
        with pytest.raises(StateError, match=re.escape("the state has 2 row(s) for 3 prompt(s)")):
            model.generate(["the cat"] * 3, state=state)

    def test_a_state_of_another_model_is_refused(self, model):
        other = random_model(model.config, seed=1)
        with pytest.raises(StateError, match="other weights"):
            model.generate("the cat", state=other([[2, 7]])[1])
