"""RecurrentGemma of mlx-lm, on MLX's CPU, as a careful user runs it.

How calls are put into mlx-lm's terms is told in :mod:`griffin_conformance.backends.mlx_model`; the
operations are its own modules and functions, and nothing is repaired.

Every backend here is given configurations that mlx-lm can make a model of: what it refuses with an
error is left out. ``mlx-lm`` is that model with its own window, which counts the token itself, and
with all that it reads and does not use. ``mlx-lm-w1`` has a window of W + 1 and the settings of the
released models, so that nothing hides what else there is; ``mlx-lm-bfloat16`` is the same in the
dtype that those models come in.
"""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models import recurrent_gemma as theirs
from mlx_lm.models.base import create_attention_mask, scaled_dot_product_attention
from mlx_lm.utils import load_config, load_model
from numpy.typing import ArrayLike

from griffin_conformance.backends import Backend, versions_of
from griffin_conformance.backends.mlx_model import CONV_WIDTH, MlxModel, build, numbers, tapped
from griffin_np.checkpoints.hf_config import config_to_json
from griffin_np.checkpoints.hf_names import tensor_names
from griffin_np.config import ATTENTION, RECURRENT, GriffinConfig

__all__ = ["MlxLm", "MlxLmBfloat16", "MlxLmW1"]


def small(width: int, heads: int = 1, **fields) -> GriffinConfig:
    """A configuration for a single operation; without attention mlx-lm makes no model."""
    return GriffinConfig(
        width=width, depth=2, num_heads=heads, vocab_size=64, rope_fraction=0.0,
        block_pattern=(RECURRENT, ATTENTION),
    ).replace(**fields)  # fmt: skip


def made(config: GriffinConfig) -> theirs.Model:
    """A model as mlx-lm makes it, with weights of its own."""
    return theirs.Model(theirs.ModelArgs.from_dict(config_to_json(config, "float32")))


class GivenStream:
    """In place of a model's blocks: a residual stream that has gone through the final norm."""

    def __init__(self, x: mx.array, embed_tokens: nn.Embedding):
        self.x, self.embed_tokens = x, embed_tokens

    def __call__(self, tokens, cache=None):
        return self.x


class MlxLm(Backend):
    """mlx-lm's ``recurrent_gemma.Model``, in float32."""

    name = "mlx-lm"
    dtypes = ("float32",)
    cannot = frozenset({"lru_width is not width", "all recurrent", "several key-value heads"})
    more_keys = 0
    """Added to the window to get ``attention_window_size``."""

    def adapt(self, config):
        """What mlx-lm makes a model of, and what its weights fit into.

        ``lru_width``, ``conv1d_width`` and ``num_key_value_heads`` are not used, so that other
        weights than those of the released shapes are refused; without attention there is no model;
        and where half a head is an odd number of channels, or less than two, the first call is an
        error. Heads are widened until it is not, and, as everywhere in the suite, to a width
        whose square root bfloat16 does not have exactly.
        """
        heads, head, pattern = config.num_heads, max(config.head_dim, 4), config.block_pattern
        while head // 2 % 2 or head * heads in (4, 9, 16, 25, 36, 49, 64):
            head += 1
        if ATTENTION not in pattern:
            pattern += (ATTENTION,)
        odd = int(head * config.rope_fraction) % 2
        return config.replace(
            width=head * heads,
            lru_width=head * heads,
            num_kv_heads=1,
            conv_width=CONV_WIDTH,
            depth=max(config.depth, pattern.index(ATTENTION) + 1),
            block_pattern=pattern,
            rope_fraction=0.5 if odd else config.rope_fraction,
        )

    def versions(self):
        return super().versions() | versions_of("mlx", "mlx-lm")

    def model(self, config, flat):
        model = build(config, flat, self.dtype, config.window + self.more_keys)
        return MlxModel(config, model, {config.eos_id})

    def load(self, folder):
        # Whatever dtype a checkpoint comes in, its user chooses another by set_dtype.
        told = load_config(Path(folder))
        keys = {"attention_window_size": told["attention_window_size"] + self.more_keys}
        model, told = load_model(Path(folder), model_config=keys)
        model.set_dtype(getattr(mx, self.dtype))
        a, ends = model.args, told.get("eos_token_id", 1)
        config = GriffinConfig(
            width=a.hidden_size, depth=a.num_hidden_layers, num_heads=a.num_attention_heads,
            vocab_size=a.vocab_size, window=a.attention_window_size - self.more_keys,
            block_pattern=tuple(a.block_types), rope_fraction=0.0,
        )  # fmt: skip
        return MlxModel(config, model, ends if isinstance(ends, list) else [ends])

    def block(self, config, flat, i, x, positions):
        keys = config.window + self.more_keys
        model, x = build(config, flat, self.dtype, keys), self.row(x)
        mask = create_attention_mask(x, window_size=keys)
        return numbers(model.layers[i](x, mask=mask))[0]

    # -- operations

    def given(self, array: ArrayLike) -> mx.array:
        """An array in the backend's dtype."""
        single = mx.array(np.ascontiguousarray(array, np.float32))
        return single.astype(getattr(mx, self.dtype))

    def row(self, array: ArrayLike) -> mx.array:
        """One row as a batch."""
        return self.given(array)[None]

    def loaded(self, module: nn.Module, **arrays: ArrayLike) -> nn.Module:
        """A module with weights; the shapes must be its own."""
        return module.load_weights([(k, self.given(v)) for k, v in arrays.items()])

    def norm_of(self, width: int, eps: float) -> nn.Module:
        """The norm of a block of a model with this epsilon."""
        return made(small(width, norm_eps=eps)).layers[0].temporal_pre_norm

    def rope_of(self, head: int, base: float, turned: int) -> nn.Module:
        """The rotation of a model with this ``rope_theta`` and ``partial_rotary_factor``."""
        fraction = min((turned + 0.25) / head, 1.0)
        config = small(head, rope_base=base, rope_fraction=fraction)
        return made(config).layers[1].temporal_block.rope

    def embed(self, rows):
        model = made(small(rows.shape[1]))
        model.model.embed_tokens.weight = self.given(rows)
        return tapped(model, [range(len(rows))], blocks=False)[0][0]

    def rms_norm(self, x, scale, eps):
        norm = self.loaded(self.norm_of(len(scale), eps), weight=scale)
        return numbers(norm(self.given(x)))

    def linear(self, x, weight, bias):
        inputs, outputs = weight.shape
        layer = nn.Linear(inputs, outputs, bias=bias is not None)
        self.loaded(layer, weight=weight.T, **({} if bias is None else {"bias": bias}))
        return numbers(layer(self.given(x)))

    def gelu(self, x):
        return numbers(nn.gelu_approx(self.given(x)))

    def causal_conv(self, x, weight, bias, positions, past):
        K, R = weight.shape
        conv = self.loaded(theirs.Conv1d(R, K), weight=weight.T[:, :, None], bias=bias)
        y, after = conv(self.row(x), self.row(past) if positions[0] else None)
        return numbers(y)[0], numbers(after)[0]

    def scan(self, a, x, h):
        return numbers(theirs.rnn_scan(self.row(x), self.row(a), self.row(h))[0])[0]

    def rg_lru(self, x, p, positions, h):
        names = tensor_names(small(x.shape[1]))
        called = {n: names[f"blocks.0.recurrent.rg_lru.{n}"][0].rpartition(".")[2] for n in p}
        module = theirs.RGLRU(x.shape[1], len(p["b_a"]))
        self.loaded(module, **{called[name]: array for name, array in p.items()})
        return numbers(module(self.row(x), self.row(h) if positions[0] else None)[0])[0]

    def rope(self, x, positions, base, rotary_dim):
        rope = self.rope_of(x.shape[-1], base, rotary_dim)
        heads_first = self.row(x).swapaxes(1, 2)
        return numbers(rope(heads_first, offset=int(positions[0])))[0].swapaxes(0, 1)

    def attention(self, q, k, v, positions, window):
        mask = create_attention_mask(self.row(q), window_size=window + self.more_keys)
        q, k, v = (self.row(array).swapaxes(1, 2) for array in (q, k, v))
        scale = q.shape[-1] ** -0.5
        y = scaled_dot_product_attention(q, k, v, cache=None, scale=scale, mask=mask)
        return numbers(y)[0].swapaxes(0, 1)

    def logits(self, x, embedding, cap):
        model = made(small(x.shape[1], logits_soft_cap=cap))
        model.sanitize({})  # no head of its own
        table = self.loaded(nn.Embedding(*embedding.shape), weight=embedding)
        model.model = GivenStream(self.row(x), table)
        return numbers(model(None))[0]


class MlxLmW1(MlxLm):
    """The same with a window of W + 1, and with the settings that mlx-lm takes for granted.

    Operations that a model makes with numbers of its own are given the right ones.
    """

    name = "mlx-lm-w1"
    more_keys = 1

    def adapt(self, config):
        """The released models' rotation and epsilon too: what else is said of them is not used."""
        return super().adapt(config).replace(rope_base=1e4, rope_fraction=0.5, norm_eps=1e-6)

    def norm_of(self, width, eps):
        return theirs.RMSNorm(width, eps)

    def rope_of(self, head, base, turned):
        return nn.RoPE(turned, base=base) if turned else lambda x, offset: x


class MlxLmBfloat16(MlxLmW1):
    """The same in bfloat16, as the released models are stored and run."""

    name = "mlx-lm-bfloat16"
    dtypes = ("bfloat16",)
