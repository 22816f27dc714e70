"""Files to learn from: plain text, and JSON lines in which only answers are learnt.

A line of a ``.jsonl`` file is an object of one of three forms (the names are those that training
tools share)::

    {"text": "..."}                              every token is learnt
    {"prompt": "...", "completion": "..."}       the completion and the end that follows it
    {"messages": [{"role": "user", "content": "..."}, {"role": "model", "content": "..."}]}
                                                 the model's turns and the ends of these turns

Tokens stand as generation will meet them: a prompt and its completion are tokenised apart, as are
the header of a turn and its text, because nothing else is ever in front of the model when it
answers. Gemma's dialogue format is that of :mod:`griffin_np.chat`; other fields are ignored.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from griffin_kernels.xla.data import Document, read_documents
from griffin_np.chat import literal, turn_header, turn_markers, turn_tokens, turns
from griffin_np.errors import TokenizerError
from griffin_np.tokenizer import Tokenizer

__all__ = ["Example", "encode_examples", "read_examples"]

FORMS = (("text",), ("prompt", "completion"), ("messages",))
EXPECTED = 'an object with "text", with "prompt" and "completion", or with "messages"'


@dataclass(frozen=True)
class Example:
    """A document before it is tokenised.

    Attributes
    ----------
    parts : tuple of (str, str)
        ``("text", ...)``, or ``("prompt", ...)`` and ``("completion", ...)``, or turns
        ``("user", ...)`` and ``("model", ...)`` into which a system text has been folded.
    """

    parts: tuple[tuple[str, str], ...]

    @property
    def is_text(self) -> bool:
        """Whether all of it is learnt, so that bits per byte mean something."""
        return self.parts[0][0] == "text"

    @property
    def size(self) -> int:
        """Bytes of the text in UTF-8."""
        return sum(len(text.encode()) for _, text in self.parts)

    @property
    def share(self) -> float:
        """A number in [0, 1) that depends on the content alone."""
        key = self.parts[0][1] if self.is_text else json.dumps(self.parts)
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) / 2**32


def read_examples(files: Sequence[str | os.PathLike]) -> list[Example]:
    """Examples of ``.jsonl`` files, and documents of all others as ``read_documents`` does.

    Raises
    ------
    TokenizerError
        If a file cannot be read or holds nothing, or a line has none of the forms; names file and
        line.
    """
    examples = []
    for file in files:
        if Path(file).suffix.lower() == ".jsonl":
            found = list(_lines(file))
            if not found:
                raise TokenizerError(f"{file} holds no line; expected {EXPECTED} in each")
            examples += found
        else:
            examples += [Example((("text", text),)) for text in read_documents([file])]
    return examples


def _lines(file: str | os.PathLike) -> Iterator[Example]:
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read {file} as UTF-8 text: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield Example(_parts(line))
            except (TokenizerError, ValueError) as error:
                raise TokenizerError(f"{file}, line {number}: {error}") from None


def _parts(line: str) -> tuple[tuple[str, str], ...]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise TokenizerError(f"no JSON ({error}); expected {EXPECTED}") from None
    if not isinstance(record, dict):
        raise TokenizerError(f"{type(record).__name__} instead of {EXPECTED}")
    forms = [form for form in FORMS if set(form) <= set(record)]
    if len(forms) != 1:
        raise TokenizerError(
            f"fields {', '.join(sorted(record)) or '(none)'}: expected {EXPECTED}, one of them"
        )
    if forms[0] == ("messages",):
        parts = _dialogue(record["messages"])
    else:
        parts = tuple((name, record[name]) for name in forms[0])
    for name, text in parts:
        if not isinstance(text, str) or (name not in ("prompt", "user") and not text.strip()):
            raise TokenizerError(f"{name} is {text!r}: expected text")
        text.encode()  # half a surrogate pair, which JSON can spell, is a ValueError
    return parts


def _dialogue(messages: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise TokenizerError('messages must be a list of objects with "role" and "content"')
    parts = tuple(turns(messages))
    if len(parts) < 2:
        raise TokenizerError("messages without a turn of the model: nothing to learn")
    return parts


def encode_examples(examples: Sequence[Example], tokenizer: Tokenizer) -> list[Document]:
    """Token ids of examples, and which of them are learnt.

    Raises
    ------
    TokenizerError
        If there are dialogues and the vocabulary has no turn markers.
    """
    texts = [example.parts[0][1] for example in examples if example.is_text]
    encoded = iter(tokenizer.encode_batch(texts) if texts else [])
    documents = []
    for example in examples:
        if example.is_text:
            documents.append(Document.of([*next(encoded), tokenizer.eos_id]))
            continue
        if example.parts[0][0] == "prompt":
            pieces = list(_completion(example, tokenizer))
        else:
            pieces = list(_turns(example, tokenizer))
        documents.append(
            Document.of(
                [token for ids, _ in pieces for token in ids],
                [learnt for ids, learnt in pieces for _ in ids],
            )
        )
    return documents


def _completion(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[list[int], bool]]:
    (_, prompt), (_, completion) = example.parts
    yield tokenizer.encode(prompt), False
    yield [*tokenizer.encode(completion, bos=False), tokenizer.eos_id], True


def _turns(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[list[int], bool]]:
    yield [tokenizer.bos_id], False
    end = turn_markers(tokenizer)[1]
    last = max(i for i, (role, _) in enumerate(example.parts) if role == "model")
    for i, (role, content) in enumerate(example.parts[: last + 1]):
        if role == "user":
            yield turn_tokens(tokenizer, role, content), False
            continue
        yield turn_header(tokenizer), False
        yield [*literal(tokenizer, content), end], True
        if i < last:  # nothing is learnt after the last turn
            yield tokenizer.encode("\n", bos=False), False
