#!/usr/bin/env python3
"""The two parts of a training step that were worth writing by hand, against the plain way.

    python kernels/benchmarks/training_parts.py

Gradients of the scan and of the tied head with cross-entropy, on the demo model's shapes, each
checked against the plain version before it is timed; then a whole step with either scan. Prints
medians and their ratio.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from griffin_kernels.xla.loss import cross_entropy_sum
from griffin_kernels.xla.scan_xla import associative_scan, sequential_scan
from griffin_kernels.xla.train import Trainer, TrainOptions
from griffin_np.config import GriffinConfig

B, T, R, V, CAP = 8, 512, 192, 4000, 30.0


def median_ms(function, arguments, runs: int = 15) -> float:
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def compare(name: str, plain, ours, arguments) -> None:
    for a, b in zip(plain(*arguments), ours(*arguments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(a).max()))
    slow, fast = median_ms(plain, arguments), median_ms(ours, arguments)
    print(f"{name:<44} plain {slow:6.1f} ms   ours {fast:6.1f} ms   ratio {slow / fast:5.1f}")


def main() -> None:
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.uniform(0.5, 1, (B, T, R)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((B, T, R)), jnp.float32)
    h0 = jnp.zeros((B, R), jnp.float32)

    def gradient(scan):
        return jax.jit(jax.grad(lambda *z: jnp.sum(scan(*z)[0] ** 2), (0, 1, 2)))

    compare(
        "scan (8, 512, 192), gradient",
        gradient(associative_scan),
        gradient(sequential_scan),
        (a, x, h0),
    )

    embedding = jnp.asarray(rng.standard_normal((V, R)) / R**0.5, jnp.float32)
    labels = jnp.asarray(rng.integers(0, V, B * T))

    def plain(e, x):
        logits = CAP * jnp.tanh(x @ e.T / CAP)
        return jnp.sum(jax.nn.logsumexp(logits, -1) - logits[jnp.arange(B * T), labels])

    def chunked(e, x):
        return cross_entropy_sum(e, x, labels, jnp.ones(B * T), CAP)

    grads = (jax.jit(jax.grad(f, (0, 1))) for f in (plain, chunked))
    compare("head and cross-entropy, 4,096 x 192 x 4,000", *grads, (embedding, x.reshape(-1, R)))
    whole_step()


def whole_step(turns: int = 5) -> None:
    """A step of the demo model's training with either scan, in turns."""
    config = GriffinConfig.preset("demo")
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, config.vocab_size, 500) for _ in range(64)]
    runs = {
        scan: Trainer(config, TrainOptions(scan=scan), documents)
        for scan in ("associative", "sequential")
    }
    times: dict[str, list[float]] = {scan: [] for scan in runs}
    for turn in range(turns + 1):
        for scan, trainer in runs.items():
            started = time.perf_counter()
            trainer.train_step()
            if turn:  # the first one compiles
                times[scan].append((time.perf_counter() - started) * 1e3)
    slow, fast = (statistics.median(times[scan]) for scan in runs)
    print(
        f"{'a whole step of the demo model, 4 x 512':<44} plain {slow:6.0f} ms   "
        f"ours {fast:6.0f} ms   ratio {slow / fast:5.1f}"
    )


if __name__ == "__main__":
    main()
