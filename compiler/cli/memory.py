"""How much memory this process takes, by what it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Resident:
    """Bytes resident now; None where the system does not tell.

    Attributes:
        mapped_bytes: of files: the weights, programs and libraries, which the system may drop and
            read again.
        private_bytes: of the process itself: arena, KV cache, Python.
    """

    mapped_bytes: int | None
    private_bytes: int | None


def peak_memory_bytes() -> int | None:
    """Most bytes resident at once since the process started, mapped files included.

    `VmHWM` rather than getrusage, whose figure a process inherits from the one that started it.
    None where the system does not tell.
    """
    return _status().get("VmHWM")


def resident_memory() -> Resident:
    """What is resident, mapped files and the rest apart."""
    status = _status()
    return Resident(status.get("RssFile"), status.get("RssAnon"))


class OwnMemory:
    """What a program takes of this process, while something runs that only measures it.

    Made when the program is ready; what comes until `measuring` is not its own.
    """

    def __init__(self) -> None:
        self._peak, self._before = peak_memory_bytes(), resident_memory()
        self._ready = self._before

    def measuring(self) -> None:
        """Say that what measures exists now."""
        self._ready = resident_memory()

    def resident(self) -> Resident:
        """Of the program, now."""
        now = resident_memory()
        return Resident(
            _without(now.mapped_bytes, self._before.mapped_bytes, self._ready.mapped_bytes),
            _without(now.private_bytes, self._before.private_bytes, self._ready.private_bytes),
        )

    def peak_bytes(self) -> int | None:
        """The peak up to now; what the program has come to use stays resident."""
        now = self.resident()
        known = (self._peak, now.mapped_bytes, now.private_bytes)
        if any(figure is None for figure in known):
            return None
        return max(self._peak or 0, (now.mapped_bytes or 0) + (now.private_bytes or 0))


def _without(now: int | None, before: int | None, ready: int | None) -> int | None:
    """`now`, but for what came between."""
    return None if now is None or before is None or ready is None else now - (ready - before)


def _status() -> dict[str, int]:
    """The figures of `/proc/self/status` that are amounts of memory, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    parts = [line.split() for line in lines]
    return {p[0].rstrip(":"): int(p[1]) * 1024 for p in parts if len(p) == 3 and p[2] == "kB"}
