"""DeepMind's PyTorch package, on the CPU in float32.

Their modules and functions are called as they are, and what they change in place stays changed.
"""

from typing import Any

import numpy as np
import torch
from recurrentgemma import torch as port
from recurrentgemma.torch import layers, modules

from griffin_conformance.backends import versions_of
from griffin_conformance.backends.deepmind import (
    DeepMindBackend,
    DeepMindModel,
    Ids,
    their_arrays,
    their_config,
    turn_channels,
)

__all__ = ["DeepMindTorch", "DeepMindTorchModel"]

without_gradients = torch.no_grad()


def tensor(array) -> torch.Tensor:
    """A tensor of its own memory."""
    return torch.tensor(np.ascontiguousarray(array))


def single(array) -> torch.Tensor:
    """A float32 tensor of its own memory."""
    return tensor(np.asarray(array, np.float32))


def row(array) -> torch.Tensor:
    """One row as a batch."""
    return single(array)[None]


def places(positions) -> torch.Tensor:
    """Positions of one row as a batch."""
    return tensor(np.asarray(positions, np.int32))[None]


def load(module: torch.nn.Module, flat, prefix: str = "") -> torch.nn.Module:
    """The module with given weights, all of it; the paths of others begin otherwise."""
    module.load_state_dict({
        path.removeprefix(prefix).replace("/", ".").replace("kernel", "weight"):
            single(array.T if path.endswith("kernel") else array)
        for path, array in their_arrays(flat).items()
        if path.startswith(prefix)
    })  # fmt: skip
    return module


class Sampler(port.Sampler):
    """Theirs, with token ids in place of texts."""

    def tokenize(self, input_string):
        return torch.tensor(list(input_string), dtype=torch.int32)


class DeepMindTorchModel(DeepMindModel):
    """Their ``Griffin``, without gradient checkpointing.

    Parameters
    ----------
    config : GriffinConfig
    flat : mapping of str to array
    """

    def __init__(self, config, flat):
        super().__init__(config)
        model = port.Griffin(their_config(config), gradient_checkpointing=False)
        self.model: Any = load(model, flat)

    def init_cache(self, batch):
        return self.model.init_cache(batch, torch.float32)

    def real(self, array):
        return tensor(array)

    @without_gradients
    def read(self, tokens, positions, cache, logits):
        values, cache = self.model(
            tensor(tokens), tensor(positions), cache, return_logits=logits, return_cache=True
        )
        return (values.numpy() if logits else None), cache

    @without_gradients
    def hidden_states(self, tokens):
        """Residual streams: the embedding, each block's but the last, and the final norm's."""
        streams = [self.model.embedder.encode(tensor(tokens))]

        def keep(module, arguments, result):
            streams.append(result[0] if isinstance(result, tuple) else result)

        parts = [*self.model.blocks[:-1], self.model.final_norm]
        hooks = [part.register_forward_hook(keep) for part in parts]
        try:
            self.read(tokens, np.arange(tokens.shape[1])[None], None, True)
        finally:
            for hook in hooks:
                hook.remove()
        return [stream.numpy() for stream in streams]

    def sample(self, prompts, steps, seed, stop):
        sampler = Sampler(self.model, Ids(self.config), greedy_sampling=seed is None)
        torch.manual_seed(seed or 0)
        return sampler(prompts, steps, end_sampling_at_eos_token=stop).tokens


class GivenStream(torch.nn.Module):
    """In place of the final norm: what it gives."""

    def __init__(self, x: torch.Tensor):
        super().__init__()
        self.x = x

    def forward(self, _):
        return self.x


class DeepMindTorch(DeepMindBackend):
    """``recurrentgemma.torch``."""

    name = "deepmind-torch"
    dtypes = ("float32",)

    def versions(self):
        return super().versions() | versions_of("torch")

    def model(self, config, flat):
        return DeepMindTorchModel(config, flat)

    @without_gradients
    def block(self, config, flat, i, x, positions):
        theirs = their_config(config)
        block = modules.ResidualBlock(
            config.width, config.mlp_width, config.num_heads, config.window,
            theirs.block_types[i], config.lru_width,
        )  # fmt: skip
        return load(block, flat, f"blocks.{i}/")(row(x), places(positions))[0][0].numpy()

    # -- operations

    @without_gradients
    def embed(self, rows):
        embedder = modules.Embedder(*rows.shape, scale_by_sqrt_dim=True)
        embedder.input_embedding.copy_(single(rows))
        return embedder.encode(torch.arange(len(rows))[None])[0].numpy()

    @without_gradients
    def rms_norm(self, x, scale, eps):
        norm = layers.RMSNorm(len(scale), eps)
        norm.scale.copy_(single(scale))
        return norm(row(x))[0].numpy()

    @without_gradients
    def linear(self, x, weight, bias):
        # What their blocks are made of.
        inputs, outputs = weight.shape
        linear = torch.nn.Linear(inputs, outputs, bias=bias is not None)
        linear.weight.copy_(single(weight.T))
        if bias is not None:
            linear.bias.copy_(single(bias))
        return linear(row(x))[0].numpy()

    @without_gradients
    def gelu(self, x):
        return modules.gelu(single(x)).numpy()

    @without_gradients
    def causal_conv(self, x, weight, bias, positions, past):
        K, R = weight.shape
        conv = layers.Conv1D(R, K)
        conv.w.copy_(single(weight))
        conv.b.copy_(single(bias))
        cache = row(past) if positions[0] else None
        y, after = conv(row(x), places(positions), cache)
        return y[0].numpy(), after[0].numpy()

    @without_gradients
    def gate(self, x, w, b):
        linear = layers.BlockDiagonalLinear(x.shape[1], len(b))
        linear.w.copy_(single(w))
        linear.b.copy_(single(b))
        return torch.sigmoid(linear(row(x)))[0].numpy()

    @without_gradients
    def scan(self, a, x, h):
        reset = torch.zeros(1, len(x), dtype=torch.bool)
        return layers.rnn_scan(row(x), row(a), reset, row(h))[0][0].numpy()

    @without_gradients
    def rg_lru(self, x, p, positions, h):
        module = layers.RGLRU(x.shape[1], len(p["b_a"]))
        # The names are those of a whole model's first block.
        flat = {f"blocks.0.recurrent.rg_lru.{name}": array for name, array in p.items()}
        load(module, flat, "blocks.0/recurrent_block/rg_lru/")
        return module(row(x), places(positions), row(h))[0][0].numpy()

    @without_gradients
    def rope(self, x, positions, base, rotary_dim):
        def turn(part):
            return modules._apply_rope(row(part), places(positions), int(base))[0].numpy()

        return turn_channels(turn, x, rotary_dim)

    @without_gradients
    def logits(self, x, embedding, cap):
        V, D = embedding.shape
        config = port.GriffinConfig(V, D, 1, 1, (), False, 1, cap)
        model = port.Griffin(config, gradient_checkpointing=False)
        model.embedder.input_embedding.copy_(single(embedding))
        model.final_norm = GivenStream(row(x))
        tokens = torch.zeros(1, len(x), dtype=torch.int32)
        return model(tokens, tokens, return_cache=False)[0][0].numpy()
