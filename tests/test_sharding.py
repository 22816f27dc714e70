"""A model on many devices is the model on one: on 8 simulated ones, and as two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from many_devices import goes_on, results, text, trained  # noqa: E402
from support import SHARDED, assert_close, random_model, random_parameters  # noqa: E402

import griffin_np as gnp  # noqa: E402
from griffin_conformance.envelope import longest_chain  # noqa: E402
from griffin_kernels.xla import distributed, sharding  # noqa: E402
from griffin_kernels.xla.engine import JaxModel  # noqa: E402
from griffin_np.errors import ConfigError  # noqa: E402
from griffin_np.params import parameter_shapes  # noqa: E402

HERE = Path(__file__).parent
EXPLORING = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
CASES = ["2,2,2,pallas,stacked"]
"""Devices along data, sequence and model; scan; how blocks are compiled."""

if EXPLORING:
    CASES += [
        "8,1,1,sequential,unrolled", "1,8,1,pallas,unrolled", "1,1,8,associative,unrolled",
        "2,1,4,sequential,stacked", "1,2,4,pallas,stacked", "4,2,1,associative,stacked",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def on_meshes(tmp_path_factory):
    """Results of all cases, from one process with 8 devices."""
    out = tmp_path_factory.mktemp("meshes") / "found.npz"
    command = [sys.executable, str(HERE / "many_devices.py"), str(out), *CASES]
    subprocess.run(command, check=True, cwd=HERE, stdout=subprocess.DEVNULL)
    with np.load(out) as file:
        return dict(file)


def of(found: dict, case: str, prefix: str) -> dict:
    start = f"{case}/{prefix}"
    return {name[len(start) :]: a for name, a in found.items() if name.startswith(start)}


@pytest.mark.parametrize("case", CASES)
def test_a_mesh_computes_what_the_reference_computes(on_meshes, case):
    reference = random_model(SHARDED, 0, "float64")
    tokens, positions, after = text(SHARDED)
    logits, state = reference(tokens, positions)
    step, state = reference(after[:, :1], None, state)
    more, state = reference(after[:, 1:], goes_on(state.position), state)
    chain = longest_chain(SHARDED, 58)
    for name, expected in (("logits", logits), ("step", step), ("more", more)):
        found = on_meshes[f"{case}/{name}"]
        assert_close(found, expected, "float32", name, chain=chain)
    for name, expected in state.arrays().items():
        assert_close(on_meshes[f"{case}/state.{name}"], expected, "float32", name, chain=chain)


@pytest.fixture(scope="module")
def on_one():
    params = random_parameters(SHARDED, 0)
    return results(JaxModel(SHARDED, params)) | trained(SHARDED, params, None)


@pytest.mark.parametrize("case", CASES)
def test_a_mesh_writes_and_learns_what_one_device_does(on_meshes, on_one, case):
    np.testing.assert_array_equal(on_meshes[f"{case}/written"], on_one["written"])
    for name, found in of(on_meshes, case, "gradient.").items():
        expected = on_one[f"gradient.{name}"]
        scale = np.abs(expected).max()  # nothing else tells whether a sum was taken too often
        chain = 3 * longest_chain(SHARDED, 32)
        assert_close(found / scale, expected / scale, "float32", f"gradient of {name}", chain=chain)
    if not EXPLORING:
        return
    # Twice, and the optimiser divides by the gradient's own magnitude.
    chain = 8 * longest_chain(SHARDED, 32)
    assert_close(on_meshes[f"{case}/losses"], on_one["losses"], "float32", "losses", chain=chain)
    for name, found in of(on_meshes, case, "weights.").items():
        assert_close(found, on_one[f"weights.{name}"], "float32", name, chain=chain)


def test_every_parameter_has_its_partition():
    """By the names that the tree has; what is not cut is a norm, a bias of an output, or shared."""
    c = SHARDED
    tree = gnp.params.nest({
        name: jax.ShapeDtypeStruct(shape, np.float32)
        for name, shape in parameter_shapes(c).items()
    })  # fmt: skip
    cuts = gnp.params.flatten(sharding.partitions(tree, {"data": 2, "sequence": 2, "model": 2}))
    whole = {name.split(".", 2)[-1] for name, cut in cuts.items() if not any(cut)}
    assert whole == {
        "temporal_norm", "mlp_norm", "final_norm", "recurrent.linear_out.bias",
        "attention.key.weight", "attention.value.weight", "attention.output.bias", "mlp.down.bias",
    }  # fmt: skip
    assert cuts["embedding"] == jax.P("model", None)
    odd = sharding.partitions(tree, {"data": 1, "sequence": 1, "model": 7})
    assert not any(any(cut) for cut in gnp.params.flatten(odd).values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=0", r"every axis of a mesh needs at least 1 device, got \(0, 1, 1\)"),
        ("data=2,model=512", "data 2 x sequence 1 x model 512 needs 1024 devices, there are"),
        ("heads=2", "--mesh takes data=N,sequence=N,model=N"),
        ("data=2,data=2", "--mesh takes"),
        ("data", "--mesh takes"),
    ],
)
def test_meshes_that_cannot_be(text, message):
    with pytest.raises(ConfigError, match=message):
        distributed.parse_mesh(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("localhost", "takes HOST:PORT,COUNT,INDEX or auto, got 'localhost'"),
        ("localhost:1,2", "takes HOST:PORT,COUNT,INDEX"),
        ("localhost:1,2,2", "of 2 processes the last is 1, got 2"),
    ],
)
def test_processes_that_cannot_meet(text, message):
    with pytest.raises(ConfigError, match=message):
        distributed.join(text)


def two_processes(*argv: str) -> list[subprocess.CompletedProcess]:
    """The command line once for each of two processes that meet on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "griffin_np", *argv, "--distributed", f"localhost:{port},2,{i}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    done = []
    for process in started:
        out, err = process.communicate(timeout=300)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    for process in done:
        assert process.returncode == 0, process.stderr
    return done


@pytest.mark.parametrize("mesh", ["model=2"])
def test_two_processes_write_what_one_does(mesh):
    options = ["--backend", "jax", "--dtype", "float32", "--max-tokens", "12", "--seed", "1"]
    first, second = two_processes("generate", "Once upon a time", *options, "--mesh", mesh)
    expected = gnp.load(backend="numpy").generate("Once upon a time", max_tokens=12, seed=1)
    assert first.stdout == expected.text + "\n"
    assert second.stdout == ""


@pytest.mark.skipif(not EXPLORING, reason="two minutes: HYPOTHESIS_PROFILE=explore runs it")
def test_two_processes_take_the_same_training_step(tmp_path):
    data = tmp_path / "text.txt"
    data.write_text(
        "\n<|endoftext|>\n".join(f"The cat number {n} sat on a mat." for n in range(40))
    )
    for n, extra in (("two", ["--mesh", "data=2"]), ("one", [])):
        argv = ["train", "--model", "demo", "--data", str(data), "--out", str(tmp_path / n), "--steps", "1",
                "--batch-size", "2", "--length", "64", "--dtype", "float32", *extra]  # fmt: skip
        if extra:
            two_processes(*argv)
        else:
            subprocess.run([sys.executable, "-m", "griffin_np", *argv], check=True)
    one, two = (gnp.load(tmp_path / n, backend="numpy").parameters for n in ("one", "two"))
    expected = gnp.params.flatten(one)
    chain = 4 * longest_chain(gnp.load(backend="numpy").config, 64)
    for name, array in gnp.params.flatten(two).items():
        assert_close(array, expected[name], "float32", name, chain=chain)
