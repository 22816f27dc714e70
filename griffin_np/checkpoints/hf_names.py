"""Tensor names and layouts of Hugging Face checkpoints, parameter by parameter.

Linear layers store (outputs, inputs) where the parameter tree has (inputs, outputs); the
convolution stores (channels, 1, K) where the tree has (K, channels), without reversing time. All
else, the gates' square blocks included, is stored as it is used. Many of these shapes agree with
each other, so only values can show a mistake here.
"""

from collections.abc import Callable

from numpy.typing import NDArray

from griffin_np.config import GriffinConfig
from griffin_np.params import parameter_shapes

__all__ = ["Layout", "tensor_names"]

Layout = tuple[str, Callable[[NDArray], NDArray], Callable[[NDArray], NDArray]]


def _same(array: NDArray) -> NDArray:
    return array


def _transposed(array: NDArray) -> NDArray:
    return array.T


def _conv_from(array: NDArray) -> NDArray:
    return array[:, 0, :].T


def _conv_to(array: NDArray) -> NDArray:
    return array.T[:, None, :]


_BLOCK: dict[str, Layout] = {
    "temporal_norm": ("temporal_pre_norm.weight", _same, _same),
    "mlp_norm": ("channel_pre_norm.weight", _same, _same),
    "recurrent.conv.weight": ("temporal_block.conv_1d.weight", _conv_from, _conv_to),
    "recurrent.conv.bias": ("temporal_block.conv_1d.bias", _same, _same),
    "recurrent.rg_lru.w_a": ("temporal_block.rg_lru.recurrent_gate_weight", _same, _same),
    "recurrent.rg_lru.b_a": ("temporal_block.rg_lru.recurrent_gate_bias", _same, _same),
    "recurrent.rg_lru.w_x": ("temporal_block.rg_lru.input_gate_weight", _same, _same),
    "recurrent.rg_lru.b_x": ("temporal_block.rg_lru.input_gate_bias", _same, _same),
    "recurrent.rg_lru.a_param": ("temporal_block.rg_lru.recurrent_param", _same, _same),
    **{
        f"{ours}.{part}": (f"{theirs}.{part}", turn, turn)
        for ours, theirs in {
            "recurrent.linear_y": "temporal_block.linear_y",
            "recurrent.linear_x": "temporal_block.linear_x",
            "recurrent.linear_out": "temporal_block.linear_out",
            "attention.query": "temporal_block.q_proj",
            "attention.key": "temporal_block.k_proj",
            "attention.value": "temporal_block.v_proj",
            "attention.output": "temporal_block.o_proj",
            "mlp.gate": "mlp_block.gate_proj",
            "mlp.up": "mlp_block.up_proj",
            "mlp.down": "mlp_block.down_proj",
        }.items()
        for part, turn in (("weight", _transposed), ("bias", _same))
    },
}  # fmt: skip


def tensor_names(config: GriffinConfig) -> dict[str, Layout]:
    """For every parameter its tensor's name, and the functions from its layout and to it."""

    def layout(name: str) -> Layout:
        if name == "embedding":
            return "model.embed_tokens.weight", _same, _same
        if name == "final_norm":
            return "model.final_norm.weight", _same, _same
        _, i, rest = name.split(".", 2)
        theirs, load, save = _BLOCK[rest]
        return f"model.layers.{i}.{theirs}", load, save

    return {name: layout(name) for name in parameter_shapes(config)}
