"""`infc plan-memory`: what it prints and writes."""

import csv
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from infc.cli import main
from infc.memory.buffers_csv import read_buffers
from infc.memory.checker import check_plan

INSTANCE = Path(__file__).parents[1] / "data" / "minimalloc" / "C.csv"


@pytest.mark.parametrize("limit", [[], ["--time-limit", "600"]])
def test_an_instance_is_planned_the_same_each_time(tmp_path: Path, limit: list[str]) -> None:
    outputs = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for output in outputs:
        command = ["plan-memory", str(INSTANCE), "--capacity", "1MiB", "-o", str(output), "--json"]
        result = CliRunner().invoke(main, command + limit)
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert answer.pop("seconds") > 0
        assert answer == {
            "schema_version": 1,
            "buffers": 203,
            "capacity_bytes": 1048576,
            "height_bytes": 1039360,
            "lower_bound_bytes": 1039360,
            "optimal": True,
            "fits": True,
            "method": "search",
            "stopped_by": None,
            "output": str(output),
        }
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    with INSTANCE.open() as given, outputs[0].open() as made:
        rows, planned = list(csv.reader(given)), list(csv.reader(made))
    assert [row[:-1] for row in planned] == rows
    assert planned[0][-1] == "offset"
    offsets = {row[0]: int(row[-1]) for row in planned[1:]}
    check_plan(read_buffers(INSTANCE).buffers, offsets, 1039360)


def test_columns_alignment_and_offsets_of_before(tmp_path: Path) -> None:
    source, output = tmp_path / "b.csv", tmp_path / "o.csv"
    rows = 'size,note,upper,id,offset,lower,alignment\r\n10,"x, y",5,a,7,-5,\r\n9,,1,b,,0,64\r\n'
    source.write_bytes(b"\xef\xbb\xbf" + rows.encode())
    result = CliRunner().invoke(
        main, ["plan-memory", str(source), "--capacity", "100", "-o", str(output)]
    )
    assert result.exit_code == 0, result.output
    assert output.read_text() == (
        'size,note,upper,id,lower,alignment,offset\n10,"x, y",5,a,-5,,9\n9,,1,b,0,64,0\n'
    )
    assert re.fullmatch(
        r"2 buffers in 19 bytes \(19 B\) of 100 \(100 B\): fits\n"
        r"lower bound 19 bytes \(19 B\): optimal\n"
        r"found by search in .*s\n",
        result.stdout,
    )


def test_a_plan_that_fits_and_is_not_proven_lowest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infc.cli.commands.plan_memory.NODE_LIMIT", 16)
    command = ["plan-memory", str(INSTANCE), "--capacity", "2MiB"]
    assert "not proven optimal: the search ended at its limit of nodes" in (
        CliRunner().invoke(main, command).stdout
    )
    assert (
        "not proven optimal: the search ended at the time limit, another run may find another plan"
        in CliRunner().invoke(main, [*command, "--time-limit", "0.000001"]).stdout
    )


def test_help_has_an_example() -> None:
    text = CliRunner().invoke(main, ["plan-memory", "--help"]).stdout
    assert "infc plan-memory buffers.csv --capacity 1MiB -o plan.csv" in text
