"""Products of one a8 row with panels of a split matrix: exactly, or from its high plane a bound.

A panel is 16 rows of the matrix, its products `vector<16xf32>`. *Exact* sums have the same bits as
those of the streaming kernel on the same numbers in one plane: group after group along k
`sum = fma(dot, weight_scale * activation_scale, sum)`, the dot an exact integer; so have those of
single rows (`split_row`).

The *bound* of a row is computed from scales and high parts alone and is never below its exact
product, rounding included. With `p = weight_scale * activation_scale` as above and `middle` the
product where every low part is in the middle of its range:

    centre = fma(middle, p, centre)         slack = fma(slack_of_group, |p|, slack)
    bound  = (centre + slack) * multiplier

What does not depend on the matrix is computed once a row (`split_prepared`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.activation import a8_offsets
from infc.backends.cpu.kernels.dots import (
    emit_broadcast_step,
    emit_codes,
    emit_dot,
    emit_dots,
    emit_scales,
    needs_signed,
)
from infc.backends.cpu.kernels.layouts import LINE_BYTES
from infc.backends.cpu.kernels.split_join import emit_joined, emit_low_words
from infc.backends.cpu.kernels.split_layout import UNIT_BYTES, SplitLayout
from infc.backends.cpu.kernels.split_prepared import PreparedRow
from infc.backends.cpu.kernels.stream import PANEL_OUT_BYTES
from infc.passes.codegen.panels import PANEL_ROWS

_FEW_AHEAD, _AHEAD = 2048, 4096
"""How far ahead high parts are asked for on AVX2 (Zen 3: 3 to 5% of a greedy step less), and
elsewhere."""
_TINY = 2.0**-120
"""More than all underflows of a sum together."""


@dataclass(frozen=True)
class _Part:
    """A group along k of 16 rows: which one, its codes in the form of their product, its scales."""

    group: Value
    codes: list[Value]
    scales: Value


@dataclass(frozen=True)
class SplitProducts:
    """Emits products with matrices of one layout and width."""

    layout: SplitLayout
    k: int

    @property
    def high_panel_bytes(self) -> int:
        """Bytes of a panel's high parts."""
        return self.layout.high.panel_bytes(self.k)

    @property
    def low_row_bytes(self) -> int:
        """Bytes of a row's low parts."""
        return self.layout.low_row_bytes(self.k)

    def emit_row_offset(self, b: Builder, row: Value) -> Value:
        """Bytes from the first row's low parts to those of a row."""
        return b.mul(row, self.low_row_bytes)

    def _name(self, what: str) -> str:
        return f"split_{what}_{self.layout.name}_k{self.k}"

    @property
    def _row(self) -> PreparedRow:
        return PreparedRow(self.layout, self.k)

    @property
    def prepared_bytes(self) -> int:
        """Room for what is prepared of a row."""
        return self._row.size_bytes

    def emit_prepare(self, b: Builder) -> str:
        """See `PreparedRow.emit`."""
        return self._row.emit(b)

    def emit_bounds(self, b: Builder) -> str:
        """Define `@name(x, prepared, high: ptr, panels: i64, multiplier: f32, out: ptr)`.

        `high` points to the first of `panels` consecutive panels; `out` is f32 [panels, 16].
        """
        name = self._name("bounds")
        if b.defined(name):
            return name
        types = [b.ptr, b.ptr, b.ptr, b.i64, b.f32, b.ptr]
        with b.function(name, types, inline=False) as arguments:
            x, prepared, high, panels, multiplier, out = arguments
            floats = b.vec(LANES, b.f32)

            def panel(index: Value) -> None:
                source = b.at(high, b.mul(index, self.high_panel_bytes))

                def group(g: Value, centre: Value, slack: Value) -> list[Value]:
                    return self._bound_group(b, x, prepared, source, g, centre, slack)

                begin = [b.const(0.0, floats), b.const(_TINY, floats)]
                centre, slack = b.loop(0, self._row.groups, 1, begin, body=group)
                bound = b.fmul(b.fadd(centre, slack), b.splat(multiplier))
                b.store(bound, b.at(out, b.mul(index, PANEL_OUT_BYTES)), 4)

            b.loop(0, panels, body=panel)
            b.ret()
        return name

    def _bound_group(
        self,
        b: Builder,
        x: Value,
        prepared: Value,
        panel: Value,
        group: Value,
        centre: Value,
        slack: Value,
    ) -> list[Value]:
        floats, high = b.vec(LANES, b.f32), self.layout.high
        chunk = b.at(panel, b.mul(group, high.chunk_bytes))
        for line in range(0, high.chunk_bytes, LINE_BYTES):
            b.prefetch(b.at(chunk, _ahead(b.isa) + line))
        codes = b.at(x, b.mul(group, high.group))
        zero = b.const(0, b.vec(LANES, b.i32))
        words = partial(emit_broadcast_step, b, codes)
        dot = emit_dots(b, zero, emit_codes(b, high, chunk), words, high.bits)
        at = b.at(prepared, b.mul(group, 4))
        middle = b.fma(
            b.si_to_f(dot, floats),
            b.const(float(1 << self.layout.low_bits), floats),
            b.splat(b.load(at, b.f32, 4)),
        )
        p = b.fmul(emit_scales(b, chunk), b.splat(self._row.emit_scale(b, x, group)))
        of_group = b.splat(b.load(b.at(at, self._row.slack_offset), b.f32, 4))
        return [b.fma(middle, p, centre), b.fma(of_group, b.fabs(p), slack)]

    def emit_exact(self, b: Builder) -> str:
        """Define `@name(x, prepared, high, low: ptr, panels: i64, multiplier: f32, out: ptr)`.

        `high` and `low` point to the parts of the first of `panels` consecutive panels; `out` is
        f32 [panels, 16].
        """
        name = self._name("exact")
        if b.defined(name):
            return name
        types = [b.ptr, b.ptr, b.ptr, b.ptr, b.i64, b.f32, b.ptr]
        with b.function(name, types, inline=False) as arguments:
            x, prepared, high, low, panels, multiplier, out = arguments

            def panel(index: Value) -> None:
                def unit(u: Value, total: Value) -> Value:
                    for part in self._parts_of_unit(b, high, low, index, u):
                        total = self._add_part(b, x, prepared, part, total)
                    return total

                zero = b.const(0.0, b.vec(LANES, b.f32))
                (total,) = b.loop(0, self._units, 1, [zero], body=unit)
                product = b.fmul(total, b.splat(multiplier))
                b.store(product, b.at(out, b.mul(index, PANEL_OUT_BYTES)), 4)

            b.loop(0, panels, body=panel)
            b.ret()
        return name

    def emit_exact_rows(self, b: Builder, most: int, out_row_bytes: int) -> str:
        """Define `@name(x, prepared: ptr, m: i64, high, low: ptr, panels, multiplier, out)`.

        As `emit_exact`, of m <= `most` rows of x: codes are put together once for all of them.
        `prepared` has what is prepared of each row, one behind the other; a row of `out` takes
        `out_row_bytes`.
        """
        name = f"{self._name('exact_rows')}_m{most}_o{out_row_bytes}"
        if b.defined(name):
            return name
        types = [b.ptr, b.ptr, b.i64, b.ptr, b.ptr, b.i64, b.f32, b.ptr]
        floats, row_bytes = b.vec(LANES, b.f32), a8_offsets(self.k).row_bytes
        with b.function(name, types, inline=False) as arguments:
            x, prepared, m, high, low, panels, multiplier, out = arguments
            totals = b.stack(most * PANEL_OUT_BYTES, PANEL_OUT_BYTES)

            def of_row(row: Value) -> Value:
                return b.at(totals, b.mul(row, PANEL_OUT_BYTES))

            def panel(index: Value) -> None:
                def clear(row: Value) -> None:
                    b.store(b.const(0.0, floats), of_row(row), PANEL_OUT_BYTES)

                def unit(u: Value) -> None:
                    for part in self._parts_of_unit(b, high, low, index, u):

                        def add(row: Value, part: _Part = part) -> None:
                            operands = (
                                b.at(x, b.mul(row, row_bytes)),
                                b.at(prepared, b.mul(row, self.prepared_bytes)),
                            )
                            total = b.load(of_row(row), floats, PANEL_OUT_BYTES)
                            total = self._add_part(b, *operands, part, total)
                            b.store(total, of_row(row), PANEL_OUT_BYTES)

                        b.loop(0, m, body=add)

                def finish(row: Value) -> None:
                    total = b.load(of_row(row), floats, PANEL_OUT_BYTES)
                    at = b.add(b.mul(row, out_row_bytes), b.mul(index, PANEL_OUT_BYTES))
                    b.store(b.fmul(total, b.splat(multiplier)), b.at(out, at), 4)

                b.loop(0, m, body=clear)
                b.loop(0, self._units, body=unit)
                b.loop(0, m, body=finish)

            b.loop(0, panels, body=panel)
            b.ret()
        return name

    @property
    def _units(self) -> int:
        return self.k // self.layout.unit

    def _parts_of_unit(
        self, b: Builder, high: Value, low: Value, panel: Value, unit: Value
    ) -> Iterator[_Part]:
        """The groups of a unit of a panel, one after the other."""
        layout, of_high = self.layout, self.layout.high
        groups, panel_bytes = layout.unit // layout.group, PANEL_ROWS * self.low_row_bytes
        high_panel = b.at(high, b.mul(panel, self.high_panel_bytes))
        low_panel = b.at(low, b.mul(panel, panel_bytes))
        chunk_at = b.at(high_panel, b.mul(unit, groups * of_high.chunk_bytes))
        if b.isa.dot_i8 != "avx2":  # in halves of 256 bits a chunk's loads are under way together
            for line in range(0, groups * of_high.chunk_bytes, LINE_BYTES):
                b.prefetch(b.at(chunk_at, _ahead(b.isa) + line))
        # The low parts of the next panel, in the order they lie.
        lines = b.at(low_panel, b.add(b.mul(unit, PANEL_ROWS * UNIT_BYTES), panel_bytes))
        for line in range(0, PANEL_ROWS * UNIT_BYTES, LINE_BYTES):
            b.prefetch(b.at(lines, line))
        lows = emit_low_words(b, self.low_row_bytes, b.at(low_panel, b.mul(unit, UNIT_BYTES)))
        for index in range(groups):
            chunk = b.at(chunk_at, index * of_high.chunk_bytes)
            codes = emit_joined(b, layout, chunk, lows, index)
            if self._signed(b):
                zero_point = b.const(layout.signed_zero_point, codes[0].type)
                codes = [b.sub(code, zero_point) for code in codes]
            yield _Part(b.add(b.mul(unit, groups), index), codes, emit_scales(b, chunk))

    def _signed(self, b: Builder) -> bool:
        """Whether codes must take the signed form; on AVX2 those of 6 bits need not."""
        narrow = b.isa.dot_i8 == "avx2" and self.layout.bits < 8
        return needs_signed(b, self.layout.whole) and not narrow

    def _add_part(self, b: Builder, x: Value, prepared: Value, part: _Part, total: Value) -> Value:
        """The products of a row of x with one group of 16 rows, added to their sums."""
        words = partial(emit_broadcast_step, b, b.at(x, b.mul(part.group, self.layout.group)))
        if self._signed(b):
            dot = b.const(0, b.vec(LANES, b.i32))
        else:
            dot = b.splat(self._row.emit_start(b, prepared, part.group))
        if b.isa.dot_i8 == "avx2" and not self._signed(b):
            dot = emit_dots(b, dot, part.codes, words, self.layout.bits)
        else:
            for step, code in enumerate(part.codes):
                dot = emit_dot(b, dot, code, words(step), self._signed(b))
        p = b.fmul(part.scales, b.splat(self._row.emit_scale(b, x, part.group)))
        return b.fma(b.si_to_f(dot, b.vec(LANES, b.f32)), p, total)


def _ahead(isa: Isa) -> int:
    return _FEW_AHEAD if isa.dot_i8 == "avx2" else _AHEAD
