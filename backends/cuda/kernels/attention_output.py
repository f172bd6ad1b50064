"""Where attention writes: rows `[heads * head_dim]`, float32, or bf16 for the product behind."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.attention_spec import F32_BYTES, AttentionSpec
from infc.ir.types import ABF16, abf16_row_bytes

_BF16_BYTES = 2
_PADDED = 32
"""Rows of `abf16` end in zeros up to a multiple of so many numbers."""


@dataclass(frozen=True)
class AttentionOutput:
    """The output of a call, from the pointer to its first row."""

    b: GpuBuilder
    spec: AttentionSpec
    rows: Value

    def place(self, row: Value, head: Value) -> Value:
        """Where the output of a row and query head begins."""
        b, dim = self.b, self.spec.kv.head_dim
        numbers = self.spec.heads * dim
        row_bytes = abf16_row_bytes(numbers) if self._rounds else numbers * F32_BYTES
        inside = b.mul(head, dim * self._element_bytes)
        return b.at(self.rows, b.add(b.mul(b.wide(row), row_bytes), b.wide(inside)))

    def store(self, values: list[Value], place: Value, element: Value | int) -> None:
        """Store two or four f32 from an element of the head on, a multiple of their number."""
        b = self.b
        offset = (
            element * self._element_bytes
            if isinstance(element, int)
            else b.mul(element, self._element_bytes)
        )
        if self._rounds:
            values = [b.pack_bf16(*values[i : i + 2]) for i in range(0, len(values), 2)]
        b.store(b.vector_of(values), b.at(place, offset), 4 * len(values))

    def close(self, place: Value, head: Value, lane: Value) -> None:
        """Behind the last head of an `abf16` row write its zeros; lanes 0 to 3 write them."""
        b, dim = self.b, self.spec.kv.head_dim
        missing = -(self.spec.heads * dim) % _PADDED
        if not self._rounds or not missing:
            return
        each = missing * _BF16_BYTES // 4
        end = b.at(place, b.add(b.mul(lane, each), dim * _BF16_BYTES))
        zeros = b.vector_of([b.idx(0)] * (each // 4))
        b.when(b.cmp("eq", head, self.spec.heads - 1), lambda: b.store(zeros, end, each))

    @property
    def _rounds(self) -> bool:
        return self.spec.out == ABF16

    @property
    def _element_bytes(self) -> int:
        return _BF16_BYTES if self._rounds else F32_BYTES
