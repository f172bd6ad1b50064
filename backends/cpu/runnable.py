"""Loads a compiled model and calls its programs from threads."""

from __future__ import annotations

import ctypes
import mmap
import platform
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cpu.kernels.kv_layout import kv_layout_of
from infc.backends.cpu.lowering import abi
from infc.backends.cpu.probe import host_features
from infc.backends.cpu.target import missing_features
from infc.diagnostics import Code, InternalError, UserError
from infc.target.backend import LoadedPrograms
from infc.target.runnable import (
    Call,
    KVBlock,
    KVCache,
    OutputKind,
    Phase,
    kv_shape_of,
    limits_of,
)
from infc.target.schema import Target

_PAGE = mmap.PAGESIZE


class CpuKV:
    """The KV cache of all slots, in the layout of the kernels; implements `KVCache`."""

    def __init__(self, signature: dict[str, Any]) -> None:
        self._signature = signature
        self.layout = kv_layout_of(signature)
        self.memory = GuardedMemory(self.layout.total_bytes)

    def kv_export(self, slot: int, start: int, stop: int) -> KVBlock:
        """Positions `[start, stop)` of a slot, in the logical form."""
        starts, keys, values = [], [], []
        for layer, capacity in enumerate(self.layout.capacity):
            first = max(start, stop - capacity)
            k, v = self.layout.export_positions(self.memory.bytes, layer, slot, range(first, stop))
            starts.append(first)
            keys.append(k)
            values.append(v)
        return KVBlock(start, stop, tuple(starts), keys, values)

    def kv_import(self, slot: int, block: KVBlock) -> None:
        """Write a block into a slot, at the block's own positions."""
        for layer, capacity in enumerate(self.layout.capacity):
            first = block.layer_starts[layer]
            kept = max(first, block.stop - capacity)
            self.layout.import_positions(
                self.memory.bytes,
                layer,
                slot,
                range(kept, block.stop),
                block.keys[layer][kept - first :],
                block.values[layer][kept - first :],
            )

    def copy(self) -> CpuKV:
        """An independent copy."""
        other = CpuKV(self._signature)
        other.memory.bytes[:] = self.memory.bytes
        return other


class GuardedMemory:
    """Zeroed memory that ends at a page no one may touch: a write past the plan stops the process.

    The usable bytes are pushed against the guard page behind them (up to 64-byte alignment); one
    more guard page stands in front.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = -(-size_bytes // 64) * 64
        body = -(-self.size_bytes // _PAGE) * _PAGE
        self._map = mmap.mmap(-1, body + 2 * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if body >= 1 << 22:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(self._map, np.uint8)
        base = whole.ctypes.data
        _protect(base)
        _protect(base + _PAGE + body)
        start = _PAGE + body - self.size_bytes
        self.bytes: NDArray[np.uint8] = whole[start : start + self.size_bytes]

    @property
    def address(self) -> int:
        """Where the usable bytes start, 64-byte aligned."""
        return int(self.bytes.ctypes.data)


def _protect(address: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(_PAGE), 0) != 0:
        raise InternalError(f"mprotect failed with errno {ctypes.get_errno()}")


def _check_host(target: Target) -> None:
    """Raises UserError (INF4005) where this host cannot run programs for a target."""
    architecture, here = str(target.backend_facts["triple"]).partition("-")[0], platform.machine()
    compiled_for = [f"compiled for {target.name}"]
    if architecture != here:
        raise UserError(
            Code.ARTIFACT_HOST,
            f"the artifact is for {architecture} processors, and this host is {here}",
            notes=compiled_for,
            hint="compile the model again on this machine",
        )
    missing = missing_features(target, host_features())
    if missing:
        least = "aarch64" if here == "aarch64" else "x86-64-v3"
        raise UserError(
            Code.ARTIFACT_HOST,
            f"the artifact needs {', '.join(missing)}, which this processor lacks",
            notes=compiled_for,
            hint=f"compile the model again on this machine, or for --target cpu:{least}",
        )


class CpuRunnable:
    """Implements `infc.target.runnable.Runnable`."""

    def __init__(self, programs: LoadedPrograms) -> None:
        _check_host(programs.target)
        self._check = programs.check
        self.signature = dict(programs.signature)
        self.info: dict[str, int] = self.signature["info"]
        self.vocab_size: int = self.signature["vocab_size"]
        self.limits = limits_of(self.signature)
        self.kv_shape = kv_shape_of(self.signature)
        self._library = ctypes.CDLL(str(programs.extract("model.so")))
        self._functions = {
            phase: getattr(self._library, f"infc_{phase.name.lower()}") for phase in Phase
        }
        for function in self._functions.values():
            function.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
            function.restype = ctypes.c_int32
        self._weights = np.frombuffer(programs.weights, np.uint8)
        if self._weights.ctypes.data % 64:
            raise InternalError("the packed weights are not mapped at a 64-byte boundary")
        self._arenas: dict[tuple[Phase, int], GuardedMemory] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    @property
    def planned_bytes(self) -> int:
        """Bytes of arena the plan takes, for one thread, the larger of both programs."""
        return max(self.arena_bytes(phase, 1) for phase in Phase)

    def arena_bytes(self, phase: Phase, threads: int) -> int:
        """Bytes of arena of one program for so many threads."""
        name = phase.name.lower()
        return self.info[f"{name}_arena_bytes"] + threads * self.info[f"{name}_thread_bytes"]

    def new_kv(self) -> CpuKV:
        """An empty cache of every layer, all slots."""
        return CpuKV(self.signature)

    def arena(self, phase: Phase, threads: int) -> GuardedMemory:
        """The arena of one program, made at its first use and kept."""
        key = (phase, threads)
        if key not in self._arenas:
            self._arenas[key] = GuardedMemory(self.arena_bytes(phase, threads))
        return self._arenas[key]

    def run(
        self,
        phase: Phase,
        call: Call,
        kv: KVCache,
        *,
        threads: int,
        cancel: threading.Event | None = None,
    ) -> NDArray[np.float32] | NDArray[np.int32]:
        """Run one program on `threads` threads."""
        return self._run(phase, call, kv, threads, cancel, None)

    def trace(self, phase: Phase, call: Call, kv: KVCache, *, threads: int) -> list[float]:
        """Run one program; seconds of each kernel in the order of the calls, as thread 0 saw them.

        A kernel's time includes its wait at the barrier in front of it.
        """
        steps = np.zeros(1 + self.info[f"{phase.name.lower()}_kernel_calls"], np.uint64)
        start = time.perf_counter()
        self._run(phase, call, kv, threads, None, steps)
        seconds = time.perf_counter() - start
        # A kernel that the call did not ask for leaves its entry at zero: it took no time.
        cycles = np.diff(np.maximum.accumulate(steps)).astype(np.float64)
        return [float(c) for c in cycles * (seconds / cycles.sum())]

    def _run(
        self,
        phase: Phase,
        call: Call,
        kv: KVCache,
        threads: int,
        cancel: threading.Event | None,
        trace: NDArray[np.uint64] | None,
    ) -> NDArray[np.float32] | NDArray[np.int32]:
        if not isinstance(kv, CpuKV):
            raise InternalError("the KV cache belongs to another backend")
        self._check()
        with self._lock:
            return self._run_alone(phase, call, kv, threads, cancel, trace)

    def _run_alone(
        self,
        phase: Phase,
        call: Call,
        kv: CpuKV,
        threads: int,
        cancel: threading.Event | None,
        trace: NDArray[np.uint64] | None,
    ) -> NDArray[np.float32] | NDArray[np.int32]:
        """One call at a time: all share an arena, a barrier and the helper threads."""
        rows = len(call.logit_rows)
        logits = np.empty((rows, self.vocab_size), np.float32)
        best = np.empty(rows, np.int32)
        flag = ctypes.c_int32(0)
        arrays = [
            np.ascontiguousarray(a, np.int32)
            for a in (call.tokens, call.row_offsets, call.slots, call.positions, call.logit_rows)
        ]
        tokens, offsets, slots, positions, wanted = arrays
        native = abi.InfcCall(
            abi_version=abi.ABI_VERSION,
            struct_size=ctypes.sizeof(abi.InfcCall),
            n_tokens=len(tokens),
            n_sequences=len(slots),
            n_logit_rows=rows,
            output_kind=int(call.output),
            tokens=tokens.ctypes.data,
            row_offsets=offsets.ctypes.data,
            slots=slots.ctypes.data,
            positions=positions.ctypes.data,
            logit_rows=wanted.ctypes.data,
            arena=self.arena(phase, threads).address,
            weights=self._weights.ctypes.data,
            kv=kv.memory.address,
            logits=logits.ctypes.data,
            best=best.ctypes.data,
            cancel=ctypes.addressof(flag),
            trace=None if trace is None else trace.ctypes.data,
        )
        status = self._run_threads(phase, native, threads, flag, cancel)
        if status == abi.CANCELLED:
            raise UserError(Code.CANCELLED, "the call was cancelled")
        if status != abi.OK:
            raise InternalError(
                f"the {phase.name.lower()} program refused the call: status {status}"
            )
        return best if call.output is OutputKind.ARGMAX else logits

    def _run_threads(
        self,
        phase: Phase,
        native: abi.InfcCall,
        threads: int,
        flag: ctypes.c_int32,
        cancel: threading.Event | None,
    ) -> int:
        """Call the program from this thread and its helpers, or, where the call may be cancelled or
        interrupted, from helpers alone while this thread waits for either."""
        function, pointer = self._functions[phase], ctypes.addressof(native)
        # An interrupt comes to the main thread, at any moment: helpers must not wait for it then.
        if cancel is None and threading.current_thread() is not threading.main_thread():
            others = [
                self._executor(threads).submit(function, pointer, thread, threads)
                for thread in range(1, threads)
            ]
            status = int(function(pointer, 0, threads))
            for other in others:
                other.result()
            return status
        workers = [
            self._executor(threads).submit(function, pointer, thread, threads)
            for thread in range(threads)
        ]
        return self._wait(workers, flag, cancel or threading.Event())

    def _wait(
        self, workers: list[Future[int]], flag: ctypes.c_int32, cancel: threading.Event
    ) -> int:
        """Wait for the program; pass a cancellation on, also one that comes as an exception."""
        done = threading.Event()
        workers[0].add_done_callback(lambda _: done.set())
        try:
            while not done.wait(0.02):
                if cancel.is_set():
                    flag.value = 1
        except BaseException:
            # The arena and the call must outlive the program: stop it before leaving.
            flag.value = 1
            for worker in workers:
                worker.result()
            raise
        return max(worker.result() for worker in workers)

    def _executor(self, threads: int) -> ThreadPoolExecutor:
        if self._pool is None or self._pool._max_workers < threads:
            if self._pool is not None:
                self._pool.shutdown()
            pool = ThreadPoolExecutor(threads, thread_name_prefix="infc")
            # All of them start now or none: a program waits for all of its threads.
            meeting = threading.Barrier(threads)
            try:
                starts = [pool.submit(meeting.wait) for _ in range(threads)]
            except RuntimeError as error:
                meeting.abort()
                pool.shutdown()
                raise UserError(
                    Code.OPTION,
                    f"the system cannot start {threads} threads",
                    hint="choose fewer (--threads)",
                ) from error
            for start in starts:
                start.result()
            self._pool = pool
        return self._pool

    def close(self) -> None:
        """Stop the helper threads and let go of the memory."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._arenas.clear()
