"""A timeline of every unit, as JSON that Perfetto and `chrome://tracing` open.

A process is a core, a thread one of its units: `load`, `matrix`, `vector`, `send` are the streams,
`load engine` and `send engine` what moves bytes for them. Streams of `load` and `send` show only
where they wait. What a unit does for one operation without a wait between is one slice.

The first `most_spans` slices, in the order in which the simulator came upon them, are kept; how
many were left out is in `otherData`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from infc.backends.dataflow.isa import Unit
from infc.backends.dataflow.simulator.timing import CAUSES, Timing
from infc.backends.dataflow.simulator.timing_state import WORK
from infc.backends.dataflow.simulator.walk import UNITS

_TICKS_PER_US: Final = 10**9
_UNIT_NAMES: Final = [unit.name.lower() for unit in Unit]
_ENGINE_NAMES: Final = ("load engine", "send engine")
_WAITS: Final = {kind: f"waits for {cause}" for cause, kind in CAUSES.items()}


def write_trace(timing: Timing, origins: list[str], path: Path) -> None:
    """Write the spans of a timing that was asked for some.

    Args:
        timing: with spans.
        origins: the image's.
        path: of the file, which is replaced.
    """
    document = {
        "displayTimeUnit": "ns",
        "otherData": {
            "slices left out": timing.spans.left_out,
            "program_seconds": timing.program_seconds,
        },
        "traceEvents": list(trace_events(timing, origins)),
    }
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n")


def trace_events(timing: Timing, origins: list[str]) -> Iterator[dict[str, Any]]:
    """Names of tracks, then what happened in them, in order of time; microseconds from 0."""
    rows = timing.spans.rows
    # Of equal beginnings the order is that of the tracks.
    rows = rows[rows[:, 0].argsort(kind="stable")]
    rows = rows[rows[:, 1].argsort(kind="stable")]
    streams = timing.ended_s.size
    tracks = sorted({_place(track, streams) for track in set(rows[:, 0].tolist())})
    for core in sorted({core for core, _ in tracks}):
        yield {"ph": "M", "name": "process_name", "pid": core, "args": {"name": f"core {core}"}}
        yield {"ph": "M", "name": "process_sort_index", "pid": core, "args": {"sort_index": core}}
    for core, thread in tracks:
        name = [*_UNIT_NAMES, *_ENGINE_NAMES][thread]
        yield {
            "ph": "M",
            "name": "thread_name",
            "pid": core,
            "tid": thread,
            "args": {"name": name},
        }
    for track, begin, end, origin, kind in rows.tolist():
        core, thread = _place(track, streams)
        yield {
            "ph": "X",
            "pid": core,
            "tid": thread,
            "ts": begin / _TICKS_PER_US,
            "dur": (end - begin) / _TICKS_PER_US,
            "name": origins[origin] if kind == WORK else _WAITS[kind],
            "cat": "work" if kind == WORK else "wait",
            "args": {"origin": origins[origin]},
        }


def _place(track: int, streams: int) -> tuple[int, int]:
    """Core and thread of a track."""
    if track < streams:
        return divmod(track, UNITS)
    core, engine = divmod(track - streams, 2)
    return core, UNITS + engine
