"""What `infc plan-memory` says to lists that cannot be read, and to buffers that do not fit."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infc.artifact.output import OutputFile, output_error
from infc.cli import main

Plan = Callable[..., Result]
HEADER = "id,lower,upper,size\n"
LARGEST = 2**62


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """`infc plan-memory` on a file of some content, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(content: str | bytes | None, *arguments: str, capacity: str = "1MiB") -> Result:
        if content is not None:
            data = content.encode() if isinstance(content, str) else content
            Path("b.csv").write_bytes(data)
        command = ["plan-memory", "b.csv", "--capacity", capacity, *arguments]
        return CliRunner().invoke(main, command)

    return run


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("", 1, "expected a header with id, lower, upper, size, got an empty file"),
        ("\n\n", 1, "expected a header with id, lower, upper, size, got an empty file"),
        (HEADER, 1, "expected at least one buffer, got a header alone"),
        (
            "id,lower,size\na,0,1\n",
            1,
            "expected the columns id, lower, upper, size, got none named 'upper'",
        ),
        ("id,lower,upper,size,size\n", 1, "expected one column 'size', got 2"),
        (HEADER + "a,0,1\n", 2, "expected 4 cells, got 3"),
        (HEADER + "a,0,1,8\nb,0,x,8\n", 3, "expected an integer as upper, got 'x'"),
        (HEADER + "a,0,1,8.5\n", 2, "expected an integer as size, got '8.5'"),
        (HEADER + "a,0,1,1_0\n", 2, "expected an integer as size, got '1_0'"),
        (HEADER + "a,0,1,\n", 2, "expected an integer as size, got ''"),
        (HEADER + "a,0,1,-8\n", 2, f"expected size between 0 and {LARGEST}, got -8"),
        (HEADER + "a,2,2,8\n", 2, "expected lower < upper, got [2, 2)"),
        (HEADER + "a,3,-2,8\n", 2, "expected lower < upper, got [3, -2)"),
        (HEADER + ",0,1,8\n", 2, "expected an id, got an empty cell"),
        (
            HEADER + "a,0,1,8\n\nb,0,1,8\na,1,2,8\n",
            5,
            "expected each id once, got 'a' as in line 2",
        ),
        (
            HEADER + "a,0,1,1000000000000000000\nb,0,1,1000000000000000000\n",
            3,
            "expected sizes and alignments of at most 1152921504606846976 bytes together, "
            "got 2000000000000000002 up to here",
        ),
        (
            HEADER + "a,0,1," + "9" * 50 + "\n",
            2,
            f"expected size between 0 and {LARGEST}, got {'9' * 40}",
        ),
        (
            HEADER + f"a,0,{2**63},8\n",
            2,
            f"expected upper between -{LARGEST} and {LARGEST}, got {2**63}",
        ),
        (
            "id,lower,upper,size,alignment\na,0,1,8,0\n",
            2,
            f"expected alignment between 1 and {LARGEST}, got 0",
        ),
        (HEADER.encode() + b"a,0,1,8\n\xff,0,1,8\n", 3, "expected UTF-8, got the byte 0xff"),
        (HEADER + 'a,0,1,"8\n', 2, "expected CSV, got something else: unexpected end of data"),
    ],
)
def test_a_list_that_is_wrong(plan: Plan, content: str | bytes, line: int, message: str) -> None:
    result = plan(content, "-o", "out.csv")
    assert result.exit_code == 1
    assert result.stderr == f"error[INF2102]: {message}\n  --> b.csv:{line}\n"
    assert result.stdout == ""
    assert not Path("out.csv").exists()


def test_more_buffers_than_can_be_planned(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infc.memory.buffers_csv.MOST_BUFFERS", 2)
    monkeypatch.setattr("infc.memory.buffers_csv._MOST_BYTES", 60)
    rows = HEADER + "a,0,1,8\nb,0,1,8\nc,0,1,8\n"
    assert plan(rows).stderr == (
        "error[INF2102]: expected at most 2 buffers, got more\n  --> b.csv:4\n"
    )
    assert plan(rows + "d,0,1,8\n" * 9).stderr == (
        "error[INF2102]: expected a file of at most 60 bytes, got a larger one\n  --> b.csv:1\n"
    )


def test_a_file_that_cannot_be_read(plan: Plan) -> None:
    assert plan(None).stderr == (
        "error[INF2102]: cannot read the list of buffers: no such file or directory\n  --> b.csv\n"
    )
    Path("b.csv").mkdir()
    assert plan(None).stderr == (
        "error[INF2102]: cannot read the list of buffers: is a directory\n  --> b.csv\n"
    )


@pytest.mark.parametrize(
    ("capacity", "message"),
    [
        ("0", "expected --capacity of at least one byte, got 0"),
        ("0KiB", "expected --capacity of at least one byte, got 0"),
        ("-1", "expected --capacity as a number of bytes, or with a unit as 1MiB, got '-1'"),
        ("1Mi", "expected --capacity as a number of bytes, or with a unit as 1MiB, got '1Mi'"),
        ("0.3B", "expected --capacity as a number of bytes, or with a unit as 1MiB, got '0.3B'"),
        (
            "1e999B",
            "expected --capacity as a number of bytes, or with a unit as 1MiB, got '1e999B'",
        ),
    ],
)
def test_a_capacity_that_is_none(plan: Plan, capacity: str, message: str) -> None:
    result = plan(HEADER + "a,0,1,8\n", capacity=capacity)
    assert (result.exit_code, result.stderr) == (1, f"error[INF5001]: {message}\n")


@pytest.mark.parametrize("limit", ["0", "-1", "nan"])
def test_a_time_limit_that_is_none(plan: Plan, limit: str) -> None:
    result = plan(HEADER + "a,0,1,8\n", "--time-limit", limit)
    assert result.exit_code == 1
    message = f"expected a time limit above zero seconds, got {limit}"
    assert result.stderr == f"error[INF5001]: {message}\n"


THREE = HEADER + "a,0,2,10\nb,1,3,10\nc,0,3,30\n"


def test_buffers_that_cannot_fit(plan: Plan) -> None:
    result = plan(THREE, "-o", "out.csv", "--json", capacity="49")
    assert result.exit_code == 1
    assert result.stderr == (
        "error[INF2101]: expected the buffers to fit into 49 bytes, got a plan of 50 bytes\n"
        "  --> b.csv\n"
        "   |  no plan can need less than 50 bytes\n"
        "   |  it is proven that no plan fits\n"
        "   = hint: --capacity 50 is enough\n"
    )
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["location"]) == ("INF2101", "b.csv")
    assert not Path("out.csv").exists()


def test_buffers_of_which_nobody_knows_whether_they_fit(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = Path(__file__).parents[1] / "data" / "minimalloc" / "E.csv"
    monkeypatch.setattr("infc.cli.commands.plan_memory.NODE_LIMIT", 50)
    result = plan(instance.read_bytes(), capacity="1048576")
    assert result.exit_code == 1
    text = result.stderr.splitlines()
    assert text[0].startswith("error[INF2101]: expected the buffers to fit into 1048576 bytes, got")
    assert text[2:4] == [
        "   |  no plan can need less than 1048576 bytes",
        "   |  a plan that fits may exist: the search ended at its limit of nodes",
    ]
    result = plan(None, "--time-limit", "0.000001", capacity="1048576")
    assert result.stderr.splitlines()[3] == (
        "   |  a plan that fits may exist: the search ended at the time limit, "
        "another run may find another plan"
    )


def test_an_output_that_cannot_be_written(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(THREE, "-o", "none/out.csv").stderr == (
        "error[INF4006]: cannot write the output: its folder does not exist\n"
        "  --> none/out.csv\n"
        "   = hint: create it: mkdir -p none\n"
    )
    assert plan(THREE, "-o", "b.csv").stderr == (
        "error[INF4006]: cannot write the output: it is part of the input\n"
        "  --> b.csv\n"
        "   = hint: choose another name\n"
    )
    assert Path("b.csv").read_text() == THREE
    Path("link.csv").symlink_to("elsewhere.csv")  # as /dev/stdout is one
    assert plan(THREE, "-o", "link.csv").stderr == (
        "error[INF4006]: cannot write the output: it is a link\n"
        "  --> link.csv\n"
        f"   = hint: name the file it leads to: {Path('elsewhere.csv').resolve()}\n"
    )
    assert Path("link.csv").is_symlink()
    Path("link.csv").unlink()
    Path("round.csv").symlink_to("round.csv")
    assert "cannot write the output: it is a link" in plan(THREE, "-o", "round.csv").stderr
    Path("round.csv").unlink()

    def full(file: OutputFile, data: object) -> int:
        raise output_error(Path("out.csv"), OSError(28, os.strerror(28)))

    monkeypatch.setattr(OutputFile, "write", full)
    Path("out.csv").write_text("old\n")
    result = plan(THREE, "-o", "out.csv")
    assert result.exit_code == 1
    assert result.stderr == (
        "error[INF4006]: cannot write the output: no space left on device\n"
        "  --> out.csv\n"
        "   = hint: free some space there or choose another place; nothing was left behind\n"
    )
    assert sorted(os.listdir()) == ["b.csv", "out.csv"]
    assert Path("out.csv").read_text() == "old\n"
