"""What the command line says and which code it exits with when something goes wrong."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

import infc
from infc.cli import main
from infc.cli.commands.run import _prompt_text
from infc.diagnostics import Code, InternalError, Problem, UserError

TESTS = Path(__file__).resolve().parent.parent

FAKE_INFC = """
import sys, time
import infc
from types import SimpleNamespace
from fake_model import FakeRunnable, ScriptedRunnable, make_tokenizer
from infc.runtime import Session

class Endless(FakeRunnable):
    def run(self, phase, call, kv, *, threads, cancel=None):
        print("started", file=sys.stderr, flush=True)
        cancel.wait(20)
        return super().run(phase, call, kv, threads=threads, cancel=cancel)

RUNNABLES = {
    "script": lambda: ScriptedRunnable(3, b"spam " * 20000, max_context=200000),
    "endless": Endless,
}

def load(source, *, threads=None):
    return Session(RUNNABLES[source.stem](), make_tokenizer(), threads=1)

infc.driver = SimpleNamespace(load=load)
from infc.cli import main
main()
"""
"""A process that is `infc` with a fake driver."""


def start(*arguments: str, **streams: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FAKE_INFC, *arguments],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},  # type: ignore[call-overload]
    )


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(
        infc, "driver", SimpleNamespace(compile=fail, load=fail, explain=fail), raising=False
    )


def test_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    error = UserError(
        Code.MODEL_UNSUPPORTED,
        "the model uses 1 thing that is not supported",
        location="m.gguf",
        notes=["target toy"],
        hint="choose another model",
        problems=[Problem("storage type iq2_xs", "blk.0.attn_q.weight")],
    )
    fail_with(monkeypatch, error)
    result = invoke("compile", "m.gguf")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error[INF1006]: the model uses 1 thing that is not supported\n"
        "  --> m.gguf\n"
        "   - storage type iq2_xs (blk.0.attn_q.weight)\n"
        "   |  target toy\n"
        "   = hint: choose another model\n"
    )
    as_json = invoke("compile", "m.gguf", "--json")
    assert (as_json.exit_code, as_json.stderr) == (1, result.stderr)
    assert json.loads(as_json.stdout) == {
        "schema_version": 1,
        "error": {
            "code": "INF1006",
            "message": "the model uses 1 thing that is not supported",
            "location": "m.gguf",
            "notes": ["target toy"],
            "hint": "choose another model",
            "problems": [{"message": "storage type iq2_xs", "location": "blk.0.attn_q.weight"}],
        },
    }


def test_an_unforeseen_error_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError("division by zero"))
    result = invoke("compile", "m.gguf", "--json")
    assert result.exit_code == 70
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert result.stderr.endswith(
        "ZeroDivisionError: division by zero\n"
        "error[INF9001]: ZeroDivisionError: division by zero\n"
        "   = hint: this is a mistake in infc, not yours: please report it with the text above\n"
    )
    assert json.loads(result.stdout)["error"]["code"] == "INF9001"


def test_an_internal_error_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, InternalError("no place for %h", hint="report it"))
    result = invoke("compile", "m.gguf")
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error[INF9001]: no place for %h\n   = hint: report it\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "m.infc"], "Missing option '--prompt'."),
        (["compile"], "Missing argument 'MODEL'."),
        (["frobnicate"], "No such command 'frobnicate'."),
        (["bench", "m.infc", "--threads", "0"], "'--threads': 0 is not in the range x>=1."),
        (["run", "m.infc", "--prompt", "a", "--top-p", "2"], "2.0 is not in the range 0.0<x<=1.0."),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    as_json = json.loads(invoke(*arguments, "--json").stdout)
    assert as_json["error"]["code"] is None


def test_an_unknown_code() -> None:
    result = invoke("explain", "INF1234")
    assert (result.exit_code, result.stderr) == (
        1,
        "error[INF5001]: expected an error code that infc knows, got INF1234\n"
        "   = hint: they run from INF1001 to INF9001; an error message starts with its code\n",
    )


def test_files_that_opt_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        infc, "driver", SimpleNamespace(run_opt=lambda *args, **options: "new\n"), raising=False
    )
    source = tmp_path / "in.mlir"
    result = invoke("opt", str(source), "--pipeline", "a")
    assert (result.exit_code, result.stderr) == (
        1,
        "error[INF2001]: the IR could not be read: No such file or directory\n"
        f"  --> {source}\n"
        "   = hint: infc compile --dump DIR writes IR that this command reads\n",
    )
    source.write_bytes(b"\xff\xfe")
    assert "it is not UTF-8 text" in invoke("opt", str(source), "--pipeline", "a").stderr
    source.write_text("module {}")
    output = tmp_path / "none" / "out.mlir"
    result = invoke("opt", str(source), "--pipeline", "a", "-o", str(output))
    assert (result.exit_code, result.stderr) == (
        1,
        "error[INF4006]: cannot write the output: its folder does not exist\n"
        f"  --> {output}\n"
        f"   = hint: create it: mkdir -p {output.parent}\n",
    )


def test_a_prompt_that_is_not_text() -> None:
    result = CliRunner().invoke(main, ["run", "m.infc", "--prompt", "-"], input=b"ab\xff")
    assert (result.exit_code, result.stderr) == (
        1,
        "error[INF5001]: expected the prompt as UTF-8 text, got something else at index 2\n"
        "  --> stdin\n"
        "   = hint: convert it with iconv\n",
    )
    assert "  --> --prompt\n" in invoke("run", "m.infc", "--prompt", "a\udcff").stderr


def test_a_prompt_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError) as caught:
        _prompt_text("-")
    assert str(caught.value) == (
        "error[INF5001]: the prompt could not be read: it is closed\n  --> stdin"
    )


def test_an_error_of_the_session_ends_the_run() -> None:
    process = start("run", "script.infc", "--prompt", "Hi", "--max-new-tokens", "200000")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (1, "")
    assert stderr == (
        "error[INF5004]: the context holds 200000 positions, 200002 are needed (0 in the session, "
        "3 of the prompt and 199999 new)\n"
        "   = hint: ask for fewer new tokens, shorten the prompt, or compile with --max-context "
        "200002 or more\n"
    )


def test_a_reader_that_leaves_is_no_error() -> None:
    process = start("run", "script.infc", "--prompt", "Hi", "--max-new-tokens", "90000")
    assert process.stdout is not None
    assert process.stdout.read(9) == "spam spam"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", [("explain", "INF5003"), ("--help",), ("run", "--help")])
def test_a_full_disk_under_stdout(command: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        process = start(*command, stdout=full)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (
        1,
        "error[INF4006]: standard output could not be written: No space left on device\n",
    )


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_a_prefill() -> None:
    process = start("run", "endless.infc", "--prompt", "Hi")
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    start_seconds = time.monotonic()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    # The fake waits 20 s for its cancel flag.
    assert time.monotonic() - start_seconds < 15
    assert (process.returncode, stdout) == (130, "")
    assert stderr.strip() == "interrupted"


def test_no_colour_outside_a_terminal() -> None:
    process = start("explain", "INF1234")
    _, stderr = process.communicate(timeout=60)
    assert "\x1b" not in stderr


def test_a_terminal_gets_colour_unless_it_asked_for_none() -> None:
    for environment, coloured in (({"TERM": "xterm"}, True), ({"NO_COLOR": "1"}, False)):
        terminal, child_side = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", FAKE_INFC, "explain", "INF1234"],
            env=os.environ | {"PYTHONPATH": str(TESTS)} | environment,
            stderr=child_side,
        )
        assert process.wait(timeout=60) == 1
        text = os.read(terminal, 10_000).decode()
        os.close(terminal)
        os.close(child_side)
        assert ("\x1b[31m" in text) == coloured
        assert "INF5001" in text


@pytest.mark.parametrize("command", [["run", "", "--prompt", "Hi"], ["compile", ""]])
def test_an_empty_path_is_not_the_current_folder(command: list[str]) -> None:
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert result.stderr.endswith(": expected a path, got an empty text\n")


def test_opt_does_not_replace_what_it_reads(tmp_path: Path) -> None:
    file = tmp_path / "a.mlir"
    file.write_text("module {}")
    result = CliRunner().invoke(main, ["opt", str(file), "--pipeline", "", "-o", str(file)])
    assert result.exit_code == 1
    assert "it is part of the input" in result.stderr
    assert file.read_text() == "module {}"
