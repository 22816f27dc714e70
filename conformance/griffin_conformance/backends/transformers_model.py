"""RecurrentGemma of transformers 5 behind the call contract of :class:`griffin_np.base.Model`.

What has to be translated, because the two contracts differ, and nothing else:

- padding is told by a mask, stands at position 0 as in transformers' own generate, and has logits
  there that nobody reads; ours are 0.
- a ``DynamicCache`` is changed by the call that it is given to; ours must not be, so that it is
  copied first, as users do who continue one prompt twice.
- beside the cache each recurrent module keeps its state in itself. Nothing that is passed to the
  model takes it along, and it is left as it is found. :class:`Session` holds copies, to look at.
"""

import contextlib
import copy
import functools
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers.models.recurrent_gemma import modeling_recurrent_gemma as theirs

from griffin_np.checkpoints.hf_config import config_to_json
from griffin_np.checkpoints.hf_names import tensor_names
from griffin_np.config import ATTENTION, RECURRENT, GriffinConfig

__all__ = ["CarefulModel", "Session", "TransformersModel", "build", "our_config", "quietly"]

CACHE = "past_key_values"
"""What the argument for the cache is called in this version: ``cache`` since 5.24."""
if "cache" in inspect.signature(theirs.RecurrentGemmaForCausalLM.forward).parameters:
    CACHE = "cache"


@contextlib.contextmanager
def quiet():
    """No gradients, no warnings, no advice, no bars."""
    logging = transformers.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def quietly(function):
    """A function that runs in :func:`quiet`."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with quiet():
            return function(*args, **kwargs)

    return wrapped


def their_config(config: GriffinConfig, keys: int | None = None):
    """The configuration in transformers' terms.

    Parameters
    ----------
    config : GriffinConfig
    keys : int, optional
        ``attention_window_size``, which there counts the token itself; W + 1 by default.
    """
    values = config_to_json(config, "float32")
    values["attention_window_size"] = config.window + 1 if keys is None else keys
    return transformers.RecurrentGemmaConfig.from_dict(values, attn_implementation="sdpa")


def build(config: GriffinConfig, flat: Mapping[str, NDArray], keys: int | None = None):
    """A ``RecurrentGemmaForCausalLM`` with given weights, in float32.

    Parameters
    ----------
    config : GriffinConfig
    flat : mapping of str to array
        Parameters by flat name.
    keys : int, optional
        As for :func:`their_config`.
    """
    model = theirs.RecurrentGemmaForCausalLM(their_config(config, keys)).eval()
    tensors = {"lm_head.weight": tensor(flat["embedding"])}
    for name, (theirs_name, _, save) in tensor_names(config).items():
        tensors[theirs_name] = tensor(save(np.asarray(flat[name])))
    model.load_state_dict(tensors)
    return model


def our_config(config, window: int) -> GriffinConfig:
    """What transformers made of a ``config.json``, in our terms.

    Parameters
    ----------
    config : RecurrentGemmaConfig
    window : int
        W of the model that it describes.
    """
    rotary = config.rope_parameters
    return GriffinConfig(
        width=config.hidden_size, depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads, num_kv_heads=config.num_key_value_heads,
        vocab_size=config.vocab_size, lru_width=config.lru_width,
        mlp_width=config.intermediate_size // 2, window=window,
        block_pattern=tuple(config.block_types), conv_width=config.conv1d_width,
        logits_soft_cap=config.logits_soft_cap, norm_eps=config.rms_norm_eps,
        rope_base=rotary["rope_theta"], rope_fraction=rotary["partial_rotary_factor"],
        pad_id=config.pad_token_id, bos_id=config.bos_token_id,
    )  # fmt: skip


def tensor(array, dtype=torch.float32) -> torch.Tensor:
    """A tensor of its own memory."""
    return torch.tensor(np.ascontiguousarray(array), dtype=dtype)


@dataclass
class Session:
    """What a user keeps between calls, and what the recurrent modules held after the last.

    Attributes
    ----------
    config : GriffinConfig
    cache : DynamicCache
    positions : int array of shape (B, C)
        Of all columns so far; -1 at padding.
    modules : dict of str to array
        Convolution and recurrent states after the call, by our names. Nothing reads them but
        :meth:`arrays`: the model itself goes on from what is in its modules.
    """

    config: GriffinConfig
    cache: Any
    positions: NDArray
    modules: dict[str, NDArray] = field(default_factory=dict)

    @property
    def real(self) -> NDArray:
        """Which columns are no padding."""
        return self.positions != -1

    @property
    def position(self) -> NDArray:
        """Next position of each row."""
        found = np.zeros(len(self.positions), int)
        for row, steps in enumerate(self.positions):
            told = steps[steps != -1]
            found[row] = told[-1] + 1 if len(told) else 0
        return found

    def arrays(self) -> dict[str, NDArray]:
        """The state by the names of ``griffin_np.State``, keys and values in a ring.

        Of the cache's columns those of the current document are taken, the last W of them, so far
        as it has them.
        """
        c, B = self.config, len(self.positions)
        found = {}
        for i, kind in enumerate(c.block_types):
            if kind == RECURRENT:
                for part in ("conv", "rg_lru"):
                    found[f"layers.{i}.{part}"] = self.modules[f"layers.{i}.{part}"]
                continue
            ring = np.zeros((2, B, c.window, c.num_kv_heads, c.head_dim), np.float32)
            layers = self.cache.layers
            if i < len(layers) and getattr(layers[i], "keys", None) is not None:
                for to, kept in zip(ring, (layers[i].keys, layers[i].values), strict=True):
                    self._unroll(to, kept.numpy())
            found[f"layers.{i}.keys"], found[f"layers.{i}.values"] = ring
        return found

    def _unroll(self, ring: NDArray, kept: NDArray) -> None:
        """Write the last columns (B, Q, C, d) of a cache into a ring (B, W, Q, d)."""
        W, first = ring.shape[1], self.positions.shape[1] - kept.shape[2]
        for row, steps in enumerate(self.positions):
            starts = np.flatnonzero(steps == 0)
            for column in range(max(first, starts[-1] if len(starts) else 0), len(steps)):
                if steps[column] >= max(self.position[row] - W, 0):
                    ring[row, steps[column] % W] = kept[row, :, column - first]


class TransformersModel:
    """A model of transformers, as it is.

    Parameters
    ----------
    config : GriffinConfig
    model : RecurrentGemmaForCausalLM
    """

    def __init__(self, config: GriffinConfig, model):
        self.config, self.model = config, model

    @quietly
    def __call__(self, tokens, positions=None, state=None, logits="all"):
        """Read tokens (B, T), with a cache."""
        tokens = np.asarray(tokens)
        B, T = tokens.shape
        before = Session(self.config, self.new_cache(), np.zeros((B, 0), int))
        before = before if state is None else state
        if positions is None:
            positions = before.position[:, None] + np.arange(T)
        positions, given = np.asarray(positions), {}
        real = positions != -1
        given["position_ids"] = torch.tensor(np.where(real, positions, 0))
        given["input_ids"] = torch.tensor(np.where(real, tokens, self.config.pad_id))
        columns = np.concatenate([before.positions, positions], axis=1)
        after = Session(self.config, copy.deepcopy(before.cache), columns)
        if not after.real.all():
            given["attention_mask"] = torch.tensor(after.real).long()
        found = self.read(given, after, fresh=state is None).numpy()
        after.modules = self.module_states(B)
        values = np.where(real[:, :, None], found, 0)
        if logits == "none":
            return None, after
        if logits == "last":
            last = T - 1 - real[:, ::-1].argmax(axis=1)
            return values[np.arange(B), last], after
        return values, after

    def read(self, given: dict, session: Session, fresh: bool) -> torch.Tensor:
        """Logits (B, T, V) of a call, which changes the session's cache."""
        return self.model(**given, **{CACHE: session.cache}, use_cache=True).logits

    def new_cache(self):
        """A cache as transformers' generate makes it, or one that models without attention accept.

        Those refuse the cache that generate makes, so that generate fails with them.
        """
        if ATTENTION in self.config.block_types:
            return transformers.DynamicCache(config=self.model.config)
        return transformers.DynamicCache()

    def module_states(self, batch: int) -> dict[str, NDArray]:
        """Copies of what the recurrent modules hold."""
        found = {}
        for i, layer in enumerate(self.model.model.layers):
            block = layer.temporal_block
            if self.config.block_types[i] == RECURRENT:
                conv, h = block.conv1d_state, block.rg_lru.recurrent_states
                if conv is None or h is None:
                    conv = torch.zeros(batch, block.lru_width, block.conv1d_width - 1)
                    h = torch.zeros(batch, block.lru_width)
                found[f"layers.{i}.conv"] = conv.numpy().transpose(0, 2, 1).copy()
                found[f"layers.{i}.rg_lru"] = h.numpy().copy()
        return found

    @quietly
    def hidden_states(self, tokens):
        """Residual streams: the embedding, each block's, the last through the final norm."""
        found = self.model(torch.tensor(tokens), output_hidden_states=True, use_cache=False)
        return tuple(stream.numpy() for stream in found.hidden_states)

    @quietly
    def generate(self, prompts, max_tokens=16, temperature=0.0, seed=0, ignore_eos=False):
        """Continuations by transformers' own generate, of prompts padded on the left.

        Of a row that ended, the padding behind its end is left out, and nothing else.
        """
        longest, pad = max(map(len, prompts)), self.config.pad_id
        ids = [[pad] * (longest - len(p)) + list(p) for p in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        choice: dict[str, Any] = {"do_sample": False}
        if temperature:
            choice = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if ignore_eos:
            choice["eos_token_id"] = None
        ends = [] if ignore_eos else self.model.generation_config.eos_token_id
        transformers.set_seed(seed)
        found = self.model.generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=max_tokens,
            pad_token_id=pad, **choice, **self.generate_with(),
        )[:, longest:].tolist()  # fmt: skip
        ends = ends if isinstance(ends, list) else [ends]
        return [SimpleNamespace(tokens=without_filling(row, ends, pad)) for row in found]

    def generate_with(self) -> dict:
        """Further arguments of generate."""
        return {}


class CarefulModel(TransformersModel):
    """A model of transformers, called as one who knows its faults would call it.

    Packed documents are read twice, once without a cache and mask, because only then attention
    keeps them apart, and once for the cache. Calls without tokens, which raise, are not made, and
    models without attention do not generate with a cache of generate's own making.
    """

    def read(self, given, session, fresh):
        """As one call, where one will do."""
        steps = session.positions
        if not given["input_ids"].numel():
            return torch.zeros(*given["input_ids"].shape, self.config.vocab_size)
        packed = fresh and session.real.all() and np.any(steps[:, 1:] == 0)
        apart = self.model(**given, use_cache=False).logits if packed else None
        found = super().read(given, session, fresh)
        return found if apart is None else apart

    def generate_with(self):
        """The cache, where generate fails with its own."""
        return {} if ATTENTION in self.config.block_types else {CACHE: self.new_cache()}


def without_filling(row: list[int], ends: list[int], pad: int) -> list[int]:
    """A row of generate's result without the padding behind its end."""
    stop = next((t + 1 for t, token in enumerate(row) if token in ends), len(row))
    return row[:stop] if all(token == pad for token in row[stop:]) else row
