"""What the runtime needs of any backend: programs that can be called, and a KV cache.

A session never knows which backend it drives. A call carries the tokens of all sequences,
flattened, without padding; only attention and the KV cache see sequences.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, UserError


class Phase(IntEnum):
    """The two programs of a model."""

    PREFILL = 0
    DECODE = 1


class OutputKind(IntEnum):
    """What a call returns for each of its logit rows."""

    LOGITS = 0
    ARGMAX = 1
    TOP_K = 2


TOP_ENTRY = np.dtype([("logit", "<f4"), ("id", "<i4")])
"""One of the largest logits of a row."""


@dataclass(frozen=True)
class Limits:
    """The bounds a program was compiled for; a call beyond them is refused.

    Attributes:
        max_tokens: tokens a call, for (prefill, decode).
        max_logit_rows: rows of logits a call, for (prefill, decode).
        max_context: positions a sequence.
        max_slots: sequences the KV cache holds.
        max_threads: threads a call may be run by.
        max_top_k: of the largest logits a call may ask for so many.
    """

    max_tokens: tuple[int, int]
    max_logit_rows: tuple[int, int]
    max_context: int
    max_slots: int
    max_threads: int
    max_top_k: int = 0

    def check_threads(self, threads: int) -> None:
        """Raise UserError (INF5001) unless calls may be run by so many threads."""
        if not isinstance(threads, int) or not 1 <= threads <= self.max_threads:
            raise UserError(
                Code.OPTION,
                f"threads must be 1 to {self.max_threads}, got {threads!r}",
                hint=f"the programs were compiled for at most {self.max_threads} threads",
            )


@dataclass(frozen=True)
class KVShape:
    """The logical KV cache: `[layer, slot, position, kv_head, head_dim]`.

    Attributes:
        windows: a layer's sliding window, or None.
        capacity: positions each layer holds a slot (`max_context`, or the ring of a window).
        dtype: `f32` or `f16`, as stored; rope is applied to the keys.
        page_tokens: positions a page; contiguous layouts have one page a slot.
    """

    layers: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    capacity: tuple[int, ...]
    dtype: str
    page_tokens: int


def limits_of(signature: Mapping[str, Any]) -> Limits:
    """The limits that a program's signature states."""
    return Limits(
        max_tokens=tuple(signature["max_tokens"]),
        max_logit_rows=tuple(signature["max_logit_rows"]),
        max_context=signature["max_context"],
        max_slots=signature["max_slots"],
        max_threads=signature["max_threads"],
        max_top_k=signature["max_top_k"],
    )


def kv_shape_of(signature: Mapping[str, Any]) -> KVShape:
    """The KV cache that a program's signature states."""
    capacity = tuple(signature["capacity"])
    return KVShape(
        layers=len(capacity),
        kv_heads=signature["kv_heads"],
        head_dim=signature["head_dim"],
        windows=tuple(window or None for window in signature["windows"]),
        capacity=capacity,
        dtype=signature["kv_dtype"],
        page_tokens=max(capacity),
    )


@dataclass(frozen=True)
class Call:
    """One call of a program.

    Attributes:
        tokens: int32 `[t]`, all sequences one after the other.
        row_offsets: int32 `[s + 1]`, where each sequence's rows start; first 0, last t.
        slots: int32 `[s]`, the KV slot of each sequence, distinct.
        positions: int32 `[t]`, the position of each token in its sequence, consecutive.
        logit_rows: int32 `[r]`, the rows whose logits are wanted; none where only the cache is
            to be filled.
        output: what is wanted of each of them.
        top_k: for TOP_K, how many of the largest logits, 1 to `Limits.max_top_k`.
    """

    tokens: NDArray[np.int32]
    row_offsets: NDArray[np.int32]
    slots: NDArray[np.int32]
    positions: NDArray[np.int32]
    logit_rows: NDArray[np.int32]
    output: OutputKind = OutputKind.LOGITS
    top_k: int = 0


class Cancellation(threading.Event):
    """A request to give a call up, from any thread.

    Attributes:
        flag: non-zero once it is set, for native code to look at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flag = ctypes.c_int32(0)

    def set(self) -> None:
        """Ask for it; a call that has come too far ends as if nobody had."""
        self.flag.value = 1
        super().set()


@dataclass(frozen=True)
class KVBlock:
    """Part of one slot's cache in the logical form, float32, rope applied to the keys.

    Attributes:
        start: first position of the range.
        stop: one past the last position.
        layer_starts: per layer the first position that is present (a sliding layer holds only the
            end of the range).
        keys, values: per layer `[stop - layer_start, kv_heads, head_dim]`.
    """

    start: int
    stop: int
    layer_starts: tuple[int, ...]
    keys: Sequence[NDArray[np.float32]]
    values: Sequence[NDArray[np.float32]]


class KVCache(Protocol):
    """The KV state of all slots, owned by the backend that made it."""

    def kv_export(self, slot: int, start: int, stop: int) -> KVBlock:
        """Positions `[start, stop)` of a slot, in the logical form."""

    def kv_import(self, slot: int, block: KVBlock) -> None:
        """Write a block into a slot, at the block's own positions."""

    def copy(self) -> KVCache:
        """An independent copy."""


class Runnable(Protocol):
    """Loaded programs. Calls on one KV cache must not overlap.

    One may have `notes`, sentences on how programs run here that an explanation should have.
    """

    vocab_size: int
    limits: Limits
    kv_shape: KVShape

    @property
    def planned_bytes(self) -> int:
        """Bytes of arena the plan takes, for `threads=1`, the larger of both programs."""

    def new_kv(self) -> KVCache:
        """An empty KV cache for all slots."""

    def run(
        self,
        phase: Phase,
        call: Call,
        kv: KVCache,
        *,
        threads: int,
        cancel: Cancellation | None = None,
    ) -> NDArray[Any]:
        """Run one program: float32 `[r, vocab]` logits, or int32 `[r]` for ARGMAX, or for TOP_K
        `TOP_ENTRY` `[r, top_k]`, the largest logit first, of equals the lowest index.

        Raises UserError (INF5006) where `cancel` was set; the KV cache then holds undefined values
        at the positions of this call and right ones before. The same after any exception, also
        one that a signal handler raises: when it leaves here, nothing runs any more.
        """

    def trace(
        self, phase: Phase, call: Call, kv: KVCache, *, threads: int
    ) -> Sequence[float] | None:
        """Run one program; seconds of each kernel in the order they ran, None where unknown."""

    def close(self) -> None:
        """Free what was mapped or allocated."""
