"""The call's own rows of keys and values: from who made them to all cores of a group, and home."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infc.backends.dataflow.codegen.builder import Area, CoreProgram, Destination
from infc.backends.dataflow.codegen.exchange import Arrivals, Sender, exchange
from infc.backends.dataflow.codegen.kv_home import BLOCK_POSITIONS, KVHome
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.stream import Register, Stream
from infc.backends.dataflow.codegen.values import Rows, RowSpace
from infc.backends.dataflow.isa import Conversion
from infc.backends.dataflow.machine import LINE_BYTES, Machine

_F32, _F16 = 4, 2
_MOST_KEYS = 512
"""Rows of a tile at most: longer vectors save little more."""
_SRAM_SHARE = 16
"""The part of SRAM that the scores of a tile may take."""


def own_keys(machine: Machine, space: RowSpace) -> int:
    """Rows of a tile of the call's own keys."""
    if space.most <= BLOCK_POSITIONS:
        return space.most
    fitting = machine.sram_bytes // _SRAM_SHARE // (2 * _F32 * machine.matrix.m)
    most = min(fitting, _MOST_KEYS, machine.vector.native, space.most)
    return max(most // BLOCK_POSITIONS, 1) * BLOCK_POSITIONS


def own_head_bytes(scope: Scope, home: KVHome, space: RowSpace) -> int:
    """Of one head's rows of a call, in whole tiles."""
    keys = own_keys(scope.machine, space)
    return -(-space.most // keys) * keys * home.row_bytes


def emit_halves(
    scope: Scope,
    core: CoreProgram,
    home: KVHome,
    parts: tuple[Rows, Rows],
    heads: tuple[int, int],
    target: Buffer,
    head_bytes: int,
) -> None:
    """Own rows of keys and values in f16: target is `[head][row]`.

    Args:
        parts: keys and values.
        heads: the first one and how many.
    """
    v, e = core.vector, home.kind.head_dim
    first, count = heads
    padding = home.value_offset - _F16 * e
    rows = scope.own(v, parts[0].space)
    with v.stepping(rows, parts[0].row_bytes, home.row_bytes) as (row, place):
        for head in range(count):
            for number, part in enumerate(parts):
                made = target.at(head * head_bytes + number * home.value_offset, place)
                source = part.buffer.at(_F32 * e * (first + head), row)
                v.v_cvt(Conversion.F32_F16, made, source, e)
                if padding:
                    v.v_fill(made + _F16 * e, 0.0, padding // _F32)


def emit_tail(
    scope: Scope, core: CoreProgram, home: KVHome, space: RowSpace, rows: Buffer, head_bytes: int
) -> None:
    """Zeros behind the last row, as far as its tile goes: what is not seen is multiplied by 0."""
    v, keys, total = core.vector, own_keys(scope.machine, space), scope.total(core.vector, space)
    if not isinstance(total, Register):
        return
    with v.registers(2) as (place, count):
        v.mul(count, total, -1)
        v.mod(count, count, keys)
        v.mul(place, total, home.row_bytes)
        with v.loop(count):
            for head in range(home.heads):
                for at, n in scope.group.pieces(home.row_bytes // _F32):
                    v.v_fill(rows.at(head * head_bytes + _F32 * at, place), 0.0, n)
            v.add(place, place, imm=home.row_bytes)


def emit_flat_halves(core: CoreProgram, scope: Scope, parts: tuple[Rows, Rows], to: Buffer) -> None:
    """Own rows of keys and values of all heads in f16: `[row][keys, values][head][e]`."""
    v, width = core.vector, parts[0].width
    strides = (parts[0].row_bytes, 2 * _F16 * width)
    with v.stepping(scope.own(v, parts[0].space), *strides) as (row, place):
        for number, part in enumerate(parts):
            for at, n in scope.group.pieces(width):
                made = to.at(_F16 * (number * width + at), place)
                v.v_cvt(Conversion.F32_F16, made, part.buffer.at(_F32 * at, row), n)


@dataclass(frozen=True)
class Move:
    """What of each own row of a head goes to the cores of its group.

    Attributes:
        first, head_bytes, row_bytes: of the source: where it begins, from one head to the next,
            from one row to the next.
        offset: in the row there.
        size_bytes: of it.
    """

    first: int
    head_bytes: int
    row_bytes: int
    offset: int
    size_bytes: int


def send_rows(
    scope: Scope,
    home: KVHome,
    space: RowSpace,
    own: Buffer,
    rows: Buffer,
    head_bytes: int,
    moves: Sequence[Move],
) -> None:
    """Own rows of each head to all cores of the head's group, where rows are shared.

    Args:
        own: of all heads.
        rows: `[head of the group][row]`.
    """

    def sender(core: CoreProgram, arrived: str, sent: str) -> int:
        s, sends = core.send, 0
        with s.registers(1) as (at,):
            s.mul(at, scope.first(s, space), home.row_bytes)
            for group in range(home.groups):
                for to in destinations(scope.group.area, group * home.span, home.span):
                    for head in range(home.heads):
                        kv_head = group * home.heads + head
                        for move in moves:
                            s.send(
                                rows.at(head * head_bytes + move.offset, at),
                                own.at(move.first + kv_head * move.head_bytes),
                                move.size_bytes,
                                scope.own(s, space),
                                to,
                                stride_d=home.row_bytes,
                                stride_a=move.row_bytes,
                                signal=arrived,
                                sent=sent,
                            )
                            sends += 1
        return sends

    exchange_in_part(scope, sender, space.cores * home.heads * len(moves), [rows])


def exchange_in_part(
    scope: Scope, sender: Sender, arrivals: int | Arrivals, receives: Sequence[Buffer]
) -> None:
    """An exchange in which a core does not hear of all others.

    What others write later may then be overwritten from the last exchange of all on.
    """
    before = scope.last_exchange
    exchange(scope, sender, arrivals, receives)
    scope.last_exchange = before


def destinations(area: Area, first: int, count: int) -> list[Destination]:
    """The cores of an area with consecutive numbers, as few rectangles."""
    found, at, stop = [], first, first + count
    on_chip = area.rows * area.cols
    while at < stop:
        chip, rest = divmod(at, on_chip)
        row, col = divmod(rest, area.cols)
        if not rest and stop - at >= on_chip:
            whole = (stop - at) // on_chip
            part = Area(area.chip + chip, whole, area.row, area.col, area.rows, area.cols)
        elif not col and stop - at >= area.cols:
            rows = min((stop - at) // area.cols, area.rows - row)
            part = Area(area.chip + chip, 1, area.row + row, area.col, rows, area.cols)
        else:
            cols = min(stop - at, area.cols - col)
            part = Area(area.chip + chip, 1, area.row + row, area.col + col, 1, cols)
        found.append(part.all())
        at += part.size
    return found


def emit_home(
    scope: Scope,
    core: CoreProgram,
    home: KVHome,
    space: RowSpace,
    rows: Buffer,
    head_bytes: int,
) -> None:
    """The send stream moves this stripe's rows of the call to their home.

    It goes by blocks of 32 positions, from the one of the first row to that of the last, and posts
    `homed` when the rows may be overwritten.
    """
    s, stripe = core.send, home.stripe(core.index)
    start, total = scope.position[core.index, s.unit], scope.total(s, space)
    with s.registers(6) as (block, blocks, first, count, own, place):
        s.div(block, start, BLOCK_POSITIONS)
        _emit_stop(s, start, total, blocks)
        s.add(blocks, blocks, imm=BLOCK_POSITIONS - 1)
        s.div(blocks, blocks, BLOCK_POSITIONS)
        s.mul(own, block, -1)
        s.add(blocks, blocks, own)
        with s.loop(blocks):
            s.add(own, block, imm=home.stripes - stripe)
            s.mod(own, own, home.stripes)
            s.least(own, own, 0, 0, 1)
            s.mul(own, own, -1)
            s.add(own, own, imm=1)
            with s.loop(own):
                # [first, first + count) are positions of the block that the call has.
                s.mul(first, block, BLOCK_POSITIONS)
                _emit_stop(s, start, total, count)
                s.least(count, count, 0, first, BLOCK_POSITIONS)
                s.most(first, first, 0, start)
                s.mul(place, first, -1)
                s.add(count, count, place)
                _emit_local_place(s, home, block, first, place)
                s.mul(own, start, -1)
                s.add(first, first, own)
                s.mul(first, first, home.row_bytes)
                _emit_moves(scope, core, home, rows.at(0, first), place, count, head_bytes)
            s.add(block, block, imm=1)
    # Nothing moves, but everything before has been read when it says so.
    s.send(rows, rows, 0, 0, scope.group.area.one(core.index), sent="homed")


def _emit_stop(s: Stream, start: Register, total: Register | int, target: Register) -> None:
    if isinstance(total, Register):
        s.add(target, start, total)
    else:
        s.mov(target, total, start)


def _emit_local_place(
    s: Stream, home: KVHome, block: Register, first: Register, place: Register
) -> None:
    """place = the bytes of the block's local position, in a head."""
    with s.registers(1) as (row,):
        s.div(place, block, home.stripes)
        s.mul(place, place, BLOCK_POSITIONS)
        s.mod(row, first, BLOCK_POSITIONS)
        s.add(place, place, row)
    s.mod(place, place, home.held)
    s.mul(place, place, home.row_bytes)


def _emit_moves(
    scope: Scope,
    core: CoreProgram,
    home: KVHome,
    source: Address,
    place: Register,
    count: Register,
    head_bytes: int,
) -> None:
    s = core.send
    s.add(place, place, scope.cache_base[core.index, s.unit])
    if scope.kv is not None:
        for head in range(home.heads):
            s.send(
                scope.kv.at(head * home.head_bytes, place),
                source + head * head_bytes,
                home.row_bytes,
                count,
                scope.group.area.one(core.index),
                stride_d=home.row_bytes,
                stride_a=home.row_bytes,
            )
        return
    with s.registers(1) as (line,):
        s.div(place, place, LINE_BYTES)
        s.point(line, scope.kv_far[core.index])
        s.add(line, line, place)
        for head in range(home.heads):
            s.store(
                Address(head * home.head_bytes // LINE_BYTES, line),
                source + head * head_bytes,
                home.row_bytes,
                count,
                stride_d=home.row_bytes // LINE_BYTES,
                stride_a=home.row_bytes,
                tier=scope.kv_tier,
            )
