"""How many threads a call should have on this machine, where nobody says.

One for each physical core that this process may use, and no more than the processor time that its
control groups grant: threads that share a core share its arithmetic and its memory ports, and a
thread without a processor keeps all others waiting. Read when a model is loaded, for an artifact
may run on another machine than it was compiled on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def default_threads(
    processors: Iterable[int] | None = None,
    *,
    system: Path = Path("/sys"),
    proc: Path = Path("/proc"),
) -> int:
    """At least 1; `processors` are those this process may run on, by default as the system says."""
    if processors is None:
        processors = os.sched_getaffinity(0)
    cores = {_core_of(system, processor) for processor in processors}
    granted = min(_quotas(system, proc), default=float("inf"))
    # Rounded down: a thread too many is stopped for most of every period.
    return int(max(1, min(len(cores), granted)))


def _core_of(system: Path, processor: int) -> str:
    """What names the physical core of a processor; its own number where the system does not say."""
    topology = system / f"devices/system/cpu/cpu{processor}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):
        siblings = _text(topology / name)
        if siblings:
            return siblings
    return str(processor)


def _quotas(system: Path, proc: Path) -> Iterator[float]:
    """Processors' worth of time that each control group around this process may use.

    Version 2 has one hierarchy with `cpu.max`, version 1 one for each controller with a quota and a
    period in files of their own. A path outside of a container's view is looked up at the root of
    what it sees.
    """
    for line in _text(proc / "self/cgroup").splitlines():
        _number, controllers, path = line.split(":", 2)
        if controllers == "":
            root = system / "fs/cgroup"
        elif "cpu" in controllers.split(","):
            root = system / "fs/cgroup" / controllers
        else:
            continue
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            quota = _text(folder / "cpu.max").split() or [
                _text(folder / "cpu.cfs_quota_us"),
                _text(folder / "cpu.cfs_period_us"),
            ]
            # `max` and -1 mean no limit.
            if len(quota) == 2 and all(part.isdecimal() and int(part) > 0 for part in quota):
                yield int(quota[0]) / int(quota[1])


def _text(path: Path) -> str:
    """A file's text without spaces around it; nothing where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
