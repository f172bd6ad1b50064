"""How much memory this process took."""

from __future__ import annotations

from pathlib import Path


def peak_memory_bytes() -> int | None:
    """Most bytes resident at once since the process started, mapped files included.

    `VmHWM` rather than getrusage, whose figure a process inherits from the one that started it.
    None where the system does not tell.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
