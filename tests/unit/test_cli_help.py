"""What the command line says of itself: help, version, pages of error codes."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import infc
from infc.cli import main
from infc.diagnostics import Code
from infc.diagnostics.pages import page


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_page_of_the_same_form(code: Code) -> None:
    text = page(code)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[0].startswith(f"# {code}: ")
    assert headings[1:] == ["## What it means", "## Why", "## Example", "## What to do"]
    assert invoke("explain", code.lower()).stdout == text


def test_version() -> None:
    assert invoke("--version").stdout == f"infc, version {infc.__version__}\n"


@pytest.mark.parametrize(
    "command", ["run", "compile", "bench", "explain", "estimate", "targets", "opt"]
)
def test_help_has_examples(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n    infc {command}" in result.stdout


def test_help_documents_the_exit_codes() -> None:
    text = invoke("--help").stdout
    for code in ("0  done", "1  the model", "2  the command line", "70  infc", "130  interrupted"):
        assert code in text


def test_help_imports_nothing_slow() -> None:
    script = (
        "import sys\n"
        "from infc.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "slow = {'numpy', 'rich', 'mlir', 'gguf', 'pydantic', 'jinja2', 'tokenizers', 'llvmlite'}\n"
        "sys.exit(' '.join(slow & set(sys.modules)) or 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: infc" in result.stdout


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).with_name("infc")
    if not command.exists():
        pytest.skip("infc is not installed in this environment")
    result = subprocess.run(
        [command, "explain", "INF5003"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, page(Code.EMPTY_PROMPT))
