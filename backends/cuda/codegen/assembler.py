"""From PTX to machine code with NVIDIA's assembler, where there is one.

Without it artifacts hold PTX alone, which the driver translates when programs are loaded. The
assembler is `ptxas`, from the search path or from the Python package `nvidia-cuda-nvcc`.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from infc.diagnostics import Code, InternalError, UserError

_PACKAGE = "nvidia"
_IN_PACKAGE = ("cu13/bin/ptxas", "cuda_nvcc/bin/ptxas")
_FUNCTION = re.compile(r"(?:Compiling entry function|Function properties for) '?(\w+)'?")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_ELF_HEADER = struct.Struct("<32xQQ6xHHHH2x")
"""Of a 64-bit ELF file where its tables of segments and of sections are; of each table the size of
an entry and how many there are."""
_SECTION = struct.Struct("<4xI16xQQ24x")
"""Of a section its kind, where it is, its bytes."""
_NO_BITS = 8
_USED = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Usage:
    """What the assembler says of a function.

    Attributes:
        stack: bytes of local memory of a thread.
        spill_stores, spill_loads: bytes of registers that it stores there and loads.
        registers: of a thread; of entry points alone, with all that they call.
    """

    stack: int
    spill_stores: int
    spill_loads: int
    registers: int = 0


@dataclass(frozen=True)
class Assembled:
    """Machine code of a module, and what its functions use."""

    code: bytes
    functions: Mapping[str, Usage]


@cache
def find_assembler() -> Path | None:
    """The assembler, if there is one."""
    if found := shutil.which("ptxas"):
        return Path(found)
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        for place in _IN_PACKAGE:
            if (path := Path(folder) / place).is_file():
                return path
    return None


def assemble(ptx: str, arch: str) -> Assembled | None:
    """Machine code of PTX for an architecture (`sm_90a`); None where there is no assembler.

    Raises:
        InternalError: the assembler refuses the PTX.
        UserError: its files cannot be written (INF4006), or it cannot be started
            (INF3005).
    """
    assembler = find_assembler()
    if assembler is None:
        return None
    try:
        with TemporaryDirectory() as folder:
            return _assemble_in(Path(folder), assembler, ptx, arch)
    except OSError as error:
        raise UserError(
            Code.OUTPUT,
            f"cannot write the assembler's files: {_problem(error)}",
            location=gettempdir(),
            hint="free some space there, or name another folder in TMPDIR",
        ) from error


def _assemble_in(folder: Path, assembler: Path, ptx: str, arch: str) -> Assembled:
    source, target = folder / "module.ptx", folder / "module.cubin"
    source.write_text(ptx)
    try:
        done = subprocess.run(
            [assembler, "-v", f"-arch={arch}", source.name, "-o", target.name],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
    except OSError as error:
        raise UserError(
            Code.TOOLCHAIN,
            f"the assembler cannot be started: {_problem(error)}",
            location=str(assembler),
            hint="install it again, or take it off the search path: without one the device's "
            "driver translates the programs",
        ) from error
    if done.returncode:
        raise InternalError(f"ptxas refuses the program: {done.stderr.strip()[:500]}")
    code = target.read_bytes()
    if not _is_whole(code):  # the assembler does not mind that a disk is full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return Assembled(code, usage_of(done.stderr))


def _is_whole(code: bytes) -> bool:
    """Whether both tables and all sections of an ELF file are in it."""
    if len(code) < _ELF_HEADER.size:
        return False
    segments, start, segment_size, segment_count, size, count = _ELF_HEADER.unpack_from(code)
    if max(segments + segment_size * segment_count, start + size * count) > len(code):
        return False
    sections = (_SECTION.unpack_from(code, start + size * number) for number in range(count))
    return all(kind == _NO_BITS or at + length <= len(code) for kind, at, length in sections)


def _problem(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def usage_of(report: str) -> dict[str, Usage]:
    """What `ptxas -v` says, by function."""
    stacks: dict[str, tuple[int, int, int]] = {}
    registers: dict[str, int] = {}
    entry = name = ""
    for line in report.splitlines():
        if found := _FUNCTION.search(line):
            name = found[1]
            if "entry" in line:
                entry = name
        elif found := _STACK.search(line):
            stacks[name] = (int(found[1]), int(found[2]), int(found[3]))
        elif found := _USED.search(line):
            registers[entry] = int(found[1])
    return {name: Usage(*stack, registers.get(name, 0)) for name, stack in sorted(stacks.items())}
