"""Griffin in JAX: the forward pass over packed documents, written for ``jit`` and ``grad``.

It takes the parameter tree of ``griffin_np.params`` (as JAX arrays) and computes whole sequences
with batched matrix products, one scan per recurrent block and attention in blocks of one window.
Nothing here calls the NumPy reference: the two are compared, not connected.

The tokens of a row stand on the left, its padding (position -1) on the right. A row may continue a
text: every function that remembers takes what came before, ``None`` where nothing did, and returns
what to carry on with. Training drops the latter, and XLA then never computes it.

Shapes: B rows, T tokens, D width, R lru_width, H heads, G = R / H, K conv width, W window.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from griffin_kernels.xla.attention import attention_block, local_attention
from griffin_kernels.xla.layers import Layer, Watch, gelu, linear, mlp, no_watch, rms_norm, scoped
from griffin_kernels.xla.recurrent import (
    causal_conv,
    decay,
    gate,
    recurrent_block,
    rg_lru,
    sqrt_clipped,
)
from griffin_kernels.xla.rope import apply_rope, rotation
from griffin_kernels.xla.sharding import constrain
from griffin_np.config import ATTENTION, RECURRENT, GriffinConfig
from griffin_np.inputs import POSITION_LIMIT

# The model, and its single operations for those who check them one by one.
__all__ = [
    "apply_rope",
    "attention_block",
    "causal_conv",
    "decay",
    "embed",
    "forward",
    "gate",
    "gelu",
    "head",
    "hidden",
    "linear",
    "local_attention",
    "mlp",
    "recurrent_block",
    "residual_block",
    "residual_blocks",
    "rg_lru",
    "rms_norm",
    "rotation",
    "sqrt_clipped",
    "stack",
    "unstack",
]


def forward(
    params: dict,
    tokens: Array,
    positions: Array,
    config: GriffinConfig,
    *,
    scan: str = "sequential",
    remat: bool = False,
) -> Array:
    """Logits for every token of packed sequences.

    Parameters
    ----------
    params : dict
        Parameter tree; its dtype is the dtype of the computation, the recurrence is float32.
    tokens : Array of shape (B, T)
    positions : Array of shape (B, T)
        Position in the document; 0 starts one, and a row's tail of padding is -1.
    config : GriffinConfig
    scan : {"sequential", "associative", "pallas"}
    remat : bool
        Recompute each block in the backward pass instead of keeping its intermediates.

    Returns
    -------
    Array of shape (B, T, V), float32
    """
    return head(params, hidden(params, tokens, positions, config, scan=scan, remat=remat), config)


def hidden(params, tokens, positions, config, *, scan="sequential", remat=False) -> Array:
    """Normalised output of the last block, (B, T, D); see :func:`forward`."""
    x = embed(params, tokens, config)
    return residual_blocks(params, x, positions, config, scan=scan, remat=remat)[0]


def embed(params: dict, tokens: Array, config: GriffinConfig) -> Array:
    """Scaled rows of the embedding, (B, T) to (B, T, D), in the dtype of the weights."""
    table = constrain(params["embedding"], "model", None)  # rows are looked up whole
    return table[tokens] * config.embedding_scale


def head(params: dict, x: Array, config: GriffinConfig) -> Array:
    """Logits (..., V), float32, of normalised outputs (..., D): tied head and soft cap."""
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    logits = dot("...d,vd->...v", x, params["embedding"])
    cap = config.logits_soft_cap
    return cap * jnp.tanh(logits / cap) if cap else logits


def stack(blocks: Sequence[Any], config: GriffinConfig) -> dict[str, list]:
    """Blocks, or their states, with the repetitions of the block pattern on an axis of their own.

    One program for a repetition then serves all of them (``lax.scan``), so a deep model compiles as
    fast as a shallow one.

    Returns
    -------
    dict
        ``groups``: for each place in the pattern one tree of arrays (repetitions, ...); ``blocks``:
        the blocks after the last whole repetition, as they were.
    """
    period = len(config.block_pattern)
    repeats = len(blocks) // period
    groups = [blocks[i : repeats * period : period] for i in range(period)] if repeats else []
    join = np.stack if isinstance(jax.tree.leaves(blocks)[0], np.ndarray) else jnp.stack
    return {
        "groups": [jax.tree.map(lambda *leaves: join(leaves), *group) for group in groups],
        "blocks": list(blocks[repeats * period :]),
    }


def unstack(stacked: Mapping[str, list]) -> list:
    """Inverse of :func:`stack`: a list with one tree for each block."""
    groups = stacked["groups"]
    repeats = len(jax.tree.leaves(groups[0])[0]) if groups else 0
    blocks = [jax.tree.map(lambda x, n=n: x[n], group) for n in range(repeats) for group in groups]
    return blocks + list(stacked["blocks"])


def residual_blocks(
    params: dict,
    x: Array,
    positions: Array,
    config: GriffinConfig,
    layers: list[Layer] | None = None,
    *,
    scan: str = "sequential",
    remat: bool = False,
    watch: Watch = no_watch,
    step: bool = False,
) -> tuple[Array, list[Layer]]:
    """All residual blocks and the final norm.

    Parameters
    ----------
    params : dict
        A parameter tree, or one whose ``blocks`` have been replaced by what :func:`stack` makes.
        Then one program serves all repetitions of the pattern. A step of one token goes through
        them one by one all the same, so that it changes states where they are.
    x : Array of shape (B, T, D)
        Scaled embeddings; whatever stands at padding.
    positions : Array of shape (B, T), int32
    config : GriffinConfig
    layers : list of dict, optional
        State of every block before the first tokens. Without it every row begins with a document,
        and no position reaches T.
    scan, remat
        As for :func:`forward`.
    watch : callable, optional
        Receives intermediate results by the names that the reference gives them.
    step : bool
        T is 1, there are ``layers``, and no row starts a document: states are changed in place.

    Returns
    -------
    x : Array of shape (B, T, D)
        Ready for :func:`head`.
    layers : list of dict
        State after each row's last token. Where ``layers`` were given, a row without tokens keeps
        its own.
    """
    x = constrain(x, "data", "sequence", None)
    watch("embedding", x)
    turn = None
    if ATTENTION in config.block_types:
        limit = x.shape[1] if layers is None else POSITION_LIMIT
        turn = rotation(positions, config.rope_base, config.rotary_dim, limit)

    def block(kind, p, x, past, watch):
        apply = partial(
            residual_block, positions=positions, turn=turn, kind=kind, config=config, scan=scan,
            watch=watch, step=step,
        )  # fmt: skip
        return (jax.checkpoint(apply) if remat else apply)(p, x, past)

    if params.get("groups") and x.shape[1] > 1:
        x, after = _scanned(params, x, config, layers, block, watch)
    else:
        blocks = unstack(params) if "groups" in params else params["blocks"]
        after = []
        for i, p in enumerate(blocks):
            past = layers[i] if layers is not None else None
            x, end = block(config.block_types[i], p, x, past, scoped(watch, f"blocks.{i}"))
            after.append(end)
    x = rms_norm(x, params["final_norm"], config.norm_eps)
    watch("final_norm", x)
    return x, after


def _scanned(
    params: dict,
    x: Array,
    config: GriffinConfig,
    layers: list[Layer] | None,
    block: Callable[..., tuple[Array, Layer]],
    watch: Watch,
) -> tuple[Array, list[Layer]]:
    """One program for a repetition of the pattern, run over all of them, and the blocks after."""
    pattern = config.block_pattern
    pasts = None if layers is None else stack(layers, config)

    def repetition(x, inputs):
        ps, pasts = inputs
        ends: list = []
        seen: list[dict] = [{} for _ in pattern]
        for i, kind in enumerate(pattern):
            keep = seen[i].__setitem__ if watch is not no_watch else no_watch
            x, end = block(kind, ps[i], x, pasts[i] if pasts else None, keep)
            ends.append(end)
        return x, (ends, seen)

    given = pasts["groups"] if pasts else None
    x, (groups, seen) = jax.lax.scan(repetition, x, (params["groups"], given))
    after = unstack({"groups": groups, "blocks": []})
    for i in range(len(after)):
        for name, array in seen[i % len(pattern)].items():
            watch(f"blocks.{i}.{name}", array[i // len(pattern)])
    for p in params["blocks"]:
        i = len(after)
        past = layers[i] if layers is not None else None
        x, end = block(config.block_types[i], p, x, past, scoped(watch, f"blocks.{i}"))
        after.append(end)
    return x, after


def residual_block(
    p: dict,
    x: Array,
    past: Layer | None,
    positions: Array,
    turn: tuple[Array, Array] | None,
    kind: str,
    config: GriffinConfig,
    scan: str = "sequential",
    watch: Watch = no_watch,
    step: bool = False,
) -> tuple[Array, Layer]:
    """``x + Temporal(RMSNorm(x))``, then ``x + MLP(RMSNorm(x))`` (Griffin 2.1, figure 2a)."""
    u = rms_norm(x, p["temporal_norm"], config.norm_eps)
    inner = scoped(watch, kind)
    if kind == RECURRENT:
        y, after = recurrent_block(p[kind], u, positions, past, scan, inner)
    else:
        assert turn is not None
        y, after = attention_block(p[kind], u, positions, turn, config, past, inner, step)
    watch("temporal", y)
    x = x + y
    x = x + mlp(p["mlp"], rms_norm(x, p["mlp_norm"], config.norm_eps))
    x = constrain(x, "data", "sequence", None)
    watch("residual", x)
    if past is not None and not (step and kind == ATTENTION):  # which looks after that
        moved = positions[:, 0] >= 0
        after = {
            name: jnp.where(moved.reshape(-1, *[1] * (new.ndim - 1)), new, past[name])
            for name, new in after.items()
        }
    return x, after
