"""Runs a device function of the CUDA backend in lockstep, as an entry of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.codegen.builder import GpuBuilder
from infc.backends.cuda.codegen.ptx import new_gpu_module
from infc.backends.cuda.kernels.frame import THREADS, WORK_OFFSET, Emitted
from infc.backends.cuda.lockstep import Device, Program, launch, read
from infc.ir.mlir import ir

Emit = Callable[[GpuBuilder], Emitted]


class DeviceFunction:
    """A function of pointers and i32, the last two `cta` and `ctas`.

    Args:
        emit: defines it.
        pointers: how many it takes.
        numbers: how many i32 besides `cta` and `ctas` it takes.
    """

    def __init__(
        self, emit: Emit, pointers: int, numbers: int = 1, *, arch: str = "sm_90a"
    ) -> None:
        with ir.Context(), ir.Location.unknown():
            self.module = ir.Module.create()
            gpu_module = new_gpu_module(self.module, "functions")
            b = GpuBuilder(gpu_module, arch)
            b.declare_shared_memory()
            self.emitted = emit(b)
            types = [b.ptr] * pointers + [b.i32] * numbers
            with b.kernel("entry", types, threads=THREADS) as arguments:
                b.call(self.emitted.name, [*arguments, b.cta(), b.ctas()])
            self.program: Program = read(gpu_module)

    def run(
        self, device: Device, arguments: Sequence[int], *, grid: int, seed: int | None = None
    ) -> None:
        """Run it with `grid` blocks."""
        launch(
            self.program,
            "entry",
            grid=grid,
            threads=THREADS,
            shared_bytes=WORK_OFFSET + self.emitted.work_bytes,
            arguments=arguments,
            device=device,
            seed=seed,
        )


def put(device: Device, array: NDArray[Any]) -> int:
    """The address of a copy of an array."""
    address = int(device.allocate(array.nbytes))
    device.write(address, np.ascontiguousarray(array))
    return address
