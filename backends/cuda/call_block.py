"""The block in device memory that says what one call is: one place for code generator and caller.

Also what the signature of the programs holds (`infc.backends.cuda.lowering.entry` makes it):

    {"arch": "sm_90a", "ctas": 132, "weight_bytes": ..., "kv_bytes": ...,
     "prefill": PHASE, "decode": PHASE}

    PHASE = {
      "arena_bytes", "thread_bytes" (of each block), "scratch_bytes",
      "counter_bytes" (zeroed with each call), "kernel_calls" (entries of the trace behind the first),
      "launches": [LAUNCH in order],
      "persistent": {"entry", "threads", "shared_bytes", "kernels": [name in order]} or null,
      "reason": why decode is not persistent, or "",
    }
    LAUNCH = {
      "kernel": name, "entry": symbol, "threads": 256, "shared_bytes",
      "offsets": [i64: offset of each operand in its space; of an operand of the call the offset of
                  its pointer in this block],
      "rows": "t" or "r" (it may be left out where there are no rows),
      "kinds": [kinds of output that need it], sorted
    }

Every launch and the persistent kernel have `ctas` blocks; the persistent one is cooperative: all of
them must be resident together. An entry is a kernel `(u64 call, i64 offset...)`, the persistent one
`(u64 call)`. The row kernels of a prefill that are launched in the order of the list give the same
results as the persistent kernel.
"""

from __future__ import annotations

import ctypes

KINDS = ("logits", "argmax", "top_k")
"""The kinds of output by their number in a call."""

COUNTERS = 128
"""Bytes of the counters in front of the arrivals: the grid barrier's, in a line of its own."""


class CallBlock(ctypes.Structure):
    """One call; all pointers are addresses in device memory.

    `tokens`, `positions`, `row_slots`, `logit_rows` are i32; `logits` f32 [rows, vocabulary],
    `best` i32 [rows], `top_logits` f32 and `top_ids` i32 [rows, top_k]. `thread` is the first of
    the copies of the blocks, `scratch` what attention keeps its parts in, `counters` zeros with
    each call. `trace` is 0 or i64 nanoseconds: the start, then the end of each kernel.
    """

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("n_logit_rows", ctypes.c_int32),
        ("output_kind", ctypes.c_int32),
        ("top_k", ctypes.c_int32),
        ("tokens", ctypes.c_uint64),
        ("positions", ctypes.c_uint64),
        ("row_slots", ctypes.c_uint64),
        ("logit_rows", ctypes.c_uint64),
        ("logits", ctypes.c_uint64),
        ("best", ctypes.c_uint64),
        ("top_logits", ctypes.c_uint64),
        ("top_ids", ctypes.c_uint64),
        ("weights", ctypes.c_uint64),
        ("kv", ctypes.c_uint64),
        ("arena", ctypes.c_uint64),
        ("thread", ctypes.c_uint64),
        ("scratch", ctypes.c_uint64),
        ("counters", ctypes.c_uint64),
        ("trace", ctypes.c_uint64),
    )


OPERANDS = (
    "tokens",
    "positions",
    "row_slots",
    "logit_rows",
    "logits",
    "best",
    "top_logits",
    "top_ids",
)
"""The fields that are the operands of a program, in its order."""


def offset_of(field: str) -> int:
    """The byte offset of a field."""
    return int(getattr(CallBlock, field).offset)
