"""The call block: what the host writes into device memory once a call and the programs read.

One place for the code generator (byte offsets) and the runtime (ctypes). Pointers are addresses in
device memory.
"""

from __future__ import annotations

import ctypes

NUMBERS = ("n_tokens", "n_logit_rows", "output_kind", "top_k")
"""i32 each; `output_kind` is the number of one of `KINDS`."""
KINDS = ("logits", "argmax", "top_k")
"""The kinds of output."""

POINTERS = (
    "tokens",
    "positions",
    "row_slots",
    "logit_rows",
    "logits",
    "best",
    "top_logits",
    "top_ids",
    "weights",
    "kv",
    "arena",
    "thread",
    "scratch",
    "counters",
    "trace",
)
"""u64 each.

- `tokens`, `positions`, `row_slots` i32 `[n_tokens]`, `logit_rows` i32 `[n_logit_rows]`;
- `logits` f32 `[n_logit_rows, vocab]`, `best` i32 `[n_logit_rows]`, `top_logits` f32 and `top_ids`
  i32 `[n_logit_rows, top_k]`;
- `thread`: one copy of the `thread` space for each block of the launch, `thread_bytes` apart;
- `scratch`: partial results of attention;
- `counters`: the u32 of the grid barrier in a line of its own (`ARRIVALS` bytes), then the arrivals
  of attention and of the best tokens; zero when a call begins;
- `trace`: 0, or i64 nanoseconds, entry 0 the start of the program, then one for each kernel's end.
"""


class CallBlock(ctypes.Structure):
    """The block as the host fills it."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in NUMBERS),
        *((name, ctypes.c_uint64) for name in POINTERS),
    )


ARRIVALS = 128
"""Where the arrivals start in `counters`."""
CALL_BLOCK_BYTES = ctypes.sizeof(CallBlock)


def offset_of(field: str) -> int:
    """The byte offset of a field."""
    return int(getattr(CallBlock, field).offset)
