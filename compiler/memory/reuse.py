"""Buffers that take each other's place, one after the other, planned as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import lcm

from infc.diagnostics import InternalError
from infc.memory.buffer import Buffer


def merge_reused(buffers: Sequence[Buffer]) -> tuple[list[Buffer], Mapping[str, str]]:
    """Each chain of `in_place_of` as one buffer, and by name of a buffer that of its chain.

    A chain is named after its first buffer and is as large as its largest. It lives from the start
    of the first to the end of the last.

    Raises:
        InternalError: a buffer is to take the place of one that is none of these, that does not die
            when it comes to life, or whose place another takes.
    """
    by_name = {buffer.name: buffer for buffer in buffers}
    heirs: dict[str, Buffer] = {}
    for buffer in buffers:
        if buffer.in_place_of is None:
            continue
        before = by_name.get(buffer.in_place_of)
        if before is None or before.last != buffer.first or before.first == buffer.first:
            raise InternalError(
                f"buffer {buffer.name!r} cannot take the place of {buffer.in_place_of!r}, "
                f"which does not end with step {buffer.first}"
            )
        if before.name in heirs:
            raise InternalError(
                f"buffers {heirs[before.name].name!r} and {buffer.name!r} "
                f"both take the place of {before.name!r}"
            )
        heirs[before.name] = buffer

    merged: list[Buffer] = []
    owners: dict[str, str] = {}
    for buffer in buffers:
        if buffer.in_place_of is not None:
            continue
        chain = [buffer]
        while chain[-1].name in heirs:
            chain.append(heirs[chain[-1].name])
        merged.append(
            Buffer(
                buffer.name,
                max(link.size_bytes for link in chain),
                lcm(*(link.align for link in chain)),
                buffer.first,
                chain[-1].last,
            )
        )
        owners |= {link.name: buffer.name for link in chain}
    return merged, {buffer.name: owners[buffer.name] for buffer in buffers}
