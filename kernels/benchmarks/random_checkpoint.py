#!/usr/bin/env python3
"""Write a Hugging Face folder of random weights of a preset's true size, tensor by tensor.

    python kernels/benchmarks/random_checkpoint.py recurrentgemma-2b FOLDER [--dtype bfloat16]

For checks at full size without the released weights: no bias or scale is zero and no two matrices
agree, so that every part of the model matters. Needs memory for one shard of 2 GiB, and disk for
the model (5.4 GB for 2B in bfloat16).
"""

import argparse
import math
from collections.abc import Iterator, Mapping

import numpy as np

from griffin_np.base import GenerationDefaults
from griffin_np.checkpoints.hf_save import save_folder
from griffin_np.config import PRESETS, GriffinConfig
from griffin_np.params import parameter_shapes


class RandomParameters(Mapping):
    """Weights drawn when they are asked for; the same seed draws the same."""

    def __init__(self, config: GriffinConfig, seed: int):
        self.shapes = parameter_shapes(config)
        self.seed = seed

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        rng = np.random.default_rng([self.seed, list(self.shapes).index(name)])
        if name.endswith("a_param"):
            return rng.uniform(-7, -1, shape).astype(np.float32)
        value = rng.standard_normal(shape, np.float32)
        if "conv.weight" in name:
            value *= 0.5
        elif name == "embedding" or name.endswith(("weight", "w_a", "w_x")):
            value *= np.float32(1 / math.sqrt(shape[-1] if name == "embedding" else shape[-2]))
        else:
            value *= 0.1
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = PRESETS[args.preset]
    weights = RandomParameters(config, args.seed)
    save_folder(args.folder, config, weights, args.dtype, "", {}, GenerationDefaults())
    print(f"{args.folder}: {config.num_parameters():,} random weights in {args.dtype}")


if __name__ == "__main__":
    main()
