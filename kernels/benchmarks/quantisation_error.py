#!/usr/bin/env python3
"""What rounding to integers does to random weights in RecurrentGemma-2B's shapes, and how fast.

    python kernels/benchmarks/quantisation_error.py [--threads 2]

The error is the root mean square of what rounding changes, over that of the weights. Weights are
normal, as at initialisation, or Student's t with 5 degrees of freedom, which has the heavier tails
of trained ones. A second for a matrix of each shape; nothing is read or written.
"""

import argparse
import time

import ml_dtypes
import numba
import numpy as np

from griffin_kernels.cpu.quantise import dequantise, quantise

SHAPES = {
    "temporal, 2560 x 2560": (2560, 2560),
    "gate and up, 7680 x 2560": (7680, 2560),
    "down, 2560 x 7680": (2560, 7680),
}
SAMPLE = 128
"""Outputs whose error is measured."""
WEIGHTS = 2.68e9
"""In RecurrentGemma-2B."""
GROUP = 64


def absmax(weights: np.ndarray, bits: int, target: int, low: int) -> np.ndarray:
    """Plain rounding: the weight of largest magnitude is put on ``target``."""
    groups = weights.reshape(len(weights), -1, GROUP)
    at = np.abs(groups).argmax(-1)[..., None]
    scale = np.take_along_axis(groups, at, -1) / np.float32(target)
    scale = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
    q = np.clip(np.rint(groups / scale), low, 2 ** (bits - 1) - 1)
    return (q * scale).reshape(weights.shape)


def relative(found: np.ndarray, weights: np.ndarray) -> float:
    return float(np.sqrt(((found - weights) ** 2).sum() / (weights**2).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=min(2, numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(parser.parse_args().threads)
    rng = np.random.default_rng(0)
    draws = {
        "normal": lambda shape: rng.standard_normal(shape, np.float32),
        "t, 5 d.f.": lambda shape: rng.standard_t(5, shape).astype(np.float32),
    }
    rules = {
        "8 bits, absmax on 127": lambda w: absmax(w, 8, 127, -127),
        "8 bits, kernel": lambda w: dequantise(*quantise(w, 8), 8),
        "4 bits, absmax on 7": lambda w: absmax(w, 4, 7, -8),
        "4 bits, absmax on -8": lambda w: absmax(w, 4, -8, -8),
        "4 bits, kernel (search)": lambda w: dequantise(*quantise(w, 4), 4),
    }
    print(f"{'relative error':<26}" + "".join(f"{shape:>26}" for shape in SHAPES))
    for name, draw in draws.items():
        samples = [draw((SAMPLE, inputs)) for _, inputs in SHAPES.values()]
        for rule, apply in rules.items():
            errors = "".join(f"{100 * relative(apply(w), w):>24.3f} %" for w in samples)
            print(f"{rule:<26}{errors}  {name}")

    weights = draws["normal"]((7680, 2560)).astype(ml_dtypes.bfloat16)
    print(f"\n7680 x 2560 bfloat16, {numba.get_num_threads()} thread(s)")
    for bits in (8, 4):
        for layout, given in (("rows", weights), ("columns", np.asfortranarray(weights))):
            quantise(given[:1], bits)  # compiles
            seconds = []
            for _ in range(3):
                started = time.perf_counter()
                quantise(given, bits)
                seconds.append(time.perf_counter() - started)
            whole = min(seconds) * WEIGHTS / weights.size
            print(f"{bits} bits, outputs in {layout:<8}{whole:6.1f} s for {WEIGHTS:.3g} weights")


if __name__ == "__main__":
    main()
