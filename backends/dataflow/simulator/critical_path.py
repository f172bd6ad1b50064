"""The critical path: what the call's time consists of, from its end back to its beginning.

At its end the path is at the stream that ended last. It follows a stream back to when it was last
resumed by a semaphore it had waited for, then what posted it: the stream that was at work until
then, or the way of a message or transfer back to the stream that had begun it. So all its pieces
follow each other without gaps, and their lengths add up to the whole time.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import numpy as np

from infc.backends.dataflow.isa import Unit
from infc.backends.dataflow.simulator.resources import Ints
from infc.backends.dataflow.simulator.timing_state import WAIT_CHANNEL, WAIT_LINK
from infc.backends.dataflow.simulator.walk import UNITS

Piece = tuple[int, str]
"""Origin, and what it waits for: a unit, `load` and `send` with the way of what they move."""
_UNIT_NAMES: Final = [unit.name.lower() for unit in Unit]
_KINDS: Final = {WAIT_CHANNEL: "load", WAIT_LINK: "send"}


def critical_path(log: Ints, finished: Ints, end: int) -> dict[Piece, int]:
    """Ticks of the critical path by origin and what it waits for.

    Args:
        log: as `Books.log`.
        finished: when each stream ended.
        end: when all transfers had ended, too.
    """
    order = np.argsort(log[:, 0], kind="stable")
    entries = log[order]
    first = np.searchsorted(entries[:, 0], np.arange(len(finished) + 1))
    times = entries[:, 1]
    lengths: defaultdict[Piece, int] = defaultdict(int)
    stream = int(np.argmax(finished))
    time = int(finished[stream])
    if end > time and len(log):
        # What was posted last is still under way.
        at = max(int(first[stream + 1]) - 1, int(first[stream]))
        lengths[int(entries[at, 2]), "send"] += end - time
    while time > 0:
        low, high = int(first[stream]), int(first[stream + 1])
        # The last entry of the stream before `time`.
        at = low + int(np.searchsorted(times[low:high], time)) - 1
        if at < low:
            break
        _, begin, origin, kind, cause, cause_time = entries[at].tolist()
        lengths[origin, _KINDS.get(kind, _UNIT_NAMES[stream % UNITS])] += time - begin
        time = begin
        if cause >= 0:
            stream, before = cause, time
            time = cause_time
            if before > time:
                unit = Unit(stream % UNITS)
                way = unit.name.lower() if unit in (Unit.LOAD, Unit.SEND) else "send"
                lengths[_origin_at(entries, times, first, stream, time), way] += before - time
    return dict(lengths)


def _origin_at(entries: Ints, times: Ints, first: Ints, stream: int, time: int) -> int:
    """What a stream was at just before `time`."""
    low, high = int(first[stream]), int(first[stream + 1])
    at = low + int(np.searchsorted(times[low:high], time)) - 1
    return int(entries[max(at, low), 2]) if high > low else 0
