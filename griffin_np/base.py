"""The call that every engine answers: what it accepts, what it returns, what it refuses.

Engines share this contract and nothing else of the computation. A subclass implements
``_forward``; checking of tokens, positions and states, losses, hidden states and text generation
stand here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from griffin_np.config import GriffinConfig
from griffin_np.errors import ConfigError, PositionError, StateError, TokenizerError
from griffin_np.inputs import check_positions, check_tokens, integers
from griffin_np.notation import Trace, no_trace
from griffin_np.state import State

if TYPE_CHECKING:
    from griffin_np.generate import Generation, Run, Stream
    from griffin_np.tokenizer import Tokenizer

__all__ = ["GenerationDefaults", "Model"]


@dataclass(frozen=True)
class GenerationDefaults:
    """What a checkpoint's ``generation_config.json`` says about sampling; None: it says nothing."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    eos_ids: tuple[int, ...] = ()


class Model(ABC):
    """A Griffin with weights, in one of the engines.

    Attributes
    ----------
    config : GriffinConfig
    backend : str
        Name of the engine.
    dtype : str
        Of the weights.
    fingerprint : str
        Identity of the weights, whatever their dtype; states carry it.
    tokenizer : Tokenizer or None
    generation : GenerationDefaults
    """

    backend: str = ""

    def __init__(self, config: GriffinConfig, dtype: str, fingerprint: str):
        self.config = config
        self.dtype = dtype
        self.fingerprint = fingerprint
        self.tokenizer: Tokenizer | None = None
        self.generation = GenerationDefaults()

    @property
    @abstractmethod
    def parameters(self) -> dict:
        """Weights as the parameter tree of :mod:`griffin_np.params`."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are held."""

    @property
    @abstractmethod
    def state_dtype(self) -> np.dtype:
        """Dtype of convolution inputs, keys and values in this engine's states."""

    @abstractmethod
    def _forward(
        self,
        inputs: NDArray,
        positions: NDArray,
        state: State,
        logits: str,
        trace: Trace,
    ) -> tuple[NDArray | None, State]:
        """Compute. Everything has been checked; nothing given may be changed.

        ``inputs`` are tokens (B, T) int64, 0 at padding, or embeddings (B, T, D); ``positions``
        (B, T) int64; ``state`` is in this engine's dtypes.
        """

    def _advance(
        self, inputs: NDArray, positions: NDArray, state: State, logits: str
    ) -> tuple[NDArray | None, State]:
        """As :meth:`_forward`, with leave to change the state's arrays and return them."""
        return self._forward(inputs, positions, state, logits, no_trace)

    def init_state(self, batch: int = 1) -> State:
        """The state before any text, for ``batch`` rows."""
        return State.zeros(self.config, batch, self.state_dtype, self.fingerprint)

    def __call__(
        self,
        tokens: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        state: State | None = None,
        logits: Literal["all", "last", "none"] = "all",
        *,
        inputs_embeds: ArrayLike | None = None,
        trace: Trace = no_trace,
    ) -> tuple[NDArray | None, State]:
        """Read tokens and return logits and the state after them.

        A pure function: nothing that is passed in is changed or invalidated.

        Parameters
        ----------
        tokens : array_like of int, shape (B, T)
        positions : array_like of int, shape (B, T), optional
            0 starts a document and forgets what came before; otherwise the row's previous position
            plus 1; -1 is padding, anywhere: its token is never read, it changes nothing and its
            logits are 0. By default each row continues from its state, or starts at 0.
        state : State, optional
            From an earlier call, a file, or :meth:`init_state`; a fresh one by default.
        logits : {"all", "last", "none"}
            For every token; for the last real token of each row; or not at all.
        inputs_embeds : array_like, shape (B, T, D), optional
            Embeddings in place of tokens, before they are scaled by ``config.embedding_scale``.
        trace : callable, optional
            Called as ``trace(name, array)`` with intermediate results of shape (B, T, ...).

        Returns
        -------
        logits : array of shape (B, T, V) or (B, V), or None
            float32, or float64 in a float64 model.
        state : State

        Raises
        ------
        PositionError
            If tokens or positions break the rules above; names row and column.
        StateError
            If the state is of another model or batch.
        """
        inputs, steps, state = self._checked(tokens, positions, state, logits, inputs_embeds)
        return self._forward(inputs, steps, state, logits, trace)

    def advance(
        self,
        tokens: ArrayLike,
        positions: ArrayLike | None = None,
        state: State | None = None,
        logits: Literal["all", "last", "none"] = "last",
    ) -> tuple[NDArray | None, State]:
        """The same as calling the model, for callers that need ``state`` no more.

        Engines may update the state's arrays in place, which saves copying megabytes for every
        token of a generation: use only the state that is returned, and never one that somebody
        else still holds.

        Parameters and errors are those of calling the model.
        """
        return self._advance(*self._checked(tokens, positions, state, logits), logits)

    def _checked(
        self,
        tokens: ArrayLike | None,
        positions: ArrayLike | None,
        state: State | None,
        logits: str,
        inputs_embeds: ArrayLike | None = None,
    ) -> tuple[NDArray, NDArray, State]:
        """Inputs, positions (B, T) and a state in this engine's dtypes, or an error."""
        if logits not in ("all", "last", "none"):
            raise PositionError(f"logits must be 'all', 'last' or 'none', got {logits!r}")
        if (tokens is None) == (inputs_embeds is None):
            raise PositionError("pass either tokens or inputs_embeds, and not both")
        if tokens is not None:
            inputs = integers(tokens, "tokens")
        else:
            inputs = np.asarray(inputs_embeds)
            if inputs.ndim != 3 or inputs.shape[2] != self.config.width or inputs.dtype.kind != "f":
                raise PositionError(
                    f"inputs_embeds must be floats of shape (B, T, {self.config.width}), "
                    f"got {inputs.dtype} {inputs.shape}"
                )
        batch, length = inputs.shape[:2]
        if state is None:
            state = self.init_state(batch)
        elif not isinstance(state, State):
            raise StateError(f"state must be a griffin_np.State, got {type(state).__name__}")
        state.check_model(self.config, self.fingerprint)
        state.check_arrays()
        if state.batch != batch:
            raise StateError(
                f"the state has {state.batch} row(s) and the input {batch}: "
                f"use state.select or state.fork to match them"
            )
        if positions is None:
            steps = state.position[:, None] + np.arange(length)
        else:
            steps = integers(positions, "positions")
            if steps.shape != (batch, length):
                raise PositionError(
                    f"positions have shape {steps.shape}, the input {(batch, length)}"
                )
        check_positions(steps, state.position)
        if tokens is not None:
            inputs = check_tokens(inputs, steps, self.config.vocab_size)
        if not state.has_dtype(self.state_dtype):
            state = state.astype(self.state_dtype)
        return inputs, steps, state

    def hidden_states(
        self,
        tokens: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        state: State | None = None,
        *,
        inputs_embeds: ArrayLike | None = None,
    ) -> tuple[NDArray, ...]:
        """Residual stream before the first block and after each block, ``depth + 1`` arrays.

        Each is of shape (B, T, D). The first is the scaled embedding; the last has gone through the
        final norm, as transformers returns it. Padding is 0.
        """
        found: dict[str, NDArray] = {}

        def keep(name: str, array: NDArray) -> None:
            if name in wanted:
                found[name] = array

        inner = [f"blocks.{i}.residual" for i in range(self.config.depth - 1)]
        wanted = ["embedding", *inner, "final_norm"]
        self(tokens, positions, state, "none", inputs_embeds=inputs_embeds, trace=keep)
        # An engine has nothing to report of a call without a single real token.
        given = np.asarray(tokens if inputs_embeds is None else inputs_embeds)
        nothing = np.zeros((*given.shape[:2], self.config.width), self.state_dtype)
        return tuple(found.get(name, nothing) for name in wanted)

    def loss(
        self,
        tokens: ArrayLike,
        labels: ArrayLike,
        ignore_index: int = -100,
        *,
        positions: ArrayLike | None = None,
        state: State | None = None,
    ) -> float:
        """Mean cross-entropy of predicting each label from the tokens before it, in nats.

        As in transformers, ``labels`` are aligned with ``tokens`` and shifted here: the label in
        column t is predicted from the row's previous real token. Labels equal to ``ignore_index``,
        at padding, and at a row's first real token do not count.

        Parameters
        ----------
        tokens, labels : array_like of int, shape (B, T)
        ignore_index : int
        positions, state
            As for calling the model.

        Raises
        ------
        PositionError
            If labels have another shape, lie outside the vocabulary, or none of them counts.
        """
        tokens, labels = integers(tokens, "tokens"), integers(labels, "labels")
        if labels.shape != tokens.shape:
            raise PositionError(f"labels have shape {labels.shape}, tokens {tokens.shape}")
        logits, _ = self(tokens, positions, state)
        assert logits is not None
        real = np.ones(tokens.shape, bool) if positions is None else np.asarray(positions) >= 0
        total, count = 0.0, 0
        for row in range(len(tokens)):
            columns = np.flatnonzero(real[row])
            target = labels[row, columns[1:]]
            counts = target != ignore_index
            wrong = counts & ((target < 0) | (target >= self.config.vocab_size))
            if wrong.any():
                column = columns[1:][wrong][0]
                raise PositionError(
                    f"label {labels[row, column]} in row {row}, column {column} is outside the "
                    f"vocabulary [0, {self.config.vocab_size}); use {ignore_index} to leave it out"
                )
            z = logits[row, columns[:-1][counts]].astype(np.float64)
            top = z.max(axis=-1, keepdims=True, initial=-np.inf)
            log_z = top[:, 0] + np.log(np.exp(z - top).sum(axis=-1))
            total += float(np.sum(log_z - np.take_along_axis(z, target[counts][:, None], 1)[:, 0]))
            count += int(counts.sum())
        if not count:
            raise PositionError("no label counts: all are ignored, padding, or first in their row")
        return total / count

    def generate(self, prompts, **options) -> Generation | list[Generation]:
        """Continue one prompt or several; see :func:`griffin_np.generate.generate`."""
        from griffin_np.generate import generate

        return generate(self, prompts, **options)

    def new_run(self, prompts: list, **options) -> Run:
        """What :meth:`generate` runs; an engine may have a loop of its own."""
        from griffin_np.generate import Run

        return Run(self, prompts, **options)

    def new_seed(self) -> int:
        """A random seed, for generation where none is given."""
        return int(np.random.SeedSequence().generate_state(1)[0])

    def stream(self, prompt, **options) -> Stream:
        """Continue a prompt piece by piece; see :func:`griffin_np.generate.stream`."""
        from griffin_np.generate import stream

        return stream(self, prompt, **options)

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises
        ------
        TokenizerError
            If this model has none.
        """
        if self.tokenizer is None:
            raise TokenizerError(
                "this model has no tokenizer: put a tokenizer.model into its folder, set "
                "model.tokenizer, or pass token ids instead of text"
            )
        return self.tokenizer

    def attach_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """Set the tokenizer, if its pieces fit the embedding.

        Raises
        ------
        ConfigError
            If the vocabulary has more pieces than the embedding has rows.
        """
        if tokenizer is not None and tokenizer.vocab_size > self.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} pieces, the model's embedding only "
                f"{self.config.vocab_size} rows: this is another model's tokenizer"
            )
        self.tokenizer = tokenizer

    def __repr__(self) -> str:
        c = self.config
        return (
            f"<griffin_np.Model {self.backend} {self.dtype}: {c.num_parameters():,} parameters, "
            f"{c.depth} blocks of width {c.width}, vocabulary {c.vocab_size:,}>"
        )
