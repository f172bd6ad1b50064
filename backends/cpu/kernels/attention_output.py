"""Where attention writes: rows `[heads * head_dim]`, float32, or bf16 for the product behind."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.rows import F32_BYTES, store_f32
from infc.reference.abf16 import abf16_padded, abf16_row_bytes

_BF16_BYTES = 2


@dataclass(frozen=True)
class AttentionOutput:
    """The output of a call.

    Attributes:
        rows: the first row.
        form: `f32` or `abf16`.
        heads, head_dim: of a row.
    """

    b: Builder
    rows: Value
    form: str
    heads: int
    head_dim: int

    def place(self, row: Value, head: Value) -> Value:
        """Where the output of a row and query head begins."""
        b, numbers = self.b, self.heads * self.head_dim
        if self.form == "f32":
            row_bytes, element_bytes = numbers * F32_BYTES, F32_BYTES
        else:
            row_bytes, element_bytes = abf16_row_bytes(numbers), _BF16_BYTES
        offset = b.add(b.mul(row, row_bytes), b.mul(head, self.head_dim * element_bytes))
        return b.at(self.rows, offset)

    def store(self, value: Value, place: Value, at: Value, lanes: int) -> None:
        """Store the first `lanes` of a `vector<16xf32>`, `at` f32 bytes from the place on."""
        b = self.b
        if self.form == "f32":
            store_f32(b, value, place, at, lanes)
            return
        half = b.trunc_f(value, b.vec(LANES, b.bf16))
        b.store_first(half, b.at(place, b.div(at, F32_BYTES // _BF16_BYTES)), lanes, _BF16_BYTES)

    def close(self, place: Value, head: Value) -> None:
        """Behind the last head of an `abf16` row write its zeros."""
        b, numbers = self.b, self.heads * self.head_dim
        missing = abf16_padded(numbers) - numbers
        if self.form == "f32" or not missing:
            return
        end = b.at(place, self.head_dim * _BF16_BYTES)
        zero = b.const(0, b.vec(2 * LANES, b.i16))
        is_last = b.cmp("eq", head, self.heads - 1)
        b.when(is_last, lambda: b.store_first(zero, end, missing, _BF16_BYTES))
