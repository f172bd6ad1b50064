"""What this host gives at its best: read bandwidth by threads, and the rate of vector products.

Both are measured with code generated for the host. A shared machine is slower at times, never
faster than it is: the figures are quantiles of many short passes, and how far these lie apart is
part of the answer.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.codegen.linking import link_shared
from infc.backends.cpu.codegen.toolchain import emit_object, lower_to_llvm
from infc.backends.cpu.guarded_memory import GuardedMemory
from infc.backends.cpu.measure import load_shared
from infc.backends.cpu.target import isa_of
from infc.ir.context import context
from infc.ir.mlir import ir
from infc.target.schema import Target

_LINE = 64
_READS = {"infc_read_ahead": 4096, "infc_read": 0}
"""How far each of the reads prefetches ahead of itself, in bytes."""
_LINES = 4
"""Lines read in a turn of the loop, each into a sum of its own."""
_CHAINS = 10
"""Vector sums that wait for nothing but themselves: more than latency times units, and few enough
for the sixteen registers of AVX2."""
_TURNS = 200_000
_CHUNK_BYTES = 16 << 20
"""Read in a pass: about a millisecond, which an undisturbed moment is long enough for."""


_CACHES, _MOST_BYTES = 2, 1 << 30
"""The buffer is so many times the largest cache, and no more than this."""


class SpeedProbe:
    """Reads and multiplies on threads of this process.

    Args:
        isa: of this host.
        buffer_bytes: what is read from, more than the caches hold.
    """

    def __init__(self, isa: Isa, buffer_bytes: int) -> None:
        self._library = load_shared(_code(isa))
        for name in (*_READS, "infc_multiply"):
            function = getattr(self._library, name)
            function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
            function.restype = None
        self._operations = 2 * _CHAINS * (isa.vector_bytes // 4)
        size = max(buffer_bytes // _CHUNK_BYTES, 2) * _CHUNK_BYTES
        self._buffer = GuardedMemory(size).bytes
        self._buffer[::4096] = 1  # every page exists
        self._next = 0

    def read(self, threads: int) -> float:
        """Bytes a second of threads that each read another part of the buffer, in one pass.

        With a prefetch or without: on some processors it helps, on others it is in the way.
        """
        return max(self._read(getattr(self._library, name), threads) for name in _READS)

    def _read(self, read: Callable[..., None], threads: int) -> float:
        base, size = self._buffer.ctypes.data, self._buffer.size
        share = _CHUNK_BYTES // threads // 4096 * 4096
        starts = []
        for _ in range(threads):
            if self._next + share > size:
                self._next = 0
            starts.append(base + self._next)
            self._next += share
        seconds = _together([_bound(read, start, share) for start in starts])
        return share * threads / seconds

    def multiply(self, threads: int) -> float:
        """Operations in float32 a second, a multiply-add counts as two."""
        multiply = self._library.infc_multiply
        seconds = _together([_bound(multiply, 0, _TURNS) for _ in range(threads)])
        return self._operations * _TURNS * threads / seconds


def measure_speeds(
    target: Target, threads: Sequence[int], passes: int
) -> tuple[dict[int, list[float]], list[float]]:
    """Bytes a second of each pass by threads, and operations in float32 a second of one thread.

    Thread counts take turns.
    """
    largest = max(memory.size_bytes for memory in target.memories[1:])
    probe = SpeedProbe(isa_of(target), min(_CACHES * largest, _MOST_BYTES))
    reads: dict[int, list[float]] = {count: [] for count in threads}
    vectors = []
    for _ in range(passes):
        for count, found in reads.items():
            found.append(probe.read(count))
        vectors.append(probe.multiply(1))
    return reads, vectors


def _bound(function: Callable[..., None], start: int, count: int) -> Callable[[], None]:
    sink = np.zeros(64, np.uint8)

    def run() -> None:
        function(start, count, sink.ctypes.data)

    return run


def _together(parts: Sequence[Callable[[], None]]) -> float:
    """Seconds from the first part's start to the last one's end, on a thread each."""
    barrier = threading.Barrier(len(parts))
    spans = np.zeros((len(parts), 2))

    def run(number: int) -> None:
        barrier.wait()
        spans[number, 0] = time.perf_counter()
        parts[number]()
        spans[number, 1] = time.perf_counter()

    helpers = [threading.Thread(target=run, args=(n,)) for n in range(1, len(parts))]
    for helper in helpers:
        helper.start()
    run(0)
    for helper in helpers:
        helper.join()
    return float(spans[:, 1].max() - spans[:, 0].min())


def _code(isa: Isa) -> bytes:
    """Reads `(from, bytes, sink)`, and `infc_multiply(unused, turns, sink)`."""
    with context():
        module = ir.Module.create()
        b = Builder(module, isa)
        for name, ahead in _READS.items():
            _emit_read(b, name, ahead)
        _emit_multiply(b, isa)
        lower_to_llvm(module)
        return link_shared(emit_object(module, isa))


def _emit_read(b: Builder, name: str, ahead: int) -> None:
    line = b.vec(_LINE // 8, b.i64)
    with b.function(name, [b.ptr, b.i64, b.ptr], private=False) as (start, size, sink):

        def turn(offset: Value, *sums: Value) -> list[Value]:
            for number in range(_LINES if ahead else 0):
                b.prefetch(b.at(start, b.add(offset, ahead + number * _LINE)))
            return [
                b.add(total, b.load(b.at(start, b.add(offset, number * _LINE)), line, _LINE))
                for number, total in enumerate(sums)
            ]

        zero = b.const(0, line)
        sums = b.loop(0, size, _LINES * _LINE, [zero] * _LINES, body=turn)
        for total in sums[1:]:
            sums[0] = b.add(sums[0], total)
        b.store(sums[0], sink, 8)
        b.ret()


def _emit_multiply(b: Builder, isa: Isa) -> None:
    vector = b.vec(isa.vector_bytes // 4, b.f32)
    with b.function("infc_multiply", [b.ptr, b.i64, b.ptr], private=False) as (_, turns, sink):
        factor = b.const(0.5, vector)

        def turn(_index: Value, *sums: Value) -> list[Value]:
            return [b.fma(total, factor, factor) for total in sums]

        # Sums that start apart stay apart: equal ones would be computed once.
        first = [b.const(float(number), vector) for number in range(_CHAINS)]
        sums = b.loop(0, turns, 1, first, body=turn)
        for total in sums[1:]:
            sums[0] = b.fma(total, factor, sums[0])
        b.store(sums[0], sink, 4)
        b.ret()
