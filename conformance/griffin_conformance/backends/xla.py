"""The JAX engine of this project, on JAX's default device."""

from functools import partial

import jax
import jax.numpy as jnp

import griffin_np
from griffin_conformance.backends import Backend, versions_of
from griffin_conformance.backends.reference import Vocabulary
from griffin_kernels.xla import attention, layers, model, recurrent, rope, scan_xla
from griffin_kernels.xla.engine import JaxModel
from griffin_np.config import ATTENTION, GriffinConfig
from griffin_np.params import nest

__all__ = ["JaxAssociative", "JaxBackend", "JaxPallas"]


def row(array, dtype=jnp.float32):
    """A batch of one row."""
    return jnp.asarray(array, dtype)[None]


class JaxBackend(Backend):
    """``griffin_kernels.xla``. Operations run as the engine runs them, as one batch.

    In bfloat16, weights and activations have that dtype; gates, the recurrence and logits are
    float32.
    """

    name = "jax"
    dtypes = ("float32", "bfloat16")
    fixed_shapes = True
    scan_by = "sequential"

    def real(self, array):
        """Weights and activations, on the device; None stays."""
        return None if array is None else jnp.asarray(array, jnp.dtype(self.dtype))

    def real_row(self, array):
        return row(array, jnp.dtype(self.dtype))

    def versions(self):
        return super().versions() | versions_of("jax", "jaxlib")

    def model(self, config, flat):
        weights = {name: array.astype(jnp.dtype(self.dtype)) for name, array in flat.items()}
        return JaxModel(config, nest(weights), scan=self.scan_by)

    def load(self, folder):
        return griffin_np.load(folder, "jax", self.dtype, scan=self.scan_by)

    def tokenizer(self, folder):
        return Vocabulary(folder / "tokenizer.model")

    def compiled(self, config, flat):
        # The model that the suite tests is the compiled one; this is the other. Kernels that are
        # interpreted are never compiled.
        if self.scan_by == "pallas":
            return super().compiled(config, flat)
        return AsWritten(self.model(config, flat))

    def block(self, config, flat, i, x, positions):
        p = nest({name: self.real(array) for name, array in flat.items()})["blocks"][i]
        kind = config.block_types[i]
        return _block(p, self.real_row(x), row(positions, jnp.int32), kind, config, self.scan_by)[0]

    def embed(self, rows):
        config = _only_a_width(rows.shape[1])
        return model.embed({"embedding": self.real(rows)}, jnp.arange(len(rows)), config)

    def rms_norm(self, x, scale, eps):
        return layers.rms_norm(self.real(x), self.real(scale), eps)

    def linear(self, x, weight, bias):
        p = {"weight": self.real(weight)} | ({} if bias is None else {"bias": self.real(bias)})
        with jax.default_matmul_precision("highest"):
            return layers.linear(p, self.real(x))

    def gelu(self, x):
        return layers.gelu(self.real(x))

    def causal_conv(self, x, weight, bias, positions, past):
        p = {"weight": self.real(weight), "bias": self.real(bias)}
        y, after = recurrent.causal_conv(
            p, self.real_row(x), row(positions, jnp.int32), self.real_row(past)
        )
        return y[0], after[0]

    def gate(self, x, w, b):
        with jax.default_matmul_precision("highest"):
            return recurrent.gate(self.real(x), self.real(w), self.real(b))

    def decay(self, r, a_param):
        return recurrent.decay(jnp.asarray(r, jnp.float32), self.real(a_param))

    def scan(self, a, x, h):
        return _scan(row(a), row(x), row(h), self.scan_by)[0]

    def rg_lru(self, x, p, positions, h):
        p = {name: self.real(array) for name, array in p.items()}
        return _rg_lru(p, self.real_row(x), row(positions, jnp.int32), row(h), self.scan_by)[0]

    def rope(self, x, positions, base, rotary_dim):
        turn = rope.rotation(row(positions, jnp.int32), base, rotary_dim)
        return rope.apply_rope(self.real_row(x), turn)[0]

    def attention(self, q, k, v, positions, window):
        q, k, v = map(self.real_row, (q, k, v))
        return _attention(q, k, v, row(positions, jnp.int32), window)[0]

    def logits(self, x, embedding, cap):
        config = _only_a_width(x.shape[1], logits_soft_cap=cap)
        with jax.default_matmul_precision("highest"):
            return model.head({"embedding": self.real(embedding)}, self.real(x), config)


class AsWritten:
    """A model whose calls run operation by operation, without the compiler."""

    def __init__(self, model):
        self.model = model

    def __call__(self, *args, **options):
        with jax.disable_jit():
            return self.model(*args, **options)


class JaxAssociative(JaxBackend):
    """The same with ``lax.associative_scan``."""

    scan_by = "associative"


class JaxPallas(JaxBackend):
    """The same with the Pallas kernels, interpreted where there is no TPU."""

    scan_by = "pallas"


@partial(jax.jit, static_argnames=("kind", "config", "scan"))
def _block(p, x, at, kind, config, scan):
    turn = None
    if kind == ATTENTION:
        turn = rope.rotation(at, config.rope_base, config.rotary_dim)
    with jax.default_matmul_precision("highest"):
        return model.residual_block(p, x, None, at, turn, kind, config, scan)[0]


@partial(jax.jit, static_argnames="scan")
def _scan(a, x, h, scan):
    return scan_xla.SCANS[scan](a, x, h)[0]


@partial(jax.jit, static_argnames="scan")
def _rg_lru(p, x, at, h, scan):
    seen: dict = {}  # the states themselves: what is returned is rounded as activations are
    with jax.default_matmul_precision("highest"):
        recurrent.rg_lru(p, x, at, h, scan, seen.__setitem__)
    return seen["h"]


@partial(jax.jit, static_argnames="window")
def _attention(q, k, v, at, window):
    with jax.default_matmul_precision("highest"):
        return attention.local_attention(q, k, v, at, window)


def _only_a_width(width: int, **changes) -> GriffinConfig:
    return GriffinConfig(
        width=width, depth=1, num_heads=1, vocab_size=3, block_pattern=("recurrent",), **changes
    )
