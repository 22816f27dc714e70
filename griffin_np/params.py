"""The parameter tree: names in the paper's terms, shapes, validation, random initialisation.

A tree is nested dictionaries with one list, ``blocks``; its flat form joins the keys with dots::

    embedding                                (V, D)     also the output head
    blocks.0.temporal_norm                   (D,)       RMSNorm before temporal mixing
    blocks.0.recurrent.linear_y.{weight,bias}    (D, R), (R,)   the GeLU branch
    blocks.0.recurrent.linear_x.{weight,bias}    (D, R), (R,)   the branch with memory
    blocks.0.recurrent.conv.{weight,bias}        (K, R), (R,)   weight[K-1] meets the current token
    blocks.0.recurrent.rg_lru.{w_a,b_a}          (H, R/H, R/H), (H, R/H)   recurrence gate, eq. (1)
    blocks.0.recurrent.rg_lru.{w_x,b_x}          (H, R/H, R/H), (H, R/H)   input gate, eq. (2)
    blocks.0.recurrent.rg_lru.a_param            (R,)       minus the paper's Lambda, eq. (3)
    blocks.0.recurrent.linear_out.{weight,bias}  (R, D), (D,)
    blocks.2.attention.{query,key,value}.weight  (D, heads * head_dim)
    blocks.2.attention.output.{weight,bias}      (D, D), (D,)
    blocks.0.mlp_norm                        (D,)       RMSNorm before the MLP
    blocks.0.mlp.{gate,up}.{weight,bias}     (D, E), (E,)       GeLU acts on ``gate``
    blocks.0.mlp.down.{weight,bias}          (E, D), (D,)
    final_norm                               (D,)

Matrices multiply from the right, ``x @ weight``, so their shape is (inputs, outputs). Norm scales
are stored as the checkpoints store them: what multiplies is ``1 + scale``.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

import numpy as np

from griffin_np.config import RECURRENT, GriffinConfig
from griffin_np.errors import ParameterError

__all__ = [
    "fingerprint",
    "flatten",
    "init_parameters",
    "map_parameters",
    "nest",
    "parameter_shapes",
    "validate",
]

Tree = dict
"""Nested dictionaries of arrays; ``tree["blocks"]`` is a list."""


def parameter_shapes(config: GriffinConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by flat name, in a fixed order."""
    V, D, R, E = config.vocab_size, config.width, config.lru_width, config.mlp_width
    assert R is not None and E is not None
    H, K, G = config.num_heads, config.conv_width, config.gate_width
    kv = config.num_kv_heads * config.head_dim

    recurrent = {
        "recurrent.linear_y.weight": (D, R),
        "recurrent.linear_y.bias": (R,),
        "recurrent.linear_x.weight": (D, R),
        "recurrent.linear_x.bias": (R,),
        "recurrent.conv.weight": (K, R),
        "recurrent.conv.bias": (R,),
        "recurrent.rg_lru.w_a": (H, G, G),
        "recurrent.rg_lru.b_a": (H, G),
        "recurrent.rg_lru.w_x": (H, G, G),
        "recurrent.rg_lru.b_x": (H, G),
        "recurrent.rg_lru.a_param": (R,),
        "recurrent.linear_out.weight": (R, D),
        "recurrent.linear_out.bias": (D,),
    }
    attention = {
        "attention.query.weight": (D, D),
        "attention.key.weight": (D, kv),
        "attention.value.weight": (D, kv),
        "attention.output.weight": (D, D),
        "attention.output.bias": (D,),
    }
    mlp = {
        "mlp.gate.weight": (D, E),
        "mlp.gate.bias": (E,),
        "mlp.up.weight": (D, E),
        "mlp.up.bias": (E,),
        "mlp.down.weight": (E, D),
        "mlp.down.bias": (D,),
    }
    shapes: dict[str, tuple[int, ...]] = {"embedding": (V, D)}
    for i, kind in enumerate(config.block_types):
        temporal = recurrent if kind == RECURRENT else attention
        block = {"temporal_norm": (D,), **temporal, "mlp_norm": (D,), **mlp}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    shapes["final_norm"] = (D,)
    return shapes


def nest(flat: Mapping[str, object]) -> Tree:
    """The tree whose flat form is ``flat``."""
    tree: dict = {}
    for name, value in flat.items():
        *path, leaf = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = value
    if "blocks" in tree:
        tree["blocks"] = [tree["blocks"][str(i)] for i in range(len(tree["blocks"]))]
    return tree


def flatten(tree: Mapping) -> dict:
    """``{"blocks.0.mlp.up.bias": array, ...}`` from a tree."""
    return dict(_leaves(tree, ""))


def _leaves(node, prefix: str) -> Iterator[tuple[str, object]]:
    items: Iterable[tuple[str, object]]
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list | tuple):
        items = ((str(i), child) for i, child in enumerate(node))
    else:
        yield prefix, node
        return
    for key, child in items:
        yield from _leaves(child, f"{prefix}.{key}" if prefix else str(key))


def map_parameters(function, tree: Mapping) -> Tree:
    """A tree of the same form with ``function(array)`` at every leaf."""
    return nest({name: function(leaf) for name, leaf in flatten(tree).items()})


def validate(tree: Mapping, config: GriffinConfig, dtype=None) -> None:
    """Check a tree against a configuration and list everything that is wrong.

    Parameters
    ----------
    tree : mapping
        Parameters, nested or flat.
    config : GriffinConfig
    dtype : dtype, optional
        What every array must be; by default any floating dtype, the same everywhere.

    Raises
    ------
    ParameterError
        Names every missing, extra and misshapen array and every array of the wrong dtype.
    """
    expected, found = parameter_shapes(config), flatten(tree)
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
    problems += [f"extra: {name}" for name in found if name not in expected]
    dtypes: dict = {}
    for name, shape in expected.items():
        if name not in found:
            continue
        array = found[name]
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            problems.append(f"not an array: {name} is {type(array).__name__}")
            continue
        if tuple(array.shape) != shape:
            problems.append(f"misshapen: {name} is {tuple(array.shape)}, expected {shape}")
        dtypes.setdefault(str(array.dtype), name)
        if dtype is not None and array.dtype != dtype:
            problems.append(f"wrong dtype: {name} is {array.dtype}, expected {np.dtype(dtype)}")
        elif dtype is None and "float" not in str(array.dtype):
            problems.append(f"wrong dtype: {name} is {array.dtype}, expected a floating dtype")
    if dtype is None and len(dtypes) > 1:
        mixed = ", ".join(f"{d} ({name})" for d, name in dtypes.items())
        problems.append(f"mixed dtypes: {mixed}; all parameters must share one")
    if problems:
        raise ParameterError(
            f"{len(problems)} parameter(s) do not fit the configuration:\n  "
            + "\n  ".join(problems)
        )


def init_parameters(config: GriffinConfig, seed: int = 0, dtype=np.float32) -> Tree:
    """Random weights, distributed as the official code initialises them.

    Normal with variance 1 / fan-in for the embedding, the projections into each block and the
    gates; variance (2 / depth) / fan-in for the projections out of a block; 0.01 / conv_width for
    the convolution; zero for biases and norm scales. The decay's radius ``exp(-softplus(a_param))``
    is drawn uniformly by area from the ring [0.9, 0.999]. The official initialiser counts all
    leading axes into the fan-in, which makes it ``lru_width`` for the gates and ``2 * width`` for
    the two matrices into the MLP.

    Parameters
    ----------
    config : GriffinConfig
    seed : int
        The same seed gives the same values in every dtype (they are drawn in float32).
    dtype : dtype

    Returns
    -------
    dict
        A parameter tree.
    """
    rng = np.random.default_rng(seed)
    flat = {}
    for name, shape in parameter_shapes(config).items():
        leaf = name.split(".", 2)[-1] if name.startswith("blocks.") else name
        if leaf == "recurrent.rg_lru.a_param":
            value = _initial_a_param(rng.random(shape, np.float32))
        elif variance := _initial_variance(leaf, config):
            value = rng.standard_normal(shape, np.float32)
            value *= np.float32(math.sqrt(variance))
        else:
            value = np.zeros(shape, np.float32)
        flat[name] = value.astype(dtype, copy=False)
    return nest(flat)


def _initial_variance(leaf: str, config: GriffinConfig) -> float:
    D, R, E = config.width, config.lru_width, config.mlp_width
    assert R is not None and E is not None
    out_of_block = 2.0 / config.depth
    return {
        "embedding": 1 / D,
        "recurrent.linear_y.weight": 1 / D,
        "recurrent.linear_x.weight": 1 / D,
        "recurrent.conv.weight": 0.01 / config.conv_width,
        "recurrent.rg_lru.w_a": 1 / R,
        "recurrent.rg_lru.w_x": 1 / R,
        "recurrent.linear_out.weight": out_of_block / R,
        "attention.query.weight": 1 / D,
        "attention.key.weight": 1 / D,
        "attention.value.weight": 1 / D,
        "attention.output.weight": out_of_block / D,
        "mlp.gate.weight": 1 / (2 * D),
        "mlp.up.weight": 1 / (2 * D),
        "mlp.down.weight": out_of_block / E,
    }.get(leaf, 0.0)


def _initial_a_param(uniform: np.ndarray, low: float = 0.9, high: float = 0.999) -> np.ndarray:
    """Softplus pre-image of ``-log(radius)``, the radius uniform by area in [low, high]."""
    area = uniform.astype(np.float64) * (high**2 - low**2) + low**2
    log_radius = 0.5 * np.log(area + 1e-8)
    return np.log(np.expm1(-log_radius)).astype(np.float32)


def fingerprint(tree: Mapping, config: GriffinConfig) -> str:
    """Short identity of a model's weights, from a fixed sample of them.

    Up to 512 values of each array, as float32, so that the dtype a model is loaded in does not
    matter and a model of gigabytes takes milliseconds.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    import hashlib  # here, because importing griffin_np must stay quick

    digest = hashlib.sha256()
    flat = flatten(tree)
    for name, shape in parameter_shapes(config).items():
        array = flat[name]
        sample = array[np.unravel_index(_sampled(math.prod(array.shape)), array.shape)]
        digest.update(f"{name}{shape}".encode())
        digest.update(np.ascontiguousarray(sample, dtype="<f4").tobytes())
    return digest.hexdigest()[:32]


@lru_cache(maxsize=1024)
def _sampled(size: int) -> np.ndarray:
    """Which of an array's values are looked at."""
    # Eight runs of 64 neighbours, evenly spread: few pages of a memory-mapped file.
    starts = np.linspace(0, max(size - 64, 0), 8).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(min(64, size))).ravel())
