"""The product of a gate, strip by strip: while the matrix unit makes one strip, the vector unit
activates, multiplies and rounds the one before, and the one before that is on its way to all.

    matrix: gate = x . w_gate, up = x . w_up        [rows][columns of the strip], in two places
    vector: codes = round(activation(gate) * up)    rows one behind the other are one vector
    send:   codes to their columns on every core
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.exchange import begin_exchange
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.products import Products, cuts_of
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.stream import Register, Stream
from infc.backends.dataflow.codegen.values import Codes, Columns, Gated, Halves, deal
from infc.backends.dataflow.codegen.weights import Cut
from infc.backends.dataflow.isa import BLOCK, Binary, Conversion
from infc.ir.types import A8

_F32 = 4
_FREE, _MADE, _ROUNDED, _SENT = "strip free", "strip made", "strip rounded", "strip sent"
_PLACES = 2
"""Strips that are under way in each of the streams."""


def emit_gated(scope: Scope, gated: Gated, form: str) -> Codes | Halves:
    """The whole product on every core, as a8, bf16 or f16."""
    n = int(gated.weights[0].type.shape[0])
    slices = deal(n, BLOCK, len(scope.cores))
    cuts = [cuts_of(scope, weight, slices) for weight in gated.weights]
    emitter = _Strips(scope, gated, n, form)
    with scope.group.origins.of(gated.origin):
        arrived = begin_exchange(scope, [part.whole for part in emitter.parts])
        sends = 0
        for core in scope.cores:
            own = [cut[core.index] for cut in cuts]
            sends += emitter.emit(core, own, slices[core.index][0], arrived)
        for core in scope.cores:
            core.vector.wait(arrived, sends)
    return emitter.result


@dataclass(frozen=True)
class _Part:
    """Codes, scales or halves.

    Attributes:
        strip: of the strips at hand, rows one behind the other.
        whole: all columns.
        shrink: bytes of f32 numbers for each of its bytes.
    """

    strip: Buffer
    whole: Buffer
    shrink: int


class _Strips:
    """
    Attributes:
        result: on every core.
        parts: of it.
        place_bytes: of f32, from a strip's place to the next one's.
    """

    def __init__(self, scope: Scope, gated: Gated, n: int, form: str) -> None:
        self.scope, self.gated, self.form = scope, gated, form
        self.space, self.n = gated.x.space, n
        self.tile = scope.machine.matrix.n
        self.place_bytes = _F32 * self.space.most * self.tile
        whole = _F32 * self.space.most * n
        self.products = [
            scope.buffer(f"strip{number}", _PLACES * self.place_bytes) for number in range(2)
        ]

        def part(name: str, shrink: int) -> _Part:
            strip = scope.buffer(f"{name}.strip", _PLACES * self.place_bytes // shrink)
            return _Part(strip, scope.buffer(name, whole // shrink), shrink)

        self.result: Codes | Halves
        if form == A8:
            self.parts = [part("codes", _F32), part("scales", BLOCK)]
            self.result = Codes(self.space, self.parts[0].whole, self.parts[1].whole, n)
        else:
            self.parts = [part("halves", 2)]
            self.result = Halves(self.space, self.parts[0].whole, n)

    def emit(self, core: CoreProgram, cuts: Sequence[Cut], first: int, arrived: str) -> int:
        """One core; how many SENDs it makes."""
        whole, rest = divmod(cuts[0].stop - cuts[0].first, self.tile)
        strips = [(self.tile, whole), (rest, 1 if rest else 0)]
        core.vector.post(_FREE, _PLACES)
        core.vector.post(_SENT, _PLACES * len(self.parts))
        core.hand(core.vector, core.matrix)
        self._emit_matrix(core, cuts, strips)
        self._emit_vector(core, strips)
        self._emit_send(core, strips, first, arrived)
        return (whole + strips[1][1]) * len(self.parts)

    def _emit_matrix(
        self, core: CoreProgram, cuts: Sequence[Cut], strips: Sequence[tuple[int, int]]
    ) -> None:
        m, products = core.matrix, Products(self.scope, core, self.gated.x)
        self.scope.weights.note(core, *cuts)
        with m.registers(1) as (place,):
            m.mov(place, 0)
            for n, count in strips:
                if not count:
                    continue
                with self.scope.weights.loop(core, count):
                    m.wait(_FREE)
                    for cut, buffer in zip(cuts, self.products, strict=True):
                        out = Columns(self.space, buffer, n, (), _F32 * n)
                        products.strip(cut, out, place, n)
                    m.post(_MADE)
                    self._emit_next(m, place)
        # All are free again: nothing is left over for the next time.
        m.wait(_FREE, _PLACES)

    def _emit_vector(self, core: CoreProgram, strips: Sequence[tuple[int, int]]) -> None:
        v = core.vector
        with v.registers(1) as (place,):
            v.mov(place, 0)
            for n, count in strips:
                if not count:
                    continue
                with v.loop(count):
                    v.wait(_MADE)
                    v.wait(_SENT, len(self.parts))
                    self._emit_strip(core, n, place)
                    v.post(_FREE)
                    v.post(_ROUNDED)
                    self._emit_next(v, place)
        v.wait(_SENT, _PLACES * len(self.parts))

    def _emit_strip(self, core: CoreProgram, n: int, place: Register) -> None:
        """As many rows at a time as a vector has room for."""
        v, native = core.vector, self.scope.group.native
        rows = max(native // n, 1)
        with v.registers(4) as (turns, left, at, count):
            total = self.scope.total(v, self.space)
            v.mov(turns, rows - 1, total)
            v.div(turns, turns, rows)
            v.mov(left, 0, total)
            v.mul(left, left, n)
            v.mov(at, 0, place)
            with v.loop(turns):
                v.least(count, left, 0, 0, rows * n)
                self._emit_vectors(core, at, count)
                v.add(at, at, imm=_F32 * rows * n)
                v.add(left, left, imm=-rows * n)

    def _emit_vectors(self, core: CoreProgram, at: Register, count: Register) -> None:
        v = core.vector
        places = [buffer.at(0, at) for buffer in self.products]
        for place, weight in zip(places, self.gated.weights, strict=True):
            factor = self.scope.factor_of(core, weight)
            if factor is not None:
                v.v_bins(Binary.MUL, place, place, factor, count)
        gate, up = places[self.gated.activated], places[1 - self.gated.activated]
        v.v_un(self.gated.kind, gate, gate, count)
        v.v_bin(Binary.MUL, gate, gate, up, count)
        with v.registers(len(self.parts)) as made:
            targets: list[Address] = []
            for register, part in zip(made, self.parts, strict=True):
                v.div(register, at, part.shrink)
                targets.append(part.strip.at(0, register))
            if self.form == A8:
                v.v_q8(targets[0], targets[1], gate, count)
            else:
                kind = Conversion.F32_F16 if self.form == "f16" else Conversion.F32_BF16
                v.v_cvt(kind, targets[0], gate, count)

    def _emit_send(
        self, core: CoreProgram, strips: Sequence[tuple[int, int]], first: int, arrived: str
    ) -> None:
        s, scope = core.send, self.scope
        with s.registers(2) as (place, column):
            s.mov(place, 0)
            s.mov(column, _F32 * first)
            for n, count in strips:
                if not count:
                    continue
                with s.loop(count):
                    s.wait(_ROUNDED)
                    for part in self.parts:
                        with s.registers(2) as (source, target):
                            s.div(source, place, part.shrink)
                            s.div(target, column, part.shrink)
                            s.send(
                                part.whole.at(0, target), part.strip.at(0, source),
                                _F32 * n // part.shrink, scope.total(s, self.space),
                                scope.group.area.all(), stride_d=_F32 * self.n // part.shrink,
                                stride_a=_F32 * n // part.shrink, signal=arrived, sent=_SENT,
                            )  # fmt: skip
                    self._emit_next(s, place)
                    s.add(column, column, imm=_F32 * n)

    def _emit_next(self, s: Stream, place: Register) -> None:
        s.add(place, place, imm=self.place_bytes)
        s.wrap(place, _PLACES * self.place_bytes, _PLACES * self.place_bytes)
