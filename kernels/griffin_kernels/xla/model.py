"""Griffin in JAX: the forward pass over packed documents, written for ``jit`` and ``grad``.

It takes the parameter tree of ``griffin_np.params`` (as JAX arrays) and computes whole sequences
with batched matrix products, one scan per recurrent block and attention in blocks of one window.
Nothing here calls the NumPy reference: the two are compared, not connected.

The tokens of a row stand on the left, its padding (position -1) on the right. A row may continue a
text: every function that remembers takes what came before, ``None`` where nothing did, and returns
what to carry on with. Training drops the latter, and XLA then never computes it.

Shapes: B rows, T tokens, D width, R lru_width, H heads, G = R / H, K conv width, W window.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from griffin_kernels.xla.attention import (
    apply_rope,
    attention_block,
    local_attention,
    rotation,
)
from griffin_kernels.xla.layers import Layer, Watch, gelu, linear, mlp, no_watch, rms_norm, scoped
from griffin_kernels.xla.recurrent import (
    causal_conv,
    decay,
    gate,
    recurrent_block,
    rg_lru,
    sqrt_clipped,
)
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
    scan : {"sequential", "associative"}
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
    """Scaled rows of the embedding, (B, T) to (B, T, D)."""
    return params["embedding"][tokens] * config.embedding_scale


def head(params: dict, x: Array, config: GriffinConfig) -> Array:
    """Logits (..., V), float32, of normalised outputs (..., D): tied head and soft cap."""
    logits = jnp.einsum("...d,vd->...v", x, params["embedding"]).astype(jnp.float32)
    cap = config.logits_soft_cap
    return cap * jnp.tanh(logits / cap) if cap else logits


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
) -> tuple[Array, list[Layer]]:
    """All residual blocks and the final norm.

    Parameters
    ----------
    params : dict
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

    Returns
    -------
    x : Array of shape (B, T, D)
        Ready for :func:`head`.
    layers : list of dict
        State after each row's last token. Where ``layers`` were given, a row without tokens keeps
        its own.
    """
    watch("embedding", x)
    turn = None
    if ATTENTION in config.block_types:
        limit = x.shape[1] if layers is None else POSITION_LIMIT
        turn = rotation(positions, config.rope_base, config.rotary_dim, limit)

    after = []
    for i, kind in enumerate(config.block_types):
        apply = partial(
            residual_block, positions=positions, turn=turn, kind=kind, config=config, scan=scan,
            watch=scoped(watch, f"blocks.{i}"),
        )  # fmt: skip
        layer = layers[i] if layers is not None else None
        x, end = (jax.checkpoint(apply) if remat else apply)(params["blocks"][i], x, layer)
        after.append(end)
    x = rms_norm(x, params["final_norm"], config.norm_eps)
    watch("final_norm", x)

    if layers is not None:
        moved = positions[:, 0] >= 0
        after = jax.tree.map(
            lambda new, old: jnp.where(moved.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            after, layers,
        )  # fmt: skip
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
) -> tuple[Array, Layer]:
    """``x + Temporal(RMSNorm(x))``, then ``x + MLP(RMSNorm(x))`` (Griffin 2.1, figure 2a)."""
    u = rms_norm(x, p["temporal_norm"], config.norm_eps)
    inner = scoped(watch, kind)
    if kind == RECURRENT:
        y, after = recurrent_block(p[kind], u, positions, past, scan, inner)
    else:
        assert turn is not None
        y, after = attention_block(p[kind], u, positions, turn, config, past, inner)
    watch("temporal", y)
    x = x + y
    x = x + mlp(p["mlp"], rms_norm(x, p["mlp_norm"], config.norm_eps))
    watch("residual", x)
    return x, after
