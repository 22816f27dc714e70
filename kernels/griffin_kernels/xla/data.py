"""Text files to batches: documents, vocabulary, packing, and an order that can be resumed."""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from griffin_np.errors import TokenizerError
from griffin_np.tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer

__all__ = ["Batch", "Document", "Packed", "batches", "pack", "read_documents", "train_tokenizer"]

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
class Document:
    """Token ids (n,) of a document, and which of them are to be predicted (n,).

    What stands before a document's first token is nothing, so that one is never predicted.
    """

    ids: NDArray[np.int32]
    learn: NDArray[np.bool_]

    @classmethod
    def of(cls, ids: "ArrayLike | Document", learn: ArrayLike | None = None) -> "Document":
        """A document as it is, or one of plain ids; all is predicted unless ``learn`` is given."""
        if isinstance(ids, Document):
            return ids
        ids = np.asarray(ids, np.int32)
        return cls(ids, np.ones(ids.shape, bool) if learn is None else np.asarray(learn, bool))

    def __len__(self) -> int:
        return len(self.ids)


class Batch(NamedTuple):
    """Rows of packed documents, each of shape (B, T).

    ``positions`` is 0 at the first token of a document and -1 in the tail of a row; ``labels`` is
    the next token of the same document, and ``weights`` 1 where there is one to be predicted,
    else 0.
    """

    tokens: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def split(self, parts: int) -> "Batch":
        """The same rows as ``parts`` smaller batches: arrays of shape (parts, B / parts, T)."""
        return Batch(*(z.reshape(parts, -1, z.shape[-1]) for z in self))


@dataclass(frozen=True)
class Packed:
    """Packed rows (rows, T): ``tokens`` and ``positions``, int32, and ``learn``, bool."""

    tokens: np.ndarray
    positions: np.ndarray
    learn: np.ndarray

    def batch(self, start: int, size: int) -> Batch:
        """Rows ``start`` to ``start + size``; missing ones are all padding."""
        rows, length = self.tokens.shape
        stop = min(start + size, rows)
        tokens = np.zeros((size, length), np.int32)
        positions = np.full((size, length), -1, np.int32)
        tokens[: stop - start] = self.tokens[start:stop]
        positions[: stop - start] = self.positions[start:stop]
        labels = np.zeros_like(tokens)
        labels[:, :-1] = tokens[:, 1:]
        weights = np.zeros(tokens.shape, np.float32)
        weights[: stop - start, :-1] = self.learn[start:stop, 1:]
        weights[:, :-1] *= positions[:, 1:] > 0
        return Batch(tokens, positions, labels, weights)


def pack(
    documents: Sequence[ArrayLike | Document], length: int, order: np.ndarray | None = None
) -> Packed:
    """Fill rows of ``length`` tokens with whole documents: best fit among the latest open rows.

    A document longer than a row is cut into pieces that start at position 0 like documents of
    their own, each repeating the last token of the piece before, so that every token is predicted
    once; a piece in which nothing is to be predicted is left out. Deterministic in ``documents``
    and ``order``.
    """
    given = [Document.of(document) for document in documents]
    rows: list[list[tuple[int, int, int]]] = []
    room: dict[int, int] = {}  # free tokens of each open row, oldest first
    for index in range(len(given)) if order is None else order.tolist():
        size = len(given[index])
        for start in range(0, size - 1, length - 1):
            piece = min(length, size - start)
            if not given[index].learn[start + 1 : start + piece].any():
                continue
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
    learn = np.zeros((len(rows), length), bool)
    for r, pieces in enumerate(rows):
        column = 0
        for index, start, size in pieces:
            where, which = slice(column, column + size), slice(start, start + size)
            tokens[r, where] = given[index].ids[which]
            positions[r, where] = np.arange(size)
            learn[r, where] = given[index].learn[which]
            column += size
    return Packed(tokens, positions, learn)


def batches(
    documents: Sequence[ArrayLike | Document],
    length: int,
    batch_size: int,
    seed: int,
    skip: int = 0,
) -> Iterator[Batch]:
    """Batches for ever: every epoch packs the documents in a new order.

    The sequence of batches depends on the arguments alone; ``skip`` leaves out the first ones
    without making them, which is how a resumed run finds its place.
    """
    given = [Document.of(document) for document in documents]
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(given))
        packed = pack(given, length, order)
        rows = np.random.default_rng([seed, epoch, 1]).permutation(len(packed.tokens))
        packed = Packed(packed.tokens[rows], packed.positions[rows], packed.learn[rows])
        count = max(len(packed.tokens) // batch_size, 1)
        for i in range(min(skip, count), count):
            yield packed.batch(i * batch_size, batch_size)
        skip = max(skip - count, 0)
        epoch += 1
