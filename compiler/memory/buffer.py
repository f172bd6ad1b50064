"""What a planner is given and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infc.diagnostics import InternalError


@dataclass(frozen=True)
class Buffer:
    """A block of memory that is needed for some steps.

    Attributes:
        name: unique in a plan.
        size_bytes: bytes it takes; zero is allowed and conflicts with nothing.
        align: its offset must be a multiple of this many bytes.
        first: the first step at which it is live.
        last: the last step at which it is live (inclusive).
    """

    name: str
    size_bytes: int
    align: int
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.size_bytes < 0:
            raise InternalError(f"buffer {self.name!r} has a negative size: {self.size_bytes}")
        if self.align < 1:
            raise InternalError(f"buffer {self.name!r} has no valid alignment: {self.align}")
        if self.first > self.last:
            raise InternalError(
                f"buffer {self.name!r} ends before it starts: first {self.first}, last {self.last}"
            )


@dataclass(frozen=True)
class ArenaPlan:
    """Where every buffer lies in one arena.

    Attributes:
        offsets: bytes from the start of the arena, by buffer name, in the order of the input.
        height_bytes: bytes the arena needs.
        lower_bound_bytes: no plan can need less: the most bytes live at once (aware of alignment),
            or more where a search has shown it.
        optimal: the height equals the lower bound.
    """

    offsets: Mapping[str, int]
    height_bytes: int
    lower_bound_bytes: int
    optimal: bool
