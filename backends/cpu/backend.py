"""The backend object of the CPU.

What only a compilation needs is imported when it is called: a program that loads an artifact and
runs it waits for neither MLIR nor LLVM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from infc.backends.cpu.runnable import CpuRunnable
from infc.backends.cpu.target import cpu_targets, resolve_cpu
from infc.target.backend import (
    API_VERSION,
    KernelMapping,
    KernelSummary,
    KernelTimer,
    LoadedPrograms,
    Programs,
    WeightData,
)
from infc.target.schema import Target, TargetStatus

if TYPE_CHECKING:
    from infc.cost.machine_profile import MachineProfile
    from infc.cost.roofline import Work
    from infc.ir.mlir import ir
    from infc.ir.types import TensorType
    from infc.pipeline.passes import Pipeline


class CpuBackend:
    """Implements `infc.target.backend.Backend`."""

    api_version = API_VERSION
    name = "cpu"

    @property
    def storage_types(self) -> frozenset[str]:
        """All of them: each has a packed layout."""
        from infc.ir.storage import STORAGE_TYPES

        return frozenset(STORAGE_TYPES)

    def targets(self) -> Sequence[TargetStatus]:
        """This host and the classes of processors."""
        return cpu_targets()

    def resolve(self, spec: str) -> Target:
        """The facts of a target; `cpu` probes this host."""
        return resolve_cpu(spec)

    def unsupported(self, op: ir.Operation, target: Target) -> str | None:
        """Heads the kernels cannot hold; everything else of the graph level has a kernel."""
        from infc.ir.attributes import get

        if op.name == "infc.attention":
            head_dim = get(op, "head_dim")
            if head_dim < 8 or head_dim % 2:
                return f"expected an even head_dim of at least 8, got {head_dim}"
        return None

    def splits(self, tensor: TensorType) -> bool:
        """Matrices with codes of 8 or 6 bits, and of floats."""
        from infc.backends.cpu.packing import splits

        return splits(tensor)

    def weight_layout(self, tensor: TensorType, *, split: bool = False) -> tuple[str, int]:
        """Panels of 16 rows for matrices, in two planes where asked; plain float32 for the rest."""
        from infc.backends.cpu.packing import weight_layout

        return weight_layout(tensor, split)

    def activation_forms(self, storage: str, k: int, rows: int, target: Target) -> Sequence[str]:
        """Integers or bf16 where the processor has products of them."""
        from infc.backends.cpu.mappings import activation_forms
        from infc.backends.cpu.target import isa_of

        return activation_forms(storage, k, rows, isa_of(target))

    def candidates(self, kernel: KernelSummary, target: Target) -> Sequence[KernelMapping]:
        """Tiles, streams and partitions."""
        from infc.backends.cpu.mappings import kernel_candidates

        return kernel_candidates(kernel, target)

    def work(self, kernel: KernelSummary, mapping: KernelMapping, target: Target) -> Work:
        """Bytes, operations and barriers under a mapping."""
        from infc.backends.cpu.mappings import kernel_work

        return kernel_work(kernel, mapping, target)

    def measurable(self, kernel: KernelSummary) -> bool:
        """Products and attention: the others have one mapping."""
        from infc.backends.cpu.measure import measurable

        return measurable(kernel)

    def timer(
        self,
        kernel: KernelSummary,
        mappings: Sequence[KernelMapping],
        target: Target,
        *,
        threads: int,
    ) -> AbstractContextManager[KernelTimer]:
        """The kernel alone on this host, with weights that come from memory."""
        from infc.backends.cpu.measure import kernel_timer

        return kernel_timer(kernel, mappings, target, threads=threads)

    def machine(self) -> Target:
        """This host without what was measured on it."""
        from infc.backends.cpu.probe import probe_host
        from infc.backends.cpu.target import host_target

        return host_target(probe_host())

    def speed_passes(
        self, target: Target, threads: Sequence[int], passes: int
    ) -> tuple[Mapping[int, Sequence[float]], Sequence[float]]:
        """Reads of more than the caches hold, and vector products, in turns."""
        from infc.backends.cpu.speeds import measure_speeds

        return measure_speeds(target, threads, passes)

    def keep_profile(self, profile: MachineProfile) -> Path:
        """In the user's data folder."""
        from infc.backends.cpu.calibration import profile_path, write_profile
        from infc.backends.cpu.probe import probe_host

        path = profile_path(probe_host())
        write_profile(path, profile)
        return path

    def pipeline(self, shared: Pipeline) -> Pipeline:
        """The shared pipeline, then machine code."""
        from infc.backends.cpu.lowering.passes import LOWER_PROGRAMS, LOWER_TO_LLVM
        from infc.pipeline.passes import Pipeline

        return Pipeline((*shared.passes, LOWER_PROGRAMS, LOWER_TO_LLVM))

    def emit(self, module: ir.Module, target: Target, weights: WeightData) -> Programs:
        """One shared object with both programs, its C header, and the weights."""
        from infc.backends.cpu.emission import emit_programs

        return emit_programs(module, target, weights)

    def load(self, programs: LoadedPrograms) -> CpuRunnable:
        """Map the programs."""
        return CpuRunnable(programs)
