"""Machine-level MLIR to LLVM IR, to an object file, to a shared object."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
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
    """A shared object made of one object file; any C compiler driver or linker will do."""
    driver = next((d for d in ("cc", "gcc", "clang") if shutil.which(d)), None)
    if driver is None:
        raise UserError(
            Code.TOOLCHAIN,
            "no linker found: looked for cc, gcc and clang on PATH",
            hint="install gcc (Debian: apt-get install gcc)",
        )
    with tempfile.TemporaryDirectory(prefix="infc-link-") as folder:
        source, out = Path(folder, "program.o"), Path(folder, "program.so")
        source.write_bytes(object_code)
        result = subprocess.run(
            [
                driver,
                "-shared",
                "-nostartfiles",
                "-Wl,--build-id=none",
                "-Wl,-z,noexecstack",
                "-o",
                str(out),
                str(source),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise UserError(
                Code.TOOLCHAIN,
                f"{driver} could not link the program",
                notes=result.stderr.strip().splitlines()[:5],
            )
        return out.read_bytes()
