"""Rows that are looked up: embeddings by token, cosines and sines by position.

The rows of the call's own tokens are fetched once, in front of all layers: from far memory by the
load stream, or from the core that keeps them. A row of the embedding is a tile of one row, that the
vector unit turns into float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.exchange import exchange, rows_of
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.scope import ARG_FIRST_TOKEN, Scope
from infc.backends.dataflow.codegen.stream import Count, Register, Stream
from infc.backends.dataflow.codegen.values import RopeTable, Rows, RowSpace, Weight, deal
from infc.backends.dataflow.isa import Binary, Conversion, Float, Unary
from infc.backends.dataflow.tiles import LINE_BYTES, TileFormat, lines, tile_format
from infc.diagnostics import InternalError


@dataclass(frozen=True)
class RopeSource:
    """A rotary table as the model states it.

    Attributes:
        frequencies: of each pair, in radians a position.
        positions: rows of the table.
    """

    frequencies: tuple[float, ...]
    magnitude: float
    positions: int

    @property
    def row_bytes(self) -> int:
        """Of a row with its padding."""
        return lines(8 * len(self.frequencies))


def emit_embed(scope: Scope, table: Weight, scale: float) -> Rows:
    """`scale * table[tokens]` for the rows that each core owns."""
    space = scope.spaces["t"]
    width = int(table.type.shape[1])
    form = tile_format(table.type.element)
    if form is None:
        raise InternalError(f"no rows of {table.type.element} can be read")
    record = form.tile_bytes(1, width)
    records = scope.buffer("records", space.owned * record)
    if scope.home.far is None:
        _records_of_cores(scope, table, space, records, record)
    else:
        _records_of_far(scope, table, space, records, record)
    factor = scale * scope.factor(table.sources[0])
    rows = Rows(space, scope.buffer("embedded", space.owned * 4 * width), width)
    for core in scope.cores:
        v = core.vector
        with v.stepping(scope.own(v, space), record, rows.row_bytes) as (source, target):
            for at, count in scope.group.pieces(width):
                place = rows.buffer.at(4 * at, target)
                _decode(v, place, records.at(0, source), at, count, width, form)
                if factor != 1.0:
                    v.v_imm(Binary.MUL, place, place, factor, count)
    return rows


def _decode(
    v: Stream, target: Address, record: Address, at: int, count: int, width: int, form: TileFormat
) -> None:
    """Some numbers of a row in float32."""
    if form.is_float:
        bf16 = form.form == Float.BF16
        v.v_cvt(Conversion.BF16_F32 if bf16 else Conversion.F16_F32, target, record + 2 * at, count)
        return
    field = at // form.group * 2
    mins = record + form.mins_offset(1, width) + field if form.has_min else None
    v.v_dq(
        target,
        record + at * form.bits // 8,
        record + form.scales_offset(1, width) + field,
        mins,
        count,
        form.form,
    )


def _records_of_far(
    scope: Scope, table: Weight, space: RowSpace, records: Buffer, record: int
) -> None:
    """Every core loads the rows of its own tokens."""
    vocabulary = int(table.type.shape[0])
    for core in scope.cores:
        far = scope.home.far_table(core, ("rows", table.sources[0]), vocabulary * record)
        stream = core.load
        with stream.registers(3) as (token, index, target):
            stream.mov(target, 0)
            stream.mov(index, 0, scope.first(stream, space) if space.shared else 0)
            with stream.loop(scope.own(stream, space)):
                stream.arg(token, ARG_FIRST_TOKEN, index)
                stream.mul(token, token, record // LINE_BYTES)
                with stream.registers(1) as (source,):
                    stream.point(source, far)
                    stream.add(source, source, token)
                    stream.load(records.at(0, target), Address(0, source), record, signal="record")
                stream.add(index, index, imm=1)
                stream.add(target, target, imm=record)
        core.vector.wait("record", scope.own(core.vector, space))


def _records_of_cores(
    scope: Scope, table: Weight, space: RowSpace, records: Buffer, record: int
) -> None:
    """The core that keeps a token's row sends it to those that own the token."""
    slices = deal(int(table.type.shape[0]), 1, len(scope.cores))
    kept = scope.home.sram_table(
        "embedding", [(("rows", table.sources[0], first, stop), (stop - first) * record)
                      for first, stop in slices]
    )  # fmt: skip

    def send_row(
        core: CoreProgram,
        index: Register,
        target: Register,
        other: int | None,
        arrived: str,
        sent: str,
    ) -> None:
        stream, (first, stop) = core.send, slices[core.index]
        area = scope.group.area
        with stream.registers(3) as (row, here, there):
            stream.arg(row, ARG_FIRST_TOKEN, index)
            stream.add(row, row, imm=-first)
            stream.most(here, row, 1, 0, 0)
            stream.mul(there, row, -1)
            stream.most(there, there, stop - first, 0, 0)
            stream.least(here, here, 0, there, 0)
            stream.least(here, here, 0, 0, 1)
            stream.mul(row, row, record)
            stream.send(
                records.at(0, target), kept.at(0, row), record, here,
                area.all() if other is None else area.one(other), signal=arrived, sent=sent,
            )  # fmt: skip
        stream.add(index, index, imm=1)
        stream.add(target, target, imm=record)

    def sender(core: CoreProgram, arrived: str, sent: str) -> Count:
        stream = core.send
        with stream.registers(4) as (index, target, first, rows):
            if not space.shared:
                stream.mov(index, 0)
                stream.mov(target, 0)
                with stream.loop(scope.total(stream, space)):
                    send_row(core, index, target, None, arrived, sent)
            for other in range(space.cores if space.shared else 0):
                rows_of(scope, stream, space, other, first, rows)
                stream.mov(index, 0, first)
                stream.mov(target, 0)
                with stream.loop(rows):
                    send_row(core, index, target, other, arrived, sent)
        return scope.total(core.vector, space)

    def arrivals(core: CoreProgram) -> Count:
        own = scope.own(core.vector, space)
        if not isinstance(own, Register):
            return own * len(scope.cores)
        scratch = scope.scratch[core.index, core.vector.unit]
        core.vector.mul(scratch, own, len(scope.cores))
        return scratch

    exchange(scope, sender, arrivals, [records])


def fetch_rope(scope: Scope, source: RopeSource, name: str) -> RopeTable:
    """The rows of the call's positions, for the rest of the call."""
    space, pairs = scope.spaces["t"], len(source.frequencies)
    rows = scope.group.buffer(f"{name}.rows", space.owned * 8 * pairs, forever=True)
    key = ("rope", source)
    size = source.positions * source.row_bytes
    kept = None
    if scope.home.far is None:
        kept = scope.home.sram_table(name, [(key, size) for _ in scope.cores])
    for core in scope.cores:
        stream = core.load if kept is None else core.vector
        with stream.registers(1) as (first,):
            stream.mov(first, 0, scope.position[core.index, stream.unit])
            if space.shared:
                stream.add(first, first, scope.first(stream, space))
            stream.mul(first, first, source.row_bytes // (LINE_BYTES if kept is None else 1))
            if kept is not None:
                with stream.stepping(scope.own(stream, space), 8 * pairs) as (target,):
                    for at, count in scope.group.pieces(2 * pairs):
                        place = kept.at(4 * at, first)
                        stream.v_un(Unary.COPY, rows.at(4 * at, target), place, count)
                    stream.add(first, first, imm=source.row_bytes)
                continue
            with stream.registers(1) as (at,):
                stream.point(at, scope.home.far_table(core, key, size))
                stream.add(at, at, first)
                stream.load(
                    rows, Address(0, at), 8 * pairs, scope.own(stream, space),
                    stride_d=8 * pairs, stride_a=source.row_bytes // LINE_BYTES, signal="rope",
                )  # fmt: skip
        core.vector.wait("rope")
    return RopeTable(rows, space, pairs)
