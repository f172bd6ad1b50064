"""The one allocation of a loaded model: what lies in it, and whether the device has room for it.

In order: weights, one KV cache, the arena, the blocks' copies of the `thread` space, what attention
keeps its parts in, then what a call brings (call block, counters, tokens, ...) and what it makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.call_block import CALL_BLOCK_BYTES, POINTERS, CallBlock
from infc.backends.cuda.runtime.driver import Device
from infc.backends.cuda.signature import PhaseProgram
from infc.diagnostics import Code, InternalError, UserError
from infc.ir.kv_storage import position_bytes
from infc.memory.fit import fit_report
from infc.target.runnable import Call, KVShape, Limits, Phase

ALIGN_BYTES = 256
"""Every part starts at a multiple of it."""
_STAGE_BYTES = 16 << 20


@dataclass(frozen=True)
class Part:
    """Bytes of an allocation.

    Attributes:
        offset: from its start.
    """

    offset: int
    size_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """The parts of the allocation.

    Attributes:
        parts: `weights`, `kv`, `arena`, `thread`, `scratch`, `call` (what `CallArea` writes), and
            what calls make: `best`, `top_logits`, `top_ids`, `logits`, `trace`.
        steps: bytes of the parts whose size follows from the rows of a call, for calls of (prefill,
            decode); decode calls have a row for each sequence.
    """

    parts: Mapping[str, Part]
    steps: Mapping[str, tuple[int, int]]

    @property
    def size_bytes(self) -> int:
        """Bytes of all."""
        return max(part.offset + part.size_bytes for part in self.parts.values())


def plan_memory(
    phases: Mapping[Phase, PhaseProgram],
    limits: Limits,
    *,
    vocab_size: int,
    weight_bytes: int,
    kv_bytes: int,
    copies: Mapping[Phase, int],
) -> MemoryPlan:
    """Where everything lies.

    Args:
        copies: of the `thread` space: blocks of the largest launch of each program.
    """
    steps = {
        phase: _step_parts(phases[phase], limits, phase, copies, vocab_size) for phase in Phase
    }
    first, second = (steps[phase] for phase in (Phase.PREFILL, Phase.DECODE))
    launches = max(len(program["launches"]) for program in phases.values())
    parts, _ = _placed(
        {
            "weights": weight_bytes,
            "kv": kv_bytes,
            **{name: max(first[name], second[name]) for name in first},
            "trace": 8 * (1 + launches),
        }
    )
    return MemoryPlan(parts, {name: (first[name], second[name]) for name in first})


def _step_parts(
    program: PhaseProgram,
    limits: Limits,
    phase: Phase,
    copies: Mapping[Phase, int],
    vocab_size: int,
) -> dict[str, int]:
    """Bytes of the parts that calls of one program work in, of its largest call."""
    rows = limits.max_logit_rows[phase]
    return {
        "arena": program["arena_bytes"],
        "thread": copies[phase] * program["thread_bytes"],
        "scratch": program["scratch_bytes"],
        "call": _call_parts(program, limits, phase)[1],
        "best": 4 * rows,
        "top_logits": 4 * rows * limits.max_top_k,
        "top_ids": 4 * rows * limits.max_top_k,
        "logits": 4 * rows * vocab_size,
    }


def _call_parts(program: PhaseProgram, limits: Limits, phase: Phase) -> tuple[dict[str, Part], int]:
    """What the host writes with each call of a program, and its bytes."""
    tokens, rows = limits.max_tokens[phase], limits.max_logit_rows[phase]
    return _placed(
        {
            "block": CALL_BLOCK_BYTES,
            "counters": program["counter_bytes"],
            "tokens": 4 * tokens,
            "positions": 4 * tokens,
            "row_slots": 4 * tokens,
            "logit_rows": 4 * rows,
        }
    )


def _placed(sizes: Mapping[str, int]) -> tuple[dict[str, Part], int]:
    """Parts one after the other, and where they end."""
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = Part(start, size)
        start += -(-size // ALIGN_BYTES) * ALIGN_BYTES
    return parts, start


def check_fit(device: Device, plan: MemoryPlan, shape: KVShape, limits: Limits) -> None:
    """Refuse what the device has no room for, before anything is allocated.

    Raises:
        UserError: INF2101 with the context or the batch that fits.
    """
    free = device.free_bytes()
    if plan.size_bytes <= free:
        return
    position = shape.kv_heads * position_bytes(shape.dtype, shape.head_dim)
    layers = zip(shape.capacity, shape.windows, strict=True)
    rings = [held for held, window in layers if window and held < limits.max_context]
    full = position * (len(shape.capacity) - len(rings))
    cache = limits.max_slots * (full * limits.max_context + position * sum(rings))

    def activations(batch: int) -> int:
        slots = limits.max_slots
        return sum(max(first, -(-step * batch // slots)) for first, step in plan.steps.values())

    report = fit_report(
        max(free, 1),
        # Also what rounding adds to the cache.
        plan.size_bytes - cache - activations(limits.max_slots),
        full,
        position * sum(rings),
        limits.max_context,
        limits.max_slots,
        activation_bytes=activations,
    )
    raise UserError(
        Code.PLAN,
        report.message,
        location=f"free memory of {device.facts.name}",
        hint="compile it with a smaller --max-context or --max-batch, or end other programs that "
        "use the device",
    )


class Staging:
    """Two pieces of pinned memory through which bytes go to the device: one is filled while the
    other is copied."""

    def __init__(self, device: Device, size_bytes: int = _STAGE_BYTES) -> None:
        self._device = device
        self._pieces = [device.pinned(size_bytes) for _ in range(2)]
        self._marks: list[Any] = [None, None]

    def upload(self, address: int, data: NDArray[np.uint8]) -> None:
        """Copy bytes; they may change when this returns."""
        size = len(self._pieces[0])
        for number, start in enumerate(range(0, len(data), size)):
            which = number % 2
            if self._marks[which] is not None:
                self._device.wait(self._marks[which])
                self._device.forget(self._marks[which])
            part = data[start : start + size]
            piece = self._pieces[which][: len(part)]
            piece[:] = part
            self._device.upload(address + start, piece)
            self._marks[which] = self._device.record()
        self._device.synchronize()

    def download(self, data: NDArray[np.uint8], address: int) -> None:
        """Copy bytes back."""
        size = len(self._pieces[0])
        for start in range(0, len(data), size):
            part = data[start : start + size]
            piece = self._pieces[0][: len(part)]
            self._device.download(piece, address + start)
            self._device.synchronize()
            part[:] = piece


class CallArea:
    """What the host writes with each call of a program, in one piece of pinned memory: the call
    block, counters that are zero, and the arrays.

    Args:
        base: address of the allocation.
    """

    def __init__(
        self,
        device: Device,
        plan: MemoryPlan,
        base: int,
        program: PhaseProgram,
        limits: Limits,
        phase: Phase,
    ) -> None:
        self._device = device
        self.address = base + plan.parts["call"].offset
        parts, size = _call_parts(program, limits, phase)
        self._data = device.pinned(size)
        self._data[:] = 0
        self.block = CallBlock.from_buffer(self._data.data)
        self._arrays: dict[str, NDArray[np.int32]] = {}
        for name in ("tokens", "positions", "row_slots", "logit_rows"):
            part = parts[name]
            array = self._data[part.offset : part.offset + part.size_bytes]
            self._arrays[name] = array.view(np.int32)
            setattr(self.block, name, self.address + part.offset)
        self.block.counters = self.address + parts["counters"].offset
        for name, part in plan.parts.items():
            if name in POINTERS and name not in ("kv", "trace"):
                setattr(self.block, name, base + part.offset)

    def write(self, call: Call, *, kv: int, trace: int) -> None:
        """Begin to copy a call to the device; `kv` and `trace` are addresses.

        Raises:
            InternalError: the call is larger than the program's limits.
        """
        block, arrays = self.block, self._arrays
        tokens, rows = len(call.tokens), len(call.logit_rows)
        for name, count in (("tokens", tokens), ("logit_rows", rows)):
            if count > len(arrays[name]):
                raise InternalError(
                    f"the call has {count} {name}, and the program takes {len(arrays[name])}"
                )
        block.n_tokens, block.n_logit_rows = tokens, rows
        block.output_kind, block.top_k = call.output, call.top_k
        block.kv, block.trace = kv, trace
        arrays["tokens"][:tokens] = call.tokens
        arrays["positions"][:tokens] = call.positions
        one = len(call.slots) == 1
        arrays["row_slots"][:tokens] = (
            call.slots if one else np.repeat(call.slots, np.diff(call.row_offsets))
        )
        arrays["logit_rows"][:rows] = call.logit_rows
        self._device.upload(self.address, self._data)
