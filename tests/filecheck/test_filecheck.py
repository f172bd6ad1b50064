"""Runs every `*.mlir` beside this file: a RUN line, an input, and what the output must hold.

A file is cut at `// -----` into cases, each with a RUN line of its own:

    // RUN: infc opt %s --pipeline canonicalize | filecheck %s
    // RUN: not infc opt %s --pipeline canonicalize | filecheck %s

`%s` is the case. stdout and then stderr go to filecheck; `not` expects exit code 1. So that inputs
stay readable, `target = "cpu:x86-64-v3"` stands for that target's facts as JSON, and
`target = "test:scratchpad"` for those of `tests/data/scratchpad.toml`.
"""

import io
import json
import re
import shlex
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet
from click.testing import CliRunner
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser, pattern_for_opts

from infc.cli import main
from infc.target.discovery import resolve_target
from infc.target.loader import load_target

FOLDER = Path(__file__).resolve().parent
SCRATCHPAD = FOLDER.parent / "data" / "scratchpad.toml"
SHARED_PASSES = {
    "graph": ("canonicalize", "split-phases"),
    "phase": ("outline-layers", "quantize-activations"),
    "schedule": ("split-head", "fuse-kernels", "choose-mappings", "bufferize"),
    "memory": (
        "schedule-transfers",
        "plan-memory",
        "insert-barriers",
        "pack-weights",
        "record-plan",
    ),
}
"""The passes by the level of their input, which is the folder their file is in."""


def cases() -> list[ParameterSet]:
    found = []
    for path in sorted(FOLDER.glob("*/*.mlir")):
        for number, text in enumerate(re.split(r"(?m)^// -----\n", path.read_text())):
            name = f"{path.relative_to(FOLDER).with_suffix('')}-{number}"
            found.append(pytest.param(text, id=name))
    return found


def with_facts(text: str) -> str:
    """The input with each target's name replaced by what it stands for."""

    def facts(match: re.Match[str]) -> str:
        if match.group(1) == "test:scratchpad":
            target = load_target(SCRATCHPAD)
        else:
            _, target = resolve_target(match.group(1))
        return f"target = {json.dumps(target.to_json())}"

    return re.sub(r'target = "([a-z0-9:-]+)"', facts, text)


def run_infc(arguments: list[str], *, fails: bool) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == int(fails), result.output
    return result.stdout + result.stderr


def check(output: str, checks: Path) -> None:
    """Match the output with the CHECK lines; the failure shows both."""
    options = Options(match_filename=str(checks))
    with checks.open() as lines:
        parser = Parser(options, lines, *pattern_for_opts(options))
        report = io.StringIO()
        with redirect_stderr(report):
            status = Matcher(options, FInput("output", output), parser).run()
    assert status == 0, f"{report.getvalue()}\n{shortened(output)}"


def shortened(output: str) -> str:
    return "\n".join(line[:300] for line in output.splitlines()[:300])


@pytest.mark.parametrize("text", cases())
def test_case(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path("case.mlir")
    source.write_text(with_facts(text))
    runs = re.findall(r"^// RUN: (.*)$", text, re.MULTILINE)
    assert len(runs) == 1, "a case has one RUN line"
    command, _, match = runs[0].partition("|")
    assert match.split() == ["filecheck", "%s"]
    assert "// CHECK" in text, "a case that checks nothing"
    words = shlex.split(command.replace("%s", str(source)))
    fails = words[0] == "not"
    assert words[fails] == "infc"
    check(run_infc(words[fails + 1 :], fails=fails), source)


def test_every_pass_has_a_file() -> None:
    from infc.passes.pipelines import SHARED

    names = [name for passes in SHARED_PASSES.values() for name in passes]
    assert names == SHARED.names()
    for level, passes in SHARED_PASSES.items():
        for name in passes:
            assert (FOLDER / level / f"{name}.mlir").is_file(), f"{level}/{name}.mlir"
