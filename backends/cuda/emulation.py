"""Programs for a device that is not here, executed by the lockstep interpreter: `--verify`."""

from __future__ import annotations

from infc.backends.cuda.lockstep.device import LockstepDevice
from infc.backends.cuda.lockstep.reading import read
from infc.backends.cuda.runnable import CudaRunnable
from infc.backends.cuda.runtime.driver import DeviceFacts
from infc.backends.cuda.runtime.images import capability_of
from infc.backends.cuda.target import arch_of, shared_bytes_of
from infc.diagnostics.quantities import human_bytes
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.target.backend import Emulator, LoadedPrograms
from infc.target.runnable import Runnable
from infc.target.schema import Target

MOST_WEIGHT_BYTES = 64 << 20
"""Weights of models that are executed, which takes some two seconds a MiB."""
_MULTIPROCESSORS = 4
"""Results do not depend on how many there are, only what the interpreter takes."""


def emulator(module: ir.Module, target: Target) -> Emulator | str:
    """What runs the kernels of a machine-level module, or why nothing does."""
    weight_bytes = get(module.operation, "infc.weight_bytes")
    if weight_bytes > MOST_WEIGHT_BYTES:
        return (
            f"the interpreter of kernels takes models of up to {human_bytes(MOST_WEIGHT_BYTES)} of "
            f"weights, this one has {human_bytes(weight_bytes)}"
        )
    programs = {
        get(op, "sym_name"): read(op)
        for op in module.body.operations
        if op.operation.name == "gpu.module"
    }
    facts = _facts(target)

    def load(emitted: LoadedPrograms) -> Runnable:
        return CudaRunnable(emitted, LockstepDevice(programs, facts))

    return Emulator(load, "the kernels were executed by an interpreter, as they are before LLVM")


def _facts(target: Target) -> DeviceFacts:
    """A device that the programs of a target are for."""
    hbm, l2, smem = (target.memory(name) for name in ("hbm", "l2", "smem"))
    return DeviceFacts(
        name=target.name,
        capability=capability_of(arch_of(target)),
        multiprocessors=_MULTIPROCESSORS,
        memory_bytes=hbm.size_bytes,
        memory_bytes_per_s=hbm.bandwidth_bytes_per_s,
        l2_bytes=l2.size_bytes,
        shared_bytes_per_sm=smem.size_bytes,
        shared_bytes_per_block=shared_bytes_of(target),
        cooperative=True,
        cuda=(99, 0),
    )
