"""What DeepMind's two packages of RecurrentGemma have in common: names, sizes, states and calls.

``recurrentgemma`` 1.0.1 has one model twice, for JAX and for PyTorch. Both are called with tokens,
``segment_pos`` and a cache, which is where our contract comes from, so that little is translated:

- padding stands at position -1, as in their Sampler; the logits there, which nobody reads, are
  given as 0.
- a text begins with the cache None, as in their Sampler, and not with that of ``init_cache``.
- users count positions themselves: :class:`Session` holds the cache and the next position.

This module imports neither JAX nor PyTorch. Nothing is repaired here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.backends import Backend, Unsupported, versions_of
from griffin_np.config import GriffinConfig

__all__ = [
    "DeepMindBackend",
    "DeepMindModel",
    "Ids",
    "Session",
    "their_arrays",
    "their_config",
    "turn_channels",
]

BLOCK = {
    "temporal_norm": "temporal_pre_norm/scale",
    "mlp_norm": "channel_pre_norm/scale",
    "recurrent.linear_x": "recurrent_block/linear_x",
    "recurrent.linear_y": "recurrent_block/linear_y",
    "recurrent.linear_out": "recurrent_block/linear_out",
    "recurrent.conv.weight": "recurrent_block/conv_1d/w",
    "recurrent.conv.bias": "recurrent_block/conv_1d/b",
    "recurrent.rg_lru.a_param": "recurrent_block/rg_lru/a_param",
    "recurrent.rg_lru.w_x": "recurrent_block/rg_lru/input_gate/w",
    "recurrent.rg_lru.b_x": "recurrent_block/rg_lru/input_gate/b",
    "recurrent.rg_lru.w_a": "recurrent_block/rg_lru/a_gate/w",
    "recurrent.rg_lru.b_a": "recurrent_block/rg_lru/a_gate/b",
    "attention.query": "attention_block/proj_q",
    "attention.key": "attention_block/proj_k",
    "attention.value": "attention_block/proj_v",
    "attention.output": "attention_block/proj_final",
    "mlp.down": "mlp_block/ffw_down",
}
"""DeepMind's paths in a Flax tree; gate and up of the MLP are one array there."""


def their_config(config: GriffinConfig):
    """A configuration in DeepMind's terms; what it has no field for must be as they fix it."""
    from recurrentgemma import common

    kinds = common.TemporalBlockType
    return common.GriffinConfig(
        vocab_size=config.vocab_size,
        width=config.width,
        mlp_expanded_width=config.mlp_width,
        num_heads=config.num_heads,
        lru_width=config.lru_width,
        block_types=tuple(kinds[kind.upper()] for kind in config.block_types),
        embeddings_scale_by_sqrt_dim=config.scale_embeddings,
        attention_window_size=config.window,
        logits_soft_cap=config.logits_soft_cap,
    )


def their_arrays(flat: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Weights by their path in DeepMind's Flax tree, ``blocks.0/attention_block/proj_q/kernel``.

    Parameters
    ----------
    flat : mapping of str to array
        By flat name; those of a single block are enough.
    """
    whole = {"embedding": "embedder/input_embedding", "final_norm": "final_norm/scale"}
    found = {path: flat[name] for name, path in whole.items() if name in flat}
    for name, array in flat.items():
        if not name.startswith("blocks."):
            continue
        _, i, rest = name.split(".", 2)
        stem, _, part = rest.rpartition(".")
        if stem == "mlp.gate":
            pair = np.stack([array, flat[f"blocks.{i}.mlp.up.{part}"]])
            path, array = f"mlp_block/ffw_up/{part[0]}", pair
            if part == "bias":
                array = pair[:, None, None]
        elif stem in BLOCK:
            path = f"{BLOCK[stem]}/{'kernel' if part == 'weight' else part}"
        elif stem != "mlp.up":
            path = BLOCK[rest]
        else:
            continue
        found[f"blocks.{i}/{path}"] = array
    return found


def turn_channels(turn: Callable[[NDArray], Any], x: NDArray, rotary_dim: int) -> NDArray:
    """Their rotary embedding, which turns the first half of a head, on any number of channels.

    Parameters
    ----------
    turn : callable
        Theirs, of (T, H, 2 rotary_dim).
    x : array of shape (T, H, d)
    rotary_dim : int
    """
    both = 2 * rotary_dim
    wide = np.pad(x, [(0, 0), (0, 0), (0, max(both - x.shape[2], 0))])
    turned = np.concatenate([np.asarray(turn(wide[..., :both])), wide[..., both:]], axis=2)
    return turned[..., : x.shape[2]]


class Ids:
    """In place of a tokenizer, for their Samplers: texts are lists of token ids."""

    def __init__(self, config: GriffinConfig):
        self.config = config

    def pad_id(self) -> int:
        return self.config.pad_id

    def eos_id(self) -> int:
        return self.config.eos_id

    def bos_id(self) -> int:
        return self.config.bos_id

    def DecodeIds(self, ids: list[int]) -> list[int]:
        return ids


@dataclass(frozen=True)
class Session:
    """What a user of theirs keeps between calls.

    Attributes
    ----------
    cache : mapping
        Theirs: a named tuple for each block.
    position : array of shape (B,), int64
        The next position of each row.
    real : callable
        From a NumPy array to one of theirs.
    begun : bool
        Whether anything is in the cache. Before, they are called without it.
    """

    cache: Mapping[str, Any]
    position: NDArray
    real: Callable[[NDArray], Any]
    begun: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return sum(array.nbytes for block in self.cache.values() for array in block)

    def arrays(self) -> dict[str, NDArray]:
        """The caches by our names.

        Slots of keys and values that their mask hides, and that hold padding or other documents,
        are given as 0. Nothing hides what the convolution keeps: it is given as it is.
        """
        found = {}
        for name, block in self.cache.items():
            i = name.partition(".")[2]
            if hasattr(block, "num_tokens"):
                W = block.keys.shape[1]
                seen = np.arange(W) < np.asarray(block.num_tokens)[:, None]
                for part in ("keys", "values"):
                    ring = np.asarray(getattr(block, part))
                    found[f"layers.{i}.{part}"] = np.where(seen[:, :, None, None], ring, 0)
            else:
                found[f"layers.{i}.conv"] = np.array(block.conv1d_state)
                found[f"layers.{i}.rg_lru"] = np.array(block.rg_lru_state)
        return found

    def with_arrays(self, arrays: Mapping[str, NDArray], position: NDArray) -> "Session":
        """A session of the same model made of other arrays, named as :meth:`arrays` names them."""
        cache = {}
        for name, block in self.cache.items():
            i = name.partition(".")[2]
            part = {"conv1d_state": "conv", "rg_lru_state": "rg_lru"}
            cache[name] = type(block)(**{
                field: self.real(
                    np.asarray(position, np.int32)
                    if field == "num_tokens"
                    else arrays[f"layers.{i}.{part.get(field, field)}"]
                )
                for field in block._fields
            })  # fmt: skip
        return replace(self, cache=cache, position=np.asarray(position), begun=True)


class DeepMindModel:
    """The call contract of :class:`griffin_np.base.Model` on a model of DeepMind's.

    A subclass calls one of the packages.

    Parameters
    ----------
    config : GriffinConfig
    """

    def __init__(self, config: GriffinConfig):
        self.config = config

    def init_cache(self, batch: int) -> Mapping[str, Any]:
        """Their empty cache."""
        raise NotImplementedError

    def real(self, array: NDArray) -> Any:
        """An array of theirs."""
        raise NotImplementedError

    def read(self, tokens: NDArray, positions: NDArray, cache: Any, logits: bool) -> tuple:
        """Their model's call, int32 arrays (B, T): logits, as NumPy has them, and a cache."""
        raise NotImplementedError

    def sample(self, prompts: Sequence[Sequence[int]], steps: int, seed: int | None, stop: bool):
        """Their Sampler's call: token ids of each row. Without a seed the best are taken."""
        raise NotImplementedError

    def init_state(self, batch: int) -> Session:
        """The state before any text."""
        position = np.zeros(batch, np.int64)
        return Session(self.init_cache(batch), position, self.real, begun=False)

    def __call__(self, tokens, positions=None, state=None, logits="all"):
        """Read tokens (B, T). A call without tokens, which they refuse, is not made."""
        tokens = np.asarray(tokens)
        B, T = tokens.shape
        state = self.init_state(B) if state is None else state
        if positions is None:
            positions = state.position[:, None] + np.arange(T)
        positions = np.asarray(positions)
        real = positions != -1
        if not T:
            values = np.zeros((B, 0, self.config.vocab_size), np.float32)
        else:
            ids = np.where(real, tokens, self.config.pad_id).astype(np.int32)
            cache = state.cache if state.begun else None
            values, cache = self.read(ids, positions.astype(np.int32), cache, logits != "none")
            position = state.position.copy()
            for i in np.flatnonzero(real.any(axis=1)):
                position[i] = positions[i, real[i]][-1] + 1
            state = Session(cache, position, self.real)
        if logits == "none":
            return None, state
        values = np.where(real[:, :, None], values, 0)
        if logits == "last":
            last = np.zeros((B, self.config.vocab_size), values.dtype)
            for i in np.flatnonzero(real.any(axis=1)):
                last[i] = values[i, np.flatnonzero(real[i])[-1]]
            return last, state
        return values, state

    def generate(self, prompts, max_tokens=16, temperature=0.0, seed=0, ignore_eos=False):
        """Continuations by their own Sampler, which pads prompts on the left.

        What their buffer of tokens was filled with before is left out behind a row's end.
        """
        if temperature not in (0, 1):
            raise Unsupported("its Sampler has no temperature")
        drawn = self.sample(prompts, max_tokens, seed if temperature else None, not ignore_eos)
        found, eos, pad = [], self.config.eos_id, self.config.pad_id
        for row in (list(map(int, tokens)) for tokens in drawn):
            end = row.index(eos) + 1 if eos in row and not ignore_eos else len(row)
            filled = all(token == pad for token in row[end:])
            found.append(SimpleNamespace(tokens=row[:end] if filled else row))
        return found


class DeepMindBackend(Backend):
    """What both packages can be asked for."""

    cannot = frozenset({"odd width", "several key-value heads"})

    def adapt(self, config):
        """What their configuration has no field for, as they fix it.

        There is one key-value head, the convolution has four taps, norms have an epsilon of 1e-6,
        and half of each head is turned, with base 10,000. Halves of that half are taken, so that a
        head has a multiple of four channels. Widths whose square root bfloat16 can hold are left
        out, because they hide whether the embedding's scale was rounded.
        """
        head = max(config.head_dim // 4, 1) * 4
        while math.isqrt(head * config.num_heads) ** 2 == head * config.num_heads:
            head += 4
        return config.replace(
            width=head * config.num_heads,
            num_kv_heads=1,
            conv_width=4,
            norm_eps=1e-6,
            rope_fraction=0.5,
            rope_base=10000.0,
        )

    def versions(self):
        return super().versions() | versions_of("recurrentgemma")

    def compiled(self, config, flat):
        raise Unsupported(
            "traced or not, it takes no later calls of several tokens (any-chunking), and tracing "
            "its scan or running it operation by operation takes a minute for each shape"
        )
