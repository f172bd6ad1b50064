"""Machine-level MLIR to LLVM IR and to an object file."""

from __future__ import annotations

from functools import cache

import llvmlite.binding as llvm_binding

from infc.backends.cpu.codegen.isa import Isa
from infc.diagnostics import InternalError
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


def code_only(module: ir.Module) -> ir.Operation:
    """A copy without what LLVM has no words for: declarations and attributes of infc."""
    copy = module.operation.clone(ip=False)
    for op in list(copy.regions[0].blocks[0].operations):
        if op.operation.name.startswith("infc."):
            op.operation.erase()
    attributes = copy.attributes
    for name in list(attributes):
        if name.startswith("infc."):
            del attributes[name]
    return copy


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
