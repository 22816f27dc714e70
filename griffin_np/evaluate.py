"""How well a model predicts a text, and how far two models are apart on it.

Both read a file of any size in constant memory: text comes in parts, tokens in chunks, and of each
token's scores only sums are kept. Documents are separated by lines that are exactly
``<|endoftext|>``; newlines at either end of a document belong to the separator, and documents of
nothing but white space are left out, as in training. Every document starts with the
beginning-of-sequence token, from which its first token is predicted, and ends with the
end-of-sequence token, if the tokenizer has one, which is predicted too.
"""

from __future__ import annotations

import codecs
import io
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from griffin_np.base import Model
from griffin_np.errors import ConfigError, SamplingError, TokenizerError
from griffin_np.tokenizer import Tokenizer

__all__ = ["Comparison", "Perplexity", "check_text", "compare", "perplexity"]

SEPARATOR = "<|endoftext|>"

PART = 2**20
"""Characters of a document after which it is cut, at the next line, into a part of its own."""

LOGITS = 2**25
"""Logits that one call may return: 128 MiB in float32. Large vocabularies get shorter chunks."""

SLAB = 2**16
"""Logits that are brought to float64 at a time, or one token's if these are more."""

Progress = Callable[[int, int, float], None]
"""Called with the tokens scored, those expected in all, and the mean loss so far."""


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes
    ----------
    documents : int
    tokens : int
        Predicted ones: all but the beginnings of documents.
    bytes : int
        UTF-8 bytes of the documents' text.
    nll : float
        Mean negative log-likelihood of a token, in nats.
    nll_standard_error : float or None
        None if there is only one document; see :class:`_Means`.
    seconds : float
        From opening the file to the last score.
    """

    documents: int
    tokens: int
    bytes: int
    nll: float
    nll_standard_error: float | None
    seconds: float

    @property
    def perplexity(self) -> float:
        """``exp(nll)``."""
        return _exp(self.nll)

    @property
    def perplexity_standard_error(self) -> float | None:
        """By the delta method: the derivative of ``exp`` at the mean, times the mean's."""
        return _times(self.perplexity, self.nll_standard_error)

    @property
    def bits_per_byte(self) -> float:
        """Bits for all tokens, ends of documents included, for each byte of text."""
        return self.nll * self.tokens / math.log(2) / max(self.bytes, 1)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Comparison:
    """How far model B is from model A on a text.

    Attributes
    ----------
    a, b : Perplexity
        Of either model; ``seconds`` is the time of both together.
    kl : float
        Mean over tokens of the Kullback-Leibler divergence of A's distribution from B's,
        ``sum(p_A log(p_A / p_B))``, in nats.
    kl_quantile : float
        99 % of tokens have at most this divergence, to 0.2 %.
    kl_max : float
    agreement : float
        Share of tokens at which both models' most probable token is the same.
    log_ratio : float
        Mean loss of B minus that of A.
    kl_standard_error, agreement_standard_error, log_ratio_standard_error : float or None
        None if there is only one document.
    logit_difference : float
        Largest difference of any logit.
    """

    a: Perplexity
    b: Perplexity
    kl: float
    kl_standard_error: float | None
    kl_quantile: float
    kl_max: float
    agreement: float
    agreement_standard_error: float | None
    log_ratio: float
    log_ratio_standard_error: float | None
    logit_difference: float

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity of B over that of A."""
        return _exp(self.log_ratio)

    @property
    def perplexity_ratio_standard_error(self) -> float | None:
        """Of the ratio itself: what both models find hard in a document cancels."""
        return _times(self.perplexity_ratio, self.log_ratio_standard_error)


def perplexity(
    model: Model,
    path: str | os.PathLike,
    *,
    limit: int | None = None,
    batch: int = 1,
    chunk: int = 512,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of a model on the documents of a text file.

    Parameters
    ----------
    model : Model
    path : path
        UTF-8 text.
    limit : int, optional
        Stop after so many predicted tokens; the document that this cuts has no end.
    batch, chunk : int
        Rows and columns of a call, at most. Rows are filled with documents one after the other, so
        short ones share a call; the result depends on neither.
    progress : callable, optional

    Raises
    ------
    TokenizerError
        If the file is missing, not UTF-8, or holds no text, or the model has no tokenizer.
    SamplingError
        If the model's logits are not finite.
    """
    run = _Run([model], path, limit, batch, chunk, progress)
    run.read(lambda targets, logits: _loss(logits, targets)[None])
    return run.perplexity(0)


def compare(
    a: Model,
    b: Model,
    path: str | os.PathLike,
    *,
    limit: int | None = None,
    batch: int = 1,
    chunk: int = 512,
    progress: Progress | None = None,
) -> Comparison:
    """Read the documents of a text file with two models side by side.

    Parameters and errors are those of :func:`perplexity`.

    Raises
    ------
    ConfigError
        If the models have different vocabularies.
    """
    check_same_vocabulary(a, b)
    run = _Run([a, b], path, limit, batch, chunk, progress)
    divergences = _Quantiles()
    largest = 0.0

    def score(targets: NDArray, za: NDArray, zb: NDArray) -> NDArray:
        nonlocal largest
        values, difference = _distance(za, zb, targets)
        largest = max(largest, difference)
        divergences.add(values[3])
        return values

    run.read(score)
    (_, _, log_ratio, kl, agreement) = run.means.mean()
    (_, _, log_ratio_error, kl_error, agreement_error) = run.means.standard_error()
    return Comparison(
        a=run.perplexity(0),
        b=run.perplexity(1),
        kl=kl,
        kl_standard_error=kl_error,
        kl_quantile=divergences.quantile(0.99),
        kl_max=divergences.largest,
        agreement=agreement,
        agreement_standard_error=agreement_error,
        log_ratio=log_ratio,
        log_ratio_standard_error=log_ratio_error,
        logit_difference=largest,
    )


def check_same_vocabulary(a: Model, b: Model) -> None:
    """Refuse two models whose tokens do not mean the same.

    Raises
    ------
    ConfigError
        If their embeddings have different numbers of rows, or their tokenizers differ.
    """
    sizes = a.config.vocab_size, b.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the models have vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens: "
            f"only models of one vocabulary can be compared"
        )
    if a.need_tokenizer().model_proto != b.need_tokenizer().model_proto:
        raise ConfigError(
            "the models have different tokenizers: only models of one vocabulary can be compared"
        )


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


class _Run:
    """One pass over a file with one model, or with several side by side."""

    def __init__(
        self,
        models: Sequence[Model],
        path: str | os.PathLike,
        limit: int | None,
        batch: int,
        chunk: int,
        progress: Progress | None,
    ):
        for name, value in (("limit", limit), ("batch", batch), ("chunk", chunk)):
            if name == "limit" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
        self.models = models
        self.text = _Text(path, models[0].need_tokenizer(), limit)
        self.means = _Means()
        self.seconds = 0.0
        self._batch = batch
        room = max(LOGITS // (models[0].config.vocab_size * batch), 1)
        # A power of two, for engines that pad to one.
        self._chunk = min(chunk, 1 << (room.bit_length() - 1))
        self._progress = progress

    def read(self, score: Callable[..., NDArray]) -> None:
        """Read to the end; ``score(targets, *logits)`` gives values (M, n) of a row's n tokens."""
        started = time.perf_counter()
        states = [model.init_state(self._batch) for model in self.models]
        for call in _calls(self.text, self._batch, self._chunk):
            logits = []
            for i, model in enumerate(self.models):
                z, states[i] = model.advance(call.tokens, call.positions, states[i], "all")
                logits.append(np.asarray(z))
            for row, targets in enumerate(call.targets):
                n = np.count_nonzero(targets >= 0)  # a row is filled from the left
                with np.errstate(invalid="ignore"):
                    values = score(targets[:n], *(z[row, :n] for z in logits))
                wrong = np.flatnonzero(~np.isfinite(values).all(axis=0))
                if wrong.size:
                    raise SamplingError(
                        f"logits in document {call.documents[row, wrong[0]] + 1} are not finite: "
                        f"the model's weights are damaged"
                    )
                self.means.add(call.documents[row, :n], values)
            self.means.close(call.ended)
            self.seconds = time.perf_counter() - started
            if self._progress:
                self._progress(self.means.tokens, self.text.expected(), self.means.mean()[0])
        self.means.close()

    def perplexity(self, model: int) -> Perplexity:
        """From the losses, which are the first values of a score."""
        return Perplexity(
            documents=self.means.documents,
            tokens=self.means.tokens,
            bytes=self.text.bytes,
            nll=self.means.mean()[model],
            nll_standard_error=self.means.standard_error()[model],
            seconds=self.seconds,
        )


# Scores of tokens, from logits of shape (n, V).


def _loss(logits: NDArray, targets: NDArray) -> NDArray:
    """``-log p`` of each target, in float64."""
    losses = np.empty(len(targets))
    for rows in _slabs(logits):
        z = _shifted(logits[rows])
        found = _at(z, targets[rows])
        losses[rows] = np.log(np.exp(z, out=z).sum(axis=1)) - found
    return losses


def _distance(za: NDArray, zb: NDArray, targets: NDArray) -> tuple[NDArray, float]:
    """Values (5, n), and the largest difference of logits.

    The values: losses of A and B, their difference, divergence, and 1 where both agree, else 0.
    """
    values = np.empty((5, len(targets)))
    largest = 0.0
    for rows in _slabs(za):
        a, b = za[rows], zb[rows]
        gap = np.abs(np.subtract(a, b, dtype=np.float64))
        largest = max(largest, float(gap.max()))
        log_pa, log_pb = _log_p(a), _log_p(b)
        loss_a, loss_b = -_at(log_pa, targets[rows]), -_at(log_pb, targets[rows])
        kl = np.einsum("tv,tv->t", np.exp(log_pa), log_pa - log_pb)
        agree = a.argmax(axis=1) == b.argmax(axis=1)
        # No divergence is negative, but its rounding may be.
        values[:, rows] = [loss_a, loss_b, loss_b - loss_a, np.maximum(kl, 0), agree]
    return values, largest


def _slabs(logits: NDArray) -> Iterator[slice]:
    """Rows that are brought to float64 together."""
    step = max(SLAB // logits.shape[1], 1)
    return (slice(start, start + step) for start in range(0, len(logits), step))


def _log_p(logits: NDArray) -> NDArray:
    """Log-probabilities of a few rows, in float64."""
    z = _shifted(logits)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    return z


def _shifted(logits: NDArray) -> NDArray:
    """Logits less the largest of their row, a fresh float64 array."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    return z


def _at(rows: NDArray, columns: NDArray) -> NDArray:
    return rows[np.arange(len(rows)), columns]


class _Means:
    r"""Means over tokens of several values, and their standard errors, from running sums.

    Tokens of one document are not independent: a text that is hard to predict is hard all along.
    Taking them for independent would make the error too small, so documents are the units that are
    drawn, and the mean is the ratio of two sums over them, of values :math:`S_d` and of tokens
    :math:`n_d`. With D documents, its variance is estimated by that of a ratio of clusters
    (Cochran, Sampling Techniques, 1977, section 6.3 and chapter 9)

    .. math:: \frac{D}{D - 1} \frac{\sum_d (S_d - m n_d)^2}{(\sum_d n_d)^2}

    which supposes nothing about how tokens of a document hang together. One document tells nothing
    of how documents differ, so there is no error then, and with few it is rough.
    """

    def __init__(self) -> None:
        self.documents = 0
        self._open: dict[int, tuple[NDArray, int]] = {}  # sums and tokens of unfinished documents
        self._total: NDArray | float = 0.0
        self.tokens = 0
        # Sums over finished documents of r^2, r n and n^2, where r = S - c n, and c is the first
        # document's mean: so close to m that little cancels when m takes its place.
        self._center: NDArray | None = None
        self._rr: NDArray | float = 0.0
        self._rn: NDArray | float = 0.0
        self._nn = 0

    def add(self, documents: NDArray, values: NDArray) -> None:
        """Values (M, n) of n tokens, and the document of each."""
        if not len(documents):
            return
        self._total = self._total + values.sum(axis=1)
        self.tokens += len(documents)
        # The tokens of a document stand together.
        starts = np.flatnonzero(np.diff(documents, prepend=-1))
        ends = [*starts[1:].tolist(), len(documents)]
        for start, end in zip(starts.tolist(), ends, strict=True):
            document = int(documents[start])
            before, n = self._open.get(document, (0, 0))
            self._open[document] = before + values[:, start:end].sum(axis=1), n + end - start

    def close(self, documents: Sequence[int] | None = None) -> None:
        """These documents, or all, are complete."""
        for document in list(self._open) if documents is None else documents:
            if document not in self._open:  # it had no token
                continue
            total, n = self._open.pop(document)
            if self._center is None:
                self._center = total / n
            r = total - self._center * n
            self._rr = self._rr + r * r
            self._rn = self._rn + r * n
            self._nn += n * n
            self.documents += 1

    def mean(self) -> list[float]:
        return np.divide(self._total, self.tokens).tolist()

    def standard_error(self) -> list[float | None]:
        if self.documents < 2 or self._center is None:
            return [None] * np.size(self._total)
        shift = self._total / self.tokens - self._center
        spread = self._rr - 2 * shift * self._rn + shift**2 * self._nn
        correction = self.documents / (self.documents - 1)
        variance = correction * np.maximum(spread, 0) / self.tokens**2
        return np.sqrt(variance).tolist()


class _Quantiles:
    """Quantiles of values of at least 0, from a histogram whose bins are 0.23 % wide."""

    LOW, HIGH, BINS = -12, 4, 1000  # powers of ten, and bins in each; below there is only 0

    def __init__(self) -> None:
        self._counts = np.zeros(1 + (self.HIGH - self.LOW) * self.BINS, np.int64)
        self.largest = 0.0

    def add(self, values: NDArray) -> None:
        self.largest = max(self.largest, float(values.max(initial=0)))
        power = np.log10(np.maximum(values, 10.0 ** (self.LOW - 1)))
        bins = np.floor((power - self.LOW) * self.BINS).astype(np.int64) + 1
        bins = np.clip(bins, 0, len(self._counts) - 1)
        self._counts += np.bincount(bins, minlength=len(self._counts))

    def quantile(self, share: float) -> float:
        """The middle of the bin up to which there is this share of all values."""
        cumulative = np.cumsum(self._counts)
        bin_ = int(np.searchsorted(cumulative, share * cumulative[-1]))
        middle = 10 ** (self.LOW + (bin_ - 0.5) / self.BINS) if bin_ else 0.0
        return float(min(middle, self.largest))


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def _times(factor: float, error: float | None) -> float | None:
    return None if error is None else factor * error


# From a file to calls.


@dataclass(frozen=True)
class _Part:
    """Tokens to read, and the token that follows each, of one document or a part of it."""

    document: int
    first: bool
    last: bool
    inputs: NDArray
    targets: NDArray


class _Text:
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

    def __iter__(self) -> Iterator[_Part]:
        tokenizer = self._tokenizer
        document = 0
        before: int | None = None  # the last token of this document's part before
        for text, last in _parts(self._path, tokenizer):
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
            yield _Part(document, first, last or full, np.array(ids[:-1]), np.array(ids[1:]))
            if full:
                break
            document += last
            before = None if last else ids[-1]
        self._complete = True
        if not self.tokens:
            raise TokenizerError(f"{self._path} holds no text")


def _parts(path: str | os.PathLike, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Text of documents in order, and whether the document ends there.

    A document comes whole, unless it is longer than :data:`PART` and may be cut between lines. So
    memory is bounded, except by the longest line, or by the longest document where tokens may
    cross the ends of lines.
    """
    may_cut: bool | None = None  # found out when it matters
    held: list[str] = []
    size = newlines = 0
    cut = False  # whether a part of this document has been given out
    for line in _lines(path):
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
                may_cut = _cuts_at_lines(tokenizer) if may_cut is None else may_cut
                if may_cut and (cut or any(part.strip() for part in held)):
                    yield "".join(held), False
                    held, size, cut = [], 0, True
            held.append(line)
            size += len(line) + newlines
            newlines = 1


def _cuts_at_lines(tokenizer: Tokenizer) -> bool:
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


def _lines(path: str | os.PathLike) -> Iterator[str | None]:
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
class _Call:
    """Arrays (B, T): tokens, their positions, the tokens that follow (-1: none), and documents."""

    tokens: NDArray
    positions: NDArray
    targets: NDArray
    documents: NDArray
    ended: list[int]


@dataclass
class _Row:
    """What a row is reading."""

    part: _Part | None = None
    offset: int = 0
    position: int = 0
    waiting: bool = False  # for the next part of its document


def _calls(parts: Iterator[_Part] | _Text, batch: int, length: int) -> Iterator[_Call]:
    """Fill rows from the left, each with whatever document is next.

    While the next part belongs to a document that some row has begun, only that row can go on.
    """
    source = iter(parts)
    rows = [_Row() for _ in range(batch)]
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
        yield _Call(np.maximum(tokens, 0), positions, targets, documents, ended)
