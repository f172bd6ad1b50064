"""What all device functions agree on: who runs them, and where in shared memory they may work."""

from __future__ import annotations

from dataclasses import dataclass

WARPS = 8
"""Warps of a block that work; a persistent kernel has one more, which fetches weights."""
THREADS = 32 * WARPS
"""Threads of a block that work."""
WORKER_BARRIER = 1
"""The barrier of a block at which its workers meet, `b.sync(THREADS, WORKER_BARRIER)`."""
WORK_OFFSET = 1024
"""Where a kernel's own part of shared memory starts; in front of it lie barriers."""


@dataclass(frozen=True)
class Emitted:
    """A device function.

    Attributes:
        name: of the function.
        work_bytes: shared memory that it uses from `WORK_OFFSET` on.
        panels: for a product that reads weights through the ring, how many panels it deals; else 0.
        threads: that run it; where they are not `THREADS` it cannot be part of a persistent kernel.
    """

    name: str
    work_bytes: int = 0
    panels: int = 0
    threads: int = THREADS
