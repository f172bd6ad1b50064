"""Object files to a shared object, with the linker of their architecture."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from infc.backends.cpu.codegen.objects import read_object
from infc.diagnostics import Code, UserError


def link_shared(object_code: bytes, *more: bytes) -> bytes:
    """A shared object made of ELF object files, for the architecture that the first one says.

    Any C compiler driver or linker of that architecture will do.

    Raises:
        UserError: there is none, or it fails (INF3005).
    """
    architecture = read_object(object_code).architecture
    problem = linker_problem(architecture)
    if problem is not None:
        raise UserError(Code.TOOLCHAIN, problem, hint=_hint(architecture))
    command = next([n, *flags] for n, flags in _linkers(architecture).items() if shutil.which(n))
    with tempfile.TemporaryDirectory(prefix="infc-link-") as folder:
        sources = [Path(folder, f"program{index}.o") for index in range(1 + len(more))]
        for source, code in zip(sources, (object_code, *more), strict=True):
            source.write_bytes(code)
        out = Path(folder, "program.so")
        result = subprocess.run(
            [*command, "-o", out, *sources], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise UserError(
                Code.TOOLCHAIN,
                f"{command[0]} could not link the program",
                notes=result.stderr.strip().splitlines()[:5],
            )
        return out.read_bytes()


def linker_problem(architecture: str) -> str | None:
    """Why programs for `x86_64` or `aarch64` cannot be linked here, or None."""
    names = list(_linkers(architecture))
    if any(shutil.which(name) for name in names):
        return None
    return f"no linker found: looked for {', '.join(names[:-1])} and {names[-1]} on PATH"


def _linkers(architecture: str) -> dict[str, list[str]]:
    """What can link for an architecture, with its flags, the best one first."""
    driver = ["-shared", "-nostartfiles", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]
    if architecture == platform.machine():
        return dict.fromkeys(("cc", "gcc", "clang"), driver)
    linker = ["-shared", "--build-id=none", "-z", "noexecstack"]
    return {f"{architecture}-linux-gnu-gcc": driver, "ld.lld": linker}


def _hint(architecture: str) -> str:
    if architecture == platform.machine():
        return "install gcc (Debian: apt-get install gcc)"
    package = f"gcc-{architecture.replace('_', '-')}-linux-gnu"
    return f"install a cross compiler (Debian: apt-get install {package})"
