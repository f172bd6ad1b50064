"""The program ABI, version 1, as byte offsets: one place for the code generator, ctypes and C.

`int32 program(const infc_call *, int32 thread, int32 threads)`: all threads of a call run it
together. `header()` is the C form.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from infc.backends.cpu.kernels.dealing import DEAL_BYTES

ABI_VERSION = 1


class InfcCall(ctypes.Structure):
    """One call; see the C header for the meaning of each field."""

    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("struct_size", ctypes.c_uint32),
        ("n_tokens", ctypes.c_int32),
        ("n_sequences", ctypes.c_int32),
        ("n_logit_rows", ctypes.c_int32),
        ("output_kind", ctypes.c_int32),
        ("tokens", ctypes.c_void_p),
        ("row_offsets", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("logit_rows", ctypes.c_void_p),
        ("arena", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("kv", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("best", ctypes.c_void_p),
        ("cancel", ctypes.c_void_p),
        ("trace", ctypes.c_void_p),
        ("top_logits", ctypes.c_void_p),
        ("top_ids", ctypes.c_void_p),
        ("top_k", ctypes.c_int32),
    )


OK, WRONG_ABI, OUT_OF_RANGE, CANCELLED, NO_TILES = range(5)
"""What a program returns."""

INFO_FIELDS = (
    "abi_version",
    "vocab_size",
    "max_context",
    "max_slots",
    "max_threads",
    "prefill_max_tokens",
    "prefill_max_logit_rows",
    "prefill_arena_bytes",
    "prefill_thread_bytes",
    "prefill_kernel_calls",
    "decode_max_tokens",
    "decode_max_logit_rows",
    "decode_arena_bytes",
    "decode_thread_bytes",
    "decode_kernel_calls",
    "kv_bytes",
    "weight_bytes",
    "max_top_k",
)
"""Fields of the exported constant `infc_info`, int64 each, in order."""


def offset_of(field: str) -> int:
    """The byte offset of a field of `infc_call`."""
    return int(getattr(InfcCall, field).offset)


@dataclass(frozen=True)
class ControlBlock:
    """The start of an arena, used by the program itself.

    Attributes:
        arrivals: byte offset of the int32 counts by which a kernel's threads learn who is last;
            zero between kernels. They lie behind the barrier.
        deals: byte offset of the deals in which kernels count the pieces of their work.
        flags: byte offset of one int32 for each layer: whether the call was cancelled there.
        row_slots: byte offset of the slot of each row, int32.
        size_bytes: bytes before the planned buffers, a multiple of 64.
    """

    arrivals: int
    deals: int
    flags: int
    row_slots: int
    size_bytes: int

    @staticmethod
    def of(
        barrier_bytes: int, arrivals: int, deals: int, layers: int, max_tokens: int
    ) -> ControlBlock:
        """The layout for a program with so many int32 `arrivals` and so many `deals`."""
        places = -(-(barrier_bytes + 4 * arrivals) // 64) * 64
        flags = places + DEAL_BYTES * deals
        row_slots = -(-(flags + 4 * (layers + 1)) // 64) * 64
        size = -(-(row_slots + 4 * max_tokens) // 64) * 64
        return ControlBlock(barrier_bytes, places, flags, row_slots, size)
