"""The CPU's own steps of the pipeline: programs to machine functions, then to the llvm dialect.

    module @decode { func @main(...) { call @k1_matmul(...) } }
      -->  func private @decode_k1_matmul(!llvm.ptr, i64, ...) { scf.for ... vector.fma ... }
           func @infc_decode(!llvm.ptr, i32, i32) -> i32

Requires: planned memory with barriers. Guarantees: one flat module whose only exported symbols are
the programs, the two functions of a team and `infc_info`; the declarations of packed weights stay:
they say what the weights file holds.
"""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import Builder
from infc.backends.cpu.codegen.toolchain import lower_to_llvm
from infc.backends.cpu.kernels.kv_layout import kv_layout_of
from infc.backends.cpu.kernels.sync import emit_barrier
from infc.backends.cpu.lowering.abi import ABI_VERSION
from infc.backends.cpu.lowering.entry import arena_bytes, emit_entry, emit_info, thread_bytes
from infc.backends.cpu.lowering.programs import ProgramLowering
from infc.backends.cpu.lowering.team import emit_team
from infc.backends.cpu.target import isa_of
from infc.ir.attributes import from_attribute, get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.passes.memory.check_memory import check_memory
from infc.passes.memory.pack_weights import packed_weights
from infc.passes.walk import programs
from infc.pipeline.passes import FunctionPass, PassContext


def lower_programs(module: ir.Module, ctx: PassContext) -> None:
    """Replace both programs by machine-level functions."""
    check_memory(module)
    b = Builder(module, isa_of(ctx.target))
    signature = from_attribute(module.operation.attributes["infc.signature"])
    offsets = {get(op, "sym_name"): get(op, "offset") for op in packed_weights(module)}
    kv = kv_layout_of(signature)
    emit_barrier(b)
    info = {
        "abi_version": ABI_VERSION,
        "vocab_size": signature["vocab_size"],
        "max_context": signature["max_context"],
        "max_slots": signature["max_slots"],
        "max_threads": signature["max_threads"],
        "kv_bytes": kv.total_bytes,
        "weight_bytes": get(module.operation, "infc.weight_bytes"),
        "max_top_k": signature["max_top_k"],
    }
    names = []
    for number, program in enumerate(list(programs(module))):
        lowering = ProgramLowering(b, program, kv, offsets)
        names.append(emit_entry(b, lowering, signature))
        info |= {
            f"{lowering.phase}_max_tokens": signature["max_tokens"][number],
            f"{lowering.phase}_max_logit_rows": signature["max_logit_rows"][number],
            f"{lowering.phase}_arena_bytes": arena_bytes(lowering),
            f"{lowering.phase}_thread_bytes": thread_bytes(lowering),
            f"{lowering.phase}_kernel_calls": lowering.kernel_calls("main"),
        }
        program.operation.erase()
    emit_team(b, names)
    emit_info(b, info)
    module.operation.attributes["infc.info"] = to_attribute(info)


def _to_llvm(module: ir.Module, ctx: PassContext) -> None:
    lower_to_llvm(module)


LOWER_PROGRAMS = FunctionPass(
    "lower-programs", Level.MEMORY, lower_programs, raises_to=Level.MACHINE
)
LOWER_TO_LLVM = FunctionPass("lower-to-llvm", Level.MACHINE, _to_llvm)
