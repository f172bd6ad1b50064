"""How far ahead the persistent kernel fetches weights, for the cost model."""

from __future__ import annotations

from typing import Final

from infc.backends.cuda.kernels.frame import WORK_OFFSET
from infc.backends.cuda.kernels.weights import layout_for
from infc.backends.cuda.target import shared_bytes_of, sm_count
from infc.cost.ahead import Ahead
from infc.passes.codegen.panels import panels_of
from infc.target.backend import KernelSummary
from infc.target.schema import Target

_BLOCK_INSTRUCTIONS: Final = {
    "m16k32.u2.g16.min": 57,
    "m16k32.u3.g16": 53,
    "m16k32.u4.g32": 36,
    "m16k32.u4.g32.min": 43,
    "m16k32.u5.g32": 47,
    "m16k32.u5.g32.min": 54,
    "m16k32.u6.g16": 50,
    "m16k32.u8.g32": 41,
    "m16k32.f16": 73,
    "m16k32.bf16": 7,
    "m16k32.f32": 101,
}
"""Of a streamed product, for a block of 16 x 32 weights and up to eight rows; counted, see "the
streaming product" in docs/cuda.md."""
_MOST_INSTRUCTIONS: Final = 101
_MORE_ROWS: Final = (8, 12)
"""Each further tile of so many rows costs so many instructions a block."""
_ISSUED: Final = 4
"""Instructions a clock of a multiprocessor."""
_SHARED_BYTES_A_CLOCK: Final = 128
_BLOCK_ROWS: Final = 32
"""Numbers along k that a block holds."""
_WORK_BYTES: Final = 72 * 1024
"""Shared memory that the kernels of a step work in, about: 64 KiB of it for attention."""


def fetched_ahead(kernel: KernelSummary, target: Target) -> Ahead:
    """Of a streamed product in a step; `expected_ring_bytes` until the ring is known."""
    shared = target.memory("smem")
    clock = shared.bandwidth_bytes_per_s / _SHARED_BYTES_A_CLOCK
    tile, more = _MORE_ROWS
    extra = more * ((kernel.typical_rows - 1) // tile)
    instructions = size_bytes = 0
    for n, k, storage in kernel.matrices:
        layout = layout_for(storage)
        blocks = panels_of(n) * -(-k // _BLOCK_ROWS)
        each = _BLOCK_INSTRUCTIONS.get(layout.name, _MOST_INSTRUCTIONS)
        instructions += blocks * (each + extra)
        size_bytes += blocks * layout.block_bytes
    seconds = max(
        instructions / (_ISSUED * clock),
        size_bytes / (shared.bandwidth_bytes_per_s * shared.efficiency.mid),
    )
    return Ahead(
        bytes=sm_count(target) * expected_ring_bytes(target),
        bytes_per_s=round(sm_count(target) * kernel.weight_bytes / seconds),
    )


def expected_ring_bytes(target: Target) -> int:
    """Of a multiprocessor, where nothing is emitted yet."""
    return max(0, shared_bytes_of(target) - WORK_OFFSET - _WORK_BYTES)
