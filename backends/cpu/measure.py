"""Times kernels alone on this host, under the mappings that a compilation may choose from.

In a decode step each weight is read once, after all the others: it comes from memory. So the
calls of a *cold* measurement go through copies of the weights that together are larger than the
caches, in large pages as the artifact's file is mapped in.
"""

from __future__ import annotations

import ctypes
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from infc.backends.cpu.guarded_memory import GuardedMemory
from infc.backends.cpu.kernels.dealing import DEAL_BYTES
from infc.backends.cpu.kernels.sync import BARRIER_BYTES
from infc.backends.cpu.measured import (
    BARRIER,
    COUNT,
    DEAL,
    FIELDS,
    MEASURED,
    ROWS,
    SCRATCH,
    SCRATCH_BYTES,
    TABLE,
    TRACE,
    Operands,
    kernel_library,
    kernel_operands,
    laid_out,
)
from infc.backends.cpu.target import HOST
from infc.backends.cpu.team import Team
from infc.diagnostics import Code, UserError
from infc.target.backend import KernelMapping, KernelSummary, KernelTimer
from infc.target.schema import Target

_LIBRARY_MAPPINGS = 16
"""Mappings in one shared object: few enough that LLVM is quick and frugal with each."""
_CALLS = 4
"""Calls of one mapping in a row, behind one that is not counted; then it is the next one's turn, so
that a slow moment of the machine is bad luck for all."""
_CACHES, _MOST_BYTES = 2, 768 << 20
"""Copies of weights take so many times the largest cache, and no more than this."""
_TICK_SECONDS = 0.01


def measurable(kernel: KernelSummary) -> bool:
    """Whether the kernel can be timed alone."""
    return kernel.kind in MEASURED and not kernel.split


@contextmanager
def kernel_timer(
    kernel: KernelSummary,
    mappings: Sequence[KernelMapping],
    target: Target,
    *,
    threads: int,
    cold: bool = True,
) -> Iterator[KernelTimer]:
    """Times calls of some mappings of a kernel, which take turns; see `KernelTimer`.

    Args:
        kernel: what is measured; `measurable`.
        mappings: some of the kernel's candidates.
        target: this host.
        threads: a call takes from the first one's start to the last one's end.
        cold: weights, or the cache that attention reads, come from memory.

    Raises:
        UserError: the target is not this host (INF3004), or its code cannot be linked (INF3005).
    """
    with KernelBench(kernel, target, threads=threads, cold=cold) as bench:
        numbers = [bench.add(mapping) for mapping in mappings]
        bench.build()
        yield partial(bench.time, numbers)


class KernelBench:
    """One kernel under several mappings, ready to be called."""

    def __init__(
        self, kernel: KernelSummary, target: Target, *, threads: int, cold: bool = True
    ) -> None:
        if target.name != HOST:
            raise UserError(
                Code.TARGET_UNSUPPORTED,
                f"kernels are measured on this host: expected target {HOST!r}, got {target.name!r}",
                hint=f"tune with --target {HOST} on the machine that will run the model",
            )
        self.kernel, self.threads = kernel, threads
        self._target = target
        self._cycle_bytes = 0
        if cold:
            largest = max(memory.size_bytes for memory in target.memories[1:])
            self._cycle_bytes = min(_CACHES * largest, _MOST_BYTES)
        self._waiting: list[KernelMapping] = []
        self._runs: list[_Run] = []
        self._teams: list[Team] = []
        self._cold: _Copies | None = None
        self._shared: _Call | None = None

    def __enter__(self) -> KernelBench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for team in self._teams:
            team.dismiss()

    def add(self, mapping: KernelMapping) -> int:
        """Its number."""
        self._waiting.append(mapping)
        return len(self._runs) + len(self._waiting) - 1

    def build(self) -> None:
        """Generate the code of the mappings that were added since."""
        waiting = iter(self._waiting)
        while part := list(islice(waiting, _LIBRARY_MAPPINGS)):
            library = load_shared(kernel_library(self.kernel, part, self._target))
            team = Team(library, self.threads)
            self._teams.append(team)
            for number, mapping in enumerate(part):
                self._runs.append(_Run(library, team, number, self._call_of(mapping)))
        self._waiting.clear()

    def _call_of(self, mapping: KernelMapping) -> _Call:
        """What a mapping is called with; all those of a product are called alike."""
        if self._shared is not None:
            return self._shared
        operands = kernel_operands(self.kernel, mapping)
        if self._cold is None:  # no mapping changes what it reads
            self._cold = _Copies(operands.cold, self._cycle_bytes)
        call = _Call(operands, self._cold, self.threads)
        if self.kernel.kind == "matmul":
            self._shared = call
        return call

    def time(self, numbers: Sequence[int], repetitions: int) -> list[list[float]]:
        """Seconds of each of so many calls of some mappings, which take turns."""
        self.build()
        found: list[list[float]] = [[] for _ in numbers]
        for _ in range(math.ceil(repetitions / _CALLS)):
            for number, seconds in zip(numbers, found, strict=True):
                seconds += self._runs[number].time(min(_CALLS, repetitions - len(seconds)))
        return found

    def results(self, number: int) -> NDArray[np.uint8]:
        """What calls of a mapping make; 0xFF where they make nothing."""
        self.build()
        outputs = self._runs[number].call.outputs
        for output in outputs:
            output[:] = 0xFF
        self._runs[number].time(1)
        return np.concatenate(outputs)


class _Copies:
    """Some arrays over and over in fresh memory; calls take one copy after the other."""

    def __init__(self, arrays: Sequence[NDArray[np.uint8]], cycle_bytes: int) -> None:
        offsets = laid_out([array.size for array in arrays])
        size = max(offsets[-1], 64)
        self.count = max(1, -(-cycle_bytes // size))
        self._memory = GuardedMemory(self.count * size)
        whole = self._memory.bytes.reshape(self.count, size)
        for offset, array in zip(offsets, arrays, strict=False):
            whole[:, offset : offset + array.size] = array
        base, self._next = self._memory.address, 0
        self._places = [
            [base + copy * size + offset for offset in offsets[:-1]] for copy in range(self.count)
        ]

    def take(self) -> list[int]:
        """The addresses of the next copy's arrays."""
        self._next = (self._next + 1) % self.count
        return self._places[self._next]


class _Call:
    """Operands in memory, and the call that names them."""

    def __init__(self, operands: Operands, cold: _Copies, threads: int) -> None:
        self.threads, self._cold = threads, cold
        self._order = [letter for letter in operands.order if letter in "hc"]
        sizes = [array.size for array in operands.hot]
        rooms = [BARRIER_BYTES, DEAL_BYTES, max(threads * operands.scratch_bytes, 64)]
        offsets = laid_out([*sizes, *rooms])
        self._memory = GuardedMemory(offsets[-1])
        for offset, array in zip(offsets, operands.hot, strict=False):
            self._memory.bytes[offset : offset + array.size] = array
        places = [self._memory.address + offset for offset in offsets]
        self._hot = places[: len(sizes)]
        self.outputs = [
            self._memory.bytes[offset : offset + size]
            for offset, size in list(zip(offsets, sizes, strict=False))[1 : 1 + operands.outputs]
        ]
        barrier, deal, scratch = places[len(sizes) : -1]
        self.fields = np.zeros(FIELDS, np.int64)
        self.fields[[ROWS, BARRIER, DEAL, SCRATCH, SCRATCH_BYTES]] = [
            operands.rows,
            barrier,
            deal,
            scratch,
            operands.scratch_bytes,
        ]

    def pointers(self) -> list[int]:
        """The operands of the next call."""
        hot, cold = iter(self._hot), iter(self._cold.take())
        return [next(hot if letter == "h" else cold) for letter in self._order]


@dataclass(frozen=True)
class _Run:
    """One mapping of the kernel and what it is called with."""

    library: ctypes.CDLL
    team: Team
    number: int
    call: _Call

    def time(self, calls: int) -> list[float]:
        """Seconds of each of some calls, behind one that is not counted."""
        table = np.array([self.call.pointers() for _ in range(1 + calls)], np.int64)
        trace = np.zeros((1 + calls, self.call.threads, 2), np.int64)
        fields = self.call.fields
        fields[[COUNT, TRACE, TABLE]] = [1 + calls, trace.ctypes.data, table.ctypes.data]
        self.team.run(self.number, fields.ctypes.data)
        ticks = trace[1:, :, 1].max(axis=1) - trace[1:, :, 0].min(axis=1)
        return [float(passed) * _tick_seconds(self.library) for passed in ticks]


def load_shared(code: bytes) -> ctypes.CDLL:
    """Code that stays loaded; its file does not stay."""
    with tempfile.TemporaryDirectory(prefix="infc-measure-") as folder:
        path = Path(folder, "kernels.so")
        path.write_bytes(code)
        return ctypes.CDLL(str(path))


@cache
def _tick_seconds(library: ctypes.CDLL) -> float:
    """Seconds of one tick of the counter that kernels are timed with."""
    ticks = library.infc_ticks
    ticks.restype = ctypes.c_int64
    start, first = time.perf_counter(), ticks()
    time.sleep(_TICK_SECONDS)
    seconds, passed = time.perf_counter() - start, ticks() - first
    return float(seconds / int(passed))
