"""Products of one row of floats with a bounded matrix: exactly, or from its bounds alone a bound.

*Exact* products, of whole panels and of any rows, have the bits of the streaming kernel's. The
*bound* of a row of the matrix is never below its exact product, rounding included. For it the row
of x is rounded to integers of two bytes, `x = unit (254 a + c) + rest`, `|a|, |c| <= 127`, with a
unit for every 32 numbers. With `h` the codes of the bounds and `p = scale * unit`:

    middle = fma(<h, a>, 254, <h, c> - 15.5 sum(254 a + c))
    centre = fma(middle, p, centre)         slack = fma(slack_of_group, p, slack)
    bound  = (centre + slack) * multiplier

docs/exact-head.md derives `slack_of_group`; `emit_prepare` computes it once a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.bounded_layout import (
    BOUND_BITS,
    BOUND_GROUP,
    LARGEST_EXPONENT,
    BoundedLayout,
)
from infc.backends.cpu.kernels.dots import emit_broadcast_step, emit_codes, emit_dot, emit_scales
from infc.backends.cpu.kernels.epilogue import Epilogue
from infc.backends.cpu.kernels.layouts import LINE_BYTES
from infc.backends.cpu.kernels.line_sums import (
    CHUNK_BYTES,
    ROWS,
    emit_add_lines,
    emit_row_sums,
    numbers_of_line,
)
from infc.backends.cpu.kernels.stream import PANEL_OUT_BYTES, StreamKernel, emit_stream
from infc.backends.cpu.kernels.vmath import ROUNDING_MAGIC, ROUNDING_MAGIC_BITS
from infc.passes.codegen.panels import PANEL_ROWS

_AHEAD_BYTES = 16384
"""How far ahead to prefetch, into the second cache: as `stream.Ahead`, own measurement."""
_SECOND_CACHE = 2
_UNIT_ROUNDOFF = 2.0**-24
_TINY = 2.0**-90
"""More than all underflows of a product together, of a sum before it is multiplied too."""
_SMALLEST = 2.0**-100
"""Of a group's largest magnitude: the inverse of its unit does not overflow."""
_LARGEST_SCALE = 2.0**16
_SAFE = 2.0**120
"""Sums whose terms stay below this do not overflow."""
_BASE = 254.0
_LARGEST_INTEGER = 32000.0
_HALF_RANGE = float(1 << (BOUND_BITS - 1))
_MIDDLE = _HALF_RANGE - 0.5
"""What is taken off a code for the middle of the range it stands for."""


@dataclass(frozen=True)
class BoundedProducts:
    """Emits products with matrices of one layout and width."""

    layout: BoundedLayout
    k: int

    @property
    def groups(self) -> int:
        """Groups along k."""
        return self.k // BOUND_GROUP

    @property
    def high_panel_bytes(self) -> int:
        """Bytes of a panel's bounds."""
        return self.layout.high.panel_bytes(self.k)

    @property
    def row_panel_bytes(self) -> int:
        """Bytes of a panel's weights."""
        return self.layout.whole.panel_bytes(self.k)

    # What is prepared: i8 a[k], i8 c[k], then f32 unit[g], f32 offset[g], f32 slack[g], each padded
    # to lines.

    @property
    def _codes_bytes(self) -> int:
        return -(-self.k // LINE_BYTES) * LINE_BYTES

    @property
    def _units_offset(self) -> int:
        return 2 * self._codes_bytes

    @property
    def _field_bytes(self) -> int:
        return -(-4 * self.groups // LINE_BYTES) * LINE_BYTES

    @property
    def prepared_bytes(self) -> int:
        """Room for what is prepared of a row."""
        return self._units_offset + 3 * self._field_bytes

    def _name(self, what: str) -> str:
        return f"bounded_{what}_{self.layout.name}_k{self.k}"

    # ---- once a row --------------------------------------------------------------------------

    def emit_prepare(self, b: Builder) -> str:
        """Define `@name(x: ptr, prepared: ptr)`, unless the module has it; returns its name.

        x is f32 [k]. Where a sum could overflow, or x is no number, every bound becomes infinite.
        """
        name = self._name("prepare")
        if b.defined(name):
            return name
        with b.function(name, [b.ptr, b.ptr], inline=False) as (x, prepared):
            slacks = b.at(prepared, self._units_offset + 2 * self._field_bytes)

            def group(index: Value, size: Value) -> Value:
                return self._prepare_group(b, x, prepared, index, size)

            (size,) = b.loop(0, self.groups, 1, [b.const(0.0, b.f32)], body=group)
            largest = _SAFE / (_HALF_RANGE * _LARGEST_SCALE * 2.0**LARGEST_EXPONENT)

            def unsafe() -> None:
                b.store(b.const(float("inf"), b.f32), slacks, 4)

            b.when(b.fcmp("olt", size, b.const(largest, b.f32)), lambda: None, unsafe)
            b.ret()
        return name

    def _slack_of_one(self) -> tuple[float, float]:
        """Slack for each unit of the rounded numbers, and for each of what was rounded off."""
        rounding = 12 * (self.groups + 2) * _UNIT_ROUNDOFF * _HALF_RANGE
        return (0.5 + rounding) * (1 + 2.0**-16), (_HALF_RANGE + rounding) * (1 + 2.0**-16)

    def _prepare_group(
        self, b: Builder, x: Value, prepared: Value, index: Value, size: Value
    ) -> Value:
        """One group; returns `size` and the group's part of the largest possible sum."""
        floats = b.vec(LANES, b.f32)
        source = b.at(x, b.mul(index, 4 * BOUND_GROUP))
        parts = range(BOUND_GROUP // LANES)
        numbers = [b.load(b.at(source, 4 * LANES * part), floats, 4) for part in parts]
        largest = b.reduce("maxnumf", b.fmax(b.fabs(numbers[0]), b.fabs(numbers[1])))
        largest = b.fmax(largest, b.const(_SMALLEST, b.f32))
        unit = b.fdiv(largest, b.const(_LARGEST_INTEGER, b.f32))
        inverse = b.splat(b.fdiv(b.const(1.0, b.f32), unit))
        total = absolute = rest = b.const(0.0, floats)
        for part, number in zip(parts, numbers, strict=True):
            whole = _rounded(b, b.fmul(number, inverse))
            upper = _rounded(b, b.fmul(whole, b.const(1 / _BASE, floats)))
            lower = b.fma(upper, b.const(-_BASE, floats), whole)
            for place, codes in enumerate((upper, lower)):
                at = b.add(b.mul(index, BOUND_GROUP), place * self._codes_bytes + LANES * part)
                b.store(_bytes(b, codes), b.at(prepared, at), LANES)
            total = b.fadd(total, whole)
            absolute = b.fadd(absolute, b.fabs(whole))
            left = b.fma(b.fneg(b.splat(unit)), whole, number)
            rest = b.fadd(rest, b.fabs(left))
        offset = b.fmul(b.reduce("add", total), b.const(-_MIDDLE, b.f32))
        weight = b.reduce("add", absolute)
        loss = b.fdiv(b.reduce("add", rest), unit)
        of_weight, of_loss = (b.const(one, b.f32) for one in self._slack_of_one())
        slack = b.fma(loss, of_loss, b.fmul(weight, of_weight))
        fields = b.at(prepared, b.add(b.mul(index, 4), self._units_offset))
        for field, value in enumerate((unit, offset, slack)):
            b.store(value, b.at(fields, field * self._field_bytes), 4)
        return b.fma(b.fadd(weight, loss), unit, size)

    # ---- bounds ------------------------------------------------------------------------------

    def emit_bounds(self, b: Builder) -> str:
        """Define `@name(x, prepared, high: ptr, panels: i64, multiplier: f32, out: ptr)`.

        `high` points to the bounds of the first of `panels` consecutive panels; `out` is f32
        [panels, 16].
        """
        name = self._name("bounds")
        if b.defined(name):
            return name
        types = [b.ptr, b.ptr, b.ptr, b.i64, b.f32, b.ptr]
        with b.function(name, types, inline=False) as arguments:
            _, prepared, high, panels, multiplier, out = arguments
            floats = b.vec(LANES, b.f32)

            def panel(index: Value) -> None:
                source = b.at(high, b.mul(index, self.high_panel_bytes))

                def group(g: Value, centre: Value, slack: Value) -> list[Value]:
                    return self._bound_group(b, prepared, source, g, centre, slack)

                begin = [b.const(0.0, floats), b.const(_TINY, floats)]
                centre, slack = b.loop(0, self.groups, 1, begin, body=group)
                bound = b.fmul(b.fadd(centre, slack), b.splat(multiplier))
                b.store(bound, b.at(out, b.mul(index, PANEL_OUT_BYTES)), 4)

            b.loop(0, panels, body=panel)
            b.ret()
        return name

    def _bound_group(
        self, b: Builder, prepared: Value, panel: Value, group: Value, centre: Value, slack: Value
    ) -> list[Value]:
        floats, high = b.vec(LANES, b.f32), self.layout.high
        chunk = b.at(panel, b.mul(group, high.chunk_bytes))
        for line in range(0, high.chunk_bytes, LINE_BYTES):
            b.prefetch(b.at(chunk, _AHEAD_BYTES + line), _SECOND_CACHE)
        upper = b.at(prepared, b.mul(group, BOUND_GROUP))
        lower = b.at(upper, self._codes_bytes)
        uppers = lowers = b.const(0, b.vec(LANES, b.i32))
        for step, code in enumerate(emit_codes(b, high, chunk)):
            uppers = emit_dot(b, uppers, code, emit_broadcast_step(b, upper, step), False)
            lowers = emit_dot(b, lowers, code, emit_broadcast_step(b, lower, step), False)
        fields = b.at(prepared, b.add(b.mul(group, 4), self._units_offset))
        unit, offset, of_group = (
            b.splat(b.load(b.at(fields, field * self._field_bytes), b.f32, 4)) for field in range(3)
        )
        middle = b.fma(
            b.si_to_f(uppers, floats),
            b.const(_BASE, floats),
            b.fadd(b.si_to_f(lowers, floats), offset),
        )
        p = b.fmul(emit_scales(b, chunk), unit)
        return [b.fma(middle, p, centre), b.fma(of_group, p, slack)]

    # ---- exact products ----------------------------------------------------------------------

    def emit_exact(self, b: Builder) -> str:
        """Define `@name(x, prepared, high, low: ptr, panels: i64, multiplier: f32, out: ptr)`.

        `low` points to the weights of the first of `panels` consecutive panels; `out` is f32
        [panels, 16].
        """
        name = self._name("exact")
        if b.defined(name):
            return name
        kernel = StreamKernel(self.layout.whole, self.k, 1, Epilogue(False), 1, _AHEAD_BYTES)
        stream = emit_stream(b, kernel)
        types = [b.ptr, b.ptr, b.ptr, b.ptr, b.i64, b.f32, b.ptr]
        with b.function(name, types, inline=False) as arguments:
            x, _, _, low, panels, multiplier, out = arguments
            columns = b.mul(panels, PANEL_ROWS)
            sizes = [b.mul(columns, 4), columns]
            b.call(stream, [x, b.idx(1), low, panels, multiplier, x, out, *sizes])
            b.ret()
        return name

    def emit_rows(self, b: Builder) -> str:
        """Define `@name(x, weights: ptr, rows: ptr, out: ptr)`.

        The exact products with four rows, whose numbers are i64 [4] at `rows`; `weights` points to
        the first panel, `out` is f32 [4].
        """
        name = self._name("rows")
        if b.defined(name):
            return name
        layout = self.layout.whole
        numbers = numbers_of_line(layout)
        with b.function(name, [b.ptr] * 4, inline=False) as (x, weights, rows, out):
            starts = []
            for index in range(ROWS):
                row = b.load(b.at(rows, 8 * index), b.i64, 8)
                starts.append(b.at(weights, self.emit_row_offset(b, row)))

            def line(index: Value, sums: Value) -> list[Value]:
                lines = [b.at(start, b.mul(index, CHUNK_BYTES)) for start in starts]
                at = b.at(x, b.mul(index, 4 * numbers))
                return emit_add_lines(b, layout, [lines], [at], [sums])

            begin = [b.const(0.0, b.vec(LANES, b.f32))]
            (sums,) = b.loop(0, self.k // numbers, 1, begin, body=line)
            sums = emit_row_sums(b, sums)
            products = b.shuffle(sums, sums, range(0, LANES, LANES // ROWS))
            b.store(products, out, 4)
            b.ret()
        return name

    def emit_row_offset(self, b: Builder, row: Value) -> Value:
        """Bytes from the first panel to the first line of a row."""
        panel = b.mul(b.div(row, PANEL_ROWS), self.row_panel_bytes)
        return b.add(panel, b.mul(b.rem(row, PANEL_ROWS), LINE_BYTES))


def _rounded(b: Builder, values: Value) -> Value:
    """Floats rounded to whole numbers, ties to even, for magnitudes below 2**22."""
    magic = b.const(ROUNDING_MAGIC, values.type)
    return b.fsub(b.fadd(values, magic), magic)


def _bytes(b: Builder, values: Value) -> Value:
    """Sixteen whole numbers as bytes; no undefined behaviour where they are not numbers."""
    shifted = b.bitcast(b.fadd(values, b.const(ROUNDING_MAGIC, values.type)), b.vec(LANES, b.i32))
    return b.trunc_i(b.sub(shifted, ROUNDING_MAGIC_BITS), b.vec(LANES, b.i8))
