"""What a user is told of an artifact whose machine is simulated: bench, its trace, explain."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from small_models import SmallModels

from infc import driver
from infc.artifact import open_artifact
from infc.cli import main
from infc.cli.artifact_page import render_page
from infc.cli.placement_chart import HEIGHT, WIDTH, draw_placement
from infc.cli.units import human_bytes, human_seconds
from infc.driver import Explanation
from infc.driver.explanation import trace_call
from infc.driver.explanation_rows import LayoutRow
from infc.driver.loading import load_runnable
from infc.driver.simulated_rows import ranges
from infc.runtime.measure import arbitrary_tokens
from infc.target.runnable import Call, OutputKind, Phase
from infc.target.simulated import MachineLayout, PlacedChannel, PlacedCore, SimulatedRunnable

PROMPT, NEW = 20, 10
"""Two calls of prefill (chunks of 16), and more calls of decode than are timed."""
SIZES = ["--prompt-tokens", str(PROMPT), "--new-tokens", str(NEW)]


def infc(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def model(small_models: SmallModels) -> Path:
    return small_models.model("llama3", "GGUF-F16", num_hidden_layers=2)


@pytest.fixture(scope="module")
def artifact(small_models: SmallModels, model: Path) -> Path:
    return small_models.artifact(model, "dataflow:test", max_batch=1)


@pytest.fixture(scope="module")
def machine(artifact: Path) -> SimulatedRunnable:
    runnable = load_runnable(open_artifact(artifact))
    assert isinstance(runnable, SimulatedRunnable)
    return runnable


@pytest.fixture(scope="module")
def explanation(artifact: Path) -> Explanation:
    return driver.explain(artifact)


def seconds_of(
    machine: SimulatedRunnable, phase: Phase, start: int, count: int, rows: int
) -> float:
    """One call of a sequence of arbitrary tokens."""
    call = Call(
        tokens=arbitrary_tokens(320, start + count)[start:],
        row_offsets=np.array([0, count], np.int32),
        slots=np.zeros(1, np.int32),
        positions=np.arange(start, start + count, dtype=np.int32),
        logit_rows=np.arange(count - rows, count, dtype=np.int32),
        output=OutputKind.ARGMAX,
    )
    return machine.simulate(phase, call).seconds


def test_bench_counts_the_machines_own_seconds(artifact: Path, machine: SimulatedRunnable) -> None:
    report = json.loads(infc("bench", artifact, *SIZES, "--json").stdout)
    again = json.loads(infc("bench", artifact, *SIZES, "--json", "--threads", 1).stdout)
    for phase, tokens in (("prefill", PROMPT), ("decode", NEW)):
        measured = report[phase]["measured"]
        assert list(measured) == ["seconds", "tokens_per_second", "clock"]
        assert measured["clock"] == "simulated"
        assert measured["tokens_per_second"] == tokens / measured["seconds"]
        # No clock of this host is in it.
        assert again[phase]["measured"] == measured
    prefill = [(0, 16, 0), (16, 4, 1)]
    assert report["prefill"]["measured"]["seconds"] == pytest.approx(
        sum(seconds_of(machine, Phase.PREFILL, *part) for part in prefill), rel=1e-3
    )
    steps = [seconds_of(machine, Phase.DECODE, PROMPT + step, 1, 1) for step in range(NEW)]
    assert report["decode"]["measured"]["seconds"] == pytest.approx(sum(steps), rel=1e-2)
    assert (
        "decode.measured: 8 of 10 calls were simulated, the others are taken to be like them"
        in report["assumptions"]
    )
    assert list(report) == [
        "schema_version",
        "prefill",
        "decode",
        "peak_memory_bytes",
        "resident_mapped_bytes",
        "resident_private_bytes",
        "planned_memory_bytes",
        "load_seconds",
        "threads",
        "target",
        "assumptions",
    ]


def test_bench_says_whose_seconds_they_are(artifact: Path) -> None:
    lines = infc("bench", artifact, *SIZES).stdout.splitlines()
    assert lines[3] == "measured prefill and decode: simulated seconds of the target's machine"
    assert lines[4].startswith("target dataflow:test, threads ")


def test_phases_of_two_machines_have_two_clocks(small_models: SmallModels, model: Path) -> None:
    path = small_models.artifact(
        model, "reference", max_batch=1, kv_dtype="f16", decode_target="dataflow:test"
    )
    trace = path.with_suffix(".json")
    result = infc("bench", path, *SIZES, "--trace", trace)
    assert "measured decode: simulated seconds of the target's machine\n" in result.stdout
    events = json.loads(trace.read_text())["traceEvents"]
    assert [e["name"] for e in events if e["ph"] == "X" and e["pid"] == 10**9] == ["decode"]
    rows = driver.explain(path, threads=1).programs
    assert [row.clock for row in rows] == ["wall", "simulated"]


def test_a_context_too_small_is_refused(artifact: Path) -> None:
    result = infc("bench", artifact, "--prompt-tokens", 60, "--new-tokens", 5)
    assert result.exit_code == 1
    assert result.stderr.startswith("error[INF5004]: ")


def test_the_trace_has_one_call_after_the_other(
    artifact: Path, machine: SimulatedRunnable, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    result = infc("bench", artifact, *SIZES, "--trace", path)
    assert result.stdout.endswith(
        f"{path}: one call of each simulated phase, for ui.perfetto.dev\n"
    )
    document = json.loads(path.read_text())
    assert document["otherData"] == {"events left out": 0}
    events = document["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {10**9: "calls", **{core: f"core {core}" for core in range(4)}}
    tracks = [(e["pid"], e["tid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"]
    assert len(tracks) == len(set(tracks))
    assert {name for _, _, name in tracks} == {
        "load", "matrix", "vector", "send", "load engine", "send engine",
    }  # fmt: skip

    slices = [event for event in events if event["ph"] == "X"]
    prefill, decode = (e for e in slices if e["pid"] == 10**9)
    assert [(e["name"], e["args"]["tokens"]) for e in (prefill, decode)] == [
        ("prefill", 16),
        ("decode", 1),
    ]
    assert prefill["dur"] == pytest.approx(1e6 * seconds_of(machine, Phase.PREFILL, 0, 16, 0))
    assert decode["dur"] == pytest.approx(
        1e6 * seconds_of(machine, Phase.DECODE, PROMPT, 1, 1), rel=1e-3
    )
    assert (prefill["ts"], decode["ts"]) == (0.0, prefill["dur"])
    end = decode["ts"] + decode["dur"]
    for event in slices:
        assert 0 <= event["ts"] <= event["ts"] + event["dur"] <= end + 1e-6
        crossing = event["ts"] < decode["ts"] < event["ts"] + event["dur"] - 1e-6
        assert not crossing
    assert {e["name"] for e in slices} >= {"layers.0.attention", "waits for semaphore"}


def test_a_trace_ends_where_it_is_full(machine: SimulatedRunnable) -> None:
    call = trace_call(Phase.PREFILL, 16, 0)
    whole = machine.timeline(Phase.PREFILL, call, most_events=10**6)
    part = machine.timeline(Phase.PREFILL, call, most_events=10)
    kept = [event for event in part.events if event["ph"] == "X"]
    every = [event for event in whole.events if event["ph"] == "X"]
    assert len(kept) == 10
    assert part.left_out >= len(every) - 10
    assert part.seconds == whole.seconds


def test_only_a_simulated_machine_has_a_trace(
    small_models: SmallModels, model: Path, tmp_path: Path
) -> None:
    path, trace = small_models.artifact(model, "reference"), tmp_path / "trace.json"
    result = infc("bench", path, "--trace", trace)
    assert (result.exit_code, result.stdout, result.stderr) == (
        1,
        "",
        "error[INF5001]: expected an artifact for a simulated machine, got one for reference\n"
        f"  --> {path}\n"
        "   = hint: only a simulator sees every unit of a machine: leave out --trace\n",
    )
    assert not trace.exists()


def test_the_trace_is_not_put_over_the_artifact(artifact: Path) -> None:
    result = infc("bench", artifact, "--trace", artifact)
    assert (result.exit_code, result.stderr) == (
        1,
        "error[INF4006]: cannot write the output: it is part of the input\n"
        f"  --> {artifact}\n"
        "   = hint: choose another name\n",
    )


def test_operations_add_up_to_the_call(artifact: Path, explanation: Explanation) -> None:
    launch = json.loads(json.dumps(open_artifact(artifact).manifest.targets["decode"]))
    launch_s = launch["backend_facts"]["call_ns"] * 1e-9
    assert [row.program for row in explanation.programs] == ["prefill", "decode"]
    for program in explanation.programs:
        ops = [op for op in explanation.ops if op.program == program.program]
        assert program.clock == "simulated"
        assert program.measured_seconds is not None
        assert sum(op.seconds for op in ops) == pytest.approx(program.measured_seconds - launch_s)
        assert sum(op.share for op in ops) < 1
        assert {"embed", "layers.0.attention", "head"} <= {op.operation for op in ops}
        assert list(program.utilisation) == [
            "load", "matrix", "vector", "send", "sram", "hbm", "mesh",
        ]  # fmt: skip
        for row in (program, *ops):
            assert set(row.utilisation) <= set(program.utilisation)
            assert all(0 <= used <= 1 + 1e-9 for used in row.utilisation.values())
        for op in ops:
            assert op.bound in ({*op.utilisation, "latency"} if op.seconds else {"hidden"})
            kinds = {"hbm": "memory", "matrix": "compute", "mesh": "network", "latency": "overhead"}
            assert op.bound_kind == kinds.get(op.bound, op.bound_kind)
    # The programs do not run to be timed, so it is always the same.
    assert driver.explain(artifact).ops == explanation.ops


def test_explain_lists_operations(artifact: Path, explanation: Explanation) -> None:
    lines = infc("explain", artifact).stdout.splitlines()
    assert lines[0].split() == [
        "program", "operation", "simulated", "share", "bound",
        "load", "matrix", "vector", "send", "sram", "hbm", "mesh",
    ]  # fmt: skip
    program, op = explanation.programs[0], explanation.ops[0]
    assert program.measured_seconds is not None
    whole = [f"{used:.0%}" for used in program.utilisation.values()]
    assert re.split(r"  +", lines[1]) == [
        "prefill", "call of 16 tokens", human_seconds(program.measured_seconds), *whole,
    ]  # fmt: skip
    assert re.split(r"  +", lines[2]) == [
        "prefill", op.operation, human_seconds(op.seconds), f"{op.share:.0%}", op.bound,
        *[f"{used:.0%}" for used in op.utilisation.values()],
    ]  # fmt: skip
    rows = len(explanation.ops) + 2
    assert lines[rows + 1] == ""
    assert lines[rows + 2].split()[:2] == ["program", "buffer"]
    assert any(line.startswith("prefill  stage 0: ring (sram) ") for line in lines)


def test_explain_json(artifact: Path, explanation: Explanation) -> None:
    found = json.loads(infc("explain", artifact, "--json").stdout)
    assert list(found["ops"][0]) == [
        "program", "operation", "seconds", "share", "bound", "bound_kind", "utilisation",
    ]  # fmt: skip
    assert found["ops"][3]["seconds"] == explanation.ops[3].seconds
    assert found["programs"][0]["clock"] == "simulated"
    assert found["programs"][0]["utilisation"] == explanation.programs[0].utilisation
    (layout,) = found["layouts"]
    assert layout["programs"] == ["prefill", "decode"]
    assert list(layout["layout"]) == [
        "chips", "rows", "cols", "core_bytes", "stages", "cores", "channels",
    ]  # fmt: skip
    assert layout["layout"]["cores"][3]["row"] == 1
    assert found["kernels"] == []


def test_what_lies_where(artifact: Path, explanation: Explanation) -> None:
    (row,) = explanation.layouts
    layout = row.layout
    assert (layout.chips, layout.rows, layout.cols, layout.core_bytes) == (1, 2, 2, 256 << 10)
    assert layout.stages == [2]
    assert [(c.chip, c.row, c.col, c.stage) for c in layout.cores] == [
        (0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 1, 1, 0),
    ]  # fmt: skip
    held = sum(core.held_bytes["kv"] for core in layout.cores)
    assert held >= explanation.kv_cache.size_bytes
    placed = sum(
        size
        for part in (*layout.cores, *layout.channels)
        for kind, size in part.held_bytes.items()
        if kind in ("weights", "table")
    )
    # Tables of which each core has one are once in the file.
    assert placed >= explanation.member_bytes["weights/weights.bin"]
    assert {channel.memory for channel in layout.channels} == {"hbm"}


def test_sram_over_time(explanation: Explanation) -> None:
    for phase in ("prefill", "decode"):
        (frame,) = (row for row in explanation.frames if row.program == phase)
        assert (frame.function, frame.space) == ("stage 0", "sram")
        rows = [row for row in explanation.buffers if row.program == phase]
        tops = [row.offset_bytes + row.size_bytes for row in rows]
        assert frame.lower_bound_bytes <= max(tops) <= frame.height_bytes <= 256 << 10
        for i, a in enumerate(rows):
            for b in rows[:i]:
                together = a.first_launch <= b.last_launch and b.first_launch <= a.last_launch
                apart = (
                    a.offset_bytes + a.size_bytes <= b.offset_bytes
                    or b.offset_bytes + b.size_bytes <= a.offset_bytes
                )
                assert apart or not together, (a, b)


def test_the_page(explanation: Explanation) -> None:
    html = render_page(explanation)
    for op in explanation.ops:
        assert f">{op.operation}</td>" in html
        assert human_seconds(op.seconds) in html
    assert "stage 0: layers 0 to 1" in html
    assert html.count("<title>core ") == 4
    assert "reports no kernels" not in html
    assert "ring\n" in html


def layout_of(chips: int, rows: int, cols: int, stages: int, channels: int) -> LayoutRow:
    cores = chips * rows * cols
    each = cores // stages
    return LayoutRow(
        ("decode",),
        MachineLayout(
            chips,
            rows,
            cols,
            1 << 20,
            [3] * stages,
            [
                PlacedCore(
                    core // (rows * cols),
                    core // cols % rows,
                    core % cols,
                    core // each if core < stages * each else None,
                    {"kv": 1 << 18, "weights": 1 << 19} if core < stages * each else {},
                )
                for core in range(cores)
            ],
            [
                PlacedChannel(chip, "far", channel, 1 << 30, {"weights": 1 << 29})
                for chip in range(chips)
                for channel in range(channels)
            ],
        ),
    )


@pytest.mark.parametrize(
    ("chips", "rows", "cols", "stages", "channels"),
    [(1, 2, 2, 1, 4), (2, 2, 2, 2, 0), (576, 2, 2, 80, 0), (1, 30, 30, 7, 0), (16, 4, 4, 3, 2)],
)
def test_the_picture_of_a_machine(
    chips: int, rows: int, cols: int, stages: int, channels: int
) -> None:
    row = layout_of(chips, rows, cols, stages, channels)
    chart = draw_placement(row)
    assert len(chart.cells) == len(row.layout.cores)
    assert len(chart.bars) == len(row.layout.cores) + len(row.layout.channels)
    assert chart.height <= HEIGHT
    boxes = [(c.x, c.y, c.x + c.width, c.y + c.height) for c in (*chart.cells, *chart.bars)]
    assert all(0 <= x < right <= WIDTH for x, _, right, _ in boxes)
    assert all(0 <= y < bottom <= chart.height + 1e-6 for _, y, _, bottom in boxes)
    # Cores do not cover each other or the channels.
    corners = {(round(x, 3), round(y, 3)) for x, y, _, _ in boxes[: len(chart.cells)]}
    assert len(corners) == len(chart.cells)
    bar, weights, kv = chart.bars[0], *chart.fills[:2]
    assert (weights.kind, kv.kind) == ("weights", "kv")
    assert weights.height == pytest.approx(bar.height / 2)
    assert kv.height == pytest.approx(bar.height / 4)
    assert weights.y + weights.height == pytest.approx(bar.y + bar.height)
    assert kv.y + kv.height == pytest.approx(weights.y)
    assert len(chart.stages) == (stages if stages <= 16 else 0)
    idle = [cell for cell in chart.cells if cell.colour is None]
    assert len(idle) == chips * rows * cols % stages
    assert all("no part in the model" in cell.title for cell in idle)
    assert f"weights: {human_bytes((1 << 19) * (len(chart.cells) - len(idle)))} in SRAM" in (
        chart.summary
    )


def test_runs_of_stages() -> None:
    assert ranges([0]) == "0"
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
