"""One row of a generation: its tokens, its text as far as it is certain, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from griffin_np.base import Model

__all__ = ["Piece", "Row"]


class Piece(str):
    """A piece of generated text, with the tokens that completed it.

    Attributes
    ----------
    tokens : tuple of int
    logprobs : tuple of float
        Natural log-probability of each token under the model itself, before any sampling option.
    finish_reason : {"stop", "length"} or None
        Set on the last piece.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None


class Row:
    """One row's tokens, its text as far as it is certain, and why it ended."""

    def __init__(
        self, model: Model, prompt: list[int], seed: int, index: int, stops, ends: set[int]
    ):
        self.prompt = prompt
        self.history = list(prompt)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.reason: str | None = None
        self.text = ""
        self.rng = np.random.default_rng([seed, index])
        self._decoder = model.tokenizer.decoder() if model.tokenizer else None
        if stops and self._decoder is None:
            model.need_tokenizer()
        self.stops = stops
        self.ends = ends
        self._held = ""  # text that may yet turn out to begin a stop string
        self._new_text = ""
        self._taken = 0

    def accept(self, token: int, logprob: float) -> bool:
        """Take a token; False if it is an end token, which belongs to neither text nor state."""
        if token in self.ends:
            self.finish("stop")
            return False
        self.tokens.append(token)
        self.history.append(token)
        self.logprobs.append(logprob)
        if self._decoder is not None:
            self._release(self._decoder.push(token), final=False)
        return True

    def finish(self, reason: str) -> None:
        if self._decoder is not None:
            self._release(self._decoder.flush(), final=True)
        self.reason = self.reason or reason

    def take(self) -> Piece:
        """The piece that has become certain since the last call.

        Tokens go with the text that they complete: an empty piece has none before the end.
        """
        piece = Piece(self._new_text)
        if not piece and self.reason is None and self._decoder is not None:
            return piece
        piece.tokens = tuple(self.tokens[self._taken :])
        piece.logprobs = tuple(self.logprobs[self._taken :])
        piece.finish_reason = self.reason
        self._taken, self._new_text = len(self.tokens), ""
        return piece

    def _release(self, text: str, final: bool) -> None:
        if self.reason is not None:
            return
        text = self._held + text
        found = [i for i in (text.find(s) for s in self.stops) if i >= 0]
        if found:
            text, self._held, self.reason = text[: min(found)], "", "stop"
        else:
            keep = 0 if final else _possible_start(text, self.stops)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self.text += text
        self._new_text += text


def _possible_start(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` with which a stop string may begin."""
    lengths = (
        n for s in stops for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])
    )
    return max(lengths, default=0)
