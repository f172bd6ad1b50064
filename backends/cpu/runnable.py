"""Loads a compiled model and calls its programs from threads."""

from __future__ import annotations

import ctypes
import platform
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cpu.call_frame import CallFrame
from infc.backends.cpu.guarded_memory import GuardedMemory
from infc.backends.cpu.kernels.kv_layout import kv_layout_of
from infc.backends.cpu.lowering import abi
from infc.backends.cpu.probe import host_features
from infc.backends.cpu.target import isa_of, missing_features
from infc.backends.cpu.team import Team
from infc.diagnostics import Code, InternalError, UserError
from infc.target.backend import LoadedPrograms
from infc.target.runnable import (
    Call,
    Cancellation,
    KVBlock,
    KVCache,
    Phase,
    kv_shape_of,
    limits_of,
)
from infc.target.schema import Target
from infc.target.signature import other_programs

_NO_FLAG = ctypes.c_int32(0)
_NEVER = ctypes.addressof(_NO_FLAG)
"""The address of the flag of calls that nobody cancels."""


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


def _check_host(target: Target) -> None:
    """Raises UserError (INF4005) where this host cannot run programs for a target."""
    architecture, here = isa_of(target).triple.partition("-")[0], platform.machine()
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


def _own_info(library: ctypes.CDLL) -> dict[str, int]:
    """What the programs say of themselves, by field of the ABI; empty where they say nothing."""
    try:
        numbers = (ctypes.c_int64 * len(abi.INFO_FIELDS)).in_dll(library, "infc_info")
    except ValueError:
        return {}
    return dict(zip(abi.INFO_FIELDS, numbers, strict=True))


def _check_signature(signature: Mapping[str, Any], info: Mapping[str, int], held: int) -> None:
    """The programs read and write as far as they say themselves: what the artifact says of them
    must be that.

    Raises:
        UserError: INF4003 where it is not, or where there are fewer bytes of weights.
    """
    prefill, decode = signature["max_tokens"]
    prefill_rows, decode_rows = signature["max_logit_rows"]
    stated = {
        "vocab_size": signature["vocab_size"],
        "max_context": signature["max_context"],
        "max_slots": signature["max_slots"],
        "max_threads": signature["max_threads"],
        "max_top_k": signature["max_top_k"],
        "prefill_max_tokens": prefill,
        "prefill_max_logit_rows": prefill_rows,
        "decode_max_tokens": decode,
        "decode_max_logit_rows": decode_rows,
        "kv_bytes": kv_layout_of(signature).total_bytes,
    }
    wrong = signature.get("info") != info or any(info.get(name) != n for name, n in stated.items())
    if wrong or held < info["weight_bytes"]:
        raise other_programs()


class CpuRunnable:
    """Implements `infc.target.runnable.Runnable`."""

    def __init__(self, programs: LoadedPrograms) -> None:
        _check_host(programs.target)
        self._check = programs.check
        self.signature = dict(programs.signature)
        self._library = ctypes.CDLL(str(programs.extract("model.so")))
        self.info = _own_info(self._library)
        self._weights = np.frombuffer(programs.weights, np.uint8)
        _check_signature(self.signature, self.info, self._weights.size)
        self.vocab_size: int = self.signature["vocab_size"]
        self.limits = limits_of(self.signature)
        self.kv_shape = kv_shape_of(self.signature)
        self._functions = {
            phase: getattr(self._library, f"infc_{phase.name.lower()}") for phase in Phase
        }
        for function in self._functions.values():
            function.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
            function.restype = ctypes.c_int32
        if self._weights.ctypes.data % 64:
            raise InternalError("the packed weights are not mapped at a 64-byte boundary")
        self._frames = {
            phase: CallFrame(phase, self.limits, self.vocab_size, self._weights.ctypes.data)
            for phase in Phase
        }
        self._arenas: dict[tuple[Phase, int], GuardedMemory] = {}
        self._team: Team | None = None
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
        cancel: Cancellation | None = None,
    ) -> NDArray[Any]:
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
        cancel: Cancellation | None,
        trace: NDArray[np.uint64] | None,
    ) -> NDArray[Any]:
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
        cancel: Cancellation | None,
        trace: NDArray[np.uint64] | None,
    ) -> NDArray[Any]:
        """One call at a time: all share an arena, a barrier and the helper threads."""
        frame = self._frames[phase]
        frame.fill(
            call,
            arena=self.arena(phase, threads).address,
            kv=kv.memory.address,
            cancel=_NEVER if cancel is None else ctypes.addressof(cancel.flag),
            trace=None if trace is None else trace.ctypes.data,
        )
        status = self._team_of(threads).run(phase, frame.address)
        if status == abi.CANCELLED:
            raise UserError(Code.CANCELLED, "the call was cancelled")
        if status != abi.OK:
            raise InternalError(
                f"the {phase.name.lower()} program refused the call: status {status}"
            )
        return frame.result(call)

    def _team_of(self, threads: int) -> Team:
        """The team of so many threads, kept until a call wants another number."""
        if self._team is None or not self._team.fits(threads):
            if self._team is not None:
                self._team.dismiss()
                self._team = None
            self._team = Team(self._library, threads)
        return self._team

    def close(self) -> None:
        """End the helper threads and let go of the memory."""
        with self._lock:
            if self._team is not None:
                self._team.dismiss()
                self._team = None
            self._arenas.clear()
