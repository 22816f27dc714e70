"""Text files to batches: documents, vocabulary, packing, and an order that can be resumed."""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from griffin_np.errors import TokenizerError
from griffin_np.tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer

__all__ = ["Batch", "Packed", "batches", "pack", "read_documents", "train_tokenizer"]

SEPARATOR = "<|endoftext|>"
OPEN_ROWS = 128


def read_documents(files: Sequence[str | os.PathLike]) -> list[str]:
    """Documents of UTF-8 files, separated by lines ``<|endoftext|>``, in order, none empty.

    Raises
    ------
    TokenizerError
        If a file is missing, not UTF-8, or holds no document.
    """
    documents = []
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"cannot read {file} as UTF-8 text: {error}") from None
        parts = [part.strip("\n") for part in text.split(SEPARATOR)]
        found = [part for part in parts if part.strip()]
        if not found:
            raise TokenizerError(f"{file} holds no text")
        documents += found
    return documents


def train_tokenizer(
    documents: Sequence[str], vocab_size: int, path: str | os.PathLike
) -> Tokenizer:
    """Train a SentencePiece vocabulary with Gemma's conventions and write it to ``path``.

    Byte-pair merges, byte fallback, single digits, no dummy prefix, no normalisation; ids pad 0,
    eos 1, bos 2, unk 3; turn markers and newlines are pieces of their own.

    Raises
    ------
    TokenizerError
        If the text is too small for so many pieces.
    """
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in documents for line in text.split("\n") if line),
            model_writer=written,  # with a file name, the model would carry that name inside
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            character_coverage=0.9999,
            max_sentence_length=1 << 20,
            user_defined_symbols=[START_OF_TURN, END_OF_TURN, "\n", "\n\n"],
            pad_id=0, eos_id=1, bos_id=2, unk_id=3,
            pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
            minloglevel=2,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        raise TokenizerError(
            f"no vocabulary of {vocab_size} pieces can be trained on this text: {error}"
        ) from None
    content = written.getvalue()
    partial = Path(path).with_name(Path(path).name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
    return Tokenizer(content)


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents, each of shape (B, T).

    ``positions`` is 0 at the first token of a document and -1 in the tail of a row; ``labels`` is
    the next token of the same document, and ``weights`` 1 where there is one, else 0.
    """

    tokens: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Packed:
    """Packed rows: ``tokens`` and ``positions`` of shape (rows, T), int32."""

    tokens: np.ndarray
    positions: np.ndarray

    def batch(self, start: int, size: int) -> Batch:
        """Rows ``start`` to ``start + size``; missing ones are all padding."""
        rows, length = self.tokens.shape
        tokens = np.zeros((size, length), np.int32)
        positions = np.full((size, length), -1, np.int32)
        stop = min(start + size, rows)
        tokens[: stop - start] = self.tokens[start:stop]
        positions[: stop - start] = self.positions[start:stop]
        labels = np.zeros_like(tokens)
        labels[:, :-1] = tokens[:, 1:]
        weights = np.zeros(tokens.shape, np.float32)
        weights[:, :-1] = positions[:, 1:] > 0
        return Batch(tokens, positions, labels, weights)


def pack(
    documents: Sequence[Sequence[int]], length: int, order: np.ndarray | None = None
) -> Packed:
    """Fill rows of ``length`` tokens with whole documents: best fit among the latest open rows.

    A document longer than a row is cut into pieces that start at position 0 like documents of
    their own, each repeating the last token of the piece before, so that every token is predicted
    once. Deterministic in ``documents`` and ``order``.
    """
    rows: list[list[tuple[int, int, int]]] = []
    room: dict[int, int] = {}  # free tokens of each open row, oldest first
    for index in range(len(documents)) if order is None else order.tolist():
        size = len(documents[index])
        for start in range(0, max(size - 1, 1), length - 1):
            piece = min(length, size - start)
            row = min((r for r in room if room[r] >= piece), key=lambda r: room[r], default=None)
            if row is None:
                row = len(rows)
                rows.append([])
                room[row] = length
                if len(room) > OPEN_ROWS:
                    room.pop(next(iter(room)))
            rows[row].append((index, start, piece))
            room[row] -= piece
    tokens = np.zeros((len(rows), length), np.int32)
    positions = np.full((len(rows), length), -1, np.int32)
    for r, pieces in enumerate(rows):
        column = 0
        for index, start, size in pieces:
            tokens[r, column : column + size] = documents[index][start : start + size]
            positions[r, column : column + size] = np.arange(size)
            column += size
    return Packed(tokens, positions)


def batches(
    documents: Sequence[Sequence[int]], length: int, batch_size: int, seed: int, skip: int = 0
) -> Iterator[Batch]:
    """Batches for ever: every epoch packs the documents in a new order.

    The sequence of batches depends on the arguments alone; ``skip`` leaves out the first ones
    without making them, which is how a resumed run finds its place.
    """
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(documents))
        packed = pack(documents, length, order)
        rows = np.random.default_rng([seed, epoch, 1]).permutation(len(packed.tokens))
        packed = Packed(packed.tokens[rows], packed.positions[rows])
        count = max(len(packed.tokens) // batch_size, 1)
        for i in range(min(skip, count), count):
            yield packed.batch(i * batch_size, batch_size)
        skip = max(skip - count, 0)
        epoch += 1
