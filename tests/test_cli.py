"""The command line as its users and their scripts meet it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from support import SMALL, random_model

import griffin_np as gnp
from griffin_kernels.xla.data import train_tokenizer
from griffin_np.cli import main
from griffin_np.state import State

WORDS = "the cat sat on a mat and the dog ran to the big red house with a small blue ball".split()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A small checkpoint with a vocabulary of its own."""
    place = tmp_path_factory.mktemp("model")
    text = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 5
    tokenizer = train_tokenizer(text, 320, place / "tokenizer.model")
    model = random_model(SMALL.replace(vocab_size=tokenizer.vocab_size))
    model.attach_tokenizer(tokenizer)
    gnp.save(model, place / "m")
    return str(place / "m")


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command line in this process; returns (code, stdout, stderr)."""

    def call(*argv, stdin=None):
        text = io.TextIOWrapper(io.BytesIO((stdin or "").encode()), encoding="utf-8")
        text.isatty = lambda: stdin is None
        monkeypatch.setattr(sys, "stdin", text)
        try:
            code = main([str(a) for a in argv])
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_generate_writes_text_to_stdout_and_figures_to_stderr(run, folder):
    code, out, err = run("generate", "the cat", "-m", folder, "-n", 12, "--ignore-eos")
    assert code == 0
    expected = gnp.load(folder).generate("the cat", max_tokens=12, ignore_eos=True)
    assert out == expected.text + "\n"
    assert re.fullmatch(
        r"\[prompt \d+ tokens, .* · text 12 tokens, .* · seed \d+ · length\]\n", err
    )
    assert run("generate", "the cat", "-m", folder, "-n", 12, "--ignore-eos", "-q")[2] == ""
    assert (
        run("generate", "-p", "the cat", "-m", folder, "-n", 12, "--ignore-eos", "--no-stream")[1]
        == out
    )


def test_generate_reads_stdin(run, folder):
    expected = run("generate", "the cat", "-m", folder, "-n", 5)[1]
    assert run("generate", "-", "-m", folder, "-n", 5, stdin="the cat\n")[1] == expected
    assert run("generate", "-m", folder, "-n", 5, stdin="the cat")[1] == expected


def test_generate_json_is_one_document(run, folder):
    code, out, _ = run(
        "generate", "the dog", "-m", folder, "-n", 6, "--json", "--temp", 1, "--seed", 5
    )
    document = json.loads(out)
    assert code == 0
    assert document["seed"] == 5
    assert len(document["tokens"]) == len(document["logprobs"]) == document["generation_tokens"]
    assert document["model"]["backend"] == "numba"
    again = json.loads(
        run("generate", "the dog", "-m", folder, "-n", 6, "--json", "--temp", 1, "--seed", 5)[1]
    )
    assert again["tokens"] == document["tokens"]


def test_a_text_goes_on_from_a_state_file(run, folder, tmp_path):
    whole = run("generate", "a mat", "-m", folder, "-n", 10, "--ignore-eos", "--json")[1]
    path = tmp_path / "a.state"
    first = json.loads(run("generate", "a mat", "-m", folder, "-n", 4, "--ignore-eos", "--json",
                           "--state-out", path)[1])  # fmt: skip
    assert first["tokens"] == json.loads(whole)["tokens"][:4]
    assert State.load(path).position[0] == first["prompt_tokens"] + 4
    model = gnp.load(folder)
    follow = " ball"
    code, out, _ = run("generate", follow, "-m", folder, "-n", 3, "--json", "--state-in", path)
    expected = model.generate(follow, max_tokens=3, state=State.load(path))
    assert code == 0
    assert json.loads(out)["tokens"] == expected.tokens
    assert json.loads(out)["prompt_tokens"] == len(model.tokenizer.encode(follow, bos=False))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generate", "x", "-m", "nowhere"], "no checkpoint folder at nowhere"),
        (["generate", "x", "--temp", "-1"], r"temperature must be in \[0, inf\), got -1.0"),
        (["generate", "x", "--top-p", "0"], r"top_p must be in \(0, 1\], got 0.0"),
        (["generate", "x", "--logit-bias", "a=b"], "--logit-bias takes ID=VALUE, got 'a=b'"),
        (["generate", "x", "-n", "-5"], "max_tokens must be an integer of at least 0, got -5"),
        (["generate", "x", "--state-in", "none.state"], "no file at none.state"),
        (["generate", "x", "--backend", "torch"], "no backend 'torch'"),
        (["generate", "x", "--dtype", "int3"], "the numba backend has no dtype 'int3'"),
        (["generate", "x", "--threads", "0"], "threads must be an integer of at least 1, got 0"),
        (["generate", "x", "-p", "y"], "the prompt is given twice"),
        (
            ["generate", "x", "--state-out", "no/where.state"],
            "cannot write no/where.state: there is no such folder",
        ),
        (["info", "gemma-2b"], "no checkpoint folder at gemma-2b"),
        (["state", "show", "none.state"], "no file at none.state"),
        (["train", "--data", "none.txt", "--out", "m"], "cannot read none.txt"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    run, folder, tmp_path, monkeypatch, argv, message
):
    monkeypatch.chdir(tmp_path)
    if argv[0] == "generate" and "-m" not in argv:
        argv = [*argv, "-m", folder]
    code, out, err = run(*argv)
    assert code == 2
    assert re.search(message, err)
    assert err.startswith("griffin-np: error: ")
    assert err.count("\n") == 1
    assert not out


def test_wrong_usage_exits_with_2(run):
    for argv in ([], ["sing"], ["generate", "--temperatur", "x"], ["state"]):
        code, out, err = run(*argv)
        assert code == 2
        assert out == ""
        assert "usage:" in err


def test_help_and_version(run):
    code, out, _ = run("--help")
    assert code == 0
    for verb in ("generate", "chat", "info", "state", "train"):
        assert verb in out
        assert run(verb, "--help")[0] == 0
    assert run("--version")[1] == f"griffin-np {gnp.__version__}\n"


def test_chat_keeps_its_state_and_obeys_commands(run, folder, tmp_path):
    path = tmp_path / "talk.state"
    lines = ["the cat", "/stats", "/state", "a dog", "/set temp 0.3", "/set top_k 2.5", "/set", "/foo",
             f"/save {path}", "/save", "/help", "/clear", "/state", f"/load {path}", "/exit", "unseen"]  # fmt: skip
    code, out, err = run(
        "chat", "-m", folder, "-n", 7, "--seed", 1, "--ignore-eos", stdin="\n".join(lines)
    )
    assert code == 0
    assert "/clear            forget the conversation" in out
    for part in ("answer 7 tokens", "tokens read, held in", "temperature = 0.3", "top_k stays None",
                 "no command /foo", f"saved to {path}", "usage: /save FILE", "is forgotten", "no state yet",
                 f"2 turn(s) loaded from {path}", "max_tokens=7"):  # fmt: skip
        assert part in err, part
    assert "unseen" not in out
    metadata = json.loads(State.read_metadata(path)["conversation"])
    assert [m["role"] for m in metadata["messages"]] == ["user", "model"] * 2
    assert metadata["messages"][2]["content"] == "a dog"
    assert run("chat", "-m", folder, "--load", path, stdin="/state\n")[0] == 0
    code, _, err = run("chat", "-m", folder, "--load", tmp_path / "none", stdin="")
    assert code == 2
    assert "no file at" in err


def test_chat_survives_errors(run, folder):
    code, out, err = run(
        "chat", "-m", folder, "-n", 3, stdin="/load nowhere\n/set temp -1\nthe cat\n"
    )
    assert code == 0
    assert "error: no file at nowhere" in err
    assert "temperature stays" in err
    assert out.strip()


def test_info_shows_presets_and_folders(run, folder):
    code, out, _ = run("info", "recurrentgemma-2b")
    assert code == 0
    for part in (
        "2,682,862,080",
        "18 recurrent, 8 local attention",
        "[R─R─A] x8  [R─R]",
        "5.37 GB",
    ):
        assert part in out
    document = json.loads(run("info", folder, "--json")[1])
    assert document["config"]["width"] == 24
    assert document["parameters"] == gnp.load(folder).config.num_parameters()
    assert document["state_bytes"]["float32"] == gnp.load(folder).init_state().nbytes
    assert "no soft cap" in run("info", "hawk-7b")[1]


def test_state_files_are_shown_converted_and_compared(run, folder, tmp_path):
    a, b, c = (str(tmp_path / f"{name}.state") for name in "abc")
    run("generate", "the cat", "-m", folder, "-n", 2, "--state-out", a)
    run("generate", "the dog", "-m", folder, "-n", 2, "--state-out", b)
    code, out, _ = run("state", "show", a)
    assert code == 0
    assert "layers.2.keys" in out
    assert (
        json.loads(run("state", "show", a, "--json")[1])["arrays"]["layers.0.conv"]["dtype"]
        == "float32"
    )
    assert run("state", "convert", a, c, "--dtype", "bfloat16")[0] == 0
    assert State.load(c).layers[0].conv.dtype.name == "bfloat16"
    assert State.load(c).layers[0].rg_lru.dtype.name == "float32"
    assert run("state", "compare", a, a)[:2] == (0, run("state", "compare", a, a)[1])
    code, out, _ = run("state", "compare", a, b)
    assert code == 1
    assert "the states differ" in out
    assert json.loads(run("state", "compare", a, c, "--json")[1])["equal"] is False
    assert run("state", "convert", a, c, "--dtype", "int8")[0] == 2
    assert run("generate", "x", "-m", folder, "--state-in", c)[0] == 0


def test_options_have_environment_variables(run, folder, monkeypatch):
    monkeypatch.setenv("GRIFFIN_NP_MODEL", folder)
    assert run("generate", "the cat", "-n", 2)[0] == 0


def command(*argv, **options):
    code = "import sys; from griffin_np.cli import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", code, *argv], text=True, **options)


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
def test_a_closed_pipe_ends_silently(folder):
    process = command("generate", "the cat", "-m", folder, "-n", "5000", "--ignore-eos",
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 141
    process.stderr.close()


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
def test_ctrl_c_ends_cleanly(folder):
    process = command("generate", "the cat", "-m", folder, "-n", "100000", "--ignore-eos",
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout.read(5)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith("\n")
    assert "interrupted" in err
    assert "Traceback" not in err


def test_notebooks_are_copied_and_what_is_there_stays(run, tmp_path):
    place = tmp_path / "a" / "learn"
    code, out, err = run("notebooks", place)
    names = sorted(path.name for path in place.iterdir())
    assert (code, err) == (0, "")
    assert out.startswith(f"{len(names)} notebooks copied to {place}\n")
    assert f"jupyter lab {place}" in out
    assert len(names) == 12
    assert all(name.endswith(".ipynb") for name in names)

    changed, gone = place / names[0], place / names[1]
    changed.write_text("mine")
    theirs = gone.read_bytes()
    gone.unlink()
    code, out, err = run("notebooks", place)
    assert code == 0
    assert out.startswith("1 notebooks copied")
    assert err.count("\n") == 1
    assert names[0] in err
    assert changed.read_text() == "mine"
    assert gone.read_bytes() == theirs
    assert sorted(path.name for path in place.iterdir()) == names  # and nothing temporary

    code, out, err = run("notebooks", changed)
    assert (code, out) == (2, "")
    assert "is a file" in err
