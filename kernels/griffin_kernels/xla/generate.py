"""Text generation as one compiled loop: the host is asked only when text has to be looked at.

What a seed draws is drawn on the host as ``griffin_np.generate`` does, so that both write the same
text, up to rounding. The state belongs to the loop, which changes it in place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from griffin_kernels.xla.layout import bucket
from griffin_kernels.xla.model import embed, head, residual_blocks
from griffin_kernels.xla.sampling import FAULTS, Options, Steps, choose, options_of
from griffin_kernels.xla.sharding import constrain_tree
from griffin_np.config import GriffinConfig
from griffin_np.errors import SamplingError, StateError
from griffin_np.generate import Run
from griffin_np.inputs import POSITION_LIMIT
from griffin_np.rows import Piece
from griffin_np.sampling import Sampler
from griffin_np.state import State

if TYPE_CHECKING:
    from griffin_kernels.xla.engine import JaxModel

__all__ = ["DeviceRun", "decode"]

CHUNK = 32
"""Tokens between two looks at the text, where a stop string may end it."""


@partial(
    jax.jit,
    static_argnames=("config", "scan", "steps"),
    donate_argnames=("layers",),
)
def decode(
    params: dict,
    layers: Any,
    logits: Array | None,
    pending: Array,
    position: Array,
    done: Array,
    recent: Array,
    cursor: Array,
    uniforms: Array,
    limit: Array,
    ends: Array,
    options: Options,
    *,
    config: GriffinConfig,
    scan: str,
    steps: Steps,
) -> dict[str, Any]:
    """Up to ``limit`` tokens for each row, until all rows are done.

    Parameters
    ----------
    params, layers
        As for :func:`~griffin_kernels.xla.model.residual_blocks`; ``layers`` are consumed.
    logits : Array of shape (B, V), optional
        From which the first token is drawn. Without them the pending tokens are read first.
    pending : Array of shape (B,), int32
        Tokens that the state has not seen.
    position : Array of shape (B,), int32
        Position of the next token that is read.
    done : Array of shape (B,), bool
    recent, cursor : Array of shape (B, N) and (B,), int32
        Ring of the tokens that penalties look back on, and how many were ever put into it.
    uniforms : Array of shape (B, M), float32
        One number for each token; M is at least ``limit``.
    limit : Array of shape (), int32
    ends : Array of shape (E,), int32
        Tokens after which a row is done.
    options, steps
        Of sampling.

    Returns
    -------
    dict
        ``tokens`` and ``logprobs`` (B, M), -1 and 0 where a row was done; ``fault``; and what to
        call again with: ``layers``, ``pending``, ``position``, ``done``, ``recent``, ``cursor``;
        ``n`` is the number of tokens drawn for each row.
    """
    B, M = uniforms.shape
    rows = jnp.arange(B)

    def draw(logits, c):
        token, logprob, fault = choose(logits, uniforms[:, c["n"]], c["recent"], options, steps)
        live = ~c["done"]
        size = c["recent"].shape[1]
        slot = jnp.where(live, c["cursor"] % size, size)
        return c | {
            "n": c["n"] + 1,
            "tokens": c["tokens"].at[:, c["n"]].set(jnp.where(live, token, -1)),
            "logprobs": c["logprobs"].at[:, c["n"]].set(jnp.where(live, logprob, 0)),
            "fault": jnp.max(jnp.where(live, fault, 0)),
            "pending": token,
            "done": c["done"] | jnp.isin(token, ends),
            "recent": c["recent"].at[rows, slot].set(token, mode="drop"),
            "cursor": c["cursor"] + live,
        }

    def step(c):
        positions = jnp.where(c["done"], -1, c["position"])[:, None]
        with jax.default_matmul_precision("highest"):
            x = embed(params, jnp.maximum(c["pending"], 0)[:, None], config)
            x, after = residual_blocks(
                params, x, positions, config, c["layers"], scan=scan, step=True
            )
            logits = head(params, x[:, 0], config)
        c = c | {"layers": constrain_tree(after), "position": c["position"] + ~c["done"]}
        return draw(logits, c)

    def goes_on(c):
        return (c["n"] < limit) & ~jnp.all(c["done"]) & (c["fault"] == 0)

    carry = {
        "n": jnp.int32(0), "tokens": jnp.full((B, M), -1, jnp.int32),
        "logprobs": jnp.zeros((B, M), jnp.float32), "fault": jnp.int32(0), "layers": layers,
        "pending": pending, "position": position, "done": done, "recent": recent, "cursor": cursor,
    }  # fmt: skip
    if logits is not None:
        carry = draw(logits, carry)
    return lax.while_loop(goes_on, step, carry)


class DeviceRun(Run):
    """The generation loop over a batch, on the device, a chunk of tokens at a time.

    A stop string may end a row inside a chunk, so there is no state after it to go on from:
    streams, which have one, take the host's loop.
    """

    _model: JaxModel

    def steps(self) -> Iterator[list[Piece]]:
        rows, left = self._rows, self._max_tokens
        # A sampler of somebody's own is Python; and without tokens there is nothing to compile.
        # Past the last position it has to be refused, which the host does.
        late = int(self._state.position.max(initial=0)) + max(
            (len(row.prompt) for row in rows), default=0
        )
        own = type(self._sampler) is not Sampler
        if own or not left or late + left > POSITION_LIMIT:
            yield from super().steps()
            return
        steps, options = options_of(self._sampler, self._model.config.vocab_size)
        stops = any(row.stops for row in rows)
        size = bucket(min(left, CHUNK) if stops else left)
        logits: NDArray | None = self._prefill()
        started = time.perf_counter()
        recent, cursor = self._recent(steps)
        ends = np.array(sorted(rows[0].ends) or [-1], np.int32)
        while left:
            count = min(left, size)
            uniforms = np.zeros((len(rows), size), np.float32)
            if not steps.greedy:
                for i, row in enumerate(rows):
                    uniforms[i, :count] = row.rng.random(count)
            # A float64 number just below 1 would become 1.
            np.minimum(uniforms, np.nextafter(np.float32(1), np.float32(0)), out=uniforms)
            done = np.array([row.reason is not None for row in rows])
            found, self._state = self._model.decode(
                self._state, logits, self._pending[:, 0], done, recent, cursor, uniforms, count,
                ends, options, steps,
            )  # fmt: skip
            if found["fault"]:
                raise SamplingError(FAULTS[int(found["fault"])])
            recent, cursor = found["recent"], found["cursor"]
            left, logits = left - count, None
            self._pending[:] = -1
            for i, row in enumerate(rows):
                pairs = zip(found["tokens"][i, :count], found["logprobs"][i, :count], strict=True)
                for token, logprob in pairs:
                    if row.reason is not None or token < 0:
                        break
                    accepted = row.accept(int(token), float(logprob))
                    self._pending[i] = token if accepted else -1
                if row.reason is None and not left:
                    row.finish("length")
            self._generation_seconds = time.perf_counter() - started
            yield [row.take() for row in rows]
            if all(row.reason for row in rows):
                return

    def state_after(self) -> State:
        """None is kept.

        Raises
        ------
        StateError
            Always.
        """
        raise StateError("generation on the device keeps no state: use stream() for one")

    def _recent(self, steps: Steps) -> tuple[NDArray, NDArray]:
        """The ring of tokens that penalties look back on, and how many are in it."""
        last = self._sampler.repeat_last_n
        if not steps.penalties:
            return np.full((len(self._rows), 1), -1, np.int32), np.zeros(len(self._rows), np.int32)
        longest = max(len(row.history) for row in self._rows)
        needed = bucket(longest + self._max_tokens)
        last = needed if last < 0 else min(last, needed)
        recent = np.full((len(self._rows), last), -1, np.int32)
        for ring, row in zip(recent, self._rows, strict=True):
            tail = row.history[-last:]
            ring[: len(tail)] = tail
        return recent, (recent >= 0).sum(axis=1).astype(np.int32)
