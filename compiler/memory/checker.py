"""An independent check of a plan: it shares no code and no data structure with the planner.

It walks through time, keeps the blocks that are live in a list sorted by offset, and looks at the
neighbours of each block as it comes to life. If every block fits between its neighbours when it
arrives, no two live blocks ever overlap. A block that takes another's place stands for both of them
at the step that they share.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

from infc.diagnostics import InternalError
from infc.memory.buffer import Buffer


def check_plan(buffers: Sequence[Buffer], offsets: Mapping[str, int], height: int) -> None:
    """Refuse a plan that is wrong.

    Args:
        buffers: what was to be placed.
        offsets: bytes by buffer name.
        height: bytes of the arena.

    Raises:
        InternalError: a buffer has no offset, is misaligned or leaves the arena; two buffers live
            at the same step overlap (both are named); an offset belongs to no buffer.
    """
    names = {buffer.name for buffer in buffers}
    stray = sorted(set(offsets) - names)
    if stray:
        raise InternalError(f"the plan places {stray[0]!r}, which is no buffer")
    for buffer in buffers:
        _check_alone(buffer, offsets, height)

    # At one step what arrives comes before what leaves: the last step of a buffer is inclusive.
    arrives, leaves = 0, 1
    events: list[tuple[int, int, int]] = []
    for index, buffer in enumerate(buffers):
        if buffer.size_bytes:
            events += [(buffer.first, arrives, index), (buffer.last, leaves, index)]
    end = {b.name: offsets[b.name] + b.size_bytes for b in buffers}
    number = {buffer.name: index for index, buffer in enumerate(buffers)}
    heirs: dict[int, str] = {}
    live: list[tuple[int, int]] = []  # (offset, index into buffers)
    for step, what, index in sorted(events):
        buffer = buffers[index]
        entry = (offsets[buffer.name], index)
        if what == leaves and index in heirs:
            heir = heirs.pop(index)
            end[heir] = offsets[heir] + buffers[number[heir]].size_bytes
            continue
        position = bisect_left(live, entry)
        if what == leaves:
            del live[position]
            continue
        before = number.get(buffer.in_place_of or "")
        if before is not None and buffers[before].last == step:
            shared = (entry[0], before)
            if shared in live and before not in heirs:
                live.remove(shared)
                heirs[before] = buffer.name
                end[buffer.name] = max(end[buffer.name], end[buffers[before].name])
                position = bisect_left(live, entry)
        for _offset, other in live[max(position - 1, 0) : position + 1]:
            _check_pair(buffer, buffers[other], offsets, end)
        insort(live, entry)


def _check_alone(buffer: Buffer, offsets: Mapping[str, int], height: int) -> None:
    if buffer.name not in offsets:
        raise InternalError(f"buffer {buffer.name!r} has no offset")
    offset = offsets[buffer.name]
    if offset % buffer.align:
        raise InternalError(
            f"buffer {buffer.name!r} needs an offset that is a multiple of {buffer.align}, "
            f"got {offset}"
        )
    if offset < 0 or offset + buffer.size_bytes > height:
        raise InternalError(
            f"buffer {buffer.name!r} must lie in an arena of {height} bytes, "
            f"got [{offset}, {offset + buffer.size_bytes})"
        )


def _check_pair(
    one: Buffer, other: Buffer, offsets: Mapping[str, int], end: Mapping[str, int]
) -> None:
    a, b = sorted((one, other), key=lambda buffer: (offsets[buffer.name], buffer.name))
    if end[a.name] > offsets[b.name]:
        step = max(a.first, b.first)
        raise InternalError(
            f"buffers {a.name!r} and {b.name!r} overlap: both live at step {step}, "
            f"[{offsets[a.name]}, {end[a.name]}) and [{offsets[b.name]}, {end[b.name]})"
        )
