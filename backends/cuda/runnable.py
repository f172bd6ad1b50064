"""Runs the programs of an artifact on a device.

What `emit` must put into the signature is written down as types in `signature.py`, what a call
hands to a program in `call_block.py`.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.kernels.kv_layout import kv_layout_of
from infc.backends.cuda.runtime.driver import Device
from infc.backends.cuda.runtime.images import check_architecture
from infc.backends.cuda.runtime.launching import Kernels, Program
from infc.backends.cuda.runtime.memory import CallArea, Staging, check_fit, plan_memory
from infc.backends.cuda.signature import CudaSignature
from infc.diagnostics import Code, InternalError, UserError
from infc.target.backend import LoadedPrograms
from infc.target.runnable import (
    TOP_ENTRY,
    Call,
    Cancellation,
    KVBlock,
    KVCache,
    OutputKind,
    Phase,
    kv_shape_of,
    limits_of,
)
from infc.target.signature import read_signature


class CudaKV:
    """The KV cache of all slots, in the layout of the kernels; implements `KVCache`."""

    def __init__(self, owner: CudaRunnable, address: int) -> None:
        self._owner = owner
        self.address = address

    def kv_export(self, slot: int, start: int, stop: int) -> KVBlock:
        """Positions `[start, stop)` of a slot, in the logical form."""
        with self._owner.on_device():
            return self._owner.kv_layout.export_block(self._read, slot, start, stop)

    def kv_import(self, slot: int, block: KVBlock) -> None:
        """Write a block into a slot, at the block's own positions."""
        with self._owner.on_device():
            self._owner.kv_layout.import_block(self._read, self._write, slot, block)

    def copy(self) -> CudaKV:
        """An independent copy."""
        return self._owner.copied_kv(self)

    def _read(self, offset: int, size_bytes: int) -> NDArray[np.uint8]:
        data = np.empty(size_bytes, np.uint8)
        self._owner.device.download(data, self.address + offset)
        self._owner.device.synchronize()
        return data

    def _write(self, offset: int, data: NDArray[np.uint8]) -> None:
        self._owner.device.upload(self.address + offset, data)
        self._owner.device.synchronize()


class CudaRunnable:
    """Implements `infc.target.runnable.Runnable` on a device that it closes at the end.

    One allocation holds the weights, what programs work in, and one KV cache; further caches have
    allocations of their own. A program takes as many blocks as the device holds: `threads` changes
    nothing.
    """

    def __init__(self, programs: LoadedPrograms, device: Device) -> None:
        self._check = programs.check
        self.device = device
        signature = programs.signature
        self._own = own = read_signature(CudaSignature, signature)
        check_architecture(own["arch"], device.facts)
        self.vocab_size: int = signature["vocab_size"]
        self.limits = limits_of(signature)
        self.kv_shape = kv_shape_of(signature)
        self.kv_layout = kv_layout_of(signature)
        self._lock = threading.Lock()
        phases = {phase: own["phases"][phase.name.lower()] for phase in Phase}

        device.use()
        names = {
            entry["module"]
            for program in phases.values()
            for entry in (*program["launches"], program["persistent"])
            if entry is not None
        }

        def member(name: str) -> memoryview | None:
            try:
                return programs.member(name)
            except UserError as error:
                if error.code is not Code.ARTIFACT_FORMAT:
                    raise
                return None  # no assembler was found when the model was compiled

        modules = {name: device.load_module(name, member) for name in sorted(names)}
        kernels = {phase: Kernels(device, modules, phases[phase]) for phase in Phase}
        self._plan = plan_memory(
            phases,
            self.limits,
            vocab_size=self.vocab_size,
            weight_bytes=len(programs.weights),
            kv_bytes=self.kv_layout.total_bytes,
            copies={phase: kernels[phase].copies for phase in Phase},
        )
        check_fit(device, self._plan, self.kv_shape, self.limits)
        self._base: int | None = device.allocate(self._plan.size_bytes)
        self._staging = Staging(device)
        self._staging.upload(self._address("weights"), np.frombuffer(programs.weights, np.uint8))
        self._areas = {
            phase: CallArea(device, self._plan, self._base, phases[phase], self.limits, phase)
            for phase in Phase
        }
        self._programs = {
            phase: Program(kernels[phase], self._areas[phase].address) for phase in Phase
        }
        rows = max(self.limits.max_logit_rows)
        small = device.pinned(4 * rows * (1 + 2 * self.limits.max_top_k)).view(np.int32)
        self._best, self._tops = small[:rows], np.split(small[rows:], 2)
        self._caches: set[int] = set()  # addresses in use
        self._unused: deque[int] = deque()  # of those, what no cache has any more

    @property
    def planned_bytes(self) -> int:
        """Bytes of arena the plan takes, with one block's own part, the larger of both programs."""
        phases = self._own["phases"].values()
        return max(program["arena_bytes"] + program["thread_bytes"] for program in phases)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the one allocation."""
        return self._plan.size_bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """Why a step that could be one kernel is not one here."""
        whole = self._own["phases"]["decode"]["persistent"]
        if whole is None or self.is_persistent(Phase.DECODE):
            return ()
        return (
            "decode is a launch for each kernel here, not the persistent one: "
            f"{self.device.facts.name} has no cooperative launches",
        )

    def is_persistent(self, phase: Phase) -> bool:
        """Whether one kernel runs a whole program."""
        return self._programs[phase].is_persistent

    def kernel_names(self, phase: Phase) -> list[str]:
        """The kernels of a program in the order that `trace` times them."""
        return [entry["kernel"] for entry in self._programs[phase].entries]

    def on_device(self) -> threading.Lock:
        """The lock of the device, which is made this thread's."""
        self.device.use()
        return self._lock

    def _address(self, part: str) -> int:
        if self._base is None:
            raise InternalError("the programs were closed")
        return self._base + self._plan.parts[part].offset

    # KV caches

    def new_kv(self) -> CudaKV:
        """An empty cache of every layer, all slots."""
        with self.on_device():
            kv = self._uninitialized_kv()
            self.device.fill(kv.address, self.kv_layout.total_bytes, 0)
        return kv

    def copied_kv(self, kv: CudaKV) -> CudaKV:
        """A cache that holds what another does."""
        with self.on_device():
            other = self._uninitialized_kv()
            self.device.copy(other.address, kv.address, self.kv_layout.total_bytes)
        return other

    def _uninitialized_kv(self) -> CudaKV:
        """The place of a cache: the one in the allocation, where no other cache has it."""
        own = self._address("kv")
        self._free_unused()
        free = own not in self._caches
        address = own if free else self.device.allocate(self.kv_layout.total_bytes)
        self._caches.add(address)
        kv = CudaKV(self, address)
        # A cache may go at any moment, in any thread: it only leaves word.
        weakref.finalize(kv, self._unused.append, address)
        return kv

    def _free_unused(self) -> None:
        """Give back the places of caches that nobody has any more."""
        while self._unused:
            address = self._unused.popleft()
            self._caches.discard(address)
            if address != self._address("kv"):
                self.device.free(address)

    # Calls

    def run(
        self,
        phase: Phase,
        call: Call,
        kv: KVCache,
        *,
        threads: int,
        cancel: Cancellation | None = None,
    ) -> NDArray[Any]:
        """Run one program."""
        address = self._address_of(kv)
        with self.on_device():
            self._free_unused()
            try:
                self._areas[phase].write(call, kv=address, trace=0)
                self._programs[phase].start(call, cancel)
                return self._result(call)
            except BaseException:
                # Nothing may run any more, nor read what the next call writes.
                self.device.synchronize()
                raise

    def trace(self, phase: Phase, call: Call, kv: KVCache, *, threads: int) -> list[float]:
        """Run one program; seconds of each kernel in the order of `kernel_names`.

        Those of a persistent kernel are by the device's clock and include the wait for all blocks
        in front of it; separate kernels are launched one by one, between events.
        """
        address, program = self._address_of(kv), self._programs[phase]
        with self.on_device():
            if not program.is_persistent:
                self._areas[phase].write(call, kv=address, trace=0)
                return program.timed(call)
            times = np.zeros(1 + len(program.entries), np.int64)
            where = self._address("trace")
            self.device.fill(where, times.nbytes, 0)
            self._areas[phase].write(call, kv=address, trace=where)
            program.start(call, None)
            self.device.download(times, where)
            self.device.synchronize()
        # A kernel that the call did not ask for leaves its entry at zero: it took no time.
        return [float(ns) * 1e-9 for ns in np.diff(np.maximum.accumulate(times))]

    def _address_of(self, kv: KVCache) -> int:
        if not isinstance(kv, CudaKV):
            raise InternalError("the KV cache belongs to another backend")
        self._check()
        return kv.address

    def _result(self, call: Call) -> NDArray[Any]:
        """Wait for a call and read what it made: of the best tokens a few bytes."""
        device, rows = self.device, len(call.logit_rows)
        if call.output is OutputKind.LOGITS:
            logits = np.empty((rows, self.vocab_size), np.float32)
            if rows:
                device.download(logits, self._address("logits"))
            device.synchronize()
            return logits
        if call.output is OutputKind.ARGMAX:
            if rows:
                device.download(self._best[:rows], self._address("best"))
            device.synchronize()
            return self._best[:rows].copy()
        top = np.empty((rows, call.top_k), TOP_ENTRY)
        values, ids = (half[: top.size] for half in self._tops)
        if rows:
            device.download(values, self._address("top_logits"))
            device.download(ids, self._address("top_ids"))
        device.synchronize()
        top["logit"] = values.view(np.float32).reshape(top.shape)
        top["id"] = ids.reshape(top.shape)
        return top

    def close(self) -> None:
        """Free the device's memory and let go of the device."""
        with self.on_device():
            if self._base is None:
                return
            own = self._address("kv")
            for address in self._caches - {own}:
                self.device.free(address)
            self.device.free(self._base)
            self._base = None
            self.device.close()
