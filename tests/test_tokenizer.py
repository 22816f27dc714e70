"""Tokenizer: text to ids and back, whole and piece by piece, on small vocabularies and Gemma's."""

import io
import json
import random

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SMALL, random_model

from griffin_kernels.xla.data import train_tokenizer
from griffin_np.errors import ConfigError, TokenizerError
from griffin_np.tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer

TEXT = [
    "the cat sat on the mat.\nthe dog ran 12 miles in the fog, naïve café and all.",
    "knock knock, who's there?\n\nthe other cat; it's 3 o'clock — «добрый день», 你好.",
] * 3


@pytest.fixture(scope="session")
def gemma_like(tmp_path_factory):
    return train_tokenizer(TEXT, 400, tmp_path_factory.mktemp("vocabulary") / "tokenizer.model")


def with_dummy_prefix(remove_extra_whitespaces: bool) -> Tokenizer:
    """A vocabulary that begins every text with a space, and takes it away in decoding."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in TEXT for line in text.split("\n") if line),
        model_writer=out,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=remove_extra_whitespaces,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return Tokenizer(out.getvalue())


@pytest.fixture(scope="session", params=["gemma-like", "dummy prefix", "no extra whitespace"])
def tokenizer(request, gemma_like):
    if request.param == "gemma-like":
        return gemma_like
    return with_dummy_prefix(request.param == "no extra whitespace")


@pytest.fixture(scope="session")
def gemma(test_data):
    """Gemma's own vocabulary, 256,000 pieces."""
    return Tokenizer(test_data / "gemma_tokenizer" / "tokenizer.model")


@pytest.fixture(scope="session")
def golden(test_data):
    lines = (test_data / "gemma_tokenizer" / "golden.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


# SentencePiece writes a space as U+2581, so a U+2581 in a text comes back as a space: left out.
alphabet = st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")
words = st.sampled_from(
    [*" \n\t\r", "the", "cat", "12", "é", "👩‍👩‍👧", "<bos>", "<eos>", "<0x41>", END_OF_TURN]
)
texts = st.one_of(st.text(alphabet), st.lists(words).map("".join))


def ids_of(tokenizer: Tokenizer):
    """Sequences of tokens of all kinds: words, bytes alone and in characters, special ones."""
    bytes_ = {value: token for token, value in tokenizer.byte_values.items()}
    special = [tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id]
    spaces = [tokenizer.piece_to_id("▁")] if tokenizer.piece_to_id("▁") is not None else special
    token = st.one_of(
        st.integers(0, tokenizer.vocab_size - 1),
        st.sampled_from(list(tokenizer.byte_values)),
        st.sampled_from([bytes_[b] for b in (0x41, 0x80, 0xAC, 0xC3, 0xE2, 0x82, 0xF0, 0x9F)]),
        st.sampled_from(special),
        st.sampled_from(spaces),
    )
    character = st.characters(exclude_categories=["Cs"]).map(
        lambda c: [bytes_[b] for b in c.encode()]
    )
    part = st.one_of(st.lists(token, max_size=3), character, character.map(lambda c: c[:-1]))
    return st.lists(part, max_size=8).map(lambda parts: [i for part in parts for i in part])


def pieces_of(tokenizer: Tokenizer, ids) -> list[str]:
    decoder = tokenizer.decoder()
    return [*map(decoder.push, ids), decoder.flush()]


def unfinished(run: bytes) -> int:
    """How many bytes at the end of ``run`` begin a character, by trying to end it."""
    endings = [first + b"\x80" * more for first in (b"\x80", b"\xbf") for more in range(3)]
    for count in (3, 2, 1):
        if len(run) >= count and any(is_character(run[-count:] + end) for end in endings):
            return count
    return 0


def is_character(encoded: bytes) -> bool:
    try:
        return len(encoded.decode()) == 1
    except UnicodeDecodeError:
        return False


def check_incremental(tokenizer: Tokenizer, ids: list[int]) -> None:
    """After each token all text is out except a character whose bytes are still coming."""
    decoder, text, values = tokenizer.decoder(), "", tokenizer.byte_values
    for count, token in enumerate(ids, 1):
        text += decoder.push(token)
        start = count
        while start and ids[start - 1] in values:
            start -= 1
        held = unfinished(bytes(values[i] for i in ids[start:count]))
        assert text == tokenizer.decode(ids[: count - held])
    assert text + decoder.flush() == tokenizer.decode(ids)


class TestEncode:
    @given(text=texts)
    def test_bos_comes_exactly_once(self, gemma_like, text):
        ids = gemma_like.encode(text)
        assert ids[0] == gemma_like.bos_id
        assert ids.count(gemma_like.bos_id) == 1
        assert ids[1:] == gemma_like.encode(text.removeprefix("<bos>"), bos=False)

    @given(text=texts)
    def test_a_literal_bos_in_front_changes_nothing(self, gemma_like, text):
        if not text.startswith("<bos>"):
            assert gemma_like.encode("<bos>" + text) == gemma_like.encode(text)

    @given(text=texts)
    def test_without_bos_there_is_none(self, gemma_like, text):
        ids = gemma_like.encode(text, bos=False)
        assert gemma_like.bos_id not in ids
        assert gemma_like.eos_id not in ids

    @settings(max_examples=300)
    @given(text=texts)
    def test_decoding_gives_the_text_back(self, gemma_like, text):
        assert gemma_like.decode(gemma_like.encode(text, bos=False)) == text
        assert gemma_like.decode(gemma_like.encode(text)) == text.removeprefix("<bos>")

    @given(texts=st.lists(texts, max_size=4), bos=st.booleans())
    def test_a_batch_is_its_texts_one_by_one(self, gemma_like, texts, bos):
        expected = [gemma_like.encode(text, bos=bos) for text in texts]
        assert gemma_like.encode_batch(texts, bos=bos) == expected

    def test_only_the_first_literal_bos_is_dropped(self, gemma_like):
        assert gemma_like.decode(gemma_like.encode("<bos><bos>x")) == "<bos>x"
        assert gemma_like.decode(gemma_like.encode("<bos>x", bos=False)) == "<bos>x"

    def test_nothing_is_bos_alone(self, gemma_like):
        assert gemma_like.encode("") == [2]
        assert gemma_like.encode("", bos=False) == []
        assert gemma_like.encode_batch([]) == []

    def test_markers_in_a_text_become_their_own_pieces(self, gemma_like):
        ids = gemma_like.encode(f"{START_OF_TURN}the{END_OF_TURN}", bos=False)
        assert ids[0] == gemma_like.piece_to_id(START_OF_TURN)
        assert ids[-1] == gemma_like.end_of_turn_id

    @pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
    def test_half_a_surrogate_pair_is_refused(self, gemma_like, text):
        with pytest.raises(TokenizerError, match=r"text is not valid Unicode: .*\\ud"):
            gemma_like.encode(text)
        with pytest.raises(TokenizerError, match=r"text is not valid Unicode: .*\\ud"):
            gemma_like.encode_batch(["a", text])

    @pytest.mark.parametrize("bos", [True, False])
    def test_what_is_no_text_is_refused(self, gemma_like, bos):
        with pytest.raises(TokenizerError, match="text must be a str, got bytes"):
            gemma_like.encode(b"the", bos=bos)
        with pytest.raises(TokenizerError, match="text must be a str, got list"):
            gemma_like.encode_batch(["the", [2]], bos=bos)


class TestVocabulary:
    def test_special_ids(self, gemma_like):
        t = gemma_like
        assert (t.pad_id, t.eos_id, t.bos_id, t.unk_id) == (0, 1, 2, 3)
        assert [t.id_to_piece(i) for i in range(4)] == ["<pad>", "<eos>", "<bos>", "<unk>"]
        assert t.vocab_size == 400

    def test_every_piece_is_found_by_its_spelling(self, tokenizer):
        for i in range(tokenizer.vocab_size):
            assert tokenizer.piece_to_id(tokenizer.id_to_piece(i)) == i

    def test_a_piece_that_does_not_exist_is_none(self, gemma_like):
        assert gemma_like.piece_to_id("no such piece") is None
        assert gemma_like.piece_to_id("<unk>") == 3

    def test_the_end_of_a_turn_exists_only_with_dialogue(self, gemma_like):
        assert gemma_like.end_of_turn_id == gemma_like.piece_to_id(END_OF_TURN)
        assert with_dummy_prefix(False).end_of_turn_id is None

    def test_all_256_bytes_have_a_token(self, tokenizer):
        assert sorted(tokenizer.byte_values.values()) == list(range(256))
        for token, value in tokenizer.byte_values.items():
            assert tokenizer.id_to_piece(token) == f"<0x{value:02X}>"

    def test_control_tokens_have_no_text(self, gemma_like):
        assert gemma_like.decode([2, 0, *gemma_like.encode("the cat"), 1]) == "the cat"

    def test_ids_may_be_any_iterable_of_numpy_integers(self, gemma_like):
        ids = gemma_like.encode("the cat")
        assert gemma_like.decode(np.array(ids)) == gemma_like.decode(iter(ids)) == "the cat"

    @pytest.mark.parametrize("token", [-1, 400, 10**12])
    def test_ids_outside_the_vocabulary_are_refused(self, gemma_like, token):
        message = rf"token id {token} is outside the vocabulary \[0, 400\)"
        for use in (
            lambda: gemma_like.decode([2, token]),
            lambda: gemma_like.id_to_piece(token),
            lambda: gemma_like.decoder().push(token),
        ):
            with pytest.raises(TokenizerError, match=message):
                use()

    def test_a_model_with_fewer_rows_refuses_the_tokenizer(self, gemma_like):
        model = random_model(SMALL)
        with pytest.raises(ConfigError, match="400 pieces, the model's embedding only 61 rows"):
            model.attach_tokenizer(gemma_like)
        assert model.tokenizer is None


class TestFiles:
    def test_file_and_bytes_are_one_vocabulary(self, gemma_like, tmp_path):
        path = tmp_path / "tokenizer.model"
        path.write_bytes(gemma_like.model_proto)
        for model in (path, str(path), path.read_bytes()):
            again = Tokenizer(model)
            assert again.model_proto == gemma_like.model_proto
            assert again.encode(TEXT[0]) == gemma_like.encode(TEXT[0])

    def test_a_missing_file_is_named(self, tmp_path):
        for path in (tmp_path / "none.model", tmp_path):
            with pytest.raises(TokenizerError, match=f"no tokenizer file at {path}"):
                Tokenizer(path)

    @pytest.mark.parametrize(
        ("content", "message"), [(b"", "is empty"), (b"no model", "is no SentencePiece model")]
    )
    def test_a_file_that_is_no_vocabulary_is_named(self, tmp_path, content, message):
        path = tmp_path / "x.model"
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match=f"x.model {message}"):
            Tokenizer(path)
        with pytest.raises(TokenizerError, match=f"the given bytes {message}"):
            Tokenizer(content)


class TestIncrementalDecoder:
    @settings(max_examples=300)
    @given(data=st.data())
    def test_pieces_of_any_ids_make_the_whole(self, tokenizer, data):
        check_incremental(tokenizer, data.draw(ids_of(tokenizer)))

    @given(text=texts)
    def test_no_piece_of_a_text_ends_inside_a_character(self, gemma_like, text):
        """Bytes arrive one by one, yet U+FFFD appears only if the text itself has it."""
        pieces = pieces_of(gemma_like, gemma_like.encode(text, bos=False))
        assert "".join(pieces) == text
        assert pieces[-1] == ""

    @given(before=st.data(), text=st.text(alphabet, min_size=1, max_size=1))
    def test_a_character_comes_with_its_last_byte(self, gemma_like, before, text):
        tokens = {value: token for token, value in gemma_like.byte_values.items()}
        prefix = before.draw(st.sampled_from([[], [2], gemma_like.encode("the cat")]))
        decoder = gemma_like.decoder()
        for token in prefix:
            decoder.push(token)
        *first, last = [tokens[b] for b in text.encode()]
        assert [decoder.push(i) for i in first] == [""] * len(first)
        assert decoder.push(last) == text
        assert decoder.flush() == ""

    def test_flush_gives_what_never_became_a_character(self, gemma_like):
        tokens = {value: token for token, value in gemma_like.byte_values.items()}
        decoder = gemma_like.decoder()
        assert [decoder.push(tokens[b]) for b in (0xE2, 0x82)] == ["", ""]
        assert decoder.flush() == gemma_like.decode([tokens[0xE2], tokens[0x82]]) == "\ufffd" * 2
        assert decoder.flush() == ""

    def test_bytes_that_cannot_go_on_are_given_at_once(self, gemma_like):
        tokens = {value: token for token, value in gemma_like.byte_values.items()}
        the = gemma_like.piece_to_id("▁the")
        decoder = gemma_like.decoder()
        assert decoder.push(tokens[0xE2]) == ""
        assert decoder.push(the) == "\ufffd the"
        assert decoder.push(tokens[0xFF]) == "\ufffd"

    @pytest.mark.parametrize("remove_extra_whitespaces", [False, True])
    def test_a_dummy_prefix_is_stripped_at_the_beginning_only(self, remove_extra_whitespaces):
        t = with_dummy_prefix(remove_extra_whitespaces)
        the, byte = t.piece_to_id("▁the"), t.piece_to_id("<0x41>")
        assert pieces_of(t, [2, the, the]) == ["", "the", " the", ""]
        assert pieces_of(t, [byte, the]) == ["A", " the", ""]


class TestGemma:
    """With the vocabulary that RecurrentGemma uses."""

    def test_special_ids_and_turn_markers(self, gemma):
        assert (gemma.pad_id, gemma.eos_id, gemma.bos_id, gemma.unk_id) == (0, 1, 2, 3)
        assert (gemma.piece_to_id(START_OF_TURN), gemma.end_of_turn_id) == (106, 107)
        assert gemma.vocab_size == 256000
        assert sorted(gemma.byte_values.values()) == list(range(256))

    def test_all_golden_encodings_agree(self, gemma, golden):
        assert len(golden) == 200
        for line in golden:
            assert gemma.encode(line["text"]) == [2, *line["ids"]], line["text"]
            assert gemma.encode(line["text"], bos=False) == line["ids"], line["text"]
            assert gemma.decode(line["ids"]) == line["text"]
        encoded = gemma.encode_batch([line["text"] for line in golden], bos=False)
        assert encoded == [line["ids"] for line in golden]

    @given(text=texts)
    def test_decoding_gives_the_text_back(self, gemma, text):
        assert gemma.decode(gemma.encode(text, bos=False)) == text

    def test_golden_ids_are_decoded_piece_by_piece(self, gemma, golden):
        for line in golden:
            check_incremental(gemma, line["ids"])
            assert pieces_of(gemma, line["ids"])[-1] == ""

    @given(data=st.data())
    def test_any_ids_are_decoded_piece_by_piece(self, gemma, data):
        check_incremental(gemma, data.draw(ids_of(gemma)))

    def test_shuffled_golden_ids_are_decoded_piece_by_piece(self, gemma, golden):
        rng = random.Random(0)
        for line in golden:
            check_incremental(gemma, rng.sample(line["ids"], len(line["ids"])))
