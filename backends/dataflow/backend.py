"""The backend object of the dataflow accelerator.

What only a compilation needs is imported when it is called: `infc targets` waits for neither MLIR
nor NumPy's larger parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infc.backends.dataflow.presets import BACKEND_NAME, preset_names, resolve_dataflow
from infc.target.backend import (
    API_VERSION,
    CallPrediction,
    KernelMapping,
    KernelSummary,
    LoadedPrograms,
    Programs,
    WeightData,
)
from infc.target.schema import Target, TargetStatus

if TYPE_CHECKING:
    from infc.backends.dataflow.runnable import DataflowRunnable
    from infc.cost.roofline import Work
    from infc.ir.mlir import ir
    from infc.ir.types import TensorType
    from infc.pipeline.passes import Pipeline


class DataflowBackend:
    """Implements `infc.target.backend.Backend`; its programs run on a simulator."""

    api_version = API_VERSION
    name = BACKEND_NAME

    @property
    def storage_types(self) -> frozenset[str]:
        """All but f32: the matrix unit reads codes of 4 and 8 bits, bf16 and f16."""
        from infc.backends.dataflow.needs import storage_types

        return storage_types()

    def targets(self) -> Sequence[TargetStatus]:
        """The presets; each can be simulated on any host."""
        return [
            TargetStatus(name, self.name, "dataflow", True, "simulated") for name in preset_names()
        ]

    def resolve(self, spec: str) -> Target:
        """The facts of a preset or a file, with the number of chips that stands behind `@`."""
        return resolve_dataflow(spec)

    def unsupported(self, op: ir.Operation, target: Target) -> str | None:
        """Units and formats that the target lacks."""
        from infc.backends.dataflow.needs import lacking

        return lacking(op, target)

    def splits(self, tensor: TensorType) -> bool:
        """A part of a vocabulary is not read for itself: all of it is at hand."""
        return False

    def weight_layout(self, tensor: TensorType, *, split: bool = False) -> tuple[str, int]:
        """Matrices are cut into tiles for each core when programs are made; nothing is bufferised
        by the shared passes."""
        from infc.ir.types import storage_bytes

        return "source", storage_bytes(tensor.element, [int(d) for d in tensor.shape])

    def activation_forms(self, storage: str, k: int, rows: int, target: Target) -> Sequence[str]:
        """The one form that the matrix unit multiplies with such weights."""
        from infc.backends.dataflow.mappings import activation_forms

        return activation_forms(storage)

    def candidates(self, kernel: KernelSummary, target: Target) -> Sequence[KernelMapping]:
        """Kernels are mapped together, by the partition of the whole model."""
        return [{}]

    def work(self, kernel: KernelSummary, mapping: KernelMapping, target: Target) -> Work:
        """Bytes and operations, over the whole machine."""
        from infc.backends.dataflow.mappings import kernel_work

        return kernel_work(kernel, target)

    def pipeline(self, shared: Pipeline) -> Pipeline:
        """Down to fused kernels, and how they are spread: buffers, moves and code are made
        together."""
        from infc.backends.dataflow.choose import CHOOSE_PARTITION
        from infc.ir.levels import Level
        from infc.pipeline.passes import Pipeline

        return Pipeline((*shared.until(Level.SCHEDULE).passes, CHOOSE_PARTITION))

    def emit(self, module: ir.Module, target: Target, weights: WeightData) -> Programs:
        """An image for each phase, and the packed weights."""
        from infc.backends.dataflow.emission import emit_programs

        return emit_programs(module, target, weights)

    def predict_call(
        self,
        signature: Mapping[str, Any],
        target: Target,
        phase: str,
        *,
        tokens: int,
        position: int,
        logit_rows: int,
    ) -> CallPrediction:
        """One call of the programs, by the analytic model of the machine."""
        from infc.backends.dataflow.prediction import predict_call
        from infc.backends.dataflow.signature import DataflowSignature
        from infc.target.signature import read_signature

        timed = read_signature(DataflowSignature, signature)["timed"]
        return predict_call(
            timed[phase],
            target,
            tokens=tokens,
            position=position,
            logit_rows=logit_rows,
        )

    def load(self, programs: LoadedPrograms) -> DataflowRunnable:
        """Fill the simulated machine."""
        from infc.backends.dataflow.runnable import DataflowRunnable

        return DataflowRunnable(programs)


BACKEND = DataflowBackend()
