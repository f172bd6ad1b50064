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


def _status() -> dict[str, int]:
    """The figures of `/proc/self/status` that are amounts of memory, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    parts = [line.split() for line in lines]
    return {p[0].rstrip(":"): int(p[1]) * 1024 for p in parts if len(p) == 3 and p[2] == "kB"}
