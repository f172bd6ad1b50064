"""What is prepared, once, of an a8 row x for its products with a split matrix.

For every group of columns: `middle`, what low parts in the middle of their range and the zero point
add to the dot of the high parts; `slack`, how far the dot can be from that, rounding included
(docs/exact-head.md derives it); `start`, from which a dot of unsigned codes begins. For rows that
are multiplied alone also the starts and the codes of x, in the order of such a row's words.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.activation import a8_offsets
from infc.backends.cpu.kernels.dots import needs_signed
from infc.backends.cpu.kernels.layouts import LINE_BYTES
from infc.backends.cpu.kernels.split_layout import STEP, SplitLayout
from infc.ir.mlir import math
from infc.reference.a8 import A8_BLOCK, A8_SUM

WORDS = LANES
"""Words of 8 high parts of a row in one vector, where a row is multiplied alone."""
_UNIT_ROUNDOFF = 2.0**-24
_LARGEST_SCALE = 65504.0
_SAFE = 2.0**120
"""Sums whose terms stay below this do not overflow."""


@dataclass(frozen=True)
class PreparedRow:
    """Where all that lies in memory, for products with matrices of one layout and width.

    f32 middle[g], f32 slack[g], i32 start[g], padded to lines, then for rows alone
    i32 starts[vectors][16] and the codes of x, i8 [vectors][2][64].
    """

    layout: SplitLayout
    k: int

    @property
    def groups(self) -> int:
        """Groups along k."""
        return self.k // self.layout.group

    @property
    def vectors(self) -> int:
        """Vectors of a row that is multiplied alone."""
        return -(-self.k // (WORDS * 2 * STEP))

    @property
    def words_of_group(self) -> int:
        """Words of a row that share a scale."""
        return self.layout.group // (2 * STEP)

    @property
    def _field_bytes(self) -> int:
        return -(-4 * self.groups // LINE_BYTES) * LINE_BYTES

    @property
    def slack_offset(self) -> int:
        """Bytes from a group's `middle` to its `slack`."""
        return self._field_bytes

    @property
    def _start_offset(self) -> int:
        return 2 * self._field_bytes

    @property
    def starts_offset(self) -> int:
        """Bytes from the start of all to the starts for rows alone."""
        return 3 * self._field_bytes

    @property
    def codes_offset(self) -> int:
        """Bytes from the start of all to the codes for rows alone."""
        return self.starts_offset + LINE_BYTES * self.vectors

    @property
    def size_bytes(self) -> int:
        """Of all."""
        return self.codes_offset + 2 * LINE_BYTES * self.vectors

    def emit_start(self, b: Builder, prepared: Value, group: Value) -> Value:
        """The start of a group, i32."""
        return b.load(b.at(prepared, b.add(b.mul(group, 4), self._start_offset)), b.i32, 4)

    def emit_scale(self, b: Builder, x: Value, group: Value) -> Value:
        """The scale of a group of x, f32."""
        block = b.div(group, A8_BLOCK // self.layout.group)
        return b.load(b.at(b.at(x, a8_offsets(self.k).scales), b.mul(block, 4)), b.f32, 4)

    def emit(self, b: Builder) -> str:
        """Define `@name(x: ptr, prepared: ptr)`, unless the module has it; returns its name.

        Where a sum could overflow, or a scale is no number, every bound becomes infinite.
        """
        name = f"split_prepare_{self.layout.name}_k{self.k}"
        if b.defined(name):
            return name
        offsets, layout = a8_offsets(self.k), self.layout
        slack_of_one, largest_code = self._slack_of_one(), float(layout.zero_point)
        with b.function(name, [b.ptr, b.ptr], inline=False) as (x, prepared):
            sums = b.at(x, offsets.sums)

            def group(index: Value, size: Value) -> Value:
                total, absolute = self._sums_of_group(b, x, sums, index)
                at = b.at(prepared, b.mul(index, 4))
                middle = b.fmul(total, b.const(self._middle - layout.zero_point, b.f32))
                b.store(middle, at, 4)
                slack = b.fmul(absolute, b.const(slack_of_one, b.f32))
                b.store(slack, b.at(at, self.slack_offset), 4)
                start = b.f_to_si(b.fmul(total, b.const(-largest_code, b.f32)), b.i32)
                b.store(start, b.at(at, self._start_offset), 4)
                scale = self.emit_scale(b, x, index)
                return b.fma(b.fmul(absolute, b.const(largest_code, b.f32)), scale, size)

            (size,) = b.loop(0, self.groups, 1, [b.const(0.0, b.f32)], body=group)
            safe = b.const(_SAFE / (4 * _LARGEST_SCALE), b.f32)

            def unsafe() -> None:
                b.store(b.const(float("inf"), b.f32), b.at(prepared, self.slack_offset), 4)

            b.when(b.fcmp("olt", size, safe), lambda: None, unsafe)
            self._emit_row_codes(b, x, prepared)
            b.ret()
        return name

    @property
    def _middle(self) -> float:
        """The middle of the range of a low part."""
        return ((1 << self.layout.low_bits) - 1) / 2

    def _slack_of_one(self) -> float:
        """Slack for each unit of |x|: what a low part can miss, and what rounding can."""
        rounding = 4 * (self.groups + 1) * _UNIT_ROUNDOFF * self.layout.zero_point
        return (self._middle + rounding) * (1 + 2.0**-20)

    def _sums_of_group(
        self, b: Builder, x: Value, sums: Value, group: Value
    ) -> tuple[Value, Value]:
        """The sum of a group's activations and that of their magnitudes, f32, exact."""
        parts = self.layout.group // A8_SUM
        total, absolute = b.const(0, b.i32), b.const(0, b.i32)
        for part in range(parts):
            number = b.add(b.mul(group, parts), part)
            total = b.add(total, b.load(b.at(sums, b.mul(number, 4)), b.i32, 4))
            codes = b.load(b.at(x, b.mul(number, A8_SUM)), b.vec(A8_SUM, b.i8), A8_SUM)
            magnitudes = math.AbsIOp(b.ext_s(codes, b.vec(A8_SUM, b.i32))).result
            absolute = b.add(absolute, b.reduce("add", magnitudes))
        return b.si_to_f(total, b.f32), b.si_to_f(absolute, b.f32)

    def _emit_row_codes(self, b: Builder, x: Value, prepared: Value) -> None:
        """The codes of x in the order of a row's words, and the starts of its sums."""
        words = b.vec(WORDS, b.i32)
        starts, codes = b.at(prepared, self.starts_offset), b.at(prepared, self.codes_offset)
        room = b.stack(2 * LINE_BYTES * self.vectors, LINE_BYTES)

        def clear(index: Value) -> None:
            b.store(b.const(0, words), b.at(starts, b.mul(index, LINE_BYTES)), 4)
            for half in range(2):
                at = b.add(b.mul(index, 2 * LINE_BYTES), half * LINE_BYTES)
                b.store(b.const(0, words), b.at(room, at), 4)

        b.loop(0, self.vectors, body=clear)

        def copy(offset: Value) -> None:
            block = b.load(b.at(x, offset), b.vec(A8_BLOCK, b.i8), A8_BLOCK)
            b.store(block, b.at(room, offset), A8_BLOCK)

        b.loop(0, self.k, A8_BLOCK, body=copy)

        def deal(index: Value) -> None:
            at = b.mul(index, 2 * LINE_BYTES)
            first, second = (b.load(b.at(b.at(room, at), 64 * i), words, 4) for i in range(2))
            for half in range(2):
                dealt = b.shuffle(first, second, range(half, 2 * WORDS, 2))
                b.store(dealt, b.at(b.at(codes, at), LINE_BYTES * half), 4)

        b.loop(0, self.vectors, body=deal)

        def start(group: Value) -> None:
            value = self.emit_start(b, prepared, group)
            b.store(value, b.at(starts, b.mul(group, 4 * self.words_of_group)), 4)

        if not needs_signed(b, self.layout.whole):
            b.loop(0, self.groups, body=start)
