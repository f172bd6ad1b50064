"""Programs for AArch64, on such a host or in QEMU's user-mode emulation.

Emulation needs `qemu-aarch64` and `aarch64-linux-gnu-gcc` with its C library (Debian: qemu-user,
gcc-aarch64-linux-gnu, libc6-dev-arm64-cross); tests skip with the reason where one is missing.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.probe import host_features
from infc.backends.cpu.target import isa_of, missing_features, resolve_cpu

SOURCES = Path(__file__).parent / "data" / "emulation"
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SYSROOT = Path("/usr/aarch64-linux-gnu")
PROCESSORS = {"cpu:aarch64": "neoverse-n1", "cpu:aarch64-v8.6": "max,sve=off"}
"""QEMU's processor for each target: one that has what the target needs and little more."""


def problem() -> str | None:
    """Why programs for AArch64 cannot be emulated here, or None."""
    if platform.machine() == "aarch64":
        return "this host is AArch64 itself"
    missing = [name for name in (COMPILER, EMULATOR) if not shutil.which(name)]
    if not missing and not (SYSROOT / "lib" / "ld-linux-aarch64.so.1").exists():
        missing = [str(SYSROOT)]
    return f"needs {' and '.join(missing)}" if missing else None


def isas() -> dict[str, Isa]:
    """The instruction sets of AArch64 whose programs run here, by dot product path."""
    features = host_features()
    found = {}
    for name in PROCESSORS:
        target = resolve_cpu(name)
        if problem() is None or not missing_features(target, features):
            found[isa_of(target).dot_i8] = isa_of(target)
    return found


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="infc-emulated-")


@functools.cache
def built(source: str, *flags: str) -> Path:
    """The program of a C file of `tests/data/emulation` or of a path, for AArch64."""
    program = Path(_folder().name, Path(source).stem)
    command = [COMPILER, "-O2", "-Wall", "-Wextra", "-Werror", *flags, str(SOURCES / source)]
    done = subprocess.run(
        [*command, "-o", str(program), "-ldl", "-lpthread"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return program


def command(target: str, program: Path) -> list[str]:
    """How to start a program on the processor of a target."""
    return [EMULATOR, "-L", str(SYSROOT), "-cpu", PROCESSORS[target], str(program)]


def run(target: str, program: Path, *arguments: str) -> bytes:
    """What a program writes to its standard output."""
    done = subprocess.run([*command(target, program), *arguments], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def unpacked(artifact: Path) -> Path:
    """The artifact as a folder beside it."""
    folder = artifact.with_suffix("")
    if not folder.exists():
        with zipfile.ZipFile(artifact) as file:
            file.extractall(folder)
    return folder


def logits(
    target: str, artifact: Path, tokens: Sequence[int], prefilled: int, threads: int = 1
) -> NDArray[np.float32]:
    """Logits of every token, `[n, vocab]`: `prefilled` of them by prefill, the others by decode."""
    folder = unpacked(artifact)
    program = built("logits.c", f"-I{Path(__file__).parents[1] / 'backends' / 'cpu'}")
    arguments = [str(folder), str(threads), str(prefilled), *map(str, tokens)]
    out = np.frombuffer(run(target, program, *arguments), np.float32)
    return out.reshape(len(tokens), -1)


class EmulatedLibrary:
    """Functions of a shared object, called by name in an emulated process that stays."""

    def __init__(self, isa: Isa, path: Path) -> None:
        target = next(name for name in PROCESSORS if isa_of(resolve_cpu(name)) == isa)
        self._process = subprocess.Popen(
            [*command(target, built("calls.c")), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )

    def call(self, name: str, *operands: NDArray[np.generic] | int) -> None:
        """Call `name`; arrays are changed in place."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        arrays = [operand for operand in operands if not isinstance(operand, int)]
        message = [struct.pack("<q", len(name)), name.encode(), struct.pack("<q", len(operands))]
        for operand in operands:
            if isinstance(operand, int):
                message.append(struct.pack("<qq", -1, operand))
            else:
                message += [struct.pack("<q", operand.nbytes), operand.tobytes()]
        stdin.write(b"".join(message))
        stdin.flush()
        for array in arrays:
            data = stdout.read(array.nbytes)
            assert len(data) == array.nbytes, f"{name} ended the process"
            array.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
