"""Machine-level MLIR to LLVM IR, to an object file, to a shared object."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm_binding

from infc.backends.cpu.codegen.isa import Isa
from infc.diagnostics import Code, InternalError, UserError
from infc.ir.mlir import PassManager, ir, llvm

LOWER_TO_LLVM = (
    "builtin.module(canonicalize,loop-invariant-code-motion,cse,convert-vector-to-scf,"
    "convert-scf-to-cf,convert-vector-to-llvm,expand-strided-metadata,lower-affine,"
    "convert-to-llvm,reconcile-unrealized-casts)"
)
"""MLIR tidies the code while loops are still loops. LLVM's own passes over the IR make it no
faster after that and take twice the time of code generation, so they do not run."""

_ARCHITECTURES = {62: "x86_64", 183: "aarch64"}
"""The machine of an ELF file (EM_X86_64, EM_AARCH64): two bytes, 18 bytes in."""


@cache
def _initialise() -> None:
    llvm_binding.initialize_all_targets()
    llvm_binding.initialize_all_asmprinters()


def lower_to_llvm(module: ir.Module) -> None:
    """Lower scf, vector, arith, math and func to the llvm dialect, in place."""
    PassManager.parse(LOWER_TO_LLVM).run(module.operation)


def emit_object(module: ir.Module | ir.Operation, isa: Isa) -> bytes:
    """Object code of a module that is in the llvm dialect; the same input gives the same bytes."""
    _initialise()
    text = llvm.translate_module_to_llvmir(module.operation)
    try:
        parsed = llvm_binding.parse_assembly(text)
        machine = llvm_binding.Target.from_triple(isa.triple).create_target_machine(
            cpu=isa.cpu, features=isa.features, opt=3, reloc="pic", codemodel="small"
        )
    except RuntimeError as error:
        raise InternalError(f"LLVM refused the module: {error}") from error
    parsed.triple = isa.triple
    parsed.data_layout = str(machine.target_data)
    return bytes(machine.emit_object(parsed))


def link_shared(object_code: bytes) -> bytes:
    """A shared object made of one ELF object file, for the architecture that the file says.

    Any C compiler driver or linker of that architecture will do.

    Raises:
        UserError: there is none, or it fails (INF3005).
    """
    architecture = _ARCHITECTURES[int.from_bytes(object_code[18:20], "little")]
    command = find_linker(architecture)
    if command is None:
        raise UserError(
            Code.TOOLCHAIN,
            f"no linker found: looked for {_enumerated(_linkers(architecture))} on PATH",
            hint=f"install a C compiler (Debian: apt-get install {_package(architecture)})",
        )
    with tempfile.TemporaryDirectory(prefix="infc-link-") as folder:
        source, out = Path(folder, "program.o"), Path(folder, "program.so")
        source.write_bytes(object_code)
        result = subprocess.run(
            [*command, "-o", str(out), str(source)], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise UserError(
                Code.TOOLCHAIN,
                f"{command[0]} could not link the program",
                notes=result.stderr.strip().splitlines()[:5],
            )
        return out.read_bytes()


def find_linker(architecture: str) -> list[str] | None:
    """The command, less its files, that makes shared objects for `x86_64` or `aarch64`."""
    for name, flags in _linkers(architecture).items():
        if shutil.which(name):
            return [name, *flags]
    return None


def _linkers(architecture: str) -> dict[str, list[str]]:
    """What can link for an architecture, with its flags, the best one first."""
    driver = ["-shared", "-nostartfiles", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]
    if architecture == platform.machine():
        return dict.fromkeys(("cc", "gcc", "clang"), driver)
    linker = ["-shared", "--build-id=none", "-z", "noexecstack"]
    return {f"{architecture}-linux-gnu-gcc": driver, "ld.lld": linker}


def _package(architecture: str) -> str:
    if architecture == platform.machine():
        return "gcc"
    return f"gcc-{architecture.replace('_', '-')}-linux-gnu"


def _enumerated(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}"
