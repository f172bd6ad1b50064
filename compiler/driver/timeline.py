"""The timeline of a simulated machine as a file that Perfetto and `chrome://tracing` open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from infc.artifact import Artifact
from infc.diagnostics import Code, UserError
from infc.driver.prediction import Turns
from infc.driver.simulation import greedy_call, simulated_side, turns_of
from infc.runtime.session import Session
from infc.target.runnable import Phase
from infc.target.simulated import SimulatedRunnable, Timeline

MOST_EVENTS = 500_000
"""Of a call: about 100 MB of text."""
_PROCESSES = 10**7
"""More than a machine has: the tracks of a second machine begin here."""
_CALLS = 10**9
"""The process whose slices are calls."""


def check_simulated(artifact: Artifact, session: Session) -> None:
    """Refuse an artifact of which no phase runs on a simulated machine (INF5001)."""
    if any(simulated_side(session.runnable, phase) for phase in Phase):
        return
    names = sorted({str(facts["name"]) for facts in artifact.manifest.targets.values()})
    raise UserError(
        Code.OPTION,
        f"expected an artifact for a simulated machine, got one for {' and '.join(names)}",
        location=str(artifact.path),
        hint="only a simulator sees every unit of a machine: leave out --trace",
    )


def write_timeline(file: BinaryIO, session: Session, prompt_tokens: int) -> int:
    """Write the first call of prefill and, behind it, the first of decode.

    Phases on machines of their own get tracks of their own; one that is not simulated is left out.

    Args:
        file: gets JSON in the trace event format.
        prompt_tokens: of the prompt whose first piece is the prefill call; the decode call comes
            after all of it.

    Returns:
        How many events were left out because there are more than `MOST_EVENTS`.
    """
    machines: list[SimulatedRunnable] = []
    # Both calls name the same tracks.
    names: dict[str, dict[str, Any]] = {}
    slices: list[dict[str, Any]] = []
    start, left_out = 0.0, 0
    for phase, turns in turns_of(session, prompt_tokens, 1).items():
        side = simulated_side(session.runnable, phase)
        if side is None:
            continue
        if side not in machines:
            machines.append(side)
        chunk = session.limits.max_tokens[Phase.PREFILL]
        if phase is Phase.PREFILL and prompt_tokens > chunk:
            first = Turns(1, chunk, chunk)  # of a long prompt a later one may stand for it
        else:
            first = turns[0]
        call = greedy_call(session, phase, turns, first)
        line = side.timeline(phase, call, most_events=MOST_EVENTS)
        for event in _placed(line, phase, first.tokens, start, machines.index(side)):
            if event["ph"] == "M":
                names[json.dumps(event)] = event
            else:
                slices.append(event)
        start += line.seconds
        left_out += line.left_out
    document = {
        "displayTimeUnit": "ns",
        "otherData": {"events left out": left_out},
        "traceEvents": [*names.values(), *slices],
    }
    file.write(json.dumps(document, separators=(",", ":")).encode() + b"\n")
    return left_out


def _placed(
    line: Timeline, phase: Phase, tokens: int, start: float, machine: int
) -> Iterator[dict[str, Any]]:
    """The events of a call that begins at `start` seconds, and the call as one more."""
    begin = 1e6 * start
    yield {"ph": "M", "name": "process_name", "pid": _CALLS, "args": {"name": "calls"}}
    yield {"ph": "M", "name": "process_sort_index", "pid": _CALLS, "args": {"sort_index": -1}}
    yield {
        "ph": "X",
        "pid": _CALLS,
        "tid": 0,
        "ts": begin,
        "dur": 1e6 * line.seconds,
        "name": phase.name.lower(),
        "args": {"tokens": tokens},
    }
    for event in line.events:
        placed = {**event, "pid": event["pid"] + machine * _PROCESSES}
        if event["ph"] == "X":
            placed["ts"] = begin + event["ts"]
        yield placed
