"""Text to token ids and back, on a SentencePiece model.

RecurrentGemma uses Gemma's vocabulary: byte fallback, no dummy prefix, and the turn markers as
pieces of their own. Sources: RecurrentGemma report section 3.1; clause names T31 of the traps that
this project tests (one beginning-of-sequence token, never two).
"""

import codecs
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from griffin_np.errors import TokenizerError

__all__ = ["IncrementalDecoder", "Tokenizer"]

START_OF_TURN = "<start_of_turn>"
END_OF_TURN = "<end_of_turn>"


class Tokenizer:
    """A SentencePiece vocabulary with Gemma's conventions.

    Parameters
    ----------
    model : path or bytes
        A ``tokenizer.model`` file or its content.

    Raises
    ------
    TokenizerError
        If the file is missing or no SentencePiece model.
    """

    def __init__(self, model: str | os.PathLike | bytes):
        from sentencepiece import SentencePieceProcessor

        if isinstance(model, bytes):
            proto, source = model, "the given bytes"
        else:
            path = Path(model)
            if not path.is_file():
                raise TokenizerError(f"no tokenizer file at {path}; expected a tokenizer.model")
            proto, source = path.read_bytes(), str(path)
        if not proto:
            raise TokenizerError(f"{source} is empty; expected a SentencePiece model")
        try:
            self._processor = SentencePieceProcessor(model_proto=proto)
        except RuntimeError as error:
            raise TokenizerError(f"{source} is no SentencePiece model ({error})") from None
        self.model_proto = proto
        self.vocab_size: int = self._processor.vocab_size()
        self.pad_id: int = self._processor.pad_id()
        self.eos_id: int = self._processor.eos_id()
        self.bos_id: int = self._processor.bos_id()
        self.unk_id: int = self._processor.unk_id()

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of a text, with exactly one beginning-of-sequence id in front.

        A text that already starts with the literal ``<bos>``, as chat templates write it, does not
        get a second one. ``bos=False`` adds none.

        Raises
        ------
        TokenizerError
            If ``text`` is no string, or has half a surrogate pair in it.
        """
        ids = self._processor.encode(self._text(text, bos))
        return [self.bos_id, *ids] if bos else ids

    def encode_batch(self, texts: Sequence[str], bos: bool = True) -> list[list[int]]:
        """:meth:`encode` of many texts, on all cores."""
        texts = [self._text(text, bos) for text in texts]
        encoded = self._processor.encode(texts, num_threads=os.cpu_count() or 1)
        return [[self.bos_id, *ids] for ids in encoded] if bos else encoded

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; control tokens such as ``<bos>`` have none."""
        return self._processor.decode([self._checked(i) for i in ids])

    def decoder(self) -> "IncrementalDecoder":
        """A fresh :class:`IncrementalDecoder` on this vocabulary."""
        return IncrementalDecoder(self)

    def id_to_piece(self, token: int) -> str:
        """The vocabulary's own spelling of a token."""
        return self._processor.id_to_piece(self._checked(token))

    def piece_to_id(self, piece: str) -> int | None:
        """Id of an exact piece, or None if the vocabulary has no such piece."""
        token = self._processor.piece_to_id(piece)
        return token if self._processor.id_to_piece(token) == piece else None

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """Id of ``<end_of_turn>``, or None in a vocabulary without dialogue."""
        return self.piece_to_id(END_OF_TURN)

    @cached_property
    def byte_values(self) -> dict[int, int]:
        """Byte value of each byte-fallback token, by id."""
        sp = self._processor
        return {i: int(sp.id_to_piece(i)[3:5], 16) for i in range(self.vocab_size) if sp.is_byte(i)}

    def _text(self, text: str, bos: bool) -> str:
        if not isinstance(text, str):
            raise TokenizerError(f"text must be a str, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"text is not valid Unicode: {error}") from None
        return text.removeprefix(self.id_to_piece(self.bos_id)) if bos else text

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise TokenizerError(
                f"token id {token} is outside the vocabulary [0, {self.vocab_size})"
            )
        return int(token)


class IncrementalDecoder:
    """Decodes a growing sequence; the pieces joined equal the text decoded at once.

    A character whose bytes have not all arrived is held back, so no piece ever ends in half a
    character. :meth:`flush` gives what is left when the sequence ends there.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # With a dummy prefix SentencePiece strips spaces at the beginning of a sequence. So tokens
        # are decoded behind those before them, and as soon as there is text, behind an unknown
        # one: it has text of its own, and bytes that follow cannot merge with it.
        self._anchor: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that ``token`` completes, possibly empty."""
        self._held.append(self._tokenizer._checked(token))
        values = self._tokenizer.byte_values
        tail = len(self._held)
        while tail and self._held[tail - 1] in values:
            tail -= 1
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(bytes(values[i] for i in self._held[tail:]))
        incomplete = len(decoder.getstate()[0])
        return self._emit(len(self._held) - incomplete)

    def flush(self) -> str:
        """The rest, incomplete bytes included, as the whole sequence would decode it."""
        return self._emit(len(self._held))

    def _emit(self, count: int) -> str:
        if not count:
            return ""
        decode = self._tokenizer.decode
        ready, self._held = self._held[:count], self._held[count:]
        before = decode(self._anchor)
        text = decode([*self._anchor, *ready])[len(before) :]
        if text:
            self._anchor = [self._tokenizer.unk_id]
        elif not before:
            self._anchor += ready
        return text
