"""The backend object of the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from infc.backends.cpu.codegen.toolchain import emit_object, link_shared
from infc.backends.cpu.header import c_header
from infc.backends.cpu.lowering.passes import LOWER_PROGRAMS, LOWER_TO_LLVM
from infc.backends.cpu.mappings import kernel_candidates, kernel_work
from infc.backends.cpu.packing import weight_layout, write_weights
from infc.backends.cpu.runnable import CpuRunnable
from infc.backends.cpu.target import cpu_targets, isa_of, resolve_cpu
from infc.cost.roofline import Work
from infc.ir.attributes import from_attribute, get
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import TensorType
from infc.pipeline.passes import Pipeline
from infc.target.backend import (
    API_VERSION,
    KernelMapping,
    KernelSummary,
    LoadedPrograms,
    Programs,
    WeightData,
)
from infc.target.schema import Target, TargetStatus


class CpuBackend:
    """Implements `infc.target.backend.Backend`."""

    api_version = API_VERSION
    name = "cpu"
    storage_types = frozenset(STORAGE_TYPES)

    def targets(self) -> Sequence[TargetStatus]:
        """This host and the classes of processors."""
        return cpu_targets()

    def resolve(self, spec: str) -> Target:
        """The facts of a target; `cpu` probes this host."""
        return resolve_cpu(spec)

    def unsupported(self, op: ir.Operation, target: Target) -> str | None:
        """Heads the kernels cannot hold; everything else of the graph level has a kernel."""
        if op.name == "infc.attention":
            head_dim = get(op, "head_dim")
            if head_dim < 8 or head_dim % 2:
                return f"expected an even head_dim of at least 8, got {head_dim}"
        return None

    def weight_layout(self, tensor: TensorType) -> tuple[str, int]:
        """Panels of 16 rows for matrices, plain float32 for the rest."""
        return weight_layout(tensor)

    def candidates(self, kernel: KernelSummary, target: Target) -> Sequence[KernelMapping]:
        """Tiles, streams and partitions."""
        return kernel_candidates(kernel, isa_of(target))

    def work(self, kernel: KernelSummary, mapping: KernelMapping, target: Target) -> Work:
        """Bytes, operations and barriers under a mapping."""
        return kernel_work(kernel, mapping, target)

    def pipeline(self, shared: Pipeline) -> Pipeline:
        """The shared pipeline, then machine code."""
        return Pipeline((*shared.passes, LOWER_PROGRAMS, LOWER_TO_LLVM))

    def emit(self, module: ir.Module, target: Target, weights: WeightData) -> Programs:
        """One shared object with both programs, its C header, and the weights."""
        info = from_attribute(module.operation.attributes["infc.info"])
        shared = link_shared(emit_object(_code_only(module), isa_of(target)))
        signature = from_attribute(module.operation.attributes["infc.signature"])
        return Programs(
            members={"model.so": shared, "infc.h": c_header().encode()},
            write_weights=partial(write_weights, module, weights),
            weight_bytes=info["weight_bytes"],
            signature={**signature, "info": info},
        )

    def load(self, programs: LoadedPrograms) -> CpuRunnable:
        """Map the programs."""
        return CpuRunnable(programs)


def _code_only(module: ir.Module) -> ir.Module:
    """A copy without what LLVM has no words for: declarations and attributes of infc."""
    copy = ir.Module.parse(str(module.operation.get_asm(enable_debug_info=False)))
    for op in list(copy.body.operations):
        if op.operation.name.startswith("infc."):
            op.operation.erase()
    attributes = copy.operation.attributes
    for name in list(attributes):
        if name.startswith("infc."):
            del attributes[name]
    return copy


