"""RecurrentGemma in transformers 5, on the CPU in float32, as a careful user runs it.

Its window counts the token itself, so it is given W + 1. Padding is told by a mask, positions by
``position_ids``, and what was read before by a ``DynamicCache``, which is copied before a call
changes it. Beside the cache each recurrent module keeps its state in itself: nothing that is passed
to the model takes it along, and only a call without a cache clears it. It is left as it is found.

The adapter calls transformers' own modules and functions, and repairs nothing.
"""

import contextlib
import copy
import functools
import inspect
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from transformers.activations import ACT2FN
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.recurrent_gemma import modeling_recurrent_gemma as theirs

from griffin_conformance.backends import Backend, versions_of
from griffin_np.checkpoints.hf_config import config_to_json
from griffin_np.checkpoints.hf_names import tensor_names
from griffin_np.config import ATTENTION, RECURRENT, GriffinConfig

__all__ = ["Session", "TransformersBackend", "TransformersModel", "build"]

CACHE = "past_key_values"
"""What the argument for the cache is called in this version: ``cache`` since 5.24."""
if "cache" in inspect.signature(theirs.RecurrentGemmaForCausalLM.forward).parameters:
    CACHE = "cache"


@contextlib.contextmanager
def quiet():
    """No gradients, no warnings, no advice."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def quietly(function):
    """A function that runs in :func:`quiet`."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with quiet():
            return function(*args, **kwargs)

    return wrapped


def their_config(config: GriffinConfig) -> transformers.RecurrentGemmaConfig:
    """The configuration in transformers' terms."""
    values = config_to_json(config, "float32")
    values["attention_window_size"] = config.window + 1
    return transformers.RecurrentGemmaConfig.from_dict(values, attn_implementation="sdpa")


def build(config: GriffinConfig, flat) -> transformers.RecurrentGemmaForCausalLM:
    """A model of transformers with given weights, in float32.

    Parameters
    ----------
    config : GriffinConfig
    flat : mapping of str to array
        Parameters by flat name.
    """
    model = theirs.RecurrentGemmaForCausalLM(their_config(config)).eval()
    tensors = {"lm_head.weight": tensor(flat["embedding"])}
    for name, (theirs_name, _, save) in tensor_names(config).items():
        tensors[theirs_name] = tensor(save(np.asarray(flat[name])))
    model.load_state_dict(tensors)
    return model


def mask_of(config, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
    """The attention mask that transformers' model hands to its layers for x (1, T, D)."""
    return create_sliding_window_causal_mask(config, x, None, None, position_ids=positions)


def tensor(array, dtype=torch.float32) -> torch.Tensor:
    """A tensor of its own memory."""
    return torch.tensor(np.ascontiguousarray(array), dtype=dtype)


def row(array) -> torch.Tensor:
    """One row as a batch."""
    return tensor(array)[None]


def small(width: int, heads: int = 1, kind: str = RECURRENT, **fields) -> GriffinConfig:
    """A configuration of one block, for a single operation."""
    return GriffinConfig(
        width=width, depth=1, num_heads=heads, vocab_size=3, block_pattern=(kind,), **fields
    )


@dataclass
class Session:
    """What a user keeps between calls: the cache, and which columns so far are no padding."""

    cache: transformers.DynamicCache
    real: np.ndarray


class TransformersModel:
    """The call contract of :class:`griffin_np.base.Model` on a model of transformers.

    Parameters
    ----------
    config : GriffinConfig
    flat : mapping of str to array
    """

    @quietly
    def __init__(self, config: GriffinConfig, flat):
        self.config = config
        self.model = build(config, flat)

    @quietly
    def __call__(self, tokens, positions=None, state=None, logits="all"):
        """Read tokens (B, T).

        Logits of padding, which transformers computes and its users leave aside, are given as 0. A
        call without tokens, which transformers refuses, is not made.
        """
        tokens = np.asarray(tokens)
        (B, T), fresh = tokens.shape, state is None
        if fresh:
            state = Session(self.new_cache(), np.ones((B, 0), bool))
        if not T:
            return np.zeros((B, 0, self.config.vocab_size), np.float32), state
        if positions is None:
            positions = state.real.sum(axis=1)[:, None] + np.arange(T)
        positions, given = np.asarray(positions), {}
        real = positions != -1
        packed = fresh and real.all() and np.any(positions[:, 1:] == 0)
        # As in transformers' own generate, padding stands at position 0.
        given["position_ids"] = torch.tensor(np.where(real, positions, 0))
        given["input_ids"] = torch.tensor(np.where(real, tokens, self.config.pad_id))
        state = Session(copy.deepcopy(state.cache), np.concatenate([state.real, real], axis=1))
        if not state.real.all():
            given["attention_mask"] = torch.tensor(state.real).long()
        # Without cache and mask, and only then, attention keeps documents of a row apart.
        apart = self.model(**given, use_cache=False).logits if packed else None
        found = self.model(**given, **{CACHE: state.cache}, use_cache=True).logits
        values = np.where(real[:, :, None], (found if apart is None else apart).numpy(), 0)
        if logits == "none":
            return None, state
        if logits == "last":
            last = T - 1 - real[:, ::-1].argmax(axis=1)
            return values[np.arange(B), last], state
        return values, state

    def new_cache(self) -> transformers.DynamicCache:
        """A cache as transformers' generate makes it, or one that models without attention accept.

        For those, generate fails with the cache of its own making.
        """
        if ATTENTION in self.config.block_types:
            return transformers.DynamicCache(config=self.model.config)
        return transformers.DynamicCache()

    @quietly
    def hidden_states(self, tokens):
        """Residual streams: the embedding, each block's, the last through the final norm."""
        found = self.model(torch.tensor(tokens), output_hidden_states=True, use_cache=False)
        return tuple(stream.numpy() for stream in found.hidden_states)

    @quietly
    def generate(self, prompts, max_tokens=16, temperature=0.0, seed=0, ignore_eos=False):
        """Continuations by transformers' own generate, of prompts padded on the left."""
        longest = max(map(len, prompts))
        pad = self.config.pad_id
        ids = [[pad] * (longest - len(p)) + list(p) for p in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        choice = {"do_sample": False}
        if temperature:
            choice = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        self.model.generation_config.eos_token_id = None if ignore_eos else self.config.eos_id
        transformers.set_seed(seed)
        found = self.model.generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=max_tokens,
            pad_token_id=pad, **{CACHE: self.new_cache()}, **choice,
        )  # fmt: skip
        return [SimpleNamespace(tokens=more.tolist()) for more in found[:, longest:]]


class GivenStream(torch.nn.Module):
    """In place of a model: a residual stream that has gone through the final norm."""

    def __init__(self, x: torch.Tensor):
        super().__init__()
        self.x = x

    def forward(self, **_):
        return BaseModelOutput(last_hidden_state=self.x)


class TransformersBackend(Backend):
    """``RecurrentGemmaForCausalLM`` of transformers, its window set to W + 1."""

    name = "transformers"
    dtypes = ("float32",)
    cannot = frozenset({"no soft cap", "lru_width is not width"})

    def adapt(self, config):
        """Scaled embeddings, capped logits, and a recurrence as wide as the model.

        There is a field for another ``lru_width``, but states are made ``hidden_size`` wide, so
        that a first call of one token ends in an error.
        """
        return config.replace(
            lru_width=config.width,
            scale_embeddings=True,
            logits_soft_cap=config.logits_soft_cap or 30.0,
        )

    def versions(self):
        return super().versions() | versions_of("torch", "transformers")

    def model(self, config, flat):
        return TransformersModel(config, flat)

    @quietly
    def block(self, config, flat, i, x, positions):
        model, x, places = build(config, flat), row(x), torch.tensor(positions)[None]
        mask = mask_of(model.config, x, places)
        return model.model.layers[i](x, places, mask, use_cache=False)[0].numpy()

    # -- operations

    @quietly
    def embed(self, rows):
        model = theirs.RecurrentGemmaModel(their_config(small(rows.shape[1])))
        found = model(inputs_embeds=row(rows), output_hidden_states=True, use_cache=False)
        return found.hidden_states[0][0].numpy()

    @quietly
    def rms_norm(self, x, scale, eps):
        norm = theirs.RecurrentGemmaRMSNorm(len(scale), eps)
        norm.weight.copy_(tensor(scale))
        return norm(tensor(x)).numpy()

    @quietly
    def linear(self, x, weight, bias):
        bias = None if bias is None else tensor(bias)
        return torch.nn.functional.linear(tensor(x), tensor(weight.T), bias).numpy()

    @quietly
    def gelu(self, x):
        return ACT2FN["gelu_pytorch_tanh"](tensor(x)).numpy()

    @quietly
    def causal_conv(self, x, weight, bias, positions, past):
        # The recurrent block, with all but its convolution made to pass its input on.
        K, R = weight.shape
        block = theirs.RecurrentGemmaRecurrentBlock(their_config(small(R, conv_width=K)), 0)
        for layer in (block.linear_x, block.linear_out):
            layer.weight.copy_(torch.eye(R))
            layer.bias.zero_()
        block.linear_y.weight.zero_()
        block.linear_y.bias.fill_(1)
        block.act_fn = torch.nn.Identity()
        block.rg_lru.forward = lambda x, position_ids: x
        block.conv_1d.weight.copy_(tensor(weight.T[:, None]))
        block.conv_1d.bias.copy_(tensor(bias))
        block.conv1d_state = row(past.T)
        y, _ = block(row(x), torch.tensor(positions)[None], None, use_cache=True)
        return y[0].numpy(), block.conv1d_state[0].numpy().T

    def _rg_lru(self, width: int, heads: int):
        return theirs.RecurrentGemmaRglru(their_config(small(width, heads)))

    @quietly
    def scan(self, a, x, h):
        reset = torch.zeros(1, len(x), 1, dtype=torch.bool)
        states, _ = self._rg_lru(x.shape[1], 1)._rnn_scan(row(x), row(a), reset, row(h))
        return states[0].numpy()

    @quietly
    def rg_lru(self, x, p, positions, h):
        module = self._rg_lru(x.shape[1], len(p["b_a"]))
        names = tensor_names(small(x.shape[1]))
        for name, array in p.items():
            their_name = names[f"blocks.0.recurrent.rg_lru.{name}"][0].rpartition(".")[2]
            getattr(module, their_name).copy_(tensor(array))
        module.recurrent_states = row(h)
        return module(row(x), torch.tensor(positions)[None])[0].numpy()

    @quietly
    def rope(self, x, positions, base, rotary_dim):
        _, H, d = x.shape
        fraction = min((rotary_dim + 0.25) / d, 1.0)  # transformers rounds down
        config = small(H * d, H, ATTENTION, rope_base=base, rope_fraction=fraction)
        x = row(x)
        places = torch.tensor(positions)[None]
        cos, sin = theirs.RecurrentGemmaRotaryEmbedding(their_config(config))(x, places)
        turned, _ = theirs.apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
        return turned[0].numpy()

    @quietly
    def attention(self, q, k, v, positions, window):
        (T, H, d), Q = q.shape, k.shape[1]
        config = their_config(small(H * d, H, ATTENTION, num_kv_heads=Q, window=window,
                                    rope_fraction=0.0))  # fmt: skip
        module = theirs.RecurrentGemmaAttention(config, 0).eval()
        mask = mask_of(config, torch.zeros(1, T, H * d), torch.tensor(positions)[None])
        attend = ALL_ATTENTION_FUNCTIONS[config._attn_implementation]
        heads_first = (row(array).transpose(1, 2) for array in (q, k, v))
        y, _ = attend(module, *heads_first, mask, scaling=module.scaling,
                      sliding_window=module.sliding_window)  # fmt: skip
        return y[0].numpy()

    @quietly
    def logits(self, x, embedding, cap):
        V, D = embedding.shape
        config = their_config(small(D, logits_soft_cap=cap).replace(vocab_size=max(V, 3)))
        model = theirs.RecurrentGemmaForCausalLM(config)
        model.model = GivenStream(row(x))
        model.lm_head.weight = torch.nn.Parameter(tensor(embedding))
        return model().logits[0].numpy()
