"""The answer: where each piece lies and when, which transfers bring it there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from infc.memory.staging.pieces import Pieces


class Kind(StrEnum):
    """The direction of a transfer."""

    LOAD = "load"
    STORE = "store"


@dataclass(frozen=True)
class Residence:
    """A stay of a piece in the scratchpad, all parts from `first` to `last`, both included.

    Attributes:
        piece: its number.
        offset: bytes from the start of the scratchpad.
        resident: it is there before the first part, from the last time the program ran.
    """

    piece: int
    offset: int
    first: int
    last: int
    resident: bool = False


@dataclass(frozen=True)
class Transfer:
    """A copy of a whole piece between the scratchpad and far memory.

    Attributes:
        residence: its number in the plan.
        queue: the DMA queue that makes it.
        issue: it is put into its queue in front of this part.
        wait: that part does not start before it is done; for a store it may be one past the last.
    """

    kind: Kind
    residence: int
    queue: int
    issue: int
    wait: int


@dataclass(frozen=True)
class Moment:
    """When a part runs, in seconds since the start of the program.

    Attributes:
        ready: the part before it has ended.
        start: all it waits for is done.
    """

    ready: float
    start: float
    end: float


@dataclass(frozen=True)
class StagingPlan:
    """A schedule. In front of part `p`, in this order: stores issued at `p` begin; those waited for
    at `p` end; loads issued at `p` begin, in the order of `transfers`; those waited for end.

    Attributes:
        pieces: what was scheduled.
        transfers: of each queue in the order they were put into it.
        direct: pieces that a part reads where they lie in far memory: `(part, piece)`.
        height_bytes: of the scratchpad that are used.
        moments: of each part, as the scheduler expects them.
        seconds: of the program, its last store included, as the scheduler expects them.
    """

    pieces: Pieces
    residences: tuple[Residence, ...]
    transfers: tuple[Transfer, ...]
    direct: frozenset[tuple[int, int]]
    height_bytes: int
    moments: Sequence[Moment]
    seconds: float

    @property
    def stall_seconds(self) -> float:
        """Time in which no part runs."""
        running = sum(moment.end - moment.start for moment in self.moments)
        return max(0.0, self.seconds - running)

    @property
    def moved_bytes(self) -> int:
        """Bytes over the far memory's pins: transfers, direct reads, and what steps move."""
        pieces = self.pieces.pieces
        moved = sum(pieces[self.residences[t.residence].piece].size_bytes for t in self.transfers)
        moved += sum(pieces[piece].size_bytes for _part, piece in self.direct)
        return moved + sum(part.far_bytes for part in self.pieces.parts)
