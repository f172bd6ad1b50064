"""The backend object of NVIDIA GPUs.

What only a compilation needs is imported when it is called: a program that loads an artifact and
runs it does not wait for MLIR.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infc.backends.cuda.target import cuda_targets, resolve_cuda
from infc.target.backend import (
    API_VERSION,
    CodeUse,
    Emulator,
    KernelMapping,
    KernelSummary,
    LoadedPrograms,
    Programs,
    WeightData,
)
from infc.target.schema import Target, TargetStatus

if TYPE_CHECKING:
    from infc.backends.cuda.runnable import CudaRunnable
    from infc.cost.roofline import Work
    from infc.ir.mlir import ir
    from infc.ir.types import TensorType
    from infc.pipeline.passes import Pipeline


class CudaBackend:
    """Implements `infc.target.backend.Backend`."""

    api_version = API_VERSION
    name = "cuda"
    kv_dtypes = ("f16", "bf16")
    """What the attention reads."""

    @property
    def storage_types(self) -> frozenset[str]:
        """All of them: each has a packed layout."""
        from infc.ir.storage import STORAGE_TYPES

        return frozenset(STORAGE_TYPES)

    def targets(self) -> Sequence[TargetStatus]:
        """The device of this host and the classes of devices."""
        return cuda_targets()

    def resolve(self, spec: str) -> Target:
        """The facts of a target; `cuda` asks the driver."""
        return resolve_cuda(spec)

    def unsupported(self, op: ir.Operation, target: Target) -> str | None:
        """Heads and caches that the attention cannot hold."""
        from infc.backends.cuda.mappings import lacking

        return lacking(op)

    def splits(self, tensor: TensorType) -> bool:
        """No: the memory is fast enough to read all of a vocabulary."""
        return False

    def weight_layout(self, tensor: TensorType, *, split: bool = False) -> tuple[str, int]:
        """Panels of 16 rows in the order of the matrix unit; plain float32 for the rest."""
        from infc.backends.cuda.packing import weight_layout

        return weight_layout(tensor)

    def activation_forms(self, storage: str, k: int, rows: int, target: Target) -> Sequence[str]:
        """Rows of bf16, whatever the weights are."""
        return ("abf16",)

    def candidates(self, kernel: KernelSummary, target: Target) -> Sequence[KernelMapping]:
        """Streams and tiles of products, parts of attention, rows."""
        from infc.backends.cuda.mappings import kernel_candidates

        return kernel_candidates(kernel, target)

    def work(self, kernel: KernelSummary, mapping: KernelMapping, target: Target) -> Work:
        """Bytes, operations and barriers under a mapping."""
        from infc.backends.cuda.mappings import kernel_work

        return kernel_work(kernel, mapping, target)

    def pipeline(self, shared: Pipeline) -> Pipeline:
        """The shared pipeline, then functions and kernels of the device. Kernels move what they
        need into shared memory themselves."""
        from infc.backends.cuda.lowering.passes import LOWER_PROGRAMS
        from infc.backends.cuda.lowering.spread_buffers import SPREAD_BUFFERS
        from infc.passes.memory.schedule_transfers import SCHEDULE_TRANSFERS
        from infc.pipeline.passes import Pipeline

        kept = tuple(step for step in shared.passes if step is not SCHEDULE_TRANSFERS)
        spread = Pipeline(kept).insert_after("plan-memory", SPREAD_BUFFERS)
        return Pipeline((*spread.passes, LOWER_PROGRAMS))

    def emit(self, module: ir.Module, target: Target, weights: WeightData) -> Programs:
        """PTX of both programs, their machine code where there is an assembler, the weights."""
        from infc.backends.cuda.emission import emit_programs

        return emit_programs(module, target, weights)

    def code_use(self, signature: Mapping[str, Any], phase: str) -> Sequence[CodeUse]:
        """Registers, spills and shared memory of what a program launches."""
        from infc.backends.cuda.signature import CudaSignature, code_use
        from infc.target.signature import read_signature

        return code_use(read_signature(CudaSignature, signature), phase)

    def code_notes(self, signature: Mapping[str, Any], phase: str) -> Sequence[str]:
        """Why a step is not one kernel, and that nobody assembled the programs."""
        from infc.backends.cuda.signature import CudaSignature, code_notes
        from infc.target.signature import read_signature

        return code_notes(read_signature(CudaSignature, signature), phase)

    def emulator(self, module: ir.Module, target: Target) -> Emulator | str:
        """The lockstep interpreter, for models that it is quick enough for."""
        from infc.backends.cuda.emulation import emulator

        return emulator(module, target)

    def load(self, programs: LoadedPrograms) -> CudaRunnable:
        """Put the programs and their weights onto the device."""
        from infc.backends.cuda.runnable import CudaRunnable
        from infc.backends.cuda.runtime.probe import open_device

        return CudaRunnable(programs, open_device())
