"""What this host is: read from the operating system and from LLVM, in one place.

Nothing here measures: speeds come from the target file of the host's class until the machine is
calibrated.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CPUINFO_FLAGS: Mapping[str, str] = {
    "avx": "avx",
    "avx2": "avx2",
    "avx512bf16": "avx512_bf16",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512f": "avx512f",
    "avx512vl": "avx512vl",
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "cx16": "cx16",
    "f16c": "f16c",
    "fma": "fma",
    "lzcnt": "abm",
    "movbe": "movbe",
    "popcnt": "popcnt",
    "sahf": "lahf_lm",
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "ssse3": "ssse3",
}
"""LLVM's name to Linux's, of every feature the code generator may rely on beyond x86-64 itself."""

_ALWAYS = frozenset({"64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2"})
"""Part of x86-64; turning them off would leave no target at all."""


@dataclass(frozen=True)
class Cache:
    """One level of data cache: bytes of one instance, and how many the usable cores have."""

    level: int
    size_bytes: int
    count: int


@dataclass(frozen=True)
class Host:
    """The machine this process runs on.

    Attributes:
        machine: `x86_64`, `aarch64`, ...
        cpu: LLVM's name of the processor.
        features: features of `CPUINFO_FLAGS` that both LLVM and the operating system report, so
            none that the kernel or a hypervisor hides.
        disabled: other features of LLVM's that the processor's name could imply; generated code
            must not use them.
        cores: those this process may run on.
        caches: data and unified caches by level; empty where the system does not tell.
        memory_bytes: of the machine, to the nearest GiB; 0 where the system does not tell.
    """

    machine: str
    cpu: str
    features: frozenset[str]
    disabled: frozenset[str]
    cores: int
    caches: tuple[Cache, ...]
    memory_bytes: int


def host_features() -> frozenset[str]:
    """Features of `CPUINFO_FLAGS` that the operating system offers, by LLVM's names.

    What loading an artifact asks; LLVM itself is not needed for it.
    """
    flags = _cpuinfo_flags(Path("/proc/cpuinfo"))
    return frozenset(name for name, flag in CPUINFO_FLAGS.items() if flag in flags)


def probe_host() -> Host:
    """Read all facts anew; takes about a millisecond and gives the same answer each time."""
    import llvmlite.binding as llvm  # here: a program that only runs models never probes

    reported = {name for name, present in llvm.get_host_cpu_features().items() if present}
    known = set(llvm.get_host_cpu_features())
    features = host_features() & reported
    cores = sorted(os.sched_getaffinity(0))
    return Host(
        machine=platform.machine(),
        cpu=llvm.get_host_cpu_name(),
        features=features,
        disabled=frozenset(known - features - _ALWAYS),
        cores=len(cores),
        caches=_caches(Path("/sys/devices/system/cpu"), cores),
        memory_bytes=_memory_bytes(Path("/proc/meminfo")),
    )


def _cpuinfo_flags(path: Path) -> frozenset[str]:
    """The flags that all processors share."""
    lists = [
        frozenset(line.partition(":")[2].split())
        for line in path.read_text().splitlines()
        if line.partition(":")[0].strip() == "flags"
    ]
    return frozenset.intersection(*lists) if lists else frozenset()


def _caches(root: Path, cores: list[int]) -> tuple[Cache, ...]:
    found: dict[tuple[int, str], int] = {}
    for core in cores:
        for folder in sorted((root / f"cpu{core}" / "cache").glob("index*")):
            kind, level, size, shared = (
                (folder / name).read_text().strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
            if kind != "Instruction" and size.endswith("K"):
                found[int(level), shared] = int(size[:-1]) * 1024
    levels = sorted({level for level, _ in found})
    by_level = {level: [size for (at, _), size in found.items() if at == level] for level in levels}
    return tuple(Cache(level, min(sizes), len(sizes)) for level, sizes in by_level.items())


def _memory_bytes(path: Path) -> int:
    """Rounded, for the kernel's own share differs a little from one start to the next."""
    for line in path.read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == "MemTotal":
            gib = round(int(amount.split()[0]) / 2**20)
            return max(gib, 1) * 2**30
    return 0
