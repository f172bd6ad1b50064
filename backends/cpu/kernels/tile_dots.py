"""How a tile of many rows multiplies staged codes: one form for each dot product instruction.

A form says how the codes of a group are staged and what instructions make `start + codes . x` of
them. The dots are exact in 32 bits, so all forms give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.dots import (
    STEP,
    emit_broadcast_step,
    emit_codes,
    emit_dot,
    steps_in_16_bits,
)
from infc.backends.cpu.kernels.layouts import PackedLayout
from infc.passes.codegen.panels import PANEL_ROWS

_VECTOR_BYTES = 64
_UNSIGNED_ZERO_POINT = 128
_REGISTER_BYTES = 16
"""Of AArch64."""
_COLUMN_PAIRS = PANEL_ROWS // 2


@dataclass(frozen=True)
class TileDots:
    """One byte a code, in steps of four k as in the packed layout; other forms are subclasses.

    Attributes:
        name: what tiles that use it are named by.
        zero_point: the staged code that means zero; 0 where they are signed.
        bits: of a staged code.
    """

    name: str
    zero_point: int
    bits: int = 8

    @property
    def code_bytes(self) -> int:
        """Bytes of a staged code."""
        return 1

    def stage(self, b: Builder, layout: PackedLayout, chunk: Value) -> list[Value]:
        """The codes of the packed chunk at `chunk` as they are staged, `vector<64xi8>` each."""
        # Bytes wrap around, so 8-bit codes need no special case.
        shift = (self.zero_point - layout.zero_point + 128) % 256 - 128
        codes = emit_codes(b, layout, chunk)
        return [b.add(step, shift) for step in codes] if shift else codes

    def emit(
        self,
        b: Builder,
        panels: Sequence[Value],
        rows: Sequence[Value],
        start: Callable[[int], Value],
        group: int,
    ) -> list[Value]:
        """The dots of one group, `vector<16xi32>` row by row, panel by panel.

        Args:
            panels: pointers to the staged codes of the group.
            rows: pointers to the a8 codes of the group, 16-byte aligned.
            start: makes what the dots of a row start from, `vector<16xi32>`, where it is wanted.
            group: numbers along k.
        """
        signed = self.zero_point == 0
        dots = [first for first in map(start, range(len(rows))) for _ in panels]
        for step in range(group // STEP):
            operands = _step_operands(b, panels, rows, step)
            dots = [emit_dot(b, d, *o, signed) for d, o in zip(dots, operands, strict=True)]
        return dots

    def settled(self, b: Builder, sums: Sequence[Value]) -> list[Value]:
        """The float sums of a row behind a group, `vector<16xf32>`, before the next row's."""
        return list(sums)


class _Octets(TileDots):
    """Signed codes for `smmla`, AArch64's product of two 2 x 8 matrices of bytes.

    An instruction multiplies two rows of x with two columns of a panel, 8 numbers along k, and adds
    to four sums, `[row 0 column 0, row 0 column 1, row 1 column 0, row 1 column 1]`. Codes are
    staged in octets for that: `[group / 8][16 columns][8]` bytes.
    """

    def stage(self, b: Builder, layout: PackedLayout, chunk: Value) -> list[Value]:
        words, half = b.vec(LANES, b.i32), LANES // 2
        steps = super().stage(b, layout, chunk)
        out = []
        for first, second in zip(steps[::2], steps[1::2], strict=True):
            low, high = (b.bitcast(step, words) for step in (first, second))
            for start in (0, half):
                order = [LANES * step + start + word for word in range(half) for step in (0, 1)]
                out.append(b.bitcast(b.shuffle(low, high, order), first.type))
        return out

    def emit(
        self,
        b: Builder,
        panels: Sequence[Value],
        rows: Sequence[Value],
        start: Callable[[int], Value],
        group: int,
    ) -> list[Value]:
        dots = []
        for index in range(0, len(rows), 2):
            pair = rows[index], rows[min(index + 1, len(rows) - 1)]  # an odd row goes with itself
            by_panel = [_pair_dots(b, panel, pair, group) for panel in panels]
            dots += [dot for row in zip(*by_panel, strict=True) for dot in row]
        return dots[: len(rows) * len(panels)]


@dataclass(frozen=True)
class _Narrow(TileDots):
    """Unsigned codes of few bits, whose products AVX2 sums in 16 bits for a while.

    Codes of 8 bits are two planes of nibbles, low ones first: 1.15 times as fast as bytes with
    their signs and magnitudes apart (own measurement, Zen 3).

    Attributes:
        planes: parts of a code, of `bits` bits each; the next one counts `2 ** bits` times as much.
    """

    planes: int = 1

    @property
    def code_bytes(self) -> int:
        return self.planes

    def stage(self, b: Builder, layout: PackedLayout, chunk: Value) -> list[Value]:
        codes = super().stage(b, layout, chunk)
        if self.planes == 1:
            return codes
        low = [b.bit_and(step, (1 << self.bits) - 1) for step in codes]
        return low + [b.shr(step, self.bits) for step in codes]

    def emit(
        self,
        b: Builder,
        panels: Sequence[Value],
        rows: Sequence[Value],
        start: Callable[[int], Value],
        group: int,
    ) -> list[Value]:
        dots: list[Value] = []
        steps, fitting = group // STEP, steps_in_16_bits(self.bits)
        for plane in range(self.planes):
            codes = [b.at(panel, plane * PANEL_ROWS * group) for panel in panels]
            for first in range(0, steps, fitting):
                sums: list[Value] = []
                for step in range(first, min(first + fitting, steps)):
                    operands = _step_operands(b, codes, rows, step)
                    pairs = [b.pair_products(*pair) for pair in operands]
                    both = zip(sums, pairs, strict=True)
                    sums = b.settled([b.add(*pair) for pair in both] if sums else pairs)
                parts = [b.add_pairs(part, 1 << (plane * self.bits)) for part in sums]
                dots = [b.add(*each) for each in zip(dots, parts, strict=True)] if dots else parts
        if self.zero_point:
            # Late: what a row starts from would wait on the stack for all sums in 16 bits.
            starts = [first for first in map(start, range(len(rows))) for _ in panels]
            dots = [b.add(*pair) for pair in zip(dots, starts, strict=True)]
        return dots

    def settled(self, b: Builder, sums: Sequence[Value]) -> list[Value]:
        return b.settled(sums)


def tile_dots_for(isa: Isa, layout: PackedLayout) -> TileDots:
    """The form that tiles of a layout have on an instruction set."""
    if isa.dot_i8 == "neon-i8mm":
        return _Octets("s8x8", 0)
    if isa.dot_i8 == "avx2" and layout.bits < 8:
        return _Narrow(f"u{layout.bits}", layout.zero_point, layout.bits)
    if isa.dot_i8 == "avx2":
        return _Narrow("u4x2", _UNSIGNED_ZERO_POINT, bits=4, planes=2)
    if isa.dot_i8 == "neon-dot":
        return TileDots("s8", 0)
    return TileDots("u8", _UNSIGNED_ZERO_POINT)


def _step_operands(
    b: Builder, panels: Sequence[Value], rows: Sequence[Value], step: int
) -> Iterator[tuple[Value, Value]]:
    """Codes and activations of one step for each row and panel, made when they are asked for."""
    bytes_, at = b.vec(_VECTOR_BYTES, b.i8), _VECTOR_BYTES * step
    weights = [b.load(b.at(panel, at), bytes_, _VECTOR_BYTES) for panel in panels]
    for row in rows:
        activations = emit_broadcast_step(b, row, step)
        for weight in weights:
            yield weight, activations


def _pair_dots(b: Builder, panel: Value, rows: tuple[Value, Value], group: int) -> list[Value]:
    """Dots of two rows with the 16 columns of a panel in octets: two `vector<16xi32>`."""
    bytes_, words = b.vec(_REGISTER_BYTES, b.i8), b.vec(4, b.i32)
    sums = [b.const(0, words)] * _COLUMN_PAIRS
    for octet in range(group // 8):
        both = _row_pair(b, *rows, octet)
        for pair in range(_COLUMN_PAIRS):
            at = _REGISTER_BYTES * (_COLUMN_PAIRS * octet + pair)
            weights = b.load(b.at(panel, at), bytes_, _REGISTER_BYTES)
            name = "llvm.aarch64.neon.smmla"
            sums[pair] = b.intrinsic(name, words, sums[pair], both, weights)
    return [_row(b, sums, row) for row in (0, 1)]


def _row_pair(b: Builder, first: Value, second: Value, octet: int) -> Value:
    """8 a8 codes of each of two rows: `vector<16xi8>`."""
    halves = b.vec(2, b.i64)
    at = _REGISTER_BYTES * (octet // 2)
    x, y = (b.load(b.at(row, at), halves, _REGISTER_BYTES) for row in (first, second))
    return b.bitcast(b.shuffle(x, y, [octet % 2, 2 + octet % 2]), b.vec(_REGISTER_BYTES, b.i8))


def _row(b: Builder, sums: Sequence[Value], row: int) -> Value:
    """The dots of one row of a pair, in the order of the columns."""
    order = [2 * row, 2 * row + 1, 4 + 2 * row, 5 + 2 * row]
    parts = [b.shuffle(a, c, order) for a, c in zip(sums[::2], sums[1::2], strict=True)]
    while len(parts) > 1:
        lanes = range(2 * LANES // len(parts))
        parts = [b.shuffle(a, c, lanes) for a, c in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
