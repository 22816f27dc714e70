"""Run as a program: what a small model computes on meshes of 8 simulated devices, into a file.

JAX counts its devices when it starts, so this needs a process of its own; see test_sharding.py.
"""

import os
import sys

import numpy as np


def text(config, rows: int = 4, length: int = 37):
    """Documents that start anywhere, padding anywhere, and texts that cross many windows."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, config.vocab_size, (rows, length))
    positions = np.tile(np.arange(length), (rows, 1))
    positions[1, 20:] = np.arange(17)  # a second document
    positions[2, :5], positions[2, 5:] = -1, np.arange(32)
    positions[3, 2:] = -1  # shorter than the convolution
    return tokens, positions, rng.integers(3, config.vocab_size, (rows, 21))


def goes_on(position: np.ndarray, length: int = 20) -> np.ndarray:
    """Positions of texts that go on; the first row begins a document, on the first of two devices."""
    positions = position[:, None] + np.arange(length)
    positions[0, 3:] = np.arange(length - 3)
    return positions


def results(model) -> dict[str, np.ndarray]:
    """Logits and states after a text, one step, and a second text; and what the model writes."""
    tokens, positions, after = text(model.config)
    found = {}
    found["logits"], state = model(tokens, positions)
    found["step"], state = model(after[:, :1], None, state)
    found["more"], state = model(after[:, 1:], goes_on(state.position), state)
    found |= {f"state.{name}": array for name, array in state.arrays().items()}
    options = {"max_tokens": 6, "ignore_eos": True, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    written = model.generate([[3, 4, 5], [6]], **options)
    found["written"] = np.array([row.tokens for row in written])
    return found


def trained(config, params, mesh, **options) -> dict[str, np.ndarray]:
    """A gradient; in the larger set, losses and weights of two steps of training too."""
    from functools import partial

    import jax

    from griffin_kernels.xla.data import pack
    from griffin_kernels.xla.sharding import on_mesh
    from griffin_kernels.xla.train import Trainer, TrainOptions
    from griffin_kernels.xla.update import loss_and_gradient
    from griffin_np.params import flatten

    rng = np.random.default_rng(1)
    documents = [rng.integers(3, config.vocab_size, n) for n in (40, 9, 30, 25, 12, 33, 20, 17)]
    run = TrainOptions(steps=2, batch_size=4, length=32, warmup=1, seed=4, **options)
    batch = pack(documents, 32).batch(0, 4).split(1)
    gradient = jax.jit(partial(loss_and_gradient, config=config, options=run))
    with on_mesh(mesh):
        _, found = jax.device_get(gradient(params, None, batch))
    gradients = {f"gradient.{n}": a for n, a in flatten(found).items()}
    if os.environ.get("HYPOTHESIS_PROFILE") != "explore":
        return gradients
    trainer = Trainer(config, run, documents, base=params, mesh=mesh)
    losses = np.array([trainer.train_step(), trainer.train_step()])
    weights = {f"weights.{n}": a for n, a in flatten(trainer.params).items()}
    return {"losses": losses} | gradients | weights


def main(out: str, *cases: str) -> None:
    """Each case: ``data,sequence,model,scan,stacked``."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    # Devices that wait for each other need a thread each, however few cores there are.
    os.environ["NPROC"] = "16"
    os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
    from support import SHARDED, random_parameters

    from griffin_kernels.xla.engine import JaxModel
    from griffin_kernels.xla.sharding import make_mesh

    params = random_parameters(SHARDED, 0)
    found = {}
    for case in cases:
        *axes, scan, stacked = case.split(",")
        mesh = make_mesh(*map(int, axes))
        model = JaxModel(SHARDED, params, scan=scan, stacked=stacked == "stacked", mesh=mesh)
        parts = results(model) | trained(SHARDED, params, mesh, scan=scan)
        found |= {f"{case}/{name}": array for name, array in parts.items()}
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
