"""A model's parameters, packed: names, padding, and the table of addresses that kernels read.

Heads are padded to whole pieces of work, so that kernels have no tails: attention heads to
multiples of 16 channels, heads of the RG-LRU and widths to multiples of 64. Released models need
none.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from griffin_kernels.cpu.isa.common import GROUP, PANEL
from griffin_kernels.cpu.matmul import BFLOAT16, FLOAT32, GROUP_BYTES, INT4, INT8, WIDENED
from griffin_kernels.cpu.pack import aligned, pack, unpack
from griffin_kernels.cpu.scan import softplus_8
from griffin_kernels.cpu.step import SLOTS
from griffin_np.config import RECURRENT, GriffinConfig
from griffin_np.errors import ConfigError, ParameterError
from griffin_np.params import parameter_shapes

__all__ = [
    "KINDS",
    "Layout",
    "address_table",
    "check_groups",
    "gate_bytes",
    "packed",
    "packed_forms",
    "parameters_of",
    "random",
]

KINDS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8, "int4": INT4}
"""Kinds of weights by the name of their dtype."""


def up(n: int, multiple: int) -> int:
    """The next multiple."""
    return -(-n // multiple) * multiple


def places(heads: int, size: int, padded_size: int, total: int) -> NDArray | None:
    """Which channel stands at each place when every head is padded; None if all stay in order."""
    if heads * size == total and size == padded_size:
        return None
    result = np.full(total, -1)
    channels = np.arange(heads * size).reshape(heads, size)
    result[: heads * padded_size].reshape(heads, padded_size)[:, :size] = channels
    return result


class Layout:
    """Padded widths of a model and where its channels stand in them."""

    def __init__(self, config: GriffinConfig):
        c = config
        assert c.lru_width is not None and c.mlp_width is not None
        self.config = c
        self.gate_width = up(c.gate_width, 64)
        # Rows of keys have no gaps, so all key-value heads together are whole pieces of work.
        self.head_dim = up(c.head_dim, max(16, 64 // math.gcd(64, c.num_kv_heads)))
        self.width = up(c.width, 64)
        self.lru_width = c.num_heads * self.gate_width
        self.mlp_width = up(c.mlp_width, 64)
        self.vocab = up(c.vocab_size, 64)
        self.attention_width = up(c.num_heads * self.head_dim, 64)
        self.key_width = up(c.num_kv_heads * self.head_dim, 64)
        D = places(1, c.width, self.width, self.width)
        R = places(c.num_heads, c.gate_width, self.gate_width, self.lru_width)
        E = places(1, c.mlp_width, self.mlp_width, self.mlp_width)
        A = places(c.num_heads, c.head_dim, self.head_dim, self.attention_width)
        K = places(c.num_kv_heads, c.head_dim, self.head_dim, self.key_width)
        V = places(1, c.vocab_size, self.vocab, self.vocab)
        self.width_places, self.lru_places = D, R
        self.matrices: dict[str, tuple[NDArray | None, NDArray | None]] = {
            "recurrent.linear_y": (R, D), "recurrent.linear_x": (R, D),
            "recurrent.linear_out": (D, R), "attention.query": (A, D), "attention.key": (K, D),
            "attention.value": (K, D), "attention.output": (D, A), "mlp.gate": (E, D),
            "mlp.up": (E, D), "mlp.down": (D, E), "embedding": (V, D),
        }  # fmt: skip
        self.sizes = {
            name: tuple(
                n if p is None else len(p) for n, p in zip(shape, self.matrices[name], strict=True)
            )
            for name, shape in self._real_sizes().items()
        }

    def _real_sizes(self) -> dict[str, tuple[int, int]]:
        c = self.config
        D, R, E = c.width, c.lru_width, c.mlp_width
        assert R is not None and E is not None
        kv = c.num_kv_heads * c.head_dim
        return {
            "recurrent.linear_y": (R, D), "recurrent.linear_x": (R, D),
            "recurrent.linear_out": (D, R), "attention.query": (D, D), "attention.key": (kv, D),
            "attention.value": (kv, D), "attention.output": (D, D), "mlp.gate": (E, D),
            "mlp.up": (E, D), "mlp.down": (D, E), "embedding": (c.vocab_size, D),
        }  # fmt: skip

    def vector(self, values: NDArray, at: NDArray | None) -> NDArray:
        """A vector, or the last axis of a matrix, in padded places, as contiguous float32."""
        values = np.asarray(values, np.float32)
        if at is not None:
            values = np.where(at < 0, np.float32(0), values[..., np.maximum(at, 0)])
        result = aligned(values.size, np.float32)
        result[:] = values.ravel()
        return result


MATRIX, NORM, BIAS, GATE, DECAY, CHANNELS = "matrix norm bias gate decay channels".split()


def role_of(name: str) -> tuple[str, str]:
    """What a parameter is to the engine, and its key among a layout's matrices, if it has one."""
    short = name.split(".", 2)[2] if name.startswith("blocks.") else name
    base, _, leaf = short.rpartition(".")
    if short == "embedding":
        return MATRIX, short
    if short.endswith("norm"):
        return NORM, ""
    if leaf in ("w_a", "w_x"):
        return GATE, ""
    if leaf == "a_param":
        return DECAY, ""
    if base == "recurrent.conv" or leaf in ("b_a", "b_x"):
        return CHANNELS, ""
    return (MATRIX if leaf == "weight" else BIAS), base


def check_groups(config: GriffinConfig, dtype: str) -> None:
    """Refuse int4 where the inputs of a matrix are no whole groups.

    Raises
    ------
    ConfigError
        Names the width and what would work.
    """
    if dtype != "int4":
        return
    for name in ("width", "lru_width", "mlp_width"):
        if getattr(config, name) % GROUP:
            raise ConfigError(
                f"int4 needs inputs in groups of {GROUP}, but {name} is "
                f"{getattr(config, name)}: use int8 or bfloat16 for this model"
            )


def packed(
    config: GriffinConfig, parameter: Callable[[str], NDArray], dtype: str
) -> Iterator[tuple[str, NDArray]]:
    """Packed arrays by name, one after the other.

    Parameters
    ----------
    config : GriffinConfig
    parameter : callable
        Gives a parameter by its flat name, float32 or bfloat16.
    dtype : {"float32", "bfloat16", "int8", "int4"}

    Raises
    ------
    ConfigError
        If the dtype does not fit the configuration.
    ParameterError
        If weights that are to be quantised are not finite; names the array.
    """
    check_groups(config, dtype)
    kind, layout = KINDS[dtype], Layout(config)
    assert config.lru_width is not None

    def matrix(name: str, short: str, weights: NDArray) -> NDArray:
        try:
            return pack(weights, kind, *layout.matrices[short])
        except ParameterError as error:
            raise ParameterError(f"{name}: {error}") from None

    for name in parameter_shapes(config):
        role, key = role_of(name)
        values = parameter(name)
        if role == MATRIX:
            yield name, matrix(name, key, values if key == "embedding" else values.T)
        elif role == NORM:
            yield name, layout.vector(1 + np.asarray(values, np.float32), layout.width_places)
            yield f"{name}.given", given(values)
        elif role == BIAS:
            yield name, layout.vector(values, layout.matrices[key][0])
        elif role == CHANNELS:
            yield name, layout.vector(values.reshape(-1, config.lru_width), layout.lru_places)
        elif role == DECAY:
            yield name, layout.vector(softplus_8(values), layout.lru_places)
            yield f"{name}.given", given(values)
        else:
            # Both gates of a block are read in one way: in float32 if one of them needs it.
            pair = [f"{name[:-1]}{gate}" for gate in "ax"]
            kept = min(gates_kind(parameter(each)) for each in pair)
            yield name, pack_gates(values, layout, kept)
            yield f"{name}.kind", np.array([kept], np.int32)


def given(values: NDArray) -> NDArray:
    """A vector as the checkpoint has it, kept beside what the kernels read, for saving."""
    return np.array(values, np.float32)


def packed_forms(config: GriffinConfig, dtype: str) -> dict[str, tuple[np.dtype, int | None]]:
    """Dtype and number of elements of every packed array; None for gates, which have two forms."""
    kind, layout = KINDS[dtype], Layout(config)
    byte, single, whole = (np.dtype(d) for d in ("uint8", "float32", "int32"))
    forms: dict[str, tuple[np.dtype, int | None]] = {}
    for name, shape in parameter_shapes(config).items():
        role, key = role_of(name)
        if role == MATRIX:
            forms[name] = byte, packed_bytes(layout.sizes[key], kind)
        elif role == GATE:
            forms |= {name: (byte, None), f"{name}.kind": (whole, 1)}
        elif role == NORM:
            forms |= {name: (single, layout.width), f"{name}.given": (single, shape[0])}
        elif role == DECAY:
            forms |= {name: (single, layout.lru_width), f"{name}.given": (single, shape[0])}
        elif role == BIAS:
            forms[name] = single, layout.sizes[key][0]
        else:
            assert config.lru_width is not None
            forms[name] = single, math.prod(shape) // config.lru_width * layout.lru_width
    return forms


def packed_bytes(size: tuple[int, ...], kind: int) -> int:
    """Bytes of a packed matrix (outputs, inputs), its scales among them."""
    N, K = size
    return N // PANEL * (K // GROUP) * GROUP_BYTES[kind]


def gate_bytes(config: GriffinConfig, kind: int) -> int:
    """Bytes of one gate's matrices in one of their two forms."""
    layout = Layout(config)
    return packed_bytes((layout.lru_width, layout.gate_width), kind)


def gates_kind(weights: NDArray) -> int:
    """Gates are computed in float32, and kept in bfloat16 where that loses nothing."""
    if weights.dtype == ml_dtypes.bfloat16:
        return WIDENED
    exact = np.array_equal(weights.astype(ml_dtypes.bfloat16).astype(np.float32), weights)
    return WIDENED if exact else FLOAT32


def pack_gates(weights: NDArray, layout: Layout, kind: int) -> NDArray:
    """All heads' matrices, one below the other: (H * G outputs, G inputs)."""
    G, wide = weights.shape[1], layout.gate_width
    at = places(1, G, wide, wide)
    heads = [pack(head.T, kind, at, at) for head in weights]
    result = aligned(sum(h.size for h in heads))
    np.concatenate(heads, out=result)
    return result


NAMES = {
    "temporal_norm": "temporal_norm", "mlp_norm": "mlp_norm",
    "gate": "mlp.gate.weight", "gate_bias": "mlp.gate.bias",
    "up": "mlp.up.weight", "up_bias": "mlp.up.bias",
    "down": "mlp.down.weight", "down_bias": "mlp.down.bias",
}  # fmt: skip
IN_RECURRENT = {
    "y": "recurrent.linear_y.weight", "y_bias": "recurrent.linear_y.bias",
    "x": "recurrent.linear_x.weight", "x_bias": "recurrent.linear_x.bias",
    "conv": "recurrent.conv.weight", "conv_bias": "recurrent.conv.bias",
    "w_a": "recurrent.rg_lru.w_a", "b_a": "recurrent.rg_lru.b_a",
    "w_x": "recurrent.rg_lru.w_x", "b_x": "recurrent.rg_lru.b_x",
    "rate": "recurrent.rg_lru.a_param",
    "out": "recurrent.linear_out.weight", "out_bias": "recurrent.linear_out.bias",
}  # fmt: skip
IN_ATTENTION = {
    "query": "attention.query.weight", "key": "attention.key.weight",
    "value": "attention.value.weight",
    "out": "attention.output.weight", "out_bias": "attention.output.bias",
}  # fmt: skip


def address_table(config: GriffinConfig, arrays: Mapping[str, NDArray]) -> NDArray:
    """Where the arrays of every block stand: (blocks, len(SLOTS)) int64."""
    table = np.zeros((config.depth, len(SLOTS)), np.int64)
    for i, kind in enumerate(config.block_types):
        names = NAMES | (IN_RECURRENT if kind == RECURRENT else IN_ATTENTION)
        table[i, SLOTS.index("recurrent")] = kind == RECURRENT
        for slot, name in names.items():
            full = f"blocks.{i}.{name}"
            table[i, SLOTS.index(slot)] = arrays[full].ctypes.data
        if kind == RECURRENT:
            gates = f"blocks.{i}.recurrent.rg_lru"
            kinds = {int(arrays[f"{gates}.{w}.kind"][0]) for w in ("w_a", "w_x")}
            if len(kinds) > 1:
                raise ParameterError(f"gates of block {i} are packed in two ways")
            table[i, SLOTS.index("gates_kind")] = kinds.pop()
    return table


def parameters_of(
    config: GriffinConfig, arrays: Mapping[str, NDArray], dtype: str
) -> dict[str, NDArray]:
    """The parameters that packed arrays stand for, by flat name, float32."""
    kind, layout = KINDS[dtype], Layout(config)
    result = {}
    for name, shape in parameter_shapes(config).items():
        role, key = role_of(name)
        array = arrays[name]
        if role == MATRIX:
            full = unpack(array, kind, *layout.sizes[key])
            for axis, at in enumerate(layout.matrices[key]):
                if at is not None:
                    full = np.compress(at >= 0, full, axis=axis)
            result[name] = full if key == "embedding" else full.T
        elif role == GATE:
            wide, G = layout.gate_width, config.gate_width
            form = int(arrays[f"{name}.kind"][0])
            full = unpack(array, form, config.num_heads * wide, wide)
            heads = full.reshape(config.num_heads, wide, wide)[:, :G, :G]
            result[name] = np.ascontiguousarray(heads.transpose(0, 2, 1))
        elif role in (NORM, DECAY):
            result[name] = arrays[f"{name}.given"]
        else:
            at = layout.matrices[key][0] if role == BIAS else layout.lru_places
            if at is not None:
                array = array.reshape(-1, len(at))[:, at >= 0]
            result[name] = array.reshape(shape)
    return result


def random(config: GriffinConfig, dtype: str, seed: int = 0) -> Iterator[tuple[str, NDArray]]:
    """Packed arrays of random weights, made directly: for measuring speed.

    Every byte is drawn, so memory cannot hold less than a real model's. The sizes of numbers are
    such that activations stay finite; otherwise they mean nothing.
    """
    check_groups(config, dtype)
    kind, layout = KINDS[dtype], Layout(config)
    rng = np.random.default_rng(seed)

    def drawn(kind: int, size: int, inputs: int = 0) -> NDArray:
        data = aligned(size)
        words = data.view(np.uint64)
        step = 1 << 22
        for start in range(0, len(words), step):
            part = words[start : start + step]
            part[:] = rng.integers(0, 2**64, len(part), dtype=np.uint64)
        if kind in (BFLOAT16, WIDENED):  # +-(1/128 ... 1/64)
            halves = data.view(np.uint16)
            halves &= np.uint16(0x807F)
            halves |= np.uint16(0x3C00)
        elif kind == FLOAT32:
            singles = data.view(np.uint32)
            singles &= np.uint32(0x807FFFFF)
            singles |= np.uint32(0x3C000000)
        else:
            if kind == INT8:
                np.maximum(data, 1, out=data)
            # Outputs of variance near 1, as far as inputs have it.
            spread = (73 if kind == INT8 else 4.6) * inputs**0.5
            groups = data.reshape(-1, GROUP_BYTES[kind])
            scales = rng.uniform(0.5, 1.5, (len(groups), PANEL)) / spread
            groups[:, -2 * PANEL :] = scales.astype(ml_dtypes.bfloat16).view(np.uint8)
        return data

    for name, (form, size) in packed_forms(config, dtype).items():
        if size is None:
            yield name, drawn(WIDENED, gate_bytes(config, WIDENED))
        elif name.endswith(".kind"):
            yield name, np.array([WIDENED], form)
        elif form == np.uint8:
            yield name, drawn(kind, size, layout.sizes[role_of(name)[1]][1])
        else:
            values = aligned(size, form)
            values[:] = rng.uniform(0.01, 1, size)
            yield name, values
