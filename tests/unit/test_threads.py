"""The number of threads by default, on machines made of files."""

from pathlib import Path

import pytest

from infc.driver.threads import default_threads


class Machine:
    """A tree of `/sys` and `/proc`."""

    def __init__(self, root: Path) -> None:
        self.sys, self.proc = root / "sys", root / "proc"

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def siblings(self, processors: int, step: int, name: str = "core_cpus_list") -> None:
        """Processor n and processor n + step share a core; `step` 0: each has its own."""
        for processor in range(processors):
            first = processor % step if step else processor
            text = f"{first},{first + step}" if step else str(first)
            topology = self.sys / f"devices/system/cpu/cpu{processor}/topology"
            self.write(topology / name, text)

    def groups(self, lines: str, files: dict[str, str]) -> None:
        self.write(self.proc / "self/cgroup", lines)
        for name, text in files.items():
            self.write(self.sys / "fs/cgroup" / name, text)

    def threads(self, processors: int | set[int]) -> int:
        usable = range(processors) if isinstance(processors, int) else processors
        return default_threads(usable, system=self.sys, proc=self.proc)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_two_processors_of_a_core_count_once(machine: Machine, name: str) -> None:
    machine.siblings(16, 8, name)
    assert machine.threads(16) == 8
    assert machine.threads({0, 8}) == 1
    assert machine.threads({0, 1, 2, 9}) == 3


def test_a_system_that_tells_nothing_counts_processors(machine: Machine) -> None:
    assert machine.threads(6) == 6


QUOTAS = [
    pytest.param("0::/", {"cpu.max": "200000 100000"}, 2, id="container"),
    pytest.param("0::/", {"cpu.max": "max 100000"}, 64, id="no-limit"),
    pytest.param("0::/", {"cpu.max": "250000 100000"}, 2, id="two-and-a-half"),
    pytest.param("0::/", {"cpu.max": "50000 100000"}, 1, id="half"),
    pytest.param("0::/", {}, 64, id="root-has-no-file"),
    pytest.param(
        "0::/pods/a/b",
        {"pods/a/b/cpu.max": "max 100000", "pods/a/cpu.max": "300000 100000", "cpu.max": "max 1"},
        3,
        id="parent-limits",
    ),
    pytest.param("0::/docker/unseen", {"cpu.max": "200000 100000"}, 2, id="path-not-mounted"),
    pytest.param(
        "5:memory:/m\n3:cpu,cpuacct:/x\n0::/",
        {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
        4,
        id="version-1",
    ),
    pytest.param(
        "1:cpu:/",
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        64,
        id="version-1-no-limit",
    ),
    pytest.param("0::/", {"cpu.max": "garbage"}, 64, id="unreadable"),
]


@pytest.mark.parametrize(("lines", "files", "expected"), QUOTAS)
def test_a_container_gets_the_processors_it_pays_for(
    machine: Machine, lines: str, files: dict[str, str], expected: int
) -> None:
    machine.siblings(64, 0)
    machine.groups(lines, files)
    assert machine.threads(64) == expected


def test_the_fewest_of_all_limits(machine: Machine) -> None:
    machine.siblings(64, 32)
    machine.groups("0::/", {"cpu.max": "800000 100000"})
    assert machine.threads({0, 32, 1, 33, 2}) == 3
    assert machine.threads(64) == 8


def test_this_machine_has_at_least_one() -> None:
    assert default_threads() >= 1
