"""What a planner is given and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from infc.diagnostics import InternalError

LARGEST_TOTAL_BYTES: Final = 2**60
"""What the sizes and alignments of one plan may add up to: their sums stay far from 64 bits."""

Stop = Literal["node limit", "time limit", "too many buffers"]
"""Why nothing lower than a plan was found, nor its absence shown."""


@dataclass(frozen=True)
class Buffer:
    """A block of memory that is needed for some steps.

    Attributes:
        name: unique in a plan.
        size_bytes: bytes it takes; zero is allowed and conflicts with nothing.
        align: its offset must be a multiple of this many bytes.
        first: the first step at which it is live.
        last: the last step at which it is live (inclusive).
        in_place_of: a buffer whose offset it takes, and whose last step is its first: the two may
            share memory at that step, as an operation's result and an operand of it.
    """

    name: str
    size_bytes: int
    align: int
    first: int
    last: int
    in_place_of: str | None = None

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
        method: what found the plan: a fast heuristic, or the search.
        stop: what ended the search; None where the plan is optimal. Where it is the time limit,
            another run may give another plan.
    """

    offsets: Mapping[str, int]
    height_bytes: int
    lower_bound_bytes: int
    optimal: bool
    method: Literal["heuristic", "search"]
    stop: Stop | None
