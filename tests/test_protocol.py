"""Engines by command: the C example conforms, faulty ones get a clear verdict, none is left."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import griffin_conformance
from griffin_conformance.backends import Unsupported, find_backend
from griffin_conformance.checks import find_checks
from griffin_conformance.mutants import MUTANTS
from griffin_conformance.protocol import CommandBackend, EngineFailure, process
from griffin_conformance.protocol.engine import Engine, time_limit
from griffin_conformance.protocol.messages import (
    CAPABILITIES,
    MUST,
    MessageError,
    as_tensor,
    check,
    decode,
    from_tensor,
    rules,
)
from griffin_conformance.protocol.serve import Server
from griffin_conformance.protocol.validate import validate
from griffin_conformance.runner import run_check
from griffin_conformance.schemas import Draft202012Validator

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and process groups of POSIX")

SOURCE = Path(griffin_conformance.__file__).parent / "examples" / "griffin.c"
PYTHON = f"{sys.executable} -m griffin_conformance.protocol.serve"
STRICT = ["-O2", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
SANITIZED = ["-O1", "-std=c11", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
NAMES = [c.name for c in find_checks(["L0", "L1", "L2", "L3"])]


def named(name: str):
    (found,) = find_checks(names=[name])
    return found


def compiled(folder: Path, flags: list[str]) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: cc is not found")
    path = folder / "griffin"
    subprocess.run([compiler, *flags, "-o", path, SOURCE, "-lm"], check=True)
    return path


@pytest.fixture(scope="module")
def griffin(tmp_path_factory) -> Path:
    return compiled(tmp_path_factory.mktemp("plain"), STRICT)


@pytest.fixture(scope="module")
def c_engine(griffin):
    backend = find_backend(f"cmd:{griffin} --stdio")
    yield backend
    assert backend.engine.start == 1  # it never had to be started again
    assert backend.close() == 0


# -- the C example


@pytest.mark.parametrize("name", NAMES)
def test_the_c_engine_conforms(c_engine, name):
    verdict = run_check(named(name), c_engine, 2, survey=True)
    if name in ("compiled-as-written", "turns-end"):
        assert verdict.status == "skipped"  # it has nothing to compile, and reads no checkpoints
        return
    assert verdict.status == "passed", verdict.explain()
    assert verdict.ratio <= 0.5


def test_what_the_c_engine_declares_is_what_it_has(c_engine):
    assert set(CAPABILITIES) - set(c_engine.engine.hello["capabilities"]) == {
        "adapt", "checkpoint", "compiled", "tokenizer", "encode", "decode", "encode_dialogue",
        "nf4", "dequantised", "input_groups",
    }  # fmt: skip
    assert c_engine.versions()["engine"] == "griffin.c"
    assert c_engine.spec == c_engine.name


def test_the_c_engine_frees_what_is_not_used(griffin):
    """Handles are used again, so their numbers stay small."""
    backend = CommandBackend(f"{griffin} --stdio")
    try:
        world = griffin_conformance.World(
            griffin_conformance.GriffinConfig(width=8, depth=1, num_heads=1, vocab_size=5)
        )
        for _ in range(30):
            model = backend.model(world.config, world.parameters())
            _, state = model(world.tokens(0)[None])
            assert max(model.handle, state.handle) < 8
    finally:
        assert backend.close() == 0


# -- validate


def validated(command: str) -> tuple[bool, str]:
    lines: list[str] = []
    right = validate(command, lines.append, 20)
    return right, "\n".join(lines)


def test_validate_finds_nothing_wrong_with_the_examples(griffin, monkeypatch):
    said: list[tuple[bytes, bytes]] = []
    exchange = process.Process.exchange

    def listening(self, line, seconds, what):
        reply = exchange(self, line, seconds, what)
        said.append((line, reply))
        return reply

    monkeypatch.setattr(process.Process, "exchange", listening)
    for command in (f"{griffin} --stdio", PYTHON):
        right, text = validated(command)
        assert right, text
        assert "WRONG" not in text
        assert text.count("\n") == 10
    # Every message that went either way is one by the schema, but for what was wrong on purpose.
    methods = set()
    for line, reply in said:
        answer = decode(reply)
        check(answer, "reply")
        if b"no_such_method" in line or line.startswith(b'{"id": 8'):
            continue
        request = decode(line)
        check(request, "request")
        methods.add(request["method"])
        if "result" in answer:
            check(answer["result"], f"{request['method']}.result")
    assert set(MUST) <= methods


def test_validate_says_what_is_wrong():
    assert "cannot start 'nonsuch'" in validated("nonsuch")[1]
    right, text = validated(f"{sys.executable} -c 'print(1)'")
    assert not right
    assert "'hello' is wrong" in text
    right, text = validated(faulty("gelu_is_the_identity"))
    assert not right
    assert "WRONG    operation: gelu of 1, -2, 0.5[" in text
    assert "WRONG    unknown method: the answer to an unknown method is wrong" in text


# -- faulty engines

FAULTY = r"""
import base64, json, os, signal, struct, sys, time

def tensor(values, shape):
    data = base64.b64encode(struct.pack("<%df" % len(values), *values)).decode()
    return {"dtype": "float32", "shape": shape, "data": data}

def say(number, result):
    sys.stdout.write(json.dumps({"id": number, "result": result}) + "\n")
    sys.stdout.flush()

fault = sys.argv[1]
with open(os.environ["PIDS"], "a") as file:
    file.write("%d\n" % os.getpid())
starts = open(os.environ["PIDS"]).read().count("\n")
if fault == "no_second_start" and starts > 1:
    sys.exit("out of order")
for line in sys.stdin:
    request = json.loads(line)
    number, method, params = request["id"], request["method"], request["params"]
    if method == "hello":
        say(number, {"protocol": "griffin-conformance/1", "name": "faulty", "versions": {},
                     "dtypes": ["float32"], "capabilities": ["gelu", "rms_norm", "embed", "scan"]})
        continue
    if method in ("free", "shutdown"):
        say(number, {})
        continue
    if fault == "dies_always":
        sys.exit(4)
    if method != "gelu":  # right enough: all zeros of the right shape
        size = 1
        for n in params["x"]["shape"]:
            size *= n
        say(number, {"y": tensor([0.0] * size, params["x"]["shape"])})
        continue
    x, size = params["x"], 1
    for n in x["shape"]:
        size *= n
    right = {"y": x}
    if fault == "hangs":
        time.sleep(1000)
    elif fault == "hangs_with_a_child":
        if os.fork() == 0:
            with open(os.environ["PIDS"], "a") as file:
                file.write("%d\n" % os.getpid())
            os.close(0), os.close(1), os.close(2)
            time.sleep(1000)
        time.sleep(1000)
    elif fault == "rubbish":
        print("Loading model...", flush=True)
        say(number, right)
    elif fault == "crashes":
        print("assertion failed in kernel 7", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif fault in ("exits", "no_second_start"):
        sys.exit(3)
    elif fault == "nan":
        say(number, {"y": tensor([float("nan")] * size, x["shape"])})
    elif fault == "wrong_shape":
        say(number, {"y": tensor([0.0] * size, [size])})
    elif fault == "wrong_bytes":
        say(number, {"y": dict(tensor([0.0] * (size + 1), x["shape"]))})
    elif fault == "no_base64":
        say(number, {"y": dict(x, data="*")})
    elif fault == "wrong_id":
        say(number + 1, right)
    elif fault == "no_result":
        say(number, {"z": x})
    elif fault == "closes":
        os.close(1)
        time.sleep(1000)
    elif fault == "closes_its_input":
        os.close(0), os.close(1)
        time.sleep(1000)
    elif fault == "floods":
        while True:
            os.write(2, b"warning: something\n" * 1000)
    elif fault == "floods_and_answers":
        for _ in range(200):
            os.write(2, b"warning: something\n" * 1000)
        say(number, right)
    elif fault == "slow":
        for c in json.dumps({"id": number, "result": right}):
            os.write(1, c.encode())
            time.sleep(0.3)
    elif fault == "huge":
        while True:
            os.write(1, b"x" * 65536)
    elif fault == "fails":
        print(json.dumps({"id": number, "error": {"kind": "failed", "message": "no GPU"}}), flush=True)
    elif fault == "unsupported":
        print(json.dumps({"id": number, "error": {"kind": "unsupported", "message": "not yet"}}), flush=True)
    else:
        say(number, right)
"""

REASONS = {
    "hangs": "the engine did not answer 'gelu' within 1 s",
    "hangs_with_a_child": "the engine did not answer 'gelu' within 1 s",
    "rubbish": "the engine's answer to 'gelu' is wrong: no JSON (.*): Loading model...",
    "crashes": "the engine was killed by SIGSEGV at 'gelu'; last on its standard error: "
    "assertion failed in kernel 7",
    "exits": "the engine exited with code 3 at 'gelu'",
    "nan": "gelu: inf x the allowed difference at entry 0 .observed nan",
    "wrong_shape": r"'y' of 'gelu' has shape \(\d+,\), expected \(\d+, \d+\)",
    "wrong_bytes": r"the engine's reply is wrong: 'y' of 'gelu' has \d+ bytes, expected \d+ for",
    "no_base64": "the engine's reply is wrong: 'y' of 'gelu'.data is no base64",
    "wrong_id": r"the engine's answer to 'gelu' has the id \d+, expected \d+",
    "no_result": "the engine's reply is wrong: the result of 'gelu': 'y' is a required property",
    "closes": "at 'gelu' the engine closed its standard input or output and goes on running",
    "closes_its_input": "at 'gelu' the engine closed its standard input or output and goes on",
    "floods": "the engine did not answer 'gelu' within 1 s; last on its standard error: warning",
    "slow": "the engine did not answer 'gelu' within 1 s",
    "huge": "the reply to 'gelu' has more than 1048576 bytes in one line: xxxx",
    "fails": "the engine failed at 'gelu': no GPU",
    "floods_and_answers": "gelu: .* x the allowed difference",
    "gelu_is_the_identity": "gelu: .* x the allowed difference",
}


@pytest.fixture(autouse=True)
def pids(tmp_path, monkeypatch):
    """Every process that a faulty engine is or starts is gone after the test."""
    path = tmp_path / "pids"
    path.touch()
    monkeypatch.setenv("PIDS", str(path))
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.setenv("FAULTY", str(tmp_path / "faulty.py"))
    yield path
    gone(path)


def gone(path: Path) -> None:
    deadline = time.monotonic() + 5
    for pid in map(int, path.read_text().split()):
        while alive(pid):
            assert time.monotonic() < deadline, f"process {pid} is left"
            time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # an orphan may be a zombie where nobody reaps it
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def faulty(fault: str) -> str:
    return f"{sys.executable} -I -S {os.environ['FAULTY']} {fault}"


@pytest.mark.parametrize("fault", REASONS)
def test_faults_have_a_clear_verdict_and_the_rest_gets_answers(fault, pids, monkeypatch):
    monkeypatch.setattr(process, "LONGEST_LINE", 1 << 20)
    backend = CommandBackend(faulty(fault), seconds=1)
    verdict = run_check(named("gelu-by-tanh"), backend, 3, shrink=False)
    assert verdict.status == "failed"
    assert "\n" not in verdict.reason.removesuffix(
        "\nIt did not fail when it was run again: the backend is not deterministic."
    )
    assert re.match(REASONS[fault], verdict.reason), verdict.reason
    x = np.ones((2, 3))
    assert np.array_equal(backend.rms_norm(x, x[0], 1e-6), np.zeros((2, 3)))
    with pytest.raises(Unsupported, match="its engine has no 'rope'"):
        backend.rope(x, np.arange(2), 1e4, 2)
    backend.close()
    gone(pids)


def test_unsupported_is_skipped():
    backend = CommandBackend(faulty("unsupported"))
    verdict = run_check(named("gelu-by-tanh"), backend, 3)
    assert (verdict.status, verdict.reason) == ("skipped", "not yet")
    backend.close()


def test_a_failure_is_made_small_in_limited_time(monkeypatch):
    """A method that hangs costs its time limit once, and then little."""
    monkeypatch.setattr("griffin_conformance.protocol.patience.SHORTEST", 0.05)
    monkeypatch.setattr("griffin_conformance.protocol.patience.LOST", 1.0)
    backend = CommandBackend(faulty("hangs"), seconds=2)
    began = time.monotonic()
    verdict = run_check(named("gelu-by-tanh"), backend)
    assert verdict.reason.startswith("the engine did not answer 'gelu' within")
    assert verdict.case.channels == 1
    said = ""
    while "times and is not asked for it again; the last time the engine did not" not in said:
        assert time.monotonic() - began < 25
        with pytest.raises(EngineFailure) as failure:
            backend.gelu(np.ones((1, 1)))
        said = str(failure.value)
    backend.rms_norm(np.ones((1, 1)), np.ones(1), 1e-6)
    backend.close()


def test_an_engine_that_does_not_start_again_is_given_up(pids):
    backend = CommandBackend(faulty("no_second_start"))
    x, said = np.ones((1, 1)), []
    for _ in range(6):
        with pytest.raises(EngineFailure) as failure:
            backend.gelu(x)
        said.append(str(failure.value))
    assert said[0] == "the engine exited with code 3 at 'gelu'"
    assert said[4] == said[5]
    assert said[5] == (
        "the engine failed at 3 starts in a row and is not started again; the last time the "
        "engine exited with code 1 at 'hello'; last on its standard error: out of order"
    )
    assert len(pids.read_text().split()) == 4  # one that ran, and three that did not
    backend.close()


def test_an_engine_that_dies_at_everything_is_given_up(pids):
    backend = CommandBackend(faulty("dies_always"))
    x = np.ones((1, 1))
    for ask in (backend.embed, backend.gelu, lambda x: backend.rms_norm(x, x[0], 0)):
        with pytest.raises(EngineFailure, match="exited with code 4"):
            ask(x)
    with pytest.raises(EngineFailure, match="failed at embed, gelu, rms_norm without one good"):
        backend.scan(x, x, x[0])
    assert len(pids.read_text().split()) == 3
    backend.close()


def test_handles_of_an_engine_that_died_are_not_used_again(griffin):
    backend = CommandBackend(f"{griffin} --stdio")
    world = griffin_conformance.World(
        griffin_conformance.GriffinConfig(width=8, depth=1, num_heads=1, vocab_size=5)
    )
    model = backend.model(world.config, world.parameters())
    backend.engine.end()
    with pytest.raises(EngineFailure, match="was started anew: its models and states are gone"):
        model([[1]])
    backend.close()


def test_what_cannot_be_an_engine_is_an_error_of_usage(tmp_path):
    for command, message in {
        "": "the command is empty",
        "'": "cannot be read",
        str(tmp_path): "cannot start",
        f"{PYTHON} --backend nonsuch": "exited with code 2 at 'hello'.*no backend 'nonsuch'",
    }.items():
        with pytest.raises(ValueError, match=f"(?s)cannot be used: .*{message}"):
            find_backend(f"cmd:{command}")
    with pytest.raises(ValueError, match="has no dtype 'float64'; choose one of float32"):
        find_backend(f"cmd:{faulty('none')}", "float64")


def test_the_time_limit_comes_from_the_environment(monkeypatch):
    assert time_limit() == 60
    monkeypatch.setenv("GRIFFIN_NP_ENGINE_TIMEOUT", "2.5")
    assert Engine("x").seconds == 2.5
    for wrong in ("x", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("GRIFFIN_NP_ENGINE_TIMEOUT", wrong)
        with pytest.raises(ValueError, match="GRIFFIN_NP_ENGINE_TIMEOUT must be a positive number"):
            time_limit()


# -- nobody is left


RUNNER = """
import sys
import numpy as np
from griffin_conformance.protocol import CommandBackend
backend = CommandBackend(sys.argv[1], seconds=600)
print(backend.engine.folder, flush=True)
backend.gelu(np.ones((1, 1)))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_runner_that_is_killed_leaves_no_engine(pids, how):
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, faulty("hangs_with_a_child")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    folder = Path(runner.stdout.readline().decode().strip())
    assert folder.is_dir()
    deadline = time.monotonic() + 10
    while len(pids.read_text().split()) < 2:  # the engine and its child
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert all(alive(int(pid)) for pid in pids.read_text().split())
    runner.send_signal(how)
    runner.wait(10)
    runner.stdout.close()
    gone(pids)
    while folder.parent.exists():
        assert time.monotonic() < deadline + 10
        time.sleep(0.02)


def test_a_runner_that_ends_leaves_no_engine(pids):
    code = RUNNER.replace("backend.gelu(np.ones((1, 1)))", "sys.exit()")
    subprocess.run([sys.executable, "-c", code, faulty("none")], check=True, timeout=30)
    assert len(pids.read_text().split()) == 1
    gone(pids)


# -- a Python backend over the protocol


@pytest.mark.parametrize("mutant", MUTANTS[::12], ids=lambda m: m.name)
def test_mutants_are_caught_over_the_protocol(mutant, tmp_path):
    script = tmp_path / "mutant.py"
    script.write_text(
        textwrap.dedent(f"""
        from griffin_conformance.mutants import MUTANTS, mutate
        from griffin_conformance.protocol.serve import serve
        (mutant,) = [m for m in MUTANTS if m.name == {mutant.name!r}]
        serve(mutate(mutant))
    """)
    )
    backend = CommandBackend(f"{sys.executable} {script}")
    name = mutant.caught_by[0]
    verdict = run_check(named(name), backend, 30, shrink=False)
    assert verdict.status == "failed", f"{name} does not catch: {mutant.fault}"
    assert backend.close() == 0


@pytest.mark.parametrize("name", ["decays", "state-values"])
def test_a_float64_backend_is_held_to_float64(name):
    backend = find_backend(f"cmd:{PYTHON}", "float64")
    verdict = run_check(named(name), backend, 2, survey=True)
    assert verdict.status == "passed", verdict.explain()
    assert verdict.worst is None or max(verdict.worst.ulps) < 1e6
    assert backend.close() == 0


EVERYTHING = """
import numpy as np
from griffin_conformance.backends.reference import NumPyBackend
from griffin_conformance.protocol.serve import serve

class Everything(NumPyBackend):
    name = "everything"

    def nf4(self, parts, shape):
        assert parts["weight"].dtype == np.uint8
        return np.resize(parts["weight"] * parts["absmax"][0], shape)

    def compiled(self, config, flat):
        return self.model(config, flat)

    def adapt(self, config):
        return config.replace(window=7)

    def dequantised(self, config, flat):
        return {name: 2 * array for name, array in flat.items()}

    def input_groups(self, config, name, inputs):
        return np.arange(inputs) // 3

    def tokenizer(self, folder):
        return Letters()

class Letters:
    def encode(self, text, bos=True):
        return [2] * bos + [ord(c) for c in text]

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i != 2)

    def encode_dialogue(self, messages):
        return self.encode(messages[0]["role"] + messages[0]["content"])

serve(Everything())
"""


def test_everything_that_a_backend_may_have_travels(tmp_path):
    (tmp_path / "everything.py").write_text(EVERYTHING)
    backend = CommandBackend(f"{sys.executable} {tmp_path / 'everything.py'}")
    assert set(CAPABILITIES) - set(backend.engine.hello["capabilities"]) == set()
    config = griffin_conformance.GriffinConfig(width=8, depth=1, num_heads=1, vocab_size=5)
    flat = griffin_conformance.World(config).parameters()
    parts = {"weight": np.array([[1], [250]], np.uint8), "absmax": np.array([0.5], np.float32)}
    assert backend.nf4(parts, (1, 2)).tolist() == [[0.5, 125.0]]
    assert backend.adapt(config) == config.replace(window=7)
    held = backend.dequantised(config, flat)
    assert set(held) == set(flat)
    assert all(np.array_equal(held[name], 2 * flat[name]) for name in flat)
    assert backend.input_groups(config, "x", 7).tolist() == [0, 0, 0, 1, 1, 1, 2]
    logits = backend.compiled(config, flat)([[1, 2]])[0]
    assert np.array_equal(logits, backend.model(config, flat)([[1, 2]])[0])
    letters = backend.tokenizer(tmp_path)
    assert letters.encode("aé", bos=False) == [97, 233]
    assert letters.decode(letters.encode("hé")) == "hé"
    assert letters.encode_dialogue([{"role": "user", "content": "!"}]) == [2, *map(ord, "user!")]
    del letters
    assert backend.close() == 0


def test_a_quantised_dtype_is_described(monkeypatch):
    backend = find_backend(f"cmd:{PYTHON} --backend numba --dtype int8", "int8")
    direct = find_backend("numba", "int8")
    assert backend.quantised["int8"] == direct.quantised["int8"]
    assert backend.profile.name == "int8"
    assert backend.close() == 0


def test_the_server_refuses_what_is_no_request():
    server = Server(find_backend("numpy"))
    for line, kind, message in (
        (b"{", "failed", "no JSON"),
        (b"[1]", "failed", "[1] is not of type 'object'"),
        (b'{"id": 3, "method": "gelu", "params": {}}', "failed", "'x' is a required property"),
        (b'{"id": 3, "method": "fly", "params": {}}', "unsupported", "there is no method 'fly'"),
    ):
        error = server.answer(line)["error"]
        assert error["kind"] == kind
        assert message in error["message"]


# -- messages

TENSORS = npst.arrays(
    st.sampled_from(["float32", "float64", "float16", "int32", "int64", "uint8"]),
    npst.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=4),
)


@settings(max_examples=150, deadline=None)
@given(TENSORS)
def test_tensors_travel_unchanged(array):
    sent = as_tensor(array)
    again = from_tensor(decode(json.dumps(sent).encode()))
    assert again.shape == array.shape
    assert np.array_equal(again, array, equal_nan=array.dtype.kind == "f")
    if array.dtype != np.float64:
        assert again.dtype == array.dtype
        assert again.tobytes() == array.tobytes()


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_large_tensors_travel_in_files(c_engine, monkeypatch, limit):
    monkeypatch.setattr("griffin_conformance.protocol.engine.INLINE", limit)
    x = np.linspace(-3, 3, 12).reshape(3, 4)
    assert np.allclose(c_engine.gelu(x), find_backend("numpy").gelu(x), atol=1e-6)
    assert not list(c_engine.engine.folder.iterdir())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "x", "shape", "data", "dtype", "path"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def requests() -> list[dict]:
    """A right request of every kind, to models and states that may exist."""
    one = as_tensor(np.ones((2, 2), np.float32))
    tokens = as_tensor(np.zeros((1, 2), np.int64))
    by_name = {
        "tokens": tokens, "model": 0, "state": 1, "states": [1], "positions": None, "rows": [0],
        "logits": "all", "batch": 1, "copies": 2, "index": 0, "eps": 1e-6, "cap": 1.0, "base": 2.0,
        "rotary_dim": 2, "window": 2, "prompts": [[1, 2]], "max_tokens": 2, "temperature": 1.0,
        "seed": 1, "ignore_eos": True, "models": [7], "path": "/nonexistent/state",
        "weights": "/nonexistent/weights", "protocol": "griffin-conformance/1", "folder": "/",
        "dtype": None, "arrays": {"layers.0.conv": one}, "parts": {}, "shape": [1], "inputs": 1,
        "config": griffin_conformance.GriffinConfig(
            width=8, depth=1, num_heads=1, vocab_size=5).to_dict(),
        "messages": [], "tokenizer": 1, "text": "a", "ids": [], "bos": True, "name": "a",
    }  # fmt: skip
    found = []
    for method in (*MUST, *CAPABILITIES):
        if method != "shutdown":
            wanted = rules()[f"{method}.params"].get("required", [])
            params = {name: by_name.get(name, one) for name in wanted}
            if method == "embed":
                params["rows"] = one
            if "positions" in params and method != "forward":
                params["positions"] = as_tensor(np.arange(2))
            found.append({"id": 5, "method": method, "params": params})
    return found


@st.composite
def damaged(draw) -> dict:
    """A request with parts of it replaced or left out."""
    request = json.loads(json.dumps(draw(st.sampled_from(requests()))))
    for _ in range(draw(st.integers(0, 3))):
        node = request
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
                node = node[key]
                continue
            if draw(st.booleans()) and isinstance(node, dict):
                del node[key]
            else:
                node[key] = draw(JSON)
            break
    return request


@settings(max_examples=150, deadline=None)
@given(damaged())
def test_requests_are_held_to_the_whole_schema(request_):
    """Errors are looked for in the method's own rule, which decides no other way."""
    whole = {"$ref": "#/$defs/request", "$defs": rules()}
    if Draft202012Validator(whole).is_valid(request_):
        check(request_, "request")
    else:
        with pytest.raises(MessageError):
            check(request_, "request")


def test_the_schema_has_every_method_and_its_right_requests_pass():
    for request in requests():
        check(request, "request")
    for method in (*MUST, *CAPABILITIES):
        assert {f"{method}.params", f"{method}.result"} <= set(rules())
    with pytest.raises(MessageError, match="the reply.error.kind: 'x' is not one of"):
        check({"id": 1, "error": {"kind": "x", "message": ""}}, "reply", "the reply")


# -- fuzzing the C engine


@pytest.fixture(scope="module")
def sturdy(tmp_path_factory):
    """The C engine with all sanitizers, which stop at the first thing that C leaves undefined."""
    folder = tmp_path_factory.mktemp("sanitized")
    try:
        path = compiled(folder, SANITIZED)
    except subprocess.CalledProcessError:
        path = compiled(folder, STRICT)
    backend = CommandBackend(f"{path} --stdio", seconds=30)
    world = griffin_conformance.World(
        griffin_conformance.GriffinConfig(width=8, depth=3, num_heads=1, vocab_size=5, window=2)
    )
    model = backend.model(world.config, world.parameters())
    _, state = model([[1, 2]])
    assert (model.handle, state.handle) == (0, 1)
    yield backend
    model.handle = state.handle = None
    assert backend.engine.start == 1
    assert backend.close() == 0  # and nothing has leaked


def answered(backend, line: bytes) -> dict:
    if not line.strip(b"\0") or b"shutdown" in line:
        return {}
    return backend.engine.send(line.replace(b"\n", b" "), "a malformed line")


@settings(max_examples=250, deadline=None)
@given(request_=damaged())
def test_the_c_engine_answers_damaged_requests(sturdy, request_):
    answered(sturdy, json.dumps(request_).encode())


@settings(max_examples=150, deadline=None)
@given(request_=damaged(), data=st.data())
def test_the_c_engine_answers_malformed_lines(sturdy, request_, data):
    line = bytearray(json.dumps(request_, ensure_ascii=data.draw(st.booleans())).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(line)))
        line[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    answered(sturdy, bytes(line))


def test_the_c_engine_answers_deep_and_long_lines(sturdy):
    for line, message in (
        (b"[" * 1_000_000, "inside each other"),
        (b'{"a":' * 100_000, "inside each other"),
        (b'{"id": 1, "method": "gelu", "params": {"x": ' + b"9" * 1_000_000 + b"}}", "too large"),
        (b'"' + b"a" * 10_000_000, "does not end"),
        (b"[" + b"0," * 500_000 + b"0]", "a request is an object"),
        (b'{"id": 1, "method": "gelu", "params": {"x": {"dtype": "float32", "shape": '
         b'[1000000, 1000000], "data": ""}}}', "too large"),
        (b'{"id": 1, "method": "init_state", "params": {"model": 0, "batch": 2000000000}}',
         "more than"),
    ):  # fmt: skip
        reply = answered(sturdy, line)
        assert message in reply["error"]["message"]
    assert np.allclose(sturdy.gelu(np.zeros((1, 1))), 0)
