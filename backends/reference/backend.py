"""The backend object of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import BinaryIO

from infc.backends.reference.runnable import ReferenceRunnable
from infc.backends.reference.weights import weight_sizes
from infc.cost.roofline import Work
from infc.diagnostics import Code, UserError
from infc.ir.attributes import from_attribute
from infc.ir.context import print_module
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import TensorType, storage_bytes
from infc.pipeline.passes import Pipeline
from infc.target.backend import (
    API_VERSION,
    KernelMapping,
    KernelSummary,
    LoadedPrograms,
    Programs,
    WeightData,
)
from infc.target.loader import load_target
from infc.target.schema import Target, TargetStatus


class ReferenceBackend:
    """Implements `infc.target.backend.Backend`."""

    api_version = API_VERSION
    name = "reference"
    storage_types = frozenset(STORAGE_TYPES)

    def targets(self) -> Sequence[TargetStatus]:
        """One target, always there."""
        return [TargetStatus(self.name, self.name, "cpu", True, "")]

    def resolve(self, spec: str) -> Target:
        """The facts of the one target."""
        if spec != self.name:
            raise UserError(
                Code.TARGET_UNKNOWN,
                f"expected the target reference, got '{spec}'",
                hint="the reference has one target",
            )
        return load_target(files(__package__).joinpath("reference.toml"))

    def unsupported(self, op: ir.Operation, target: Target) -> str | None:
        """Everything is supported: the reference is what ops mean."""
        return None

    def splits(self, tensor: TensorType) -> bool:
        """There is nothing to save."""
        return False

    def weight_layout(self, tensor: TensorType, *, split: bool = False) -> tuple[str, int]:
        """Weights stay as they are in the model file."""
        return "source", storage_bytes(tensor.element, [int(d) for d in tensor.shape])

    def activation_forms(self, storage: str, k: int, rows: int, target: Target) -> Sequence[str]:
        """Numbers as they are."""
        return ["f32"]

    def candidates(self, kernel: KernelSummary, target: Target) -> Sequence[KernelMapping]:
        """There is nothing to choose."""
        return [{}]

    def work(self, kernel: KernelSummary, mapping: KernelMapping, target: Target) -> Work:
        """What the kernel does, once."""
        return Work(bytes={target.memories[0].name: kernel.weight_bytes + kernel.activation_bytes})

    def pipeline(self, shared: Pipeline) -> Pipeline:
        """Down to the two programs, no further."""
        return shared.until(Level.PHASE)

    def emit(self, module: ir.Module, target: Target, weights: WeightData) -> Programs:
        """The IR as text, and the tensors it names, one after the other."""
        table: dict[str, list[int]] = {}
        offset = 0
        for source, size_bytes in weight_sizes(module).items():
            table[source] = [offset, size_bytes]
            offset += size_bytes

        def write(out: BinaryIO) -> None:
            for source in table:
                out.write(weights(source).data)

        signature = from_attribute(module.operation.attributes["infc.signature"])
        return Programs(
            members={"module.mlir": print_module(module).encode()},
            write_weights=write,
            weight_bytes=offset,
            signature={**signature, "weights": table},
        )

    def load(self, programs: LoadedPrograms) -> ReferenceRunnable:
        """Parse the IR; weights are dequantised when they are first used."""
        return ReferenceRunnable(programs)
