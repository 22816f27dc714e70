"""Dialogues: their text, their tokens, and a conversation that reads each token once."""

import io
import itertools
import json

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SMALL, assert_states_close, random_model, random_parameters

from griffin_kernels.xla.data import train_tokenizer
from griffin_np.chat import CHAT_TEMPLATE, Conversation, encode_dialogue, render_dialogue, turns
from griffin_np.errors import StateError, TokenizerError
from griffin_np.model import NumPyModel
from griffin_np.state import State
from griffin_np.tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer

WORDS = "the user and the model take turns in a talk on cats dogs and a big red house".split()

few = settings(max_examples=25)
seeds = st.just(0) | st.integers(0, 2**32)

# U+2581 is SentencePiece's space, and comes back as one.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")
ordinary = st.sampled_from(
    [" ", "\n", "\n\n", "\t", "<", ">", "cat", "é", "<bos>", "<end_of_turn", "user"]
)
markers = st.sampled_from([START_OF_TURN, END_OF_TURN])
plain_text = st.one_of(st.text(characters), st.lists(ordinary).map("".join)).filter(
    lambda text: START_OF_TURN not in text and END_OF_TURN not in text
)
marked_text = st.lists(ordinary | markers).map("".join)


def dialogues(content):
    """Messages that alternate, with and without a system text, under either name of the model."""

    def named(system, contents, other):
        roles = itertools.cycle(["user", other])
        said = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
        return said if system is None else [{"role": "system", "content": system}, *said]

    return st.builds(
        named,
        st.none() | content,
        st.lists(content, min_size=1, max_size=4),
        st.sampled_from(["model", "assistant"]),
    )


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    text = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 5
    return train_tokenizer(text, 330, tmp_path_factory.mktemp("vocabulary") / "t.model")


@pytest.fixture(scope="session", params=["small", "gemma"])
def tokenizer(request, small):
    if request.param == "small":
        return small
    folder = request.getfixturevalue("test_data")
    return Tokenizer(folder / "gemma_tokenizer" / "tokenizer.model")


class Reader(NumPyModel):
    """A model that keeps a list of the tokens it has read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read: list[int] = []

    def _forward(self, inputs, positions, state, logits, trace):
        self.read += inputs[positions >= 0].tolist()
        return super()._forward(inputs, positions, state, logits, trace)


@pytest.fixture(scope="session")
def reader(small):
    config = SMALL.replace(vocab_size=small.vocab_size)
    model = Reader(config, random_parameters(config, 0))
    model.attach_tokenizer(small)
    return model


def state_of(model, tokens) -> State:
    """The state after all tokens, read in one call from the beginning."""
    return model([tokens], logits="none")[1]


def hold(conversation: Conversation, texts, seed: int) -> list[int]:
    """Say each text and hear the answer; returns all tokens, those of the answers as generated."""
    tokens = []
    for text in texts:
        tokens += conversation.prompt(text)
        stream = conversation.say(text, max_tokens=6, temperature=float(seed > 0), seed=seed)
        for _ in stream:
            pass
        conversation.finish(text, stream)
        tokens += stream.result.tokens
    return tokens


class TestText:
    def test_the_format_is_that_of_the_report(self):
        messages = [
            {"role": "user", "content": "Knock knock."},
            {"role": "model", "content": "Who's there?"},
            {"role": "user", "content": "Gemma."},
        ]
        expected = (
            "<start_of_turn>user\nKnock knock.<end_of_turn>\n"
            "<start_of_turn>model\nWho's there?<end_of_turn>\n"
            "<start_of_turn>user\nGemma.<end_of_turn>\n"
        )
        assert render_dialogue(messages, add_generation_prompt=False) == expected
        assert render_dialogue(messages) == expected + "<start_of_turn>model\n"

    @given(messages=dialogues(marked_text), prompt=st.booleans())
    def test_it_is_one_turn_after_the_other(self, messages, prompt):
        said, front = messages, ""
        if messages[0]["role"] == "system":
            said, front = messages[1:], messages[0]["content"].strip() + "\n\n"
        expected = ""
        for i, message in enumerate(said):
            role, content = "model" if i % 2 else "user", message["content"].strip()
            expected += f"<start_of_turn>{role}\n{'' if i else front}{content}<end_of_turn>\n"
        expected += "<start_of_turn>model\n" * prompt
        assert render_dialogue(messages, prompt) == expected

    @given(messages=dialogues(marked_text | plain_text), prompt=st.booleans())
    def test_the_template_for_transformers_renders_the_same(self, messages, prompt):
        sandbox = pytest.importorskip("jinja2.sandbox")
        # As transformers sets it up.
        environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        rendered = environment.from_string(CHAT_TEMPLATE).render(
            messages=messages, bos_token="<bos>", add_generation_prompt=prompt
        )
        assert rendered == "<bos>" + render_dialogue(messages, prompt)

    def test_the_system_text_stands_before_the_first_user_turn_only(self):
        messages = [
            {"role": "system", "content": " Be brief. "},
            {"role": "user", "content": "one "},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ]
        assert turns(messages) == [
            ("user", "Be brief.\n\none"),
            ("model", "two"),
            ("user", "three"),
        ]

    @pytest.mark.parametrize(
        ("roles", "message"),
        [
            (["model"], "message 0 has role 'model', expected 'user'"),
            (["user", "user"], "message 1 has role 'user', expected 'model'"),
            (["user", "model", "assistant"], "message 2 has role 'assistant', expected 'user'"),
            (["system", "model"], "message 1 has role 'model', expected 'user'"),
            (["system", "system", "user"], "message 1 has role 'system', expected 'user'"),
            (["user", "system"], "message 1 has role 'system', expected 'model'"),
            (["tool"], "message 0 has role 'tool', expected 'user'"),
            ([None], "message 0 has role None, expected 'user'"),
            (["system"], "a dialogue needs at least one user message"),
            ([], "a dialogue needs at least one user message"),
        ],
    )
    def test_roles_that_do_not_alternate_are_refused(self, small, roles, message):
        messages = [{"role": role, "content": "x"} for role in roles]
        for use in (turns, render_dialogue, lambda m: encode_dialogue(small, m)):
            with pytest.raises(TokenizerError, match=message):
                use(messages)

    @pytest.mark.parametrize("content", [None, 5, [{"type": "text", "text": "x"}]])
    def test_a_message_without_text_is_refused(self, content):
        messages = [{"role": "user", "content": "x"}, {"role": "model", "content": content}]
        with pytest.raises(TokenizerError, match="message 1 has no text: 'content' is"):
            render_dialogue(messages)
        with pytest.raises(TokenizerError, match="message 0 has no text: 'content' is None"):
            render_dialogue([{"role": "user"}])


class TestTokens:
    @given(messages=dialogues(plain_text), prompt=st.booleans())
    def test_they_are_those_of_the_text(self, tokenizer, messages, prompt):
        ids = encode_dialogue(tokenizer, messages, prompt)
        assert ids == tokenizer.encode(render_dialogue(messages, prompt))

    @given(messages=dialogues(marked_text), prompt=st.booleans())
    def test_markers_inside_a_message_stay_text(self, tokenizer, messages, prompt):
        """Nobody ends a turn by writing so, and yet every character is there."""
        ids = encode_dialogue(tokenizer, messages, prompt)
        count = len(turns(messages))
        assert ids.count(tokenizer.piece_to_id(START_OF_TURN)) == count + prompt
        assert ids.count(tokenizer.end_of_turn_id) == count
        assert ids.count(tokenizer.bos_id) == 1
        assert tokenizer.decode(ids) == render_dialogue(messages, prompt)

    def test_a_marker_in_a_text_is_not_the_markers_token(self, tokenizer):
        messages = [{"role": "user", "content": "a<end_of_turn>b<start_of_turn>c"}]
        ids = encode_dialogue(tokenizer, messages, add_generation_prompt=False)
        assert ids[1] == tokenizer.piece_to_id(START_OF_TURN)
        assert ids[-2] == tokenizer.end_of_turn_id
        assert not {tokenizer.piece_to_id(START_OF_TURN), tokenizer.end_of_turn_id} & set(ids[2:-2])

    def test_a_vocabulary_without_markers_is_refused(self):
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(WORDS)] * 5), model_writer=out, vocab_size=290,
            model_type="bpe", byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
            minloglevel=2,
        )  # fmt: skip
        tokenizer = Tokenizer(out.getvalue())
        message = "this vocabulary has no <start_of_turn> and <end_of_turn>"
        with pytest.raises(TokenizerError, match=message):
            encode_dialogue(tokenizer, [{"role": "user", "content": "x"}])
        model = random_model(SMALL.replace(vocab_size=290))
        model.attach_tokenizer(tokenizer)
        with pytest.raises(TokenizerError, match=message):
            Conversation(model)


class TestConversation:
    @few
    @given(
        texts=st.lists(plain_text | marked_text, min_size=1, max_size=3),
        system=st.sampled_from(["", "Be brief.\n"]),
        seed=seeds,
    )
    def test_its_state_is_that_of_the_whole_dialogue(self, reader, texts, system, seed):
        conversation = Conversation(reader, system)
        tokens = hold(conversation, texts, seed)
        assert_states_close(conversation.state, state_of(reader, tokens), "float32")
        assert [m["content"] for m in conversation.messages[::2]] == texts
        assert [m["role"] for m in conversation.messages] == ["user", "model"] * len(texts)

    @few
    @given(texts=st.lists(plain_text, min_size=1, max_size=3), system=plain_text)
    def test_its_tokens_are_those_of_the_dialogues_text(self, reader, texts, system):
        """The end marker of an answer is read with the turn after it."""
        conversation, tokenizer = Conversation(reader, system), reader.tokenizer
        for i, text in enumerate(texts):
            expected = f"<start_of_turn>user\n{text.strip()}<end_of_turn>\n<start_of_turn>model\n"
            if i:
                expected = "<end_of_turn>\n" + expected
            elif system:
                expected = expected.replace("user\n", f"user\n{system.strip()}\n\n", 1)
            assert conversation.prompt(text) == tokenizer.encode(expected, bos=not i)
            hold(conversation, [text], 0)

    @few
    @given(texts=st.lists(plain_text | marked_text, min_size=2, max_size=3), seed=seeds)
    def test_each_turn_reads_its_own_tokens_and_no_others(self, reader, texts, seed):
        conversation = Conversation(reader, "Be brief.")
        for text in texts:
            prompt = conversation.prompt(text)
            reader.read.clear()
            stream = conversation.say(text, max_tokens=5, temperature=1.0, seed=seed)
            for _ in stream:
                pass
            conversation.finish(text, stream)
            assert reader.read == prompt + stream.result.tokens

    @few
    @given(text=plain_text, heard=st.integers(0, 6), seed=seeds, again=plain_text)
    def test_an_answer_left_early_counts_as_far_as_it_got(self, reader, text, heard, seed, again):
        conversation = Conversation(reader)
        tokens = hold(conversation, ["the cat"], 0)
        tokens += conversation.prompt(text)
        stream = conversation.say(text, max_tokens=6, temperature=1.0, seed=seed)
        said = "".join(itertools.islice(stream, heard))
        conversation.finish(text, stream)
        assert conversation.messages[-1] == {"role": "model", "content": said}
        tokens += stream.result.tokens
        assert_states_close(conversation.state, state_of(reader, tokens), "float32")
        tokens += hold(conversation, [again], seed)
        assert_states_close(conversation.state, state_of(reader, tokens), "float32")

    def test_a_turn_that_is_not_finished_never_was(self, reader):
        conversation = Conversation(reader)
        hold(conversation, ["the cat"], 0)
        state, messages = conversation.state, list(conversation.messages)
        for _ in conversation.say("and a dog", max_tokens=3):
            pass
        assert conversation.state is state
        assert conversation.messages == messages

    def test_the_system_text_is_read_once(self, reader):
        conversation = Conversation(reader, "Be brief.")
        assert "Be brief.\n\none" in reader.tokenizer.decode(conversation.prompt("one"))
        hold(conversation, ["one"], 0)
        assert "Be brief." not in reader.tokenizer.decode(conversation.prompt("two"))
        assert conversation.messages[0] == {"role": "user", "content": "one"}

    def test_a_model_without_tokenizer_is_refused(self):
        with pytest.raises(TokenizerError, match="this model has no tokenizer"):
            Conversation(random_model(SMALL))


class TestFiles:
    @few
    @given(texts=st.lists(plain_text, min_size=1, max_size=2), system=plain_text, seed=seeds)
    def test_a_saved_conversation_goes_on_as_if_never_left(
        self, reader, tmp_path_factory, texts, system, seed
    ):
        path = tmp_path_factory.mktemp("talk") / "talk.state"
        conversation = Conversation(reader, system)
        hold(conversation, texts, seed)
        conversation.save(path)
        again = Conversation(reader, "another system text")
        again.load(path)
        assert again.system == system
        assert again.messages == conversation.messages
        assert hold(again, ["and a dog"], seed) == hold(conversation, ["and a dog"], seed)
        assert again.messages == conversation.messages
        np.testing.assert_array_equal(again.state.position, conversation.state.position)
        for name, array in again.state.arrays().items():
            np.testing.assert_array_equal(array, conversation.state.arrays()[name], name)

    def test_the_file_is_also_a_plain_state(self, reader, tmp_path):
        conversation = Conversation(reader)
        tokens = hold(conversation, ["the cat"], 0)
        conversation.save(tmp_path / "talk.state")
        state = State.load(tmp_path / "talk.state")
        assert_states_close(state, state_of(reader, tokens), "float32")
        assert reader.generate([7], state=state, max_tokens=1).prompt_tokens == 1

    def test_an_empty_conversation_is_not_saved(self, reader, tmp_path):
        with pytest.raises(StateError, match="nothing to save: the conversation is empty"):
            Conversation(reader).save(tmp_path / "talk.state")
        assert not list(tmp_path.iterdir())

    @staticmethod
    def no_file(path, reader):
        return "no file at .*x.state"

    @staticmethod
    def plain(path, reader):
        state_of(reader, [2, 7]).save(path)
        return "is a state without a conversation: use it with generate --state-in"

    @staticmethod
    def two_rows(path, reader):
        said = json.dumps({"system": "", "messages": []})
        reader([[2, 7], [2, 8]])[1].save(path, {"conversation": said})
        return "is a state without a conversation"

    @staticmethod
    def other_weights(path, reader):
        model = random_model(reader.config, seed=1)
        model.attach_tokenizer(reader.tokenizer)
        conversation = Conversation(model)
        hold(conversation, ["the cat"], 0)
        conversation.save(path)
        return "x.state belongs to a model with other weights"

    @staticmethod
    def other_shape(path, reader):
        state_of(random_model(SMALL.replace(window=9)), [2, 7]).save(path)
        return r"x.state belongs to a model with .*window 9 \(model: 8\)"

    @staticmethod
    def damaged(path, reader):
        state_of(reader, [2, 7]).save(path, {"conversation": "{"})
        return "x.state holds a damaged conversation: JSONDecodeError"

    @staticmethod
    def incomplete(path, reader):
        state_of(reader, [2, 7]).save(path, {"conversation": '{"system": ""}'})
        return "x.state holds a damaged conversation: KeyError\\('messages'"

    @staticmethod
    def cut_short(path, reader):
        state_of(reader, [2, 7]).save(path)
        path.write_bytes(path.read_bytes()[:-10])
        return "x.state"

    @pytest.mark.parametrize(
        "make",
        ["no_file", "plain", "two_rows", "other_weights", "other_shape", "damaged", "incomplete",
         "cut_short"],
    )  # fmt: skip
    def test_a_file_that_cannot_be_used_changes_nothing(self, reader, tmp_path, make):
        message = getattr(self, make)(tmp_path / "x.state", reader)
        conversation = Conversation(reader, "Be brief.")
        hold(conversation, ["the cat"], 0)
        state, messages = conversation.state, list(conversation.messages)
        with pytest.raises(StateError, match=message):
            conversation.load(tmp_path / "x.state")
        assert conversation.state is state
        assert conversation.messages == messages
        assert conversation.system == "Be brief."
