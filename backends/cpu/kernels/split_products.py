"""Products of one a8 row with a split matrix: exactly, or from its high plane a bound.

A panel is 16 rows of the matrix, its products `vector<16xf32>`. *Exact* sums have the same bits as
those of the streaming kernel on the same numbers in one plane: group after group along k
`sum = fma(dot, weight_scale * activation_scale, sum)`, the dot an exact integer; whole panels and
single rows alike.

The *bound* of a row is computed from scales and high parts alone and is never below its exact
product, rounding included. With `p = weight_scale * activation_scale` as above and `middle` the
product where every low part is in the middle of its range:

    centre = fma(middle, p, centre)         slack = fma(slack_of_group, |p|, slack)
    bound  = (centre + slack) * multiplier

docs/exact-head.md derives `slack_of_group`; `emit_prepare` computes it once a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.activation import a8_offsets
from infc.backends.cpu.kernels.dots import (
    emit_broadcast_step,
    emit_codes,
    emit_dot,
    emit_scales,
    needs_signed,
    prefetch_pays,
)
from infc.backends.cpu.kernels.split_layout import STEP, UNIT_BYTES, SplitLayout
from infc.ir.mlir import math, vector
from infc.passes.codegen.panels import PANEL_ROWS
from infc.reference.a8 import A8_BLOCK, A8_SUM

PANEL_OUT_BYTES = 4 * PANEL_ROWS
_VECTOR_BYTES = 64
_WORDS = LANES
"""Words of 8 high parts of a row in one vector, where a row is multiplied alone."""
_PREFETCH_BYTES = 4096
_UNIT_ROUNDOFF = 2.0**-24
_TINY = 2.0**-120
"""More than all underflows of a sum together."""
_LARGEST_SCALE = 65504.0
_SAFE = 2.0**120
"""Sums whose terms stay below this do not overflow."""


@dataclass(frozen=True)
class SplitProducts:
    """Emits products with matrices of one layout and width."""

    layout: SplitLayout
    k: int

    @property
    def groups(self) -> int:
        """Groups along k."""
        return self.k // self.layout.group

    @property
    def vectors(self) -> int:
        """Vectors of a row that is multiplied alone."""
        return -(-self.k // (_WORDS * 2 * STEP))

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

    # What is prepared: f32 middle[g], f32 slack[g], i32 start[g], padded to lines, then for rows
    # alone i32 starts[vectors][16] and the codes of x, i8 [vectors][2][64].

    @property
    def _field_bytes(self) -> int:
        return -(-4 * self.groups // _VECTOR_BYTES) * _VECTOR_BYTES

    @property
    def _starts_offset(self) -> int:
        return 3 * self._field_bytes

    @property
    def _codes_offset(self) -> int:
        return self._starts_offset + _VECTOR_BYTES * self.vectors

    @property
    def prepared_bytes(self) -> int:
        """Room for what is prepared of a row."""
        return self._codes_offset + 2 * _VECTOR_BYTES * self.vectors

    def _name(self, what: str) -> str:
        return f"split_{what}_{self.layout.name}_k{self.k}"

    # ---- once a row --------------------------------------------------------------------------

    def emit_prepare(self, b: Builder) -> str:
        """Define `@name(x: ptr, prepared: ptr)`, unless the module has it; returns its name.

        Where a sum could overflow, or a scale is no number, every bound becomes infinite.
        """
        name = self._name("prepare")
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
                b.store(slack, b.at(at, self._field_bytes), 4)
                start = b.f_to_si(b.fmul(total, b.const(-largest_code, b.f32)), b.i32)
                b.store(start, b.at(at, 2 * self._field_bytes), 4)
                scale = self._activation_scale(b, x, index)
                return b.fma(b.fmul(absolute, b.const(largest_code, b.f32)), scale, size)

            (size,) = b.loop(0, self.groups, 1, [b.const(0.0, b.f32)], body=group)
            safe = b.const(_SAFE / (4 * _LARGEST_SCALE), b.f32)

            def unsafe() -> None:
                b.store(b.const(float("inf"), b.f32), b.at(prepared, self._field_bytes), 4)

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

    def _activation_scale(self, b: Builder, x: Value, group: Value) -> Value:
        block = b.div(group, A8_BLOCK // self.layout.group)
        return b.load(b.at(b.at(x, a8_offsets(self.k).scales), b.mul(block, 4)), b.f32, 4)

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
        words = b.vec(_WORDS, b.i32)
        starts, codes = b.at(prepared, self._starts_offset), b.at(prepared, self._codes_offset)
        room = b.stack(2 * _VECTOR_BYTES * self.vectors, _VECTOR_BYTES)

        def clear(index: Value) -> None:
            b.store(b.const(0, words), b.at(starts, b.mul(index, _VECTOR_BYTES)), 4)
            for half in range(2):
                at = b.add(b.mul(index, 2 * _VECTOR_BYTES), half * _VECTOR_BYTES)
                b.store(b.const(0, words), b.at(room, at), 4)

        b.loop(0, self.vectors, body=clear)

        def copy(offset: Value) -> None:
            block = b.load(b.at(x, offset), b.vec(A8_BLOCK, b.i8), A8_BLOCK)
            b.store(block, b.at(room, offset), A8_BLOCK)

        b.loop(0, self.k, A8_BLOCK, body=copy)

        def deal(index: Value) -> None:
            at = b.mul(index, 2 * _VECTOR_BYTES)
            first, second = (b.load(b.at(b.at(room, at), 64 * i), words, 4) for i in range(2))
            for half in range(2):
                dealt = b.shuffle(first, second, range(half, 2 * _WORDS, 2))
                b.store(dealt, b.at(b.at(codes, at), _VECTOR_BYTES * half), 4)

        b.loop(0, self.vectors, body=deal)

        def start(group: Value) -> None:
            value = b.load(b.at(prepared, b.add(b.mul(group, 4), 2 * self._field_bytes)), b.i32, 4)
            b.store(value, b.at(starts, b.mul(group, 4 * self._words_of_group)), 4)

        if not needs_signed(b, self.layout.whole):
            b.loop(0, self.groups, body=start)

    @property
    def _words_of_group(self) -> int:
        return self.layout.group // (2 * STEP)

    # ---- panels ------------------------------------------------------------------------------

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
                centre, slack = b.loop(0, self.groups, 1, begin, body=group)
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
        for line in range(0, high.chunk_bytes, _VECTOR_BYTES):
            b.prefetch(b.at(chunk, _PREFETCH_BYTES + line))
        codes = b.at(x, b.mul(group, high.group))
        # Two sums, so that a group does not wait for itself.
        dots = [b.const(0, b.vec(LANES, b.i32))] * 2
        for step, code in enumerate(emit_codes(b, high, chunk)):
            word = emit_broadcast_step(b, codes, step)
            dots[step % 2] = emit_dot(b, dots[step % 2], code, word, False)
        dot = b.add(*dots)
        at = b.at(prepared, b.mul(group, 4))
        middle = b.fma(
            b.si_to_f(dot, floats),
            b.const(float(1 << self.layout.low_bits), floats),
            b.splat(b.load(at, b.f32, 4)),
        )
        p = b.fmul(emit_scales(b, chunk), b.splat(self._activation_scale(b, x, group)))
        of_group = b.splat(b.load(b.at(at, self._field_bytes), b.f32, 4))
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
            units = self.k // self.layout.unit

            def panel(index: Value) -> None:
                high_panel = b.at(high, b.mul(index, self.high_panel_bytes))
                low_panel = b.at(low, b.mul(index, PANEL_ROWS * self.low_row_bytes))

                def unit(u: Value, total: Value) -> Value:
                    return self._exact_unit(b, x, prepared, high_panel, low_panel, u, total)

                zero = b.const(0.0, b.vec(LANES, b.f32))
                (total,) = b.loop(0, units, 1, [zero], body=unit)
                product = b.fmul(total, b.splat(multiplier))
                b.store(product, b.at(out, b.mul(index, PANEL_OUT_BYTES)), 4)

            b.loop(0, panels, body=panel)
            b.ret()
        return name

    def _exact_unit(
        self,
        b: Builder,
        x: Value,
        prepared: Value,
        high_panel: Value,
        low_panel: Value,
        unit: Value,
        total: Value,
    ) -> Value:
        layout, high = self.layout, self.layout.high
        groups = layout.unit // layout.group
        chunk_at = b.at(high_panel, b.mul(unit, groups * high.chunk_bytes))
        if prefetch_pays(b.isa, self.layout.whole):
            for line in range(0, groups * high.chunk_bytes, _VECTOR_BYTES):
                b.prefetch(b.at(chunk_at, _PREFETCH_BYTES + line))
        # The low parts of the next panel, in the order they lie.
        ahead = PANEL_ROWS * self.low_row_bytes
        lines = b.at(low_panel, b.add(b.mul(unit, PANEL_ROWS * UNIT_BYTES), ahead))
        for line in range(0, PANEL_ROWS * UNIT_BYTES, _VECTOR_BYTES):
            b.prefetch(b.at(lines, line))
        lows = self._low_words(b, b.at(low_panel, b.mul(unit, UNIT_BYTES)))
        for index in range(groups):
            group = b.add(b.mul(unit, groups), index)
            chunk = b.at(chunk_at, index * high.chunk_bytes)
            codes = self._joined(b, chunk, lows, index)
            total = self._add_group(b, x, prepared, group, chunk, codes, total)
        return total

    def _low_words(self, b: Builder, unit: Value) -> list[Value]:
        """The low parts of a unit of 16 rows: word j of all rows as `vector<64xi8>`, 4 of them.

        A row's words come as 16 bytes; four rows in each of four vectors change places with words.
        """
        four, count = b.vec(4, b.i32), PANEL_ROWS // 4
        parts = []
        for first in range(count):
            # Row 4 * i + first in quarter i, so that rows come out in order.
            quarters = [
                b.load(b.at(unit, (4 * i + first) * self.low_row_bytes), four, UNIT_BYTES)
                for i in range(count)
            ]
            halves = [b.shuffle(quarters[i], quarters[i + 1], range(8)) for i in (0, 2)]
            parts.append(b.shuffle(halves[0], halves[1], range(16)))

        def within(a: Value, c: Value, mask: list[int]) -> Value:
            """The same shuffle in every quarter; lanes of `c` are numbered from 4 on."""
            whole = [4 * q + m if m < 4 else 16 + 4 * q + m - 4 for q in range(4) for m in mask]
            return b.shuffle(a, c, whole)

        low = [within(parts[i], parts[i + 1], [0, 4, 1, 5]) for i in (0, 2)]
        up = [within(parts[i], parts[i + 1], [2, 6, 3, 7]) for i in (0, 2)]
        masks = ([0, 1, 4, 5], [2, 3, 6, 7])
        words = [within(pair[0], pair[1], mask) for pair in (low, up) for mask in masks]
        return [b.bitcast(word, b.vec(_VECTOR_BYTES, b.i8)) for word in words]

    def _joined(self, b: Builder, chunk: Value, lows: list[Value], index: int) -> list[Value]:
        """The codes of a group, unsigned: one `vector<64xi8>` for every 4 k."""
        steps = self.layout.group // STEP
        codes = []
        for step, high in enumerate(emit_codes(b, self.layout.high, chunk)):
            number = steps * index + step
            word, place = lows[number // self.layout.per_word], number % self.layout.per_word
            codes.append(self._join(b, high, word, place))
        return codes

    def _join(self, b: Builder, high: Value, word: Value, place: int) -> Value:
        """`high << low_bits | field`, byte by byte; the field is number `place` of its byte."""
        bits = self.layout.low_bits
        low = b.shr(word, bits * place) if place else word
        if place < self.layout.per_word - 1:
            low = b.bit_and(low, (1 << bits) - 1)
        return b.bit_or(b.shl(high, bits), low)

    def _add_group(
        self,
        b: Builder,
        x: Value,
        prepared: Value,
        group: Value,
        chunk: Value,
        codes: list[Value],
        total: Value,
    ) -> Value:
        """One group along k of 16 rows, added to their sums."""
        signed = needs_signed(b, self.layout.whole)
        activations = b.at(x, b.mul(group, self.layout.group))
        start = b.load(b.at(prepared, b.add(b.mul(group, 4), 2 * self._field_bytes)), b.i32, 4)
        dot = b.splat(b.const(0, b.i32) if signed else start)
        for step, code in enumerate(codes):
            if signed:
                code = b.sub(code, b.const(self._signed_zero, code.type))
            dot = emit_dot(b, dot, code, emit_broadcast_step(b, activations, step), signed)
        p = b.fmul(emit_scales(b, chunk), b.splat(self._activation_scale(b, x, group)))
        return b.fma(b.si_to_f(dot, b.vec(LANES, b.f32)), p, total)

    @property
    def _signed_zero(self) -> int:
        """The zero point as an i8."""
        return (
            self.layout.zero_point - 256
            if self.layout.zero_point > 127
            else (self.layout.zero_point)
        )

    def emit_join(self, b: Builder) -> str:
        """Define `@name(high, low: ptr, panels: i64, out: ptr)`: panels in the layout `whole`."""
        name = self._name("join")
        if b.defined(name):
            return name
        layout, whole = self.layout, self.layout.whole
        with b.function(name, [b.ptr, b.ptr, b.i64, b.ptr], inline=False) as arguments:
            high, low, panels, out = arguments
            of_unit = layout.unit // layout.group

            def panel(index: Value) -> None:
                high_panel = b.at(high, b.mul(index, self.high_panel_bytes))
                low_panel = b.at(low, b.mul(index, PANEL_ROWS * self.low_row_bytes))
                target = b.at(out, b.mul(index, whole.panel_bytes(self.k)))

                def unit(u: Value) -> None:
                    lows = self._low_words(b, b.at(low_panel, b.mul(u, UNIT_BYTES)))
                    for i in range(of_unit):
                        group = b.add(b.mul(u, of_unit), i)
                        chunk = b.at(high_panel, b.mul(group, layout.high.chunk_bytes))
                        self._join_group(
                            b, chunk, lows, i, b.at(target, b.mul(group, whole.chunk_bytes))
                        )

                b.loop(0, self.k // layout.unit, body=unit)

            b.loop(0, panels, body=panel)
            b.ret()
        return name

    def _join_group(
        self, b: Builder, chunk: Value, lows: list[Value], index: int, target: Value
    ) -> None:
        whole = self.layout.whole
        scales = b.vec(2 * PANEL_ROWS, b.i8)
        b.store(b.load(chunk, scales, 32), target, 32)
        for step, code in enumerate(self._joined(b, chunk, lows, index)):
            if whole.zero_point != self.layout.zero_point:
                code = b.add(code, whole.zero_point - self.layout.zero_point)
            b.store(code, b.at(target, whole.codes_offset + _VECTOR_BYTES * step), 32)

    # ---- one row -----------------------------------------------------------------------------

    def emit_row(self, b: Builder) -> str:
        """Define `@name(x, prepared, high, low: ptr, lane: i64, multiplier: f32) -> f32`.

        The exact product with row `lane` of the panel whose high parts are at `high`; `low` points
        to that row's low parts.
        """
        name = self._name("row")
        if b.defined(name):
            return name
        types = [b.ptr, b.ptr, b.ptr, b.ptr, b.i64, b.f32]
        with b.function(name, types, [b.f32], inline=False) as arguments:
            x, prepared, high, low, lane, multiplier = arguments
            whole = self.k // (_WORDS * 2 * STEP)
            of_vector = _WORDS // self._words_of_group

            def step(index: Value, total: Value) -> Value:
                return self._add_words(b, x, prepared, high, low, lane, index, of_vector, total)

            (total,) = b.loop(0, whole, 1, [b.const(0.0, b.f32)], body=step)
            if self.groups % of_vector:
                left = self.groups % of_vector
                total = self._add_words(b, x, prepared, high, low, lane, b.idx(whole), left, total)
            b.ret(b.fmul(total, multiplier))
        return name

    def _add_words(
        self,
        b: Builder,
        x: Value,
        prepared: Value,
        high: Value,
        low: Value,
        lane: Value,
        index: Value,
        groups: int,
        total: Value,
    ) -> Value:
        """Sixteen words of a row: the first `groups` groups they hold are added to its sum.

        Words beyond the row are whatever lies behind it; their activations are zero.
        """
        layout, of_group = self.layout, self._words_of_group
        ints, bytes_ = b.vec(_WORDS, b.i32), b.vec(_VECTOR_BYTES, b.i8)
        first = b.mul(index, _WORDS // of_group)
        chunks = b.at(high, b.mul(first, layout.high.chunk_bytes))
        words = b.at(chunks, b.add(b.mul(lane, STEP), layout.high.codes_offset))
        loaded = [
            b.load(
                b.at(words, w // of_group * layout.high.chunk_bytes + w % of_group * 64), b.i32, 4
            )
            for w in range(_WORDS)
        ]
        both = b.bitcast(vector.FromElementsOp(ints, loaded).result, bytes_)
        lows = self._row_lows(b, low, index)
        codes = b.at(prepared, b.add(b.mul(index, 2 * _VECTOR_BYTES), self._codes_offset))
        dots = b.load(
            b.at(prepared, b.add(b.mul(index, _VECTOR_BYTES), self._starts_offset)), ints, 4
        )
        signed = needs_signed(b, layout.whole)
        for half, part in enumerate((b.bit_and(both, 15), b.shr(both, 4))):
            code = b.bit_or(b.shl(part, layout.low_bits), lows[half])
            if signed:
                code = b.sub(code, b.const(self._signed_zero, bytes_))
            activations = b.load(b.at(codes, _VECTOR_BYTES * half), bytes_, 4)
            dots = emit_dot(b, dots, code, activations, signed)
        distance = 1
        while distance < of_group:
            dots = b.add(dots, b.shuffle(dots, dots, [i ^ distance for i in range(_WORDS)]))
            distance *= 2
        exact = b.si_to_f(dots, b.vec(_WORDS, b.f32))
        scales = b.at(chunks, b.mul(lane, 2))
        for group in range(groups):
            weight = b.load(b.at(scales, group * layout.high.chunk_bytes), b.f16, 2)
            scale = self._activation_scale(b, x, b.add(first, group))
            p = b.fmul(b.ext_f(weight, b.f32), scale)
            total = b.fma(b.extract(exact, group * of_group), p, total)
        return total

    def _row_lows(self, b: Builder, low: Value, index: Value) -> list[Value]:
        """The low parts that go with the lower and the upper high parts of sixteen words."""
        bits, bytes_ = self.layout.low_bits, b.vec(_VECTOR_BYTES, b.i8)
        mask = (1 << bits) - 1
        if bits == 4:
            both = b.load(b.at(low, b.mul(index, _VECTOR_BYTES)), bytes_, UNIT_BYTES)
            return [b.bit_and(both, mask), b.shr(both, bits)]
        half = b.load(b.at(low, b.mul(index, _VECTOR_BYTES // 2)), b.vec(8, b.i32), UNIT_BYTES)
        pairs = b.shuffle(half, half, [i // 2 for i in range(_WORDS)])
        # The second word of each pair has its low parts in the upper half of each byte.
        amounts = b.lanes([4 * (i % 2) for i in range(_WORDS)], b.i32)
        fields = b.bitcast(b.shr(pairs, amounts), bytes_)
        return [b.bit_and(fields, mask), b.bit_and(b.shr(fields, bits), mask)]
