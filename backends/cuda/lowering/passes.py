"""The backend's own step of the pipeline: programs become modules of device functions and kernels.

    module @decode { func @main(...) { call @k1_matmul(...) } }
      -->  gpu.module @decode { func private @decode_k1_matmul(!llvm.ptr<1>, ...) { nvvm.mma ... }
                                llvm.func @decode_k1_matmul_entry(...) { ... } {nvvm.kernel}
                                llvm.func @decode_step(...) { ... } {nvvm.kernel} }

Requires: planned memory with barriers. Guarantees: a `gpu.module` for each program, whose kernels
are those that `infc.info` names; the declarations of packed weights stay: they say what the weights
file holds.
"""

from __future__ import annotations

from infc.backends.cuda.call_block import ARRIVALS
from infc.backends.cuda.codegen.builder import GpuBuilder
from infc.backends.cuda.codegen.ptx import new_gpu_module
from infc.backends.cuda.kernels.kv_layout import KVLayout
from infc.backends.cuda.lowering.entry import emit_launches
from infc.backends.cuda.lowering.persistent import emit_persistent, obstacle
from infc.backends.cuda.lowering.programs import ProgramKernels
from infc.backends.cuda.target import arch_of, shared_bytes_of, sm_count
from infc.ir.attributes import from_attribute, get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.passes.memory.check_memory import check_memory
from infc.passes.memory.pack_weights import packed_weights
from infc.passes.walk import programs
from infc.pipeline.passes import FunctionPass, PassContext


def lower_programs(module: ir.Module, ctx: PassContext) -> None:
    """Replace both programs by modules of kernels."""
    check_memory(module)
    signature = from_attribute(module.operation.attributes["infc.signature"])
    offsets = {get(op, "sym_name"): get(op, "offset") for op in packed_weights(module)}
    kv = KVLayout(
        kv_heads=signature["kv_heads"],
        head_dim=signature["head_dim"],
        capacity=tuple(signature["capacity"]),
        slots=signature["max_slots"],
        dtype=signature["kv_dtype"],
    )
    shared_bytes = shared_bytes_of(ctx.target)
    phases = {}
    for program in list(programs(module)):
        b = GpuBuilder(new_gpu_module(module, get(program, "infc.phase")), arch_of(ctx.target))
        b.declare_shared_memory()
        kernels = ProgramKernels(b, program, kv, offsets, shared_bytes)
        phases[kernels.phase] = _emit_program(b, kernels, shared_bytes)
        program.operation.erase()
        if kernels.phase == "decode":
            _record_ring(module, phases["decode"], kernels, sm_count(ctx.target))
    info = {"arch": arch_of(ctx.target), "phases": phases}
    module.operation.attributes["infc.info"] = to_attribute(info)


def _record_ring(
    module: ir.Module, program: dict[str, object], kernels: ProgramKernels, blocks: int
) -> None:
    """Correct the record of a step: how far ahead its ring fetches, if there is one kernel."""
    attributes = module.operation.attributes
    if "infc.report" not in attributes:
        return  # a dump without it
    report, ring = from_attribute(attributes["infc.report"]), kernels.ring
    for kernel in report["decode"]["kernels"]:
        if "persistent" not in program or ring is None:
            kernel.pop("ahead", None)
        elif "ahead" in kernel:
            kernel["ahead"]["bytes"] = blocks * ring.slots * ring.slot_bytes
    attributes["infc.report"] = to_attribute(report)


def _emit_program(b: GpuBuilder, kernels: ProgramKernels, shared_bytes: int) -> dict[str, object]:
    """Entries of all kernels, and the persistent kernel of a decode program: a `PhaseProgram`."""
    program: dict[str, object] = {
        "arena_bytes": kernels.space_bytes("arena"),
        "thread_bytes": kernels.thread_bytes,
        "scratch_bytes": kernels.scratch_bytes,
        "counter_bytes": ARRIVALS + 4 * kernels.arrivals,
        "launches": emit_launches(b, kernels),
        "reason": "",
        "kernels": [step.kernel for step in kernels.steps()],
    }
    if kernels.phase == "decode":
        program["reason"] = obstacle(kernels, shared_bytes)
        if not program["reason"]:
            program["persistent"] = emit_persistent(b, kernels)
    return program


LOWER_PROGRAMS = FunctionPass(
    "lower-programs", Level.MEMORY, lower_programs, raises_to=Level.MACHINE
)
