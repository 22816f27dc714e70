"""The oracle against implementations by other people, in float64.

transformers and DeepMind's two ports compute some things in float32 whatever the dtype of the
weights: rotary angles, the recurrence's sums, norms or the softmax. Here the name float32 means
float64 to them, so that formulas are compared, and not how they are rounded.
"""

import os
import pickle
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from griffin_conformance.backends.deepmind import DeepMindBackend, their_arrays, their_config
from griffin_conformance.checks import Scope
from griffin_conformance.layouts import Case, Layout
from griffin_conformance.rounding import FLOAT64
from griffin_conformance.strategies import POOL, adapted, any_world

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


def assert_agreement(case: Case, logits: np.ndarray) -> None:
    """Hold the logits of every document in a layout against the oracle's."""
    for i, row in enumerate(case.layout.rows):
        where, start = case.layout.columns(i), 0
        for document, n in row:
            envelope = case.world.history(FLOAT64, document)["logits"].rows(slice(n))
            name = f"document {document} in row {i} of {case!r}"
            compared = envelope.compare(name, logits[i, where[start : start + n]])
            assert compared.passed, compared
            start += n


# -- transformers


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_transformers_agrees(transformers_in_double, data):
    """Whole texts, its window set to W + 1: residual streams and logits."""
    torch, backend = transformers_in_double.torch, transformers_in_double.TransformersW1()
    worlds = any_world(Scope(adapt=backend.adapt))
    world = data.draw(worlds)
    with transformers_in_double.quiet():
        model = transformers_in_double.build(world.config, world.parameters()).double()
        tokens = torch.tensor(world.tokens(0))[None]
        found = model(tokens, output_hidden_states=True, use_cache=False)
    assert found.logits.dtype == torch.float64
    history = world.history(FLOAT64, 0)
    for i, stream in enumerate(found.hidden_states[1:-1]):
        compared = history[f"blocks.{i}.residual"].compare(f"block {i} of {world!r}", stream[0])
        assert compared.passed, compared
    assert_agreement(Case(world, Layout((((0, world.lengths[0]),),))), found.logits.numpy())


# -- DeepMind: this file runs itself in another process, where float32 is float64 from the start


def packed_cases(each: int) -> list[Case]:
    """Rows of documents, several for each model that both of DeepMind's packages can represent."""

    def adapt(c):
        c = DeepMindBackend().adapt(c)
        return c.replace(lru_width=c.lru_width * (1 + c.lru_width % 2))

    rng, cases = np.random.default_rng(0), []
    for world in POOL * each:
        world = adapted(world, Scope(adapt=adapt))
        rows = tuple(
            tuple(
                (int(d), int(rng.integers(1, world.lengths[d] + 1)))
                for d in rng.integers(0, len(world.lengths), rng.integers(1, 4))
            )
            for _ in range(rng.integers(1, 4))
        )
        whole = ((0, world.lengths[0]),)
        cases.append(Case(world, Layout((whole, *rows))))
    return cases


@pytest.mark.parametrize(("port", "each"), [("torch", 4), ("jax", 1)])
def test_deepminds_code_agrees(port, each, tmp_path):
    """Whole texts beside packed documents, in one forward pass: logits."""
    for name in ("recurrentgemma", "einops", "flax", port):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    cases = packed_cases(each)
    (tmp_path / "cases").write_bytes(pickle.dumps(cases))
    command = [sys.executable, __file__, port, str(tmp_path / "cases"), str(tmp_path / "logits")]
    environment = os.environ | {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    for case, logits in zip(cases, pickle.loads((tmp_path / "logits").read_bytes()), strict=True):
        assert logits.dtype == np.float64
        assert_agreement(case, logits)


def torch_port():
    """DeepMind's PyTorch port as a function of weights, configuration, tokens and positions."""
    import torch

    torch.float32 = torch.float64
    torch.set_default_dtype(torch.float64)
    from recurrentgemma import torch as port

    def run(config, weights, tokens, positions):
        model = port.Griffin(their_config(config), gradient_checkpointing=False)
        model.load_state_dict({
            path.replace("/", ".").replace("kernel", "weight"):
                torch.tensor(array.T if path.endswith("kernel") else array)
            for path, array in weights.items()
        })  # fmt: skip
        with torch.no_grad():
            return model(torch.tensor(tokens), torch.tensor(positions))[0].numpy()

    return run


def jax_port():
    """DeepMind's JAX port, as :func:`torch_port`."""
    import jax
    import jax.numpy as jnp

    jnp.float32 = jnp.float64
    from recurrentgemma import jax as port

    def run(config, weights, tokens, positions):
        model = port.Griffin(their_config(config), gradient_checkpointing=False)
        tree: dict = {}
        for path, array in weights.items():
            *folders, leaf = path.split("/")
            inner = tree
            for folder in folders:
                inner = inner.setdefault(folder, {})
            inner[leaf] = jnp.asarray(array)
        logits, _ = jax.jit(model.apply)({"params": tree}, tokens, positions)
        return np.asarray(logits)

    return run


if __name__ == "__main__":
    wanted, source, target = sys.argv[1:]
    compute = {"torch": torch_port, "jax": jax_port}[wanted]()
    results = []
    with open(source, "rb") as file:
        for case in pickle.load(file):
            tokens, positions = case.layout.arrays(case.world)
            flax = their_arrays(case.world.parameters())
            weights = {p: array.astype(np.float64) for p, array in flax.items()}
            tokens = np.where(positions < 0, 0, tokens)
            results.append(compute(case.world.config, weights, tokens, positions))
    with open(target, "wb") as file:
        pickle.dump(results, file)
