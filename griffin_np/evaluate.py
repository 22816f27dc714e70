"""How well a model predicts a text, and how far two models are apart on it.

Both read a file of any size in constant memory: text comes in parts, tokens in chunks, and of each
token's scores only sums are kept. Documents are separated by lines that are exactly
``<|endoftext|>``; newlines at either end of a document belong to the separator, and documents of
nothing but white space are left out, as in training. Every document starts with the
beginning-of-sequence token, from which its first token is predicted, and ends with the
end-of-sequence token, if the tokenizer has one, which is predicted too.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from griffin_np.base import Model
from griffin_np.documents import Documents, check_text, chunks
from griffin_np.errors import ConfigError, SamplingError
from griffin_np.estimates import Means, Quantiles, exp, times

__all__ = ["Comparison", "Perplexity", "check_text", "compare", "perplexity"]

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
        None if there is only one document; see :class:`griffin_np.estimates.Means`.
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
        return exp(self.nll)

    @property
    def perplexity_standard_error(self) -> float | None:
        """By the delta method: the derivative of ``exp`` at the mean, times the mean's."""
        return times(self.perplexity, self.nll_standard_error)

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
        return exp(self.log_ratio)

    @property
    def perplexity_ratio_standard_error(self) -> float | None:
        """Of the ratio itself: what both models find hard in a document cancels."""
        return times(self.perplexity_ratio, self.log_ratio_standard_error)


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
    divergences = Quantiles()
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
        self.text = Documents(path, models[0].need_tokenizer(), limit)
        self.means = Means()
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
        for call in chunks(self.text, self._batch, self._chunk):
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
