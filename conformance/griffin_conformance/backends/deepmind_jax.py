"""DeepMind's JAX package, compiled for JAX's default device, in float32.

Their modules and functions are called as they are. Compiled programs are kept for each of their
configurations, since JAX compiles every shape anew.
"""

import warnings
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from recurrentgemma import common
from recurrentgemma import jax as port
from recurrentgemma.jax import layers, modules

from griffin_conformance.backends import versions_of
from griffin_conformance.backends.deepmind import (
    DeepMindBackend,
    DeepMindModel,
    Ids,
    their_arrays,
    their_config,
    turn_channels,
)

__all__ = ["DeepMindJax", "DeepMindJaxModel"]


QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Most of the suite's time goes to compiling: where XLA has LLVM do it, for a CPU, it hurries."""

compiled = partial(jax.jit, compiler_options=QUICKLY if jax.default_backend() == "cpu" else None)


def single(array) -> jax.Array:
    """A float32 array."""
    return jnp.asarray(array, jnp.float32)


def row(array) -> jax.Array:
    """One row as a batch."""
    return single(array)[None]


def places(positions) -> jax.Array:
    """Positions of one row as a batch."""
    return jnp.asarray(positions, jnp.int32)[None]


def tree(flat, prefix: str = "") -> dict:
    """Weights as Flax nests them, of the modules below a path."""
    nested: dict = {}
    for path, array in their_arrays(flat).items():
        if path.startswith(prefix):
            *folders, leaf = path.removeprefix(prefix).split("/")
            inner = nested
            for folder in folders:
                inner = inner.setdefault(folder, {})
            inner[leaf] = single(array)
    return nested


class Sampler(port.Sampler):
    """Theirs, with token ids in place of texts."""

    def tokenize(self, input_string):
        return jnp.array(list(input_string), dtype=jnp.int32)


class Programs:
    """Their model in one configuration, compiled.

    Parameters
    ----------
    config : GriffinConfig
        Theirs.
    """

    def __init__(self, config: common.GriffinConfig):
        self.model = port.Griffin(config, gradient_checkpointing=False)
        self.call = compiled(
            lambda params, tokens, positions, cache, logits: self.model.apply(
                {"params": params}, tokens, positions, cache, logits, True
            ),
            static_argnums=4,
        )
        self.watch = compiled(
            lambda params, tokens, positions: self.model.apply(
                {"params": params}, tokens, positions, capture_intermediates=_is_stream
            )[1]["intermediates"]
        )
        self.samplers: dict[tuple, port.Sampler] = {}

    def sampler(self, vocabulary: Ids, params, best: bool) -> port.Sampler:
        """A Sampler with given weights; those of one vocabulary share what is compiled."""
        key = best, vocabulary.pad_id(), vocabulary.eos_id()
        if key not in self.samplers:
            self.samplers[key] = Sampler(self.model, vocabulary, {}, deterministic_sampling=best)
        sampler = self.samplers[key]
        sampler.params = params
        return sampler


@lru_cache(maxsize=64)
def programs(config: common.GriffinConfig) -> Programs:
    """Compiled once for each configuration."""
    return Programs(config)


class DeepMindJaxModel(DeepMindModel):
    """Their ``Griffin``, without gradient checkpointing.

    Parameters
    ----------
    config : GriffinConfig
    flat : mapping of str to array
    """

    def __init__(self, config, flat):
        super().__init__(config)
        # The scan that they take by default, step by step and unrolled 128-fold, takes 20 seconds
        # to compile for 300 tokens. Single blocks and operations run with it.
        scan_type = common.ScanType.ASSOCIATIVE_NATIVE
        self.programs = programs(their_config(config)._replace(scan_type=scan_type))
        self.params = tree(flat)

    def init_cache(self, batch):
        return self.programs.model.init_cache(batch, jnp.float32)

    def real(self, array):
        return jnp.asarray(array)

    def read(self, tokens, positions, cache, logits):
        values, cache = self.programs.call(self.params, tokens, positions, cache, logits)
        return (np.asarray(values) if logits else None), cache

    def hidden_states(self, tokens):
        """Residual streams: the embedding, each block's but the last, and the final norm's."""
        tokens = np.asarray(tokens, np.int32)
        positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
        seen = self.programs.watch(self.params, tokens, positions)
        inner = [f"blocks.{i}" for i in range(self.config.depth - 1)]
        return [
            np.asarray(seen["embedder"]["encode"][0]),
            *(np.asarray(seen[name]["__call__"][0][0]) for name in inner),
            np.asarray(seen["final_norm"]["__call__"][0]),
        ]

    def sample(self, prompts, steps, seed, stop):
        sampler = self.programs.sampler(Ids(self.config), self.params, seed is None)
        rng = None if seed is None else jax.random.key(seed)
        # Every number of steps is compiled anew: some more are asked for, and left out again.
        more = steps if steps < 2 else -(-steps // 8) * 8
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that what they donate is of no use here
            found = sampler(prompts, more, rng, end_sampling_at_eos_token=stop)
        return [row[: max(len(row) - (more - steps), 0)] for row in found.tokens]


class DeepMindJax(DeepMindBackend):
    """``recurrentgemma.jax``."""

    name = "deepmind-jax"
    dtypes = ("float32",)
    fixed_shapes = True

    def adapt(self, config):
        """As in both packages, and a recurrence of even width, which this one insists on."""
        config = super().adapt(config)
        return config.replace(lru_width=config.lru_width * (1 + config.lru_width % 2))

    def versions(self):
        return super().versions() | versions_of("jax", "jaxlib", "flax")

    def model(self, config, flat):
        return DeepMindJaxModel(config, flat)

    def block(self, config, flat, i, x, positions):
        params = tree(flat, f"blocks.{i}/")
        return np.asarray(_block(their_config(config), i, params, row(x), places(positions))[0])

    # -- operations

    def embed(self, rows):
        embedder = modules.Embedder(*rows.shape, scale_by_sqrt_dim=True)
        params = {"params": {"input_embedding": single(rows)}}
        tokens = jnp.arange(len(rows))[None]
        return np.asarray(embedder.apply(params, tokens, method="encode")[0])

    def rms_norm(self, x, scale, eps):
        norm = layers.RMSNorm(len(scale), eps)
        return np.asarray(norm.apply({"params": {"scale": single(scale)}}, row(x))[0])

    def linear(self, x, weight, bias):
        # What their blocks are made of.
        params = {"kernel": single(weight)} | ({} if bias is None else {"bias": single(bias)})
        linear = nn.Dense(weight.shape[1], use_bias=bias is not None)
        return np.asarray(linear.apply({"params": params}, row(x))[0])

    def gelu(self, x):
        return np.asarray(jax.nn.gelu(single(x)))

    def causal_conv(self, x, weight, bias, positions, past):
        K, R = weight.shape
        params = {"params": {"w": single(weight), "b": single(bias)}}
        cache = row(past) if positions[0] else None
        y, after = layers.Conv1D(R, K).apply(params, row(x), places(positions), cache)
        return np.asarray(y[0]), np.asarray(after[0])

    def gate(self, x, w, b):
        linear = layers.BlockDiagonalLinear(x.shape[1], len(b))
        params = {"params": {"w": single(w), "b": single(b)}}
        return np.asarray(jax.nn.sigmoid(linear.apply(params, row(x)))[0])

    def scan(self, a, x, h):
        return np.asarray(_scan(row(a), row(x), row(h))[0])

    def rg_lru(self, x, p, positions, h):
        R, H = x.shape[1], len(p["b_a"])
        if R % 2:
            # Odd widths are refused. Heads know nothing of each other: everything twice.
            x, h = np.concatenate([x, x], axis=1), np.concatenate([h, h])
            p = {name: np.concatenate([array, array]) for name, array in p.items()}
        # The names are those of a whole model's first block.
        flat = {f"blocks.0.recurrent.rg_lru.{name}": array for name, array in p.items()}
        params = tree(flat, "blocks.0/recurrent_block/rg_lru/")
        heads = H * (1 + R % 2)
        return np.asarray(_rg_lru(heads, params, row(x), places(positions), row(h))[0, :, :R])

    def rope(self, x, positions, base, rotary_dim):
        def turn(part):
            return modules._apply_rope(row(part), places(positions), int(base))[0]

        return turn_channels(turn, x, rotary_dim)

    def logits(self, x, embedding, cap):
        V, D = embedding.shape
        config = port.GriffinConfig(V, D, 1, 1, (), False, 1, cap)
        flat = {"embedding": embedding, "final_norm": np.zeros(D)}
        tokens = jnp.zeros((1, len(x)), jnp.int32)

        def given(call, args, kwargs, context):
            """In place of what the final norm gives."""
            return row(x) if context.module.name == "final_norm" else call(*args, **kwargs)

        with nn.intercept_methods(given):
            model = port.Griffin(config, gradient_checkpointing=False)
            return np.asarray(model.apply({"params": tree(flat)}, tokens, tokens)[0][0])


def _is_stream(module, method: str) -> bool:
    """Whether a method may give a residual stream."""
    return method in ("__call__", "encode")


@partial(compiled, static_argnums=(0, 1))
def _block(config, i, params, x, positions):
    block = modules.ResidualBlock(
        config.width, config.mlp_expanded_width, config.num_heads, config.attention_window_size,
        config.block_types[i], config.lru_width,
    )  # fmt: skip
    return block.apply({"params": params}, x, positions)[0]


@compiled
def _scan(a, x, h):
    return port.linear_scan(x, a, h)[0]


@partial(compiled, static_argnums=0)
def _rg_lru(heads, params, x, positions, h):
    module = layers.RGLRU(x.shape[2], heads)
    return module.apply({"params": params}, x, positions, h)[0]
