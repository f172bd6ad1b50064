"""Prefill on one machine, decode on another: two runnables behind one face.

The KV contract makes it work. Each side keeps a cache of its own; before a call, what the side
lacks is exported from the other in the logical form and imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import InternalError
from infc.target.runnable import (
    Call,
    Cancellation,
    KVBlock,
    KVCache,
    Limits,
    Phase,
    Runnable,
)


class SplitKV:
    """One cache a side; implements `KVCache`.

    Attributes:
        sides: the caches of prefill and decode.
        held: for each side and slot, how many positions from the start it has seen last.
    """

    def __init__(self, sides: Sequence[KVCache], held: list[list[int]]) -> None:
        self.sides = list(sides)
        self.held = held

    def bring(self, side: int, slot: int, length: int) -> None:
        """Give a side the positions below `length` that only the other one has."""
        have, other = self.held[side][slot], 1 - side
        if have < length:
            block = self.sides[other].kv_export(slot, have, length)
            self.sides[side].kv_import(slot, block)
            self.held[side][slot] = length

    def wrote(self, side: int, slot: int, start: int, stop: int) -> None:
        """A side appended positions `[start, stop)`: the other one's are of another sequence."""
        self.held[side][slot] = stop
        self.held[1 - side][slot] = min(self.held[1 - side][slot], start)

    def kv_export(self, slot: int, start: int, stop: int) -> KVBlock:
        """Positions `[start, stop)` of a slot, from the side that holds most."""
        side = int(np.argmax([held[slot] for held in self.held]))
        return self.sides[side].kv_export(slot, start, stop)

    def kv_import(self, slot: int, block: KVBlock) -> None:
        """Write a block into the sides that have what is before it; the other is brought it."""
        for side, cache in enumerate(self.sides):
            if self.held[side][slot] >= block.start:
                cache.kv_import(slot, block)
                self.held[side][slot] = block.stop

    def copy(self) -> SplitKV:
        """An independent copy."""
        return SplitKV([cache.copy() for cache in self.sides], [list(held) for held in self.held])


class SplitRunnable:
    """Implements `infc.target.runnable.Runnable` over two others.

    Args:
        prefill, decode: each holds both programs, compiled with the same options; one of them is
            used of each.
    """

    def __init__(self, prefill: Runnable, decode: Runnable) -> None:
        a, b = prefill.kv_shape, decode.kv_shape
        if (a.windows, a.capacity, a.kv_heads, a.head_dim) != (
            b.windows,
            b.capacity,
            b.kv_heads,
            b.head_dim,
        ):
            raise InternalError("the prefill and the decode programs keep different KV caches")
        self.sides = (prefill, decode)
        self.vocab_size = decode.vocab_size
        self.kv_shape = decode.kv_shape
        self.limits = Limits(
            max_tokens=(prefill.limits.max_tokens[0], decode.limits.max_tokens[1]),
            max_logit_rows=(prefill.limits.max_logit_rows[0], decode.limits.max_logit_rows[1]),
            max_context=decode.limits.max_context,
            max_slots=decode.limits.max_slots,
            max_threads=min(prefill.limits.max_threads, decode.limits.max_threads),
            max_top_k=min(prefill.limits.max_top_k, decode.limits.max_top_k),
        )

    @property
    def planned_bytes(self) -> int:
        """Bytes of arena of the side that plans more."""
        return max(side.planned_bytes for side in self.sides)

    def new_kv(self) -> SplitKV:
        """An empty cache on both sides."""
        slots = self.limits.max_slots
        return SplitKV([side.new_kv() for side in self.sides], [[0] * slots, [0] * slots])

    def run(
        self,
        phase: Phase,
        call: Call,
        kv: KVCache,
        *,
        threads: int,
        cancel: Cancellation | None = None,
    ) -> NDArray[Any]:
        """Run a program on its side."""
        cache = self._prepare(phase, call, kv)
        return self.sides[phase].run(phase, call, cache, threads=threads, cancel=cancel)

    def trace(
        self, phase: Phase, call: Call, kv: KVCache, *, threads: int
    ) -> Sequence[float] | None:
        """Time the kernels of a program on its side."""
        return self.sides[phase].trace(phase, call, self._prepare(phase, call, kv), threads=threads)

    def _prepare(self, phase: Phase, call: Call, kv: KVCache) -> KVCache:
        """Bring the phase's side up to date; returns its cache."""
        if not isinstance(kv, SplitKV):
            raise InternalError("the KV cache belongs to another backend")
        for sequence, slot in enumerate(call.slots):
            first, last = call.row_offsets[sequence], call.row_offsets[sequence + 1] - 1
            start = int(call.positions[first])
            kv.bring(phase, int(slot), start)
            kv.wrote(phase, int(slot), start, int(call.positions[last]) + 1)
        return kv.sides[phase]

    def close(self) -> None:
        """Close both sides."""
        for side in self.sides:
            side.close()
