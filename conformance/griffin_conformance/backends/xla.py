"""The JAX engine of this project, on JAX's default device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from griffin_conformance.backends import Backend, versions_of
from griffin_kernels.xla import attention, layers, model, recurrent, rope, scan_xla
from griffin_kernels.xla.engine import JaxModel
from griffin_np.config import ATTENTION, GriffinConfig
from griffin_np.params import nest

__all__ = ["JaxBackend"]


def single(array):
    """Float32 on the device; None stays."""
    return None if array is None else jnp.asarray(array, jnp.float32)


def row(array, dtype=jnp.float32):
    """A batch of one row."""
    return jnp.asarray(array, dtype)[None]


class JaxBackend(Backend):
    """``griffin_kernels.xla`` in float32. Operations run as the engine runs them, as one batch.

    Attributes
    ----------
    scans : {"sequential", "associative", "pallas"}
        Which scan single operations use; the last is interpreted where there is no TPU.
    """

    name = "jax"
    dtypes = ("float32",)
    fixed_shapes = True
    scans = "sequential"

    def versions(self):
        return super().versions() | versions_of("jax", "jaxlib")

    def model(self, config, flat):
        return JaxModel(config, nest(dict(flat)))

    def block(self, config, flat, i, x, positions):
        p = nest({name: single(array) for name, array in flat.items()})["blocks"][i]
        kind = config.block_types[i]
        return np.asarray(_block(p, row(x), row(positions, jnp.int32), kind, config)[0])

    def embed(self, rows):
        config = _only_a_width(rows.shape[1])
        return model.embed({"embedding": single(rows)}, jnp.arange(len(rows)), config)

    def rms_norm(self, x, scale, eps):
        return layers.rms_norm(single(x), single(scale), eps)

    def linear(self, x, weight, bias):
        p = {"weight": single(weight)} | ({} if bias is None else {"bias": single(bias)})
        with jax.default_matmul_precision("highest"):
            return layers.linear(p, single(x))

    def gelu(self, x):
        return layers.gelu(single(x))

    def causal_conv(self, x, weight, bias, positions, past):
        p = {"weight": single(weight), "bias": single(bias)}
        y, after = recurrent.causal_conv(p, row(x), row(positions, jnp.int32), row(past))
        return y[0], after[0]

    def gate(self, x, w, b):
        with jax.default_matmul_precision("highest"):
            return recurrent.gate(single(x), single(w), single(b))

    def decay(self, r, a_param):
        return recurrent.decay(single(r), single(a_param))

    def scan(self, a, x, h):
        return _scan(row(a), row(x), row(h), self.scans)[0]

    def rg_lru(self, x, p, positions, h):
        p = {name: single(array) for name, array in p.items()}
        return _rg_lru(p, row(x), row(positions, jnp.int32), row(h), self.scans)[0]

    def rope(self, x, positions, base, rotary_dim):
        turn = rope.rotation(row(positions, jnp.int32), base, rotary_dim)
        return rope.apply_rope(row(x), turn)[0]

    def attention(self, q, k, v, positions, window):
        return _attention(row(q), row(k), row(v), row(positions, jnp.int32), window)[0]

    def logits(self, x, embedding, cap):
        config = _only_a_width(x.shape[1], logits_soft_cap=cap)
        with jax.default_matmul_precision("highest"):
            return model.head({"embedding": single(embedding)}, single(x), config)


@partial(jax.jit, static_argnames=("kind", "config"))
def _block(p, x, at, kind, config):
    turn = None
    if kind == ATTENTION:
        turn = rope.rotation(at, config.rope_base, config.rotary_dim)
    with jax.default_matmul_precision("highest"):
        return model.residual_block(p, x, None, at, turn, kind, config)[0]


@partial(jax.jit, static_argnames="scan")
def _scan(a, x, h, scan):
    return scan_xla.SCANS[scan](a, x, h)[0]


@partial(jax.jit, static_argnames="scan")
def _rg_lru(p, x, at, h, scan):
    with jax.default_matmul_precision("highest"):
        return recurrent.rg_lru(p, x, at, h, scan)[0]


@partial(jax.jit, static_argnames="window")
def _attention(q, k, v, at, window):
    with jax.default_matmul_precision("highest"):
        return attention.local_attention(q, k, v, at, window)


def _only_a_width(width: int, **changes) -> GriffinConfig:
    return GriffinConfig(
        width=width, depth=1, num_heads=1, vocab_size=3, block_pattern=("recurrent",), **changes
    )
