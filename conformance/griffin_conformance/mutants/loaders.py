"""Wrong loaders, of checkpoints and of nf4: :mod:`griffin_conformance.mutants.of_checkpoints`.

A loader that misreads a folder does what a right one does with a folder that says so. Those here
read the folder, change what they have read, and hand that on; where they cannot read it, the right
loader is left to refuse it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance import checkpoint_files as files
from griffin_conformance.checkpoint_files import new_folder
from griffin_conformance.nf4 import STATE

Settings = dict[str, Any]
Tensors = dict[str, NDArray]


# -- loaders


def read(folder: Path) -> tuple[Settings, Tensors]:
    """Settings and tensors of a folder; the files that are there, and all that is in them."""
    from safetensors.numpy import load_file

    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return json.loads((folder / "config.json").read_text("utf-8")), tensors


def misreads(*changes: Callable[[Settings, Tensors], None]) -> Callable[[type], type]:
    """A loader for which settings and tensors are what the changes make of them."""

    def wrong(right: Any) -> type:
        class Wrong(right):
            def load(self, folder):
                try:
                    settings, tensors = read(folder)
                except Exception:
                    return super().load(folder)
                for change in changes:
                    change(settings, tensors)
                with new_folder() as other:
                    for path in folder.iterdir():
                        if path.name not in ("config.json", files.INDEX) and (
                            path.suffix != ".safetensors"
                        ):
                            (other / path.name).write_bytes(path.read_bytes())
                    (other / "config.json").write_text(json.dumps(settings), encoding="utf-8")
                    from safetensors.numpy import save_file

                    whole = {n: np.ascontiguousarray(array) for n, array in tensors.items()}
                    save_file(whole, other / "model.safetensors")
                    return super().load(other)

        return Wrong

    return wrong


def every(end: str, change: Callable[[NDArray], NDArray]) -> Callable[[Settings, Tensors], None]:
    """Tensors whose names end so are changed."""

    def function(settings: Settings, tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith(end):
                tensors[name] = change(tensors[name])

    return function


def turned(array: NDArray) -> NDArray:
    """Square matrices transposed."""
    square = array.ndim > 1 and array.shape[-1] == array.shape[-2]
    return array.swapaxes(-1, -2).copy() if square else array


def exchanged(one: str, other: str) -> Callable[[Settings, Tensors], None]:
    """Tensors whose names differ in one part change places, where their shapes agree."""

    def function(settings: Settings, tensors: Tensors) -> None:
        for name in list(tensors):
            twin = name.replace(one, other)
            if twin != name and tensors[name].shape == tensors[twin].shape:
                tensors[name], tensors[twin] = tensors[twin], tensors[name]

    return function


def without(*keys: str) -> Callable[[Settings, Tensors], None]:
    """Keys of ``config.json`` that are not read."""

    def function(settings: Settings, tensors: Tensors) -> None:
        for key in keys:
            settings.pop(key, None)

    return function


def known(settings: Settings, tensors: Tensors) -> list[str]:
    """Names that a model of these settings has."""
    pattern = settings.get("block_types") or settings.get("_block_types")
    pattern = pattern or ["recurrent", "recurrent", "attention"]
    names = ["model.embed_tokens.weight", "model.final_norm.weight"]
    for i in range(settings["num_hidden_layers"]):
        temporal = pattern[i % len(pattern)]
        names += [
            f"model.layers.{i}.{theirs}" for ours, (theirs, _) in files.ROLES.items()
            if ours.split(".")[0] not in {"recurrent", "attention"} - {temporal}
        ]  # fmt: skip
    return names


def ignores_unknown_tensors(settings: Settings, tensors: Tensors) -> None:
    """What is in the files and not in the model is passed over."""
    names = known(settings, tensors)
    for name in [n for n in tensors if n not in names]:
        del tensors[name]


def invents_missing_tensors(settings: Settings, tensors: Tensors) -> None:
    """Biases that the files lack are zero."""
    D = settings["hidden_size"]
    for name in known(settings, tensors):
        if name not in tensors and name.endswith(("linear_out.bias", "o_proj.bias", "norm.weight")):
            tensors[name] = np.zeros(D, np.float32)


def pads_the_vocabulary(settings: Settings, tensors: Tensors) -> None:
    """Rows that the embedding lacks are zero."""
    table = tensors.get(files.EMBEDDING)
    rows = settings["vocab_size"] - (0 if table is None else len(table))
    if table is not None and rows > 0:
        tensors[files.EMBEDDING] = np.concatenate([table, np.zeros((rows, table.shape[1]))])


def does_not_halve(settings: Settings, tensors: Tensors) -> None:
    """``intermediate_size`` is taken for the width of the MLP."""
    settings["intermediate_size"] *= 2


def scales_where_told(settings: Settings, tensors: Tensors) -> None:
    """Embeddings are scaled only where the key says so."""
    settings.setdefault("embeddings_scale_by_sqrt_dim", False)


def keeps_all_rows(settings: Settings, tensors: Tensors) -> None:
    """The vocabulary is as large as the embedding."""
    if files.EMBEDDING in tensors:
        settings["vocab_size"] = max(len(tensors[files.EMBEDDING]), settings["vocab_size"])


def whole_rounds(settings: Settings, tensors: Tensors) -> None:
    """As many rounds of the pattern as fit into the depth, and nothing behind them."""
    pattern = settings.get("block_types") or settings.get("_block_types") or ["recurrent"] * 3
    depth = settings["num_hidden_layers"] // len(pattern) * len(pattern)
    if 0 < depth < settings["num_hidden_layers"]:
        settings["num_hidden_layers"] = depth
        for name in [n for n in tensors if "layers." in n and int(n.split(".")[2]) >= depth]:
            del tensors[name]


def halves_are_bfloat16(settings: Settings, tensors: Tensors) -> None:
    """Numbers of 16 bits are all taken for bfloat16."""
    for name, array in tensors.items():
        if array.dtype == np.float16:
            tensors[name] = array.view(files.numpy_dtype("bfloat16"))


def needs_a_head(settings: Settings, tensors: Tensors) -> None:
    """The head is read from its own tensor, and is missing where that is."""
    if "lm_head.weight" not in tensors:
        raise KeyError("lm_head.weight")


def one_key_value_head(settings: Settings, tensors: Tensors) -> None:
    """``num_key_value_heads`` of null means one."""
    settings["num_key_value_heads"] = settings.get("num_key_value_heads") or 1


def refuses_what_it_does_not_know(settings: Settings, tensors: Tensors) -> None:
    """Keys that the loader does not know are an error."""
    if "rotary_emb_base" in settings:
        raise TypeError("unexpected keyword argument 'rotary_emb_base'")


def says_little(right: Any) -> type:
    """Every refusal is the same."""

    class Wrong(right):
        def load(self, folder):
            try:
                return super().load(folder)
            except Exception:
                raise RuntimeError("this checkpoint cannot be loaded") from None

    return Wrong


def trusts_lengths(right: Any) -> type:
    """What a cut file lacks at its end is zero."""

    class Wrong(right):
        def load(self, folder):
            for path in folder.glob("*.safetensors"):
                content = path.read_bytes()
                size = int.from_bytes(content[:8], "little")
                if size > len(content):
                    continue
                header = json.loads(content[8 : 8 + size])
                header.pop("__metadata__", None)
                end = 8 + size + max(t["data_offsets"][1] for t in header.values())
                path.write_bytes(content + bytes(max(end - len(content), 0)))
            return super().load(folder)

    return Wrong


# -- nf4


def right_nf4(parts: dict[str, NDArray], shape: tuple[int, ...]) -> NDArray:
    """A matrix from its parts, in whole arrays and float32."""
    told = json.loads(parts[STATE].tobytes().decode())
    scales = parts["absmax"]
    if "nested_absmax" in parts:
        spans = np.repeat(parts["nested_absmax"], told["nested_blocksize"])[: len(scales)]
        scales = parts["nested_quant_map"][scales] * spans + np.float32(told["nested_offset"])
    packed = parts["weight"].ravel()
    codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()
    steps = np.repeat(scales, told["blocksize"])[: len(codes)]
    return (parts["quant_map"][codes] * steps).reshape(shape)


def dequantises(change: Callable[[dict[str, NDArray]], dict[str, NDArray]]) -> Callable:
    """A backend that reads nf4, and takes the parts for something else."""

    def wrong(right: Any) -> type:
        class Wrong(right):
            def nf4(self, parts, shape):
                return right_nf4(change(parts), shape)

        return Wrong

    return wrong


def retold(**changes: Any) -> Callable[[dict[str, NDArray]], dict[str, NDArray]]:
    """The quantisation state says something else."""

    def change(parts: dict[str, NDArray]) -> dict[str, NDArray]:
        told = json.loads(parts[STATE].tobytes().decode()) | changes
        count = -(-parts["weight"].size * 2 // told["blocksize"])
        scales = np.resize(parts["absmax"], max(count, len(parts["absmax"])))
        content = np.frombuffer(json.dumps(told).encode(), np.uint8)
        return {**parts, "absmax": scales, STATE: content}

    return change


def low_nibble_first(parts: dict[str, NDArray]) -> dict[str, NDArray]:
    """The even element is in the low nibble."""
    return {**parts, "weight": (parts["weight"] >> 4) | (parts["weight"] << 4)}


def one_span(parts: dict[str, NDArray]) -> dict[str, NDArray]:
    """All scales share the first scale of scales."""
    spans = parts.get("nested_absmax")
    return parts if spans is None else {**parts, "nested_absmax": np.full_like(spans, spans[0])}
