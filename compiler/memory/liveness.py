"""From a sequence of steps that read and write blocks to the steps at which each is live."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from infc.diagnostics import InternalError
from infc.memory.buffer import Buffer


@dataclass(frozen=True)
class Access:
    """One step of a program: the names of the blocks it reads and writes."""

    reads: Collection[str]
    writes: Collection[str]


def live_ranges(
    steps: Sequence[Access],
    sizes_bytes: Mapping[str, int],
    *,
    align: int,
    inputs: Collection[str] = (),
    outputs: Collection[str] = (),
) -> list[Buffer]:
    """One buffer for each name in `sizes_bytes`, live from its first write to its last access.

    Args:
        steps: in the order they run; step `i` is at time `i`. A block that a step reads and another
            that it writes are both live during the step, so they never share memory.
        sizes_bytes: the blocks to plan; accesses to other names (weights, for instance) are
            ignored.
        align: of every buffer, in bytes.
        inputs: written before the first step.
        outputs: read after the last step.

    Raises:
        InternalError: a block is read before anything was written to it, or never accessed.
    """
    first = {name: 0 for name in inputs if name in sizes_bytes}
    last = dict(first)
    for time, step in enumerate(steps):
        for name in step.reads:
            if name in sizes_bytes and name not in first:
                raise InternalError(f"step {time} reads {name!r} before anything was written to it")
        for name in (*step.reads, *step.writes):
            if name in sizes_bytes:
                first.setdefault(name, time)
                last[name] = time
    for name in outputs:
        if name in last:
            last[name] = max(len(steps) - 1, 0)
    unused = [name for name in sizes_bytes if name not in first]
    if unused:
        raise InternalError(f"no step accesses {unused[0]!r}, yet it is to be planned")
    return [
        Buffer(name, size, align, first[name], last[name]) for name, size in sizes_bytes.items()
    ]
