"""What this host is: read from the operating system and from LLVM, in one place.

Nothing here measures: speeds come from the target file of the host's class until the machine is
calibrated.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_X86_64: Mapping[str, str] = {
    "amx-bf16": "amx_bf16",
    "amx-tile": "amx_tile",
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
_AARCH64: Mapping[str, str] = {
    "bf16": "bf16",
    "complxnum": "fcma",
    "crc": "crc32",
    "dotprod": "asimddp",
    "fp-armv8": "fp",
    "fullfp16": "asimdhp",
    "i8mm": "i8mm",
    "lse": "atomics",
    "neon": "asimd",
    "rcpc": "lrcpc",
    "rdm": "asimdrdm",
    "sve": "sve",
    "sve2": "sve2",
}
CPUINFO_FLAGS: Mapping[str, Mapping[str, str]] = {"x86_64": _X86_64, "aarch64": _AARCH64}
"""By architecture, LLVM's name to Linux's, of every feature the code generator may rely on beyond
the architecture itself."""

_ALWAYS = frozenset({"64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2", "neon", "fp-armv8"})
"""Part of the architectures; turning them off would leave no target at all."""


ARCH_PRCTL = 158  # the system call's number on x86-64
REQUEST_PERMISSION = 0x1023  # ARCH_REQ_XCOMP_PERM
TILE_DATA = 18  # XFEATURE_XTILEDATA


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
        features: features of `CPUINFO_FLAGS` that the operating system reports (and on x86-64 LLVM
            too), so none that the kernel or a hypervisor hides.
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
    names = CPUINFO_FLAGS.get(platform.machine(), {})
    found = frozenset(name for name, flag in names.items() if flag in flags)
    if "amx-tile" in found and not _may_use_tiles():
        found = frozenset(name for name in found if not name.startswith("amx"))
    return found


def _may_use_tiles() -> bool:
    """Ask the system for the use of tile registers, which are large: it saves them from now on.

    Every process must ask before its first tile instruction (Linux 5.16, arch_prctl); a sandbox may
    refuse.
    """
    result = ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA)
    return int(result) == 0


def probe_host() -> Host:
    """Read all facts anew; takes about a millisecond and gives the same answer each time."""
    import llvmlite.binding as llvm  # here: a program that only runs models never probes

    machine, features = platform.machine(), host_features()
    if machine == "x86_64":
        reported = llvm.get_host_cpu_features()
        known = set(reported)
        features &= {name for name, present in reported.items() if present}
    else:  # there LLVM knows only some of the features, or none
        known = set(CPUINFO_FLAGS.get(machine, {}))
    cores = sorted(os.sched_getaffinity(0))
    return Host(
        machine=machine,
        cpu=llvm.get_host_cpu_name(),
        features=features,
        disabled=frozenset(known - features - _ALWAYS),
        cores=len(cores),
        caches=_caches(Path("/sys/devices/system/cpu"), cores),
        memory_bytes=_memory_bytes(Path("/proc/meminfo")),
    )


def _cpuinfo_flags(path: Path) -> frozenset[str]:
    """The flags that all processors share; x86-64 and AArch64 call them by different names."""
    lists = [
        frozenset(line.partition(":")[2].split())
        for line in path.read_text().splitlines()
        if line.partition(":")[0].strip() in ("flags", "Features")
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
