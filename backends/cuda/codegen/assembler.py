"""From PTX to machine code with NVIDIA's assembler, where there is one.

Without it artifacts hold PTX alone, which the driver translates when programs are loaded. The
assembler is `ptxas`, from the search path or from the Python package `nvidia-cuda-nvcc`.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from infc.diagnostics import InternalError

_PACKAGE = "nvidia"
_IN_PACKAGE = ("cu13/bin/ptxas", "cuda_nvcc/bin/ptxas")
_FUNCTION = re.compile(r"(?:Compiling entry function|Function properties for) '?(\w+)'?")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
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
    """
    assembler = find_assembler()
    if assembler is None:
        return None
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "module.ptx", Path(folder) / "module.cubin"
        source.write_text(ptx)
        done = subprocess.run(
            [assembler, "-v", f"-arch={arch}", source.name, "-o", target.name],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        if done.returncode:
            raise InternalError(f"ptxas refuses the program: {done.stderr.strip()[:500]}")
        return Assembled(target.read_bytes(), usage_of(done.stderr))


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
