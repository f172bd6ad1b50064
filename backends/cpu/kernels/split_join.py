"""Panels of a split matrix put together: codes from their high and low parts."""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.dots import emit_codes
from infc.backends.cpu.kernels.layouts import LINE_BYTES
from infc.backends.cpu.kernels.split_layout import STEP, UNIT_BYTES, SplitLayout
from infc.passes.codegen.panels import PANEL_ROWS


def emit_join(b: Builder, layout: SplitLayout, k: int) -> str:
    """Define `@name(high, low: ptr, panels: i64, out: ptr)`: panels in the layout `whole`."""
    name = f"split_join_{layout.name}_k{k}"
    if b.defined(name):
        return name
    whole, low_row_bytes = layout.whole, layout.low_row_bytes(k)
    with b.function(name, [b.ptr, b.ptr, b.i64, b.ptr], inline=False) as arguments:
        high, low, panels, out = arguments
        of_unit = layout.unit // layout.group

        def panel(index: Value) -> None:
            high_panel = b.at(high, b.mul(index, layout.high.panel_bytes(k)))
            low_panel = b.at(low, b.mul(index, PANEL_ROWS * low_row_bytes))
            target = b.at(out, b.mul(index, whole.panel_bytes(k)))

            def unit(u: Value) -> None:
                lows = emit_low_words(b, low_row_bytes, b.at(low_panel, b.mul(u, UNIT_BYTES)))
                for i in range(of_unit):
                    group = b.add(b.mul(u, of_unit), i)
                    chunk = b.at(high_panel, b.mul(group, layout.high.chunk_bytes))
                    _join_group(
                        b, layout, chunk, lows, i, b.at(target, b.mul(group, whole.chunk_bytes))
                    )

            b.loop(0, k // layout.unit, body=unit)

        b.loop(0, panels, body=panel)
        b.ret()
    return name


def _join_group(
    b: Builder, layout: SplitLayout, chunk: Value, lows: list[Value], index: int, target: Value
) -> None:
    whole = layout.whole
    scales = b.vec(2 * PANEL_ROWS, b.i8)
    b.store(b.load(chunk, scales, 32), target, 32)
    for step, code in enumerate(emit_joined(b, layout, chunk, lows, index)):
        if whole.zero_point != layout.zero_point:
            code = b.add(code, whole.zero_point - layout.zero_point)
        b.store(code, b.at(target, whole.codes_offset + LINE_BYTES * step), 32)


def emit_low_words(b: Builder, low_row_bytes: int, unit: Value) -> list[Value]:
    """The low parts of a unit of 16 rows: word j of all rows as `vector<64xi8>`, 4 of them.

    A row's words come as 16 bytes; four rows in each of four vectors change places with words.
    """
    four, count = b.vec(4, b.i32), PANEL_ROWS // 4
    parts = []
    for first in range(count):
        # Row 4 * i + first in quarter i, so that rows come out in order.
        quarters = [
            b.load(b.at(unit, (4 * i + first) * low_row_bytes), four, UNIT_BYTES)
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
    return [b.bitcast(word, b.vec(LINE_BYTES, b.i8)) for word in words]


def emit_joined(
    b: Builder, layout: SplitLayout, chunk: Value, lows: list[Value], index: int
) -> list[Value]:
    """The codes of a group of 16 rows, unsigned: one `vector<64xi8>` for every 4 k.

    Args:
        chunk: the group's part of the high plane.
        lows: of `emit_low_words`.
        index: which group of its unit it is.
    """
    steps = layout.group // STEP
    codes = []
    for step, high in enumerate(emit_codes(b, layout.high, chunk)):
        number = steps * index + step
        word, place = lows[number // layout.per_word], number % layout.per_word
        codes.append(_join(b, layout, high, word, place))
    return codes


def _join(b: Builder, layout: SplitLayout, high: Value, word: Value, place: int) -> Value:
    """`high << low_bits | field`, byte by byte; the field is number `place` of its byte."""
    bits = layout.low_bits
    low = b.shr(word, bits * place) if place else word
    if place < layout.per_word - 1:
        low = b.bit_and(low, (1 << bits) - 1)
    return b.bit_or(b.shl(high, bits), low)
