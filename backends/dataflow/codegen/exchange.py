"""Rows and columns between the cores of a group.

All cores take part in every exchange, and go on when everything for them has come. So nobody is
more than one exchange ahead: two semaphores in turns are enough, and a buffer that others write may
be overwritten from the exchange before on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infc.backends.dataflow.codegen.builder import CoreProgram, Destination
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.stream import Count, Register, Stream
from infc.backends.dataflow.codegen.values import Columns, Rows, RowSpace, Value
from infc.diagnostics import InternalError

Sender = Callable[[CoreProgram, str, str], Count]
"""Emits the SENDs of a core, given the semaphore of arrivals and that of sources that are free
again; returns how many there are, a number or a register of the vector stream."""
Arrivals = Callable[[CoreProgram], Count]
"""SENDs that write to a core, a number or a register of its vector stream."""


def exchange(
    scope: Scope, sender: Sender, arrivals: int | Arrivals, receives: Sequence[Buffer]
) -> None:
    """All cores send, and their vector streams go on when everything has come.

    Args:
        sender: every SEND posts both semaphores.
        arrivals: SENDs that write to each core.
        receives: the buffers that they write.
    """
    arrived = begin_exchange(scope, receives)
    for core in scope.cores:
        core.hand(core.vector, core.send)
        core.vector.wait("sent", sender(core, arrived, "sent"))
        core.vector.wait(arrived, arrivals if isinstance(arrivals, int) else arrivals(core))


def begin_exchange(scope: Scope, receives: Sequence[Buffer]) -> str:
    """The semaphore of arrivals of an exchange that writes to some buffers.

    Every core must send to every core before it takes part in the next exchange.
    """
    sram = scope.group.sram
    for buffer in receives:
        buffer.touch(scope.last_exchange)
        buffer.touch(sram.step)
    if scope.body_start is not None and scope.site == 0:
        # In a loop others may write into it while this core ends the turn before.
        scope.receives += receives
    scope.last_exchange = sram.step
    arrived = f"arrived {scope.part}{scope.site}"
    scope.site += 1
    return arrived


def as_rows(scope: Scope, value: Value) -> Rows:
    """A value by rows; columns are brought together."""
    return all_as_rows(scope, [value])[0]


def all_as_rows(scope: Scope, values: Sequence[Value]) -> list[Rows]:
    """Values of the same rows, in one exchange."""
    found: list[Rows] = []
    parts: list[tuple[Columns, Rows]] = []
    for value in values:
        if isinstance(value, Columns):
            scope.await_products(value.buffer)
            size = value.space.owned * 4 * value.width
            buffer = scope.buffer(f"{value.buffer.name}.rows", size)
            parts.append((value, Rows(value.space, buffer, value.width)))
            found.append(parts[-1][1])
        elif isinstance(value, Rows):
            found.append(value)
        else:
            raise InternalError(f"expected rows or columns, got {type(value).__name__}")
    if not parts:
        return found
    space = parts[0][0].space

    def send(
        core: CoreProgram,
        part: tuple[Columns, Rows],
        at: Address,
        rows: Count,
        to: Destination,
        signals: tuple[str, str],
    ) -> None:
        columns, target = part
        first, stop = columns.slices[core.index]
        core.send.send(
            target.buffer.at(4 * first), at, 4 * (stop - first), rows, to,
            stride_d=target.row_bytes, stride_a=columns.row_bytes,
            signal=signals[0], sent=signals[1],
        )  # fmt: skip

    def to_all(core: CoreProgram, arrived: str, sent: str) -> int:
        total, everyone = scope.total(core.send, space), scope.group.area.all()
        for part in parts:
            send(core, part, part[0].buffer.at(), total, everyone, (arrived, sent))
        return len(parts)

    def to_owners(core: CoreProgram, arrived: str, sent: str) -> int:
        s = core.send
        with s.registers(6) as (share, minus, left, first, rows, at):
            _share(scope, s, space, share)
            s.mul(minus, share, -1)
            s.mov(left, 0, scope.total(s, space))
            s.mov(first, 0)
            for other in range(space.cores):
                s.least(rows, left, 0, share)
                s.most(rows, rows)
                s.add(left, left, minus)
                for part in parts:
                    s.mul(at, first, part[0].row_bytes)
                    to = scope.group.area.one(other)
                    send(core, part, part[0].buffer.at(0, at), rows, to, (arrived, sent))
                s.add(first, first, share)
        return space.cores * len(parts)

    arrivals = space.cores * len(parts)
    sender = to_owners if space.shared else to_all
    exchange(scope, sender, arrivals, [target.buffer for _, target in parts])
    return found


def rows_of(
    scope: Scope, stream: Stream, space: RowSpace, core: int, first: Register, rows: Register
) -> None:
    """Which rows a core of the group owns: its first one and how many, in registers."""
    total = scope.total(stream, space)
    with stream.registers(1) as (share,):
        _share(scope, stream, space, share)
        stream.mul(first, share, core)
        stream.least(first, first, 0, total)  # rows that are all taken
        stream.mul(rows, first, -1)
        stream.add(rows, rows, total)
        stream.least(rows, rows, 0, share)


def _share(scope: Scope, stream: Stream, space: RowSpace, share: Register) -> None:
    """share = rows of a core, of all but the last ones."""
    total = scope.total(stream, space)
    if not space.shared or not isinstance(total, Register):
        raise InternalError(f"rows {space.symbol!r} are not shared")
    stream.mov(share, space.cores - 1, total)
    stream.div(share, share, space.cores)


def rows_to_all(scope: Scope, space: RowSpace, parts: Sequence[tuple[Buffer, Buffer, int]]) -> None:
    """Own rows to every core, where rows are shared.

    Args:
        parts: own rows, all rows, and bytes a row.
    """

    def sender(core: CoreProgram, arrived: str, sent: str) -> int:
        with core.send.registers(1) as (at,):
            for own, whole, row_bytes in parts:
                core.send.mul(at, scope.first(core.send, space), row_bytes)
                core.send.send(
                    whole.at(0, at),
                    own,
                    row_bytes,
                    scope.own(core.send, space),
                    scope.group.area.all(),
                    stride_d=row_bytes,
                    stride_a=row_bytes,
                    signal=arrived,
                    sent=sent,
                )
        return len(parts)

    exchange(scope, sender, space.cores * len(parts), [whole for _, whole, _ in parts])
