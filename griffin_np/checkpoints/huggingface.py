"""Reading Hugging Face folders: safetensors in one file or in shards, memory-mapped."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from griffin_np.base import GenerationDefaults
from griffin_np.checkpoints.files import SafetensorsFile
from griffin_np.checkpoints.hf_config import config_from_json, read_json
from griffin_np.checkpoints.hf_names import tensor_names
from griffin_np.errors import CheckpointError, SamplingError
from griffin_np.params import parameter_shapes
from griffin_np.sampling import Sampler

__all__ = ["FINGERPRINT", "INDEX", "HuggingFaceFolder"]

FINGERPRINT = "griffin_np_fingerprint"
INDEX = "model.safetensors.index.json"


class HuggingFaceFolder:
    """A checkpoint folder, opened and checked, its weights not yet read.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    config : GriffinConfig
    generation : GenerationDefaults
    fingerprint : str
        Of the weights that these were converted from, or empty.
    dtype : str
        Of the weights in the files.

    Raises
    ------
    CheckpointError
        If the folder is missing, damaged or foreign; names the file and the tensor.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(f"no checkpoint folder at {self.folder}")
        path = self.folder / "config.json"
        self.config = config_from_json(read_json(path), str(path))
        self.generation = self._generation_defaults()
        self._where = self._locate()
        self._names = self._match()
        self.fingerprint = next(iter(self._where.values())).metadata.get(FINGERPRINT, "")
        self.dtype = self._where[self._names["embedding"]].dtype(self._names["embedding"]).name

    def parameters(self, dtype) -> Iterator[tuple[str, NDArray]]:
        """Parameters by flat name, one at a time, in ``dtype``.

        Where the file has that dtype already, arrays are views into the memory map; elsewhere each
        is converted as it is asked for, and the file's memory released.
        """
        dtype = np.dtype(dtype)
        layouts = tensor_names(self.config)
        for name in parameter_shapes(self.config):
            theirs = self._names[name]
            file = self._where[theirs]
            stored = file.array(theirs)
            if name == "embedding":
                stored = stored[: self.config.vocab_size]  # some files pad the vocabulary
            array = stored.astype(dtype, copy=False)
            yield name, layouts[name][1](array)
            if array is not stored:
                file.release(theirs)

    def _locate(self) -> dict[str, SafetensorsFile]:
        """File of every tensor."""
        index, single = self.folder / INDEX, self.folder / "model.safetensors"
        if single.is_file():
            file = SafetensorsFile(single)
            return dict.fromkeys(file.names, file)
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise CheckpointError(f"{index} has no weight_map")
            for name, file_name in weight_map.items():
                if not isinstance(file_name, str) or Path(file_name).name != file_name:
                    raise CheckpointError(
                        f"{index}: {name} is not in a file of this folder: {file_name!r}"
                    )
            files = {f: SafetensorsFile(self.folder / f) for f in sorted(set(weight_map.values()))}
            for name, file_name in weight_map.items():
                if name not in files[file_name].names:
                    raise CheckpointError(
                        f"{self.folder / file_name} lacks {name}, which {INDEX} promises"
                    )
            return {name: files[file_name] for name, file_name in weight_map.items()}
        others = sorted(
            p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".gguf")
        )
        hint = f"; {others[0]} cannot be read, convert it to safetensors" if others else ""
        raise CheckpointError(f"{self.folder} has neither model.safetensors nor {INDEX}{hint}")

    def _match(self) -> dict[str, str]:
        """Tensor of every parameter, after checking names, shapes and dtypes."""
        prefix = "" if "embed_tokens.weight" in self._where else "model."
        names, problems = {}, []
        expected = set()
        for name, (full, _, save) in tensor_names(self.config).items():
            theirs = prefix + full.removeprefix("model.")
            expected.add(theirs)
            names[name] = theirs
            if theirs not in self._where:
                problems.append(f"missing tensor {theirs}")
                continue
            file = self._where[theirs]
            shape = save(np.broadcast_to(np.float32(0), parameter_shapes(self.config)[name])).shape
            found = file.shape(theirs)
            padded = name == "embedding" and found[0:1] > shape[0:1] and found[1:] == shape[1:]
            if found != shape and not padded:
                problems.append(f"{file.path.name}: {theirs} has shape {found}, expected {shape}")
                problems += self._explain_kv_heads(theirs, found)
            if file.dtype(theirs).name not in ("float64", "float32", "float16", "bfloat16"):
                problems.append(
                    f"{file.path.name}: {theirs} is {file.dtype(theirs)}, expected a floating dtype"
                )
        for theirs in sorted(set(self._where) - expected):
            if theirs == "lm_head.weight":
                problems += self._check_head(names["embedding"])
            elif not theirs.endswith("rotary_emb.inv_freq"):
                problems.append(f"{self._where[theirs].path.name}: unknown tensor {theirs}")
        if problems:
            shown = problems[:20] + (
                [f"... and {len(problems) - 20} more"] if problems[20:] else []
            )
            raise CheckpointError(
                f"{self.folder} does not fit its config.json:\n  " + "\n  ".join(shown)
            )
        return names

    def _explain_kv_heads(self, theirs: str, found: tuple[int, ...]) -> list[str]:
        d = self.config.head_dim
        if not theirs.endswith("k_proj.weight") or len(found) != 2 or found[0] % d:
            return []
        return [
            f"config.json means {self.config.num_kv_heads} key-value heads (null means one per "
            f"attention head), but k_proj has {found[0] // d}: set num_key_value_heads to that"
        ]

    def _check_head(self, embedding: str) -> list[str]:
        if embedding not in self._where:
            return []
        head_file, file = self._where["lm_head.weight"], self._where[embedding]
        head, tied = head_file.array("lm_head.weight"), file.array(embedding)
        rows = self.config.vocab_size
        same = head.shape[1:] == tied.shape[1:] and min(len(head), len(tied)) >= rows
        for start in range(0, rows if same else 0, 4096):
            part = slice(start, min(start + 4096, rows))
            same = same and np.array_equal(head[part], tied[part])
        head_file.release("lm_head.weight")
        file.release(embedding)
        if same:
            return []
        return [
            f"{head_file.path.name}: lm_head.weight differs from {embedding}; "
            f"Griffin's output head is its embedding"
        ]

    def _generation_defaults(self) -> GenerationDefaults:
        path = self.folder / "generation_config.json"
        values = read_json(path) if path.is_file() else {}
        eos = values.get("eos_token_id", read_json(self.folder / "config.json").get("eos_token_id"))
        ids = eos if isinstance(eos, list) else [eos]
        wrong = [i for i in ids if i is not None and i not in range(self.config.vocab_size)]
        if wrong:
            raise CheckpointError(f"{path}: eos_token_id {wrong[0]!r} is no id of the vocabulary")
        options = {}
        if values.get("do_sample", "temperature" in values):
            options = {"temperature": values.get("temperature", 1.0)}
            options |= {
                key: values[key] for key in ("top_k", "top_p") if values.get(key) is not None
            }
        try:
            Sampler(**options)
        except SamplingError as error:
            raise CheckpointError(f"{path}: {error}") from None
        return GenerationDefaults(**options, eos_ids=tuple(i for i in ids if i is not None))
