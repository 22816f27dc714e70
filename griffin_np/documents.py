"""Documents of a text file, and the model calls that read them, in constant memory.

A file comes line by line, documents in parts, parts in rows of chunks: position 0 starts a
document, so short ones share a call. :mod:`griffin_np.evaluate` says what counts as a document.
"""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from griffin_np.errors import TokenizerError
from griffin_np.tokenizer import Tokenizer

__all__ = ["SEPARATOR", "Chunk", "Documents", "check_text", "chunks"]

SEPARATOR = "<|endoftext|>"

PART = 2**20
"""Characters of a document after which it is cut, at the next line, into a part of its own."""


def check_text(path: str | os.PathLike) -> None:
    """Refuse a file that cannot be opened, before a model is loaded for it.

    Raises
    ------
    TokenizerError
    """
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror or error}") from None


@dataclass(frozen=True)
class Part:
    """Tokens to read, and the token that follows each, of one document or a part of it."""

    document: int
    first: bool
    last: bool
    inputs: NDArray
    targets: NDArray


class Documents:
    """The documents of a file as tokens, and how much of them has been given out.

    Attributes
    ----------
    tokens : int
        Targets so far.
    bytes : int
        Of their text.
    """

    def __init__(self, path: str | os.PathLike, tokenizer: Tokenizer, limit: int | None):
        check_text(path)
        self._path, self._tokenizer, self._limit = path, tokenizer, limit
        self.tokens = self.bytes = 0
        self._complete = False

    def expected(self) -> int:
        """Targets in the whole file, estimated until it has been read."""
        if self._complete:
            return self.tokens
        guess = round(self.tokens * os.path.getsize(self._path) / max(self.bytes, 1))
        return guess if self._limit is None else min(guess, self._limit)

    def __iter__(self) -> Iterator[Part]:
        tokenizer = self._tokenizer
        document = 0
        before: int | None = None  # the last token of this document's part before
        for text, last in parts_of(self._path, tokenizer):
            ids = tokenizer.encode(text, bos=before is None)
            first, size = before is None, len(text.encode())
            if before is not None:
                ids = [before, *ids]
            if last and tokenizer.eos_id >= 0:
                ids = [*ids, tokenizer.eos_id]
            room = len(ids) if self._limit is None else self._limit - self.tokens
            if len(ids) - 1 > room:
                ids = ids[: room + 1]
                decoder = tokenizer.decoder()  # leaves out a character that has been cut in two
                size = len("".join(map(decoder.push, ids[1:])).encode())
            self.tokens += len(ids) - 1
            self.bytes += size
            full = self.tokens == self._limit
            yield Part(document, first, last or full, np.array(ids[:-1]), np.array(ids[1:]))
            if full:
                break
            document += last
            before = None if last else ids[-1]
        self._complete = True
        if not self.tokens:
            raise TokenizerError(f"{self._path} holds no text")


def parts_of(path: str | os.PathLike, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Text of documents in order, and whether the document ends there.

    A document comes whole, unless it is longer than :data:`PART` and may be cut between lines. So
    memory is bounded, except by the longest line, or by the longest document where tokens may
    cross the ends of lines.
    """
    may_cut: bool | None = None  # found out when it matters
    held: list[str] = []
    size = newlines = 0
    cut = False  # whether a part of this document has been given out
    for line in lines_of(path):
        if line is None or line == SEPARATOR:
            text = "".join(held)
            if cut or text.strip():
                yield text, True
            held, size, newlines, cut = [], 0, 0, False
        elif not line:
            newlines += bool(held)
        else:
            held.append("\n" * newlines)
            if size >= PART:
                may_cut = cuts_at_lines(tokenizer) if may_cut is None else may_cut
                if may_cut and (cut or any(part.strip() for part in held)):
                    yield "".join(held), False
                    held, size, cut = [], 0, True
            held.append(line)
            size += len(line) + newlines
            newlines = 1


def cuts_at_lines(tokenizer: Tokenizer) -> bool:
    """Whether text may be encoded in parts that end with newlines and are followed by others.

    It may if newlines are kept as they are, no piece has one beside anything else, and nothing is
    added to, or taken from, either end of a text. So it is with RecurrentGemma's vocabulary.
    """
    pieces = map(tokenizer.id_to_piece, range(tokenizer.vocab_size))
    if any("\n" in piece and piece.strip("\n") for piece in pieces):
        return False
    head, tail = "a b \n\n", "  b a"
    whole = tokenizer.encode(head + tail, bos=False)
    parts = tokenizer.encode(head, bos=False) + tokenizer.encode(tail, bos=False)
    return whole == parts and tokenizer.decode(whole) == head + tail


def lines_of(path: str | os.PathLike) -> Iterator[str | None]:
    """Lines without their ends, which may be those of any system; None at the end of the file."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    line: list[str] = []
    offset = 0
    with open(path, "rb") as file:
        while True:
            content = file.read(2**16)
            kept = len(utf8.getstate()[0])  # bytes of a character that has not ended
            try:
                text = decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                raise TokenizerError(
                    f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset "
                    f"{offset - kept + error.start} ({error.reason})"
                ) from None
            offset += len(content)
            first, *more = text.split("\n")
            line.append(first)
            for following in more:
                yield "".join(line)
                line = [following]
            if not content:
                yield "".join(line)
                yield None
                return


@dataclass(frozen=True)
class Chunk:
    """Arrays (B, T): tokens, their positions, the tokens that follow (-1: none), and documents."""

    tokens: NDArray
    positions: NDArray
    targets: NDArray
    documents: NDArray
    ended: list[int]


@dataclass
class Row:
    """What a row is reading."""

    part: Part | None = None
    offset: int = 0
    position: int = 0
    waiting: bool = False  # for the next part of its document


def chunks(parts: Iterator[Part] | Documents, batch: int, length: int) -> Iterator[Chunk]:
    """Fill rows from the left, each with whatever document is next.

    While the next part belongs to a document that some row has begun, only that row can go on.
    """
    source = iter(parts)
    rows = [Row() for _ in range(batch)]
    head = next(source, None)
    while True:
        arrays = np.full((4, batch, length), -1)
        ended: list[int] = []
        width = 0
        for r, row in enumerate(rows):
            column = 0
            while column < length:
                if row.part is None:
                    if head is None or row.waiting == head.first:
                        break
                    if head.first:
                        row.position = 0
                    row.part, row.offset, row.waiting = head, 0, not head.last
                    head = next(source, None)
                part, start = row.part, row.offset
                n = min(length - column, len(part.inputs) - start)
                arrays[:, r, column : column + n] = [
                    part.inputs[start : start + n],
                    row.position + np.arange(n),
                    part.targets[start : start + n],
                    np.full(n, part.document),
                ]
                column += n
                row.offset += n
                row.position += n
                if row.offset == len(part.inputs):
                    row.part = None
                    if part.last:
                        ended.append(part.document)
            width = max(width, column)
        if not width:
            return
        tokens, positions, targets, documents = arrays[:, :, :width]
        yield Chunk(np.maximum(tokens, 0), positions, targets, documents, ended)
