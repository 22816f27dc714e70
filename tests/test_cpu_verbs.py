"""The CPU engine as users meet it: converting, memory, threads, compiling, the README's example."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import griffin_np as gnp
from griffin_kernels.cpu import memory
from griffin_kernels.cpu.compiled import announced
from griffin_kernels.cpu.pool import pool
from griffin_np.backends import default_backend
from griffin_np.cli import main
from griffin_np.errors import ConfigError

README = Path(__file__).parents[1] / "README.md"


def test_converted_folders_are_described_and_generate(tmp_path, capsys):
    folder = str(tmp_path / "packed")
    assert main(["convert", "--dtype", "int4", "--out", folder]) == 0
    assert "int4" in capsys.readouterr().err
    assert main(["info", folder]) == 0
    assert "stored as int4, packed" in capsys.readouterr().out
    assert main(["generate", "Once", "-m", folder, "-n", "3", "--seed", "1"]) == 0
    once = capsys.readouterr().out
    assert main(["generate", "Once", "--dtype", "int4", "-n", "3", "--seed", "1"]) == 0
    assert capsys.readouterr().out == once


def test_converting_never_writes_over_a_folder(tmp_path, capsys):
    (tmp_path / "mine").write_text("precious")
    assert main(["convert", "--dtype", "int8", "--out", str(tmp_path)]) == 2
    assert re.fullmatch("griffin-np: error: .* exists already: choose a new folder\n",
                        capsys.readouterr().err)  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_what_memory_cannot_hold_is_refused_with_what_would_fit(monkeypatch):
    config = gnp.PRESETS["recurrentgemma-2b"]
    monkeypatch.setattr(memory, "available", lambda: 4_000_000_000)
    with pytest.raises(ConfigError, match=r"bfloat16 need 5\.7 GB of memory, 4\.0 GB .* int8"):
        memory.require(config, "bfloat16")
    memory.require(config, "int8")
    monkeypatch.setattr(memory, "available", lambda: 1_000_000_000)
    with pytest.raises(ConfigError, match="no dtype would fit"):
        memory.require(config, "int4")
    with pytest.raises(ConfigError, match="no dtype would fit"):
        gnp.backends.random(config, "numba", "int4")
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.require(config, "float32")


def test_memory_needed_is_that_of_the_arrays():
    model = gnp.load(backend="numba", dtype="int8")
    needed = memory.needed(model.config, "int8")
    state = model.config.state_bytes(1, 4)
    assert abs(needed - model.weight_bytes - state - memory.BUFFERS) < 0.01 * model.weight_bytes


def test_there_is_memory_here():
    assert memory.available() is None or memory.available() > 0


@pytest.mark.parametrize("value", ["many", "-1", "1.5"])
def test_numbers_of_threads_that_are_none(value, monkeypatch):
    monkeypatch.setenv("GRIFFIN_NP_THREADS", value)
    with pytest.raises(ConfigError, match=f"must be a number of threads, got {value!r}"):
        pool()


def test_an_interrupt_waits_for_the_kernels_and_loses_nothing():
    """Ctrl-C at any moment of a call: the next call works, and with the same result."""
    code = (
        "import _thread, threading, time, numpy as np, griffin_np as gnp\n"
        "model = gnp.load(backend='numba', dtype='int8')\n"
        "tokens = np.arange(3, 203)[None]\n"
        "expected, _ = model(tokens)\n"
        "interrupts = 0\n"
        "for n in range(60):\n"
        "    timer = threading.Timer(0.0003 * n, _thread.interrupt_main)\n"
        "    try:\n"
        "        timer.start()\n"
        "        while timer.is_alive():\n"
        "            model(tokens[:, :8])\n"
        "        timer.join()\n"
        "        time.sleep(0.001)\n"
        "    except KeyboardInterrupt:\n"
        "        interrupts += 1\n"
        "    assert np.array_equal(model(tokens)[0], expected)\n"
        "print(interrupts)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          timeout=120, check=True)  # fmt: skip
    assert int(done.stdout) > 50


def test_the_option_decides_about_threads(monkeypatch):
    from griffin_np.cli.common import thread_limit

    monkeypatch.delenv("GRIFFIN_NP_THREADS", raising=False)
    with thread_limit(3):
        assert pool().threads == 3
    assert "GRIFFIN_NP_THREADS" not in os.environ


def test_compiling_is_announced_and_loading_is_not(capsys):
    class New:
        signatures, direct = (), None

    class Old:
        signatures, direct = ("known",), None

    with announced(New, "something"):
        import time

        time.sleep(1.3)
    assert capsys.readouterr().err == "compiling something for this processor, once\n"
    for dispatcher in (New, Old):
        with announced(dispatcher, "something"):
            pass
    assert capsys.readouterr().err == ""


def test_the_default_engine():
    assert gnp.load().backend == default_backend() == "numba"
    assert gnp.load(dtype="float64").backend == default_backend(np.float64) == "numpy"


def test_the_readmes_example_is_what_its_command_prints():
    text = README.read_text(encoding="utf-8")
    command = re.search(r"pip install \. && griffin-np (generate .*)\n", text)[1]
    shown = re.search(r"```text\n(.*?)```", text, re.DOTALL)[1]
    arguments = re.findall(r'"[^"]*"|\S+', command)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from griffin_np.cli import main; sys.exit(main())",
         *(a.strip('"') for a in arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ("Once upon a time" + done.stdout).split() == shown.split()
