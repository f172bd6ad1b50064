"""The trace of a simulated run."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
from timed_programs import MACHINE, ORIGINS, I, image_of, load, only, send, timed, wait

from infc.backends.dataflow.isa import Op, Unit
from infc.backends.dataflow.simulator.timing import simulate_time
from infc.backends.dataflow.simulator.trace import write_trace


def test_a_trace_is_well_formed(tmp_path: Path) -> None:
    mm = I(Op.MM_Q, m=32, n=32, k=64, origin=1)
    programs = {
        (0, Unit.LOAD): [load(2048, signal=0)],
        (0, Unit.MATRIX): [wait(), mm, mm, replace(mm, origin=2)],
        (0, Unit.SEND): [send(1024, only(1), origin=1)],
    }
    path = tmp_path / "trace.json"
    write_trace(timed(programs), ORIGINS, path)
    trace = json.loads(path.read_text())
    assert trace["otherData"]["slices left out"] == 0
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    tracks = {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in trace["traceEvents"]
        if e["name"] == "thread_name"
    }
    matrix = [e for e in slices if tracks[e["pid"], e["tid"]] == "matrix"]
    assert [e["name"] for e in matrix] == ["waits for semaphore", "layer 0", "layer 1"]
    ends: dict[tuple[int, int], float] = {}
    for event in slices:
        track = event["pid"], event["tid"]
        assert event["ts"] >= ends.get(track, 0.0) - 1e-9
        ends[track] = event["ts"] + event["dur"]
    assert ends.keys() == tracks.keys()


def test_a_trace_keeps_the_first_slices_and_says_how_many_it_left_out() -> None:
    numbers = count()
    body = [I(Op.V_FILL, n=32, origin=next(numbers) % 2) for _ in range(50)]
    image = image_of({(0, Unit.VECTOR): body})
    args = np.zeros(16, np.int32)
    timing = simulate_time(image, MACHINE, args, most_spans=20)
    assert (len(timing.spans.rows), timing.spans.left_out) == (20, 30)
    assert timing.spans.rows[:, 1].tolist() == sorted(timing.spans.rows[:, 1].tolist())
    assert len(simulate_time(image, MACHINE, args).spans.rows) == 0
