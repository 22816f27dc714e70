#!/usr/bin/env python3
"""A full-size checkpoint through the reference and through transformers, both in float32.

    python kernels/benchmarks/random_checkpoint.py recurrentgemma-2b FOLDER
    python kernels/benchmarks/full_size.py FOLDER [--tokens 16]

Each runs in a process of its own, so that the peak memory is its own too. Needs torch and
transformers for the comparison; without them only the reference runs.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def tokens_for(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(3, 250_000, (1, count))


def reference(folder: str, count: int) -> np.ndarray:
    import griffin_np as gnp

    model = gnp.load(folder, "numpy", "float32")
    return model(tokens_for(count) % model.config.vocab_size)[0]


def transformers(folder: str, count: int) -> np.ndarray:
    import torch
    from transformers import RecurrentGemmaForCausalLM

    model = RecurrentGemmaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        tokens = torch.tensor(tokens_for(count) % model.config.vocab_size)
        return model(tokens, use_cache=False).logits.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--run", choices=("reference", "transformers"), help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        started = time.perf_counter()
        logits = globals()[args.run](args.folder, args.tokens)
        np.save(args.out, logits)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": time.perf_counter() - started, "peak_bytes": peak}))
        return

    names = ["reference"]
    if importlib.util.find_spec("transformers"):
        names.append("transformers")
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            out = str(Path(place) / f"{name}.npy")
            command = [sys.executable, __file__, args.folder, "--tokens", str(args.tokens)]
            done = subprocess.run(
                [*command, "--run", name, "--out", out],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            facts = json.loads(done.stdout.splitlines()[-1])
            found[name] = np.load(out)
            print(
                f"{name:<13} {facts['seconds']:6.1f} s with loading, "
                f"peak resident memory {facts['peak_bytes'] / 1e9:.2f} GB, "
                f"largest logit {np.abs(found[name]).max():.2f}"
            )
    if len(found) == 2:
        gap = np.abs(found["reference"] - found["transformers"])
        same = (found["reference"].argmax(-1) == found["transformers"].argmax(-1)).mean()
        print(f"largest difference of logits {gap.max():.2e}, same best token {same:.0%}")


if __name__ == "__main__":
    main()
