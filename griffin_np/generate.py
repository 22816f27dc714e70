"""Text generation on top of a model's call: one prompt or a batch, whole or as a stream.

Prompts of different lengths share a batch, padded on the right with position -1; a row that has
ended is fed padding, so no row depends on its neighbours. What a row draws depends on the seed and
its own index alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from griffin_np.base import Model
from griffin_np.errors import SamplingError, StateError
from griffin_np.rows import Piece, Row
from griffin_np.sampling import Sampler, log_probability
from griffin_np.state import State

__all__ = ["Generation", "Piece", "Run", "Stream", "generate", "stream"]

PREFILL_STEP = 512
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Generation:
    """A finished continuation.

    Attributes
    ----------
    text : str
        Without the stop string or end token that ended it.
    tokens : list of int
    logprobs : list of float
        As in :class:`griffin_np.rows.Piece`.
    finish_reason : {"stop", "length", "unfinished"}
        "unfinished" while a stream goes on, or when it was left early.
    prompt_tokens : int
    prompt_seconds, generation_seconds : float
    seed : int
        With the same prompt and options it gives the same text again.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str
    prompt_tokens: int
    prompt_seconds: float
    generation_seconds: float
    seed: int

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / max(self.prompt_seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / max(self.generation_seconds, 1e-9)

    def __str__(self) -> str:
        return self.text


def generate(
    model: Model, prompts: Prompt | Sequence[Prompt], **options
) -> Generation | list[Generation]:
    """Continue one prompt, or several in one batch.

    Parameters
    ----------
    model : Model
    prompts : str, list of int, or a list of either
        Text gets one beginning-of-sequence token in front, unless it continues a ``state``; token
        ids are taken as they are.
    max_tokens : int
        Default 256.
    temperature, top_k, top_p : optional
        Default: what the checkpoint's ``generation_config.json`` says, else greedy.
    min_p, repetition_penalty, presence_penalty, frequency_penalty, repeat_last_n, logit_bias
        See :class:`griffin_np.sampling.Sampler`.
    seed : int, optional
        Drawn and reported if it is not given.
    stop : str or sequence of str
        Texts that end a row; they may span tokens and are not part of the result.
    ignore_eos : bool
        Do not stop at end tokens.
    state : State, optional
        What to continue from, one row for each prompt.

    Returns
    -------
    Generation, or a list of them for a list of prompts

    Raises
    ------
    SamplingError, PositionError, StateError, TokenizerError
        For options, tokens or a state that cannot be used.
    """
    single = isinstance(prompts, str) or all(isinstance(p, int | np.integer) for p in prompts)
    rows = cast("list[Prompt]", [prompts] if single else list(prompts))
    results = model.new_run(rows, **options).finish()
    return results[0] if single else results


def stream(model: Model, prompt: Prompt, **options) -> Stream:
    """Continue a prompt and give each piece of text as soon as it is certain.

    Takes the options of :func:`generate`. The result is an iterator of :class:`.Piece`, which also
    tells its :attr:`~Stream.result` and :attr:`~Stream.state` so far. Without a tokenizer there is
    one empty piece for each token.
    """
    return Stream(Run(model, [prompt], **options))


class Stream(Iterator[Piece]):
    """Pieces of one continuation, as they come."""

    def __init__(self, run: Run):
        self._run = run
        self._pieces = (pieces[0] for pieces in run.steps())

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        while not piece.tokens and piece.finish_reason is None:
            piece = next(self._pieces)
        return piece

    @property
    def result(self) -> Generation:
        """What has been generated so far."""
        return self._run.results()[0]

    @property
    def state(self) -> State:
        """The state after the prompt and every token so far."""
        return self._run.state_after()


class Run:
    """The generation loop over a batch. It owns its state."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 256,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
        ignore_eos: bool = False,
        state: State | None = None,
        progress: Callable[[int, int], None] | None = None,
        **sampling,
    ):
        if (
            isinstance(max_tokens, bool)
            or not isinstance(max_tokens, int | np.integer)
            or max_tokens < 0
        ):
            raise SamplingError(f"max_tokens must be an integer of at least 0, got {max_tokens!r}")
        self._model = model
        self._max_tokens = int(max_tokens)
        self._sampler = make_sampler(model, **sampling)
        if seed is None:
            seed = model.new_seed()
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise SamplingError(f"seed must be an integer of at least 0, got {seed!r}")
        self.seed = int(seed)
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        if any(not isinstance(s, str) or not s for s in stops):
            raise SamplingError(f"stop strings must be non-empty text, got {stops!r}")
        ends = set() if ignore_eos else end_tokens(model)
        if state is not None and state.batch != len(prompts):
            raise StateError(f"the state has {state.batch} row(s) for {len(prompts)} prompt(s)")
        read = [0] * len(prompts) if state is None else state.position.tolist()
        ids = [_encode(model, p, fresh=n == 0) for p, n in zip(prompts, read, strict=True)]
        self._rows = [Row(model, row, self.seed, i, stops, ends) for i, row in enumerate(ids)]
        self._state = model.init_state(len(ids)) if state is None else state
        self._owned = state is None  # nobody else holds the state, so it may be changed
        self._first: NDArray | None = None  # logits after the prompts, once these have been read
        self._progress = progress
        self._pending = np.full((len(ids), 1), -1, np.int64)  # tokens not yet in the state
        self._prompt_seconds = self._generation_seconds = 0.0

    def steps(self) -> Iterator[list[Piece]]:
        """Generate; after each step give every row's new piece."""
        rows = self._rows
        logits: NDArray | None = self._prefill()
        started = time.perf_counter()
        for row in rows:
            if not self._max_tokens:
                row.finish("length")
        if not self._max_tokens:
            yield [row.take() for row in rows]
            return
        for n in range(1, self._max_tokens + 1):
            if n > 1:
                logits, self._state = self._feed("last", keep=not self._owned)
                self._owned = True
                self._pending[:] = -1
            assert logits is not None
            for i, row in enumerate(rows):
                if row.reason is None:
                    token = self._sampler.sample(logits[i], row.history, row.rng)
                    if row.accept(token, log_probability(logits[i], token)):
                        self._pending[i] = token
                    if row.reason is None and n == self._max_tokens:
                        row.finish("length")
            self._generation_seconds = time.perf_counter() - started
            yield [row.take() for row in rows]
            if all(row.reason for row in rows):
                return

    def finish(self) -> list[Generation]:
        """Generate to the end."""
        for _ in self.steps():
            pass
        return self.results()

    def results(self) -> list[Generation]:
        return [
            Generation(
                row.text, list(row.tokens), list(row.logprobs), row.reason or "unfinished",
                len(row.prompt), self._prompt_seconds, self._generation_seconds, self.seed,
            )
            for row in self._rows
        ]  # fmt: skip

    def state_after(self) -> State:
        self._prefill()
        if (self._pending >= 0).any():
            return self._feed("none", keep=True)[1]
        self._owned = False
        return self._state

    def _prefill(self) -> NDArray:
        """Logits after the prompts, which the first call reads."""
        if self._first is not None:
            return self._first
        started = time.perf_counter()
        prompts = [row.prompt for row in self._rows]
        length = max(map(len, prompts))
        tokens = np.zeros((len(prompts), length), np.int64)
        positions = np.full(tokens.shape, -1)
        for i, ids in enumerate(prompts):
            tokens[i, : len(ids)] = ids
            positions[i, : len(ids)] = self._state.position[i] + np.arange(len(ids))
        state = self._state
        last: NDArray | None = None
        for start in range(0, length, PREFILL_STEP):
            part = slice(start, start + PREFILL_STEP)
            read = self._model.advance if self._owned else self._model
            logits, state = read(tokens[:, part], positions[:, part], state, "last")
            self._owned = True
            assert logits is not None
            ends_here = (positions[:, part] >= 0).any(axis=1, keepdims=True)
            last = logits if last is None else np.where(ends_here, logits, last)
            if self._progress:
                self._progress(min(start + PREFILL_STEP, length), length)
        self._prompt_seconds = time.perf_counter() - started
        assert last is not None
        self._first, self._state = last, state
        return last

    def _feed(self, logits: Literal["last", "none"], keep: bool) -> tuple[NDArray | None, State]:
        """Logits and state after the pending tokens; rows that have none stay as they are.

        The state from before stays as it is only if ``keep`` says so.
        """
        positions = np.where(self._pending >= 0, self._state.position[:, None], -1)
        read = self._model if keep else self._model.advance
        return read(np.maximum(self._pending, 0), positions, self._state, logits)


def _encode(model: Model, prompt: Prompt, fresh: bool) -> list[int]:
    if isinstance(prompt, str):
        ids = model.need_tokenizer().encode(prompt, bos=fresh)
    else:
        ids = [int(i) for i in prompt]
    if not ids:
        raise SamplingError("a prompt has no tokens: give at least one to continue from")
    return ids


def make_sampler(model: Model, sampler: Sampler | None = None, **options) -> Sampler:
    """A sampler from options; what is None follows the checkpoint's generation defaults."""
    if sampler is not None:
        if options:
            raise SamplingError(f"pass a sampler or options, not both: {sorted(options)}")
        return sampler
    known = {f.name for f in fields(Sampler)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise SamplingError(f"unknown option(s) {unknown}; known: {sorted(known)}")
    defaults = {
        "temperature": model.generation.temperature,
        "top_k": model.generation.top_k,
        "top_p": model.generation.top_p,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return Sampler(**({k: v for k, v in defaults.items() if v is not None} | given))


def end_tokens(model: Model) -> set[int]:
    """Tokens that end a text: the checkpoint's, and the end of a turn where there is one."""
    ends = set(model.generation.eos_ids) or {model.config.eos_id}
    turn = model.tokenizer.end_of_turn_id if model.tokenizer else None
    return ends | ({turn} if turn is not None else set())
