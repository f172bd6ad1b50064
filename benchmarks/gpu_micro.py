"""What it costs to launch a kernel, and to let all blocks of one meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from infc.backends.cuda.runtime.driver import Device, KernelLaunch

LAUNCHES = 500
BARRIERS = 2000
REPEATS = 7


def write_micro(folder: Path, arch: str) -> None:
    """Machine code of an empty kernel, and of one of barriers alone; needs MLIR."""
    from infc.backends.cuda.codegen.assembler import assemble
    from infc.backends.cuda.codegen.builder import GpuBuilder
    from infc.backends.cuda.codegen.ptx import new_gpu_module, to_ptx
    from infc.backends.cuda.kernels.frame import THREADS
    from infc.backends.cuda.lowering.persistent import BARRIER, emit_barrier
    from infc.ir.mlir import ir

    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        b = GpuBuilder(new_gpu_module(module, "micro"), arch)
        emit_barrier(b)
        with b.kernel("nothing", [b.ptr], threads=THREADS):
            pass
        with b.kernel("barriers", [b.ptr, b.i32], threads=THREADS) as (counter, count):
            b.loop(0, count, body=lambda i: b.call(BARRIER, [counter, b.add(i, 1)]))
        (ptx,) = to_ptx(module, arch).values()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "micro.ptx").write_text(ptx)
    assembled = assemble(ptx, arch)
    if assembled is not None:
        (folder / "micro.cubin").write_bytes(assembled.code)


def measure_micro(folder: Path, device: Device) -> dict[str, float]:
    """Seconds of a launch, of a kernel in a graph, of a barrier of all multiprocessors, and of
    copying a few bytes each way with a wait behind it."""

    def member(name: str) -> memoryview | None:
        path = folder / name
        return memoryview(path.read_bytes()) if path.exists() else None

    module = device.load_module("micro", member)
    grid, threads = device.facts.multiprocessors, 256
    counter = device.allocate(256)
    nothing = KernelLaunch(device.function(module, "nothing", 0), grid, threads, 0, [counter])
    graph = device.capture([nothing] * LAUNCHES)
    function = device.function(module, "barriers", 0)
    meet = KernelLaunch(function, grid, threads, 0, [counter, BARRIERS], cooperative=True)

    def launch_all() -> None:
        for _ in range(LAUNCHES):
            device.launch(nothing)

    def meet_all() -> None:
        device.fill(counter, 256, 0)
        device.launch(meet)

    small = device.pinned(256)

    def there_and_back() -> None:
        for _ in range(LAUNCHES):
            device.upload(counter, small)
            device.download(small, counter)
            device.synchronize()

    found = {
        "launch_seconds": _median(device, launch_all) / LAUNCHES,
        "graph_kernel_seconds": _median(device, lambda: device.launch_graph(graph)) / LAUNCHES,
        "barrier_seconds": _median(device, meet_all) / BARRIERS,
        "round_trip_seconds": _median(device, there_and_back) / LAUNCHES,
    }
    device.free(counter)
    return found


def _median(device: Device, run: Any) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = device.record()
        run()
        stop = device.record()
        device.synchronize()
        seconds.append(device.seconds(start, stop))
        device.forget(start)
        device.forget(stop)
    return float(np.median(seconds))
