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
    """Rows of documents, several for each model that DeepMind's code can represent.

    It has one key-value head, four taps, and rotates half of each head; the recurrence is of even
    width.
    """

    def adapt(c):
        head = max(c.width // c.num_heads // 4, 1) * 4
        return c.replace(
            width=head * c.num_heads,
            lru_width=c.lru_width * (1 + c.lru_width % 2),
            num_kv_heads=1,
            rope_fraction=0.5,
            conv_width=4,
        )

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
    from recurrentgemma import common
    from recurrentgemma import torch as port

    def run(config, weights, tokens, positions):
        model = port.Griffin(their_config(common, config), gradient_checkpointing=False)
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
    from recurrentgemma import common
    from recurrentgemma import jax as port

    def run(config, weights, tokens, positions):
        model = port.Griffin(their_config(common, config), gradient_checkpointing=False)
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


def their_config(common, c):
    """A configuration in DeepMind's terms."""
    kinds = common.TemporalBlockType
    return common.GriffinConfig(
        vocab_size=c.vocab_size,
        width=c.width,
        mlp_expanded_width=c.mlp_width,
        num_heads=c.num_heads,
        lru_width=c.lru_width,
        block_types=tuple(kinds[kind.upper()] for kind in c.block_types),
        embeddings_scale_by_sqrt_dim=c.scale_embeddings,
        attention_window_size=c.window,
        logits_soft_cap=c.logits_soft_cap,
    )


BLOCK = {
    "temporal_norm": "temporal_pre_norm/scale",
    "mlp_norm": "channel_pre_norm/scale",
    "recurrent.linear_x": "recurrent_block/linear_x",
    "recurrent.linear_y": "recurrent_block/linear_y",
    "recurrent.linear_out": "recurrent_block/linear_out",
    "recurrent.conv.weight": "recurrent_block/conv_1d/w",
    "recurrent.conv.bias": "recurrent_block/conv_1d/b",
    "recurrent.rg_lru.a_param": "recurrent_block/rg_lru/a_param",
    "recurrent.rg_lru.w_x": "recurrent_block/rg_lru/input_gate/w",
    "recurrent.rg_lru.b_x": "recurrent_block/rg_lru/input_gate/b",
    "recurrent.rg_lru.w_a": "recurrent_block/rg_lru/a_gate/w",
    "recurrent.rg_lru.b_a": "recurrent_block/rg_lru/a_gate/b",
    "attention.query": "attention_block/proj_q",
    "attention.key": "attention_block/proj_k",
    "attention.value": "attention_block/proj_v",
    "attention.output": "attention_block/proj_final",
    "mlp.down": "mlp_block/ffw_down",
}
"""DeepMind's paths in a Flax tree; gate and up of the MLP are one array there."""


def flax_arrays(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights in float64 by their path in DeepMind's Flax tree."""
    found = {"embedder/input_embedding": flat["embedding"], "final_norm/scale": flat["final_norm"]}
    for name, array in flat.items():
        if not name.startswith("blocks."):
            continue
        _, i, rest = name.split(".", 2)
        stem, _, part = rest.rpartition(".")
        if stem == "mlp.gate":
            pair = np.stack([array, flat[f"blocks.{i}.mlp.up.{part}"]])
            path, array = f"mlp_block/ffw_up/{part[0]}", pair
            if part == "bias":
                array = pair[:, None, None]
        elif stem in BLOCK:
            path = f"{BLOCK[stem]}/{'kernel' if part == 'weight' else part}"
        elif stem != "mlp.up":
            path = BLOCK[rest]
        else:
            continue
        found[f"blocks.{i}/{path}"] = array
    return {path: array.astype(np.float64) for path, array in found.items()}


if __name__ == "__main__":
    wanted, source, target = sys.argv[1:]
    compute = {"torch": torch_port, "jax": jax_port}[wanted]()
    results = []
    with open(source, "rb") as file:
        for case in pickle.load(file):
            tokens, positions = case.layout.arrays(case.world)
            weights = flax_arrays(case.world.parameters())
            tokens = np.where(positions < 0, 0, tokens)
            results.append(compute(case.world.config, weights, tokens, positions))
    with open(target, "wb") as file:
        pickle.dump(results, file)
