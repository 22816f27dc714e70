"""The verb bench: what other programs read from it, and what it refuses."""

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import griffin_np as gnp
from griffin_kernels import bench as measuring
from griffin_kernels.cpu import ceiling
from griffin_np.cli import main
from griffin_np.errors import ConfigError


@pytest.fixture(autouse=True)
def small_ceiling(monkeypatch):
    """An array that is read in a moment."""
    monkeypatch.setattr(ceiling, "BYTES", 1 << 24)
    monkeypatch.setattr(ceiling, "SECONDS", 0.01)


@pytest.fixture
def run(capsys, monkeypatch):
    """Run ``griffin-np bench`` in this process; returns (code, stdout, stderr)."""
    for name in ("MODEL", "BACKEND", "DTYPE", "THREADS"):
        monkeypatch.delenv(f"GRIFFIN_NP_{name}", raising=False)

    def call(*argv):
        try:
            code = main(["bench", *map(str, argv)])
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_json_is_the_document_that_other_programs_read(run):
    code, out, _ = run("--preset", "demo", "--backend", "numpy", "--dtype", "float32", "-p", 5,
                       "-n", 3, "-d", 0, "-d", 7, "-b", 1, "-b", 2, "-r", 2, "--json")  # fmt: skip
    assert code == 0
    document = json.loads(out)
    assert list(document) == ["machine", "model", "results"]
    assert list(document["machine"]) == ["cpu", "threads", "read_ceiling_gbps"]
    assert document["machine"]["cpu"]
    assert document["machine"]["threads"] >= 1
    assert document["machine"]["read_ceiling_gbps"] > 0
    config = gnp.GriffinConfig.preset("demo")
    assert document["model"] == {
        "parameters": config.num_parameters(),
        "weight_bytes": 4 * config.num_parameters(),
        "state_bytes": config.state_bytes(),
    }
    assert [result["test"] for result in document["results"]] == [
        "pp5", "tg3", "pp5 @ d7", "tg3 @ d7", "pp5 b2", "tg3 b2", "pp5 @ d7 b2", "tg3 @ d7 b2",
    ]  # fmt: skip
    for result in document["results"]:
        assert list(result) == [
            "test", "kind", "n", "depth", "batch", "tokens_per_second", "tokens_per_second_std",
            "weights_gbps", "fraction_of_ceiling", "peak_rss_bytes",
        ]  # fmt: skip
        depth = f" @ d{result['depth']}" if result["depth"] else ""
        batch = f" b{result['batch']}" if result["batch"] > 1 else ""
        assert result["test"] == f"{result['kind']}{result['n']}{depth}{batch}"
        assert result["tokens_per_second"] > 0
        assert result["tokens_per_second_std"] >= 0
        assert result["peak_rss_bytes"] > document["model"]["weight_bytes"]
        if result["kind"] == "tg":
            steps_per_second = result["tokens_per_second"] / result["batch"]
            expected = document["model"]["weight_bytes"] * steps_per_second / 1e9
            assert result["weights_gbps"] == pytest.approx(expected)
            assert result["fraction_of_ceiling"] > 0
        else:
            assert result["weights_gbps"] is result["fraction_of_ceiling"] is None


def test_table_for_people(run):
    code, out, err = run("--backend", "numpy", "-n", 2, "-r", 1)
    assert code == 0
    machine, blank, head, rule, *rows = out.splitlines()
    assert re.fullmatch(r".+, \d+ threads, read ceiling \d+\.\d GB/s; state .+ per text", machine)
    assert blank == ""
    assert head.count("|") == rule.count("|") == rows[0].count("|")
    assert len(rows) == 1
    assert re.match(r"\| demo \| .* \| numpy \| \w+ \| tg2 \| [\d.]+ ± 0\.00 \|", rows[0])
    assert err == ""


def test_lists_and_defaults(run, monkeypatch):
    found = []

    def record(model, tests, repetitions, threads, progress):
        found.append(([test.name for test in tests], repetitions, threads))
        raise ConfigError("enough")

    monkeypatch.setattr(measuring, "bench", record)
    run("--backend", "numpy")
    run("--backend", "numpy", "-n", "64,128", "-d", "0,4096", "-r", 3, "--threads", 1)
    assert found == [
        (["pp512", "tg128"], 5, None),
        (["tg64", "tg128", "tg64 @ d4096", "tg128 @ d4096"], 3, 1),
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "gemma-2b"], "no preset 'gemma-2b'; choose one of recurrentgemma-2b, "),
        (["--preset", "demo", "--model", "m"], "--model and --preset are both given"),
        (["-p", "0"], "-p must be an integer of at least 1, got 0"),
        (["-n", "-3"], "-n must be an integer of at least 1, got -3"),
        (["-d", "-1"], "-d must be an integer of at least 0, got -1"),
        (["-b", "0"], "-b must be an integer of at least 1, got 0"),
        (["-r", "0"], "-r must be an integer of at least 1, got 0"),
        (["--threads", "0"], "threads must be an integer of at least 1, got 0"),
        (["--model", "nowhere"], "no checkpoint folder at nowhere"),
        (["--backend", "torch"], "no backend 'torch'"),
        (["--preset", "demo", "--backend", "numpy", "--dtype", "int3"], "no dtype 'int3'"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(run, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*argv)
    assert code == 2
    assert message in err
    assert err.startswith("griffin-np: error: ")
    assert err.count("\n") == 1
    assert not out


def test_an_option_goes_before_the_environment(run, monkeypatch):
    monkeypatch.setenv("GRIFFIN_NP_MODEL", "nowhere")
    assert run("--preset", "demo", "--backend", "numpy", "-n", 1, "-r", 1)[0] == 0


def test_words_in_place_of_numbers(run):
    code, _, err = run("-n", "many")
    assert code == 2
    assert "invalid int value: 'many'" in err


@pytest.fixture(scope="module")
def model():
    config = gnp.GriffinConfig(width=8, depth=3, num_heads=2, vocab_size=50, window=4)
    return gnp.init(config, backend="numpy")


@pytest.mark.parametrize("depth", [0, 1, 60, 68, 69, 1_000_000])
def test_states_stand_at_their_depth(model, depth):
    state = measuring.state_at(model, depth, np.random.default_rng(0))
    assert state.position.tolist() == [depth]
    state.check_model(model.config, model.fingerprint)
    state.check_arrays()
    assert all(np.isfinite(array).all() for array in state.arrays().values())


def test_what_is_generated_varies_and_every_token_is_a_step(model, monkeypatch):
    """Greedy text of random weights repeats itself; the tokens that are timed do not."""
    seen = []
    forward = type(model)._forward

    def spy(self, inputs, positions, state, logits, trace):
        seen.append((inputs[:, 0].tolist(), positions[:, 0].tolist(), logits))
        return forward(self, inputs, positions, state, logits, trace)

    monkeypatch.setattr(type(model), "_forward", spy)
    state = model.init_state(2)
    measuring._write(model, 20, state, np.random.default_rng(0))
    assert len(seen) == 20
    assert [positions for _, positions, _ in seen] == [[t, t] for t in range(20)]
    assert {logits for *_, logits in seen} == {"last"}
    assert all(len({tokens[row] for tokens, *_ in seen}) > 8 for row in (0, 1))


def test_read_ceiling_sums_all_of_the_array():
    array, sums = np.arange(10 * 128, dtype=np.float32), np.zeros(3, np.float32)
    for part in range(3):
        ceiling.read(part, 3, np.zeros(1, np.int64), array, sums)
    assert sums.sum() == array.sum()
    assert ceiling.read_ceiling() > 0


def test_peak_memory_is_of_each_test():
    block = np.ones(1 << 24)
    size = block.nbytes
    del block
    with_block = measuring.peak_rss()
    assert with_block > size
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let the peak start anew")
    measuring._reset_peak()
    assert measuring.peak_rss() < with_block - size // 2


@pytest.fixture(scope="module")
def peers():
    path = Path(__file__).parent.parent / "kernels" / "benchmarks" / "peers.py"
    spec = importlib.util.spec_from_file_location("peers", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["peers"]


def ours(**speeds):
    results = [
        {"test": test, "tokens_per_second": speed, "weights_gbps": None,
         "fraction_of_ceiling": None, "peak_rss_bytes": 2e9}
        for test, speed in speeds.items()
    ]  # fmt: skip
    machine = {"cpu": "C", "threads": 2, "read_ceiling_gbps": 30.0}
    return {"machine": machine, "model": {}, "results": results}


def test_a_peer_is_compared_with_both_of_its_neighbours(peers):
    found = peers.Comparison("int4")
    found.ours = [ours(pp512=100.0), ours(pp512=120.0), ours(pp512=80.0)]
    found.peer = [
        {"tokens_per_second": {"pp512": [49, 51]}},
        {"tokens_per_second": {"pp512": [40]}},
    ]
    assert found.ratios("pp512") == [2.0, 2.4, 3.0, 2.0]
    row = peers.table([found], ["prefill"]).splitlines()[2]
    assert row == (
        "| pp512 | int4 | 100.0 |  |  | 2.00 | llama.cpp, Gemma-2B Q4_0 | 45.0 | 2.35 (2.00 - 3.00) |"
    )
    alone = peers.Comparison("int8", [ours(pp512=100.0)])
    assert alone.ratios("pp512") == []
    assert peers.table([alone], ["prefill"]).splitlines()[2].endswith("|  |  |  |")


def test_our_turn_is_one_call_for_each_depth_and_batch(peers, monkeypatch):
    calls = []

    def answer(command, note):
        calls.append(command)
        return ours()

    monkeypatch.setattr(peers, "run_json", answer)
    args = argparse.Namespace(preset="demo", repetitions=3, backend=None, threads=None)
    peers.bench(args, "int8", ["pp512", "tg64", "tg64 @ d2048", "tg64 b8"])
    assert [command[command.index("-d") :] for command in calls] == [
        ["-d", "0", "-b", "1", "-p", "512", "-n", "64"],
        ["-d", "2048", "-b", "1", "-n", "64"],
        ["-d", "0", "-b", "8", "-n", "64"],
    ]
