"""Operations on rows and on columns, and what is looked up in tables."""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.dataflow.codegen.linear import FINE_COLUMNS
from infc.backends.dataflow.cost.products import form_of, slice_of
from infc.backends.dataflow.cost.rates import (
    BEST,
    BINARY,
    BY_NUMBER,
    CONVERT,
    COPY,
    DECODE,
    IMMEDIATE,
    MERGE,
    QUANTIZE,
    REDUCE,
    SPECIAL,
    Vector,
)
from infc.backends.dataflow.cost.sketch import Step
from infc.backends.dataflow.cost.timeline import LATENCY, Timeline
from infc.backends.dataflow.tiles import lines
from infc.ir.types import A8

_F32 = 4
ELEMENTWISE: dict[str, tuple[Vector, ...]] = {
    "add": (BINARY,),
    "mul": (BINARY,),
    "bias": (BINARY,),
    "activation": (SPECIAL,),
    "softcap": (IMMEDIATE, SPECIAL, IMMEDIATE),
}


def elementwise(time: Timeline, step: Step, *, columns: int | None) -> None:
    """For each number of own rows, or of all rows of own columns."""
    instructions = ELEMENTWISE[step.op]
    rows = time.own(step.space) if columns is None else time.rows[step.space]
    width = step.sizes["width"] if columns is None else columns
    body = sum(time.rates.vector(instruction, width) for instruction in instructions)
    time.each_row(rows, body, len(instructions), 1)


def norm(time: Timeline, step: Step) -> None:
    """A norm of own rows."""
    rates, width, rows = time.rates, step.sizes["width"], time.own(step.space)
    if step.sizes["offset"]:
        time.vector(rates.vector(IMMEDIATE, width))
    time.each_row(rows, rates.vector(REDUCE, width), 1, 2)
    time.vector(2 * rates.vector(IMMEDIATE, rows) + rates.vector(SPECIAL, rows))
    body = rates.vector(BY_NUMBER, width) + rates.vector(BINARY, width)
    time.each_row(rows, body, 2, 2)


def quantize(time: Timeline, step: Step, *, columns: int | None) -> None:
    """To what products read, on all cores."""
    space, width = time.spaces[step.space], step.sizes["width"]
    rows = time.own(step.space) if columns is None else time.rows[step.space]
    own = width if columns is None else columns
    codes = step.kind == A8
    time.each_row(
        rows, time.rates.vector(QUANTIZE if codes else CONVERT, own), 1, 3 if codes else 2
    )
    if columns is not None or space.shared:
        size = rows * own * (1.125 if codes else 2.0)
        time.exchange(time.network.to_all(size), 2.0 if codes else 1.0)


def gather(time: Timeline, symbol: str, columns: Sequence[int]) -> None:
    """Columns to rows, of several values at once; the columns are those of the core with most."""
    if time.spaces[symbol].shared:
        part = time.own(symbol) * sum(columns) * float(_F32)
        time.exchange(time.network.each_to_each(part), time.cores * len(columns), 3.0)
    else:
        size = float(time.rows[symbol] * sum(columns) * _F32)
        time.exchange(time.network.to_all(size), len(columns))


def select_rows(time: Timeline, step: Step) -> None:
    """The wanted rows on every core."""
    width, rows = step.sizes["width"], time.rows["r"]
    if not time.spaces["t"].shared:
        time.each_row(rows, time.rates.vector(COPY, width), 1, 4)
        return
    empty = time.spaces["r"].most * time.cores * 16.0 / time.rates.link
    sent = time.network.to_one(rows * width * float(_F32), 1)
    time.exchange(sent, time.spaces["r"].most, 12.0)
    time.spend(LATENCY, empty)


def embed(time: Timeline, step: Step) -> None:
    """Rows of the call's tokens."""
    rates, constants = time.rates, time.rates.constants
    width, form = step.sizes["width"], form_of(step.kind)
    record, rows = form.tile_bytes(1, width), time.own("t")
    machine = rates.machine
    if machine.far:
        issue = rows * constants.token
        moving = rows * record * time.cores / rates.channel(1.0)
        wait = rates.cycles(machine.far[0].latency_s) + machine.dma.startup_cycles
        time.spend(machine.far[0].name, max(issue, moving) + wait)
    else:
        # Every core looks at all tokens, and sends the rows that it keeps.
        time.exchange(time.network.to_one(float(record * rows), 1), time.rows["t"], constants.token)
    convert = rates.vector(CONVERT if form.is_float else DECODE, width)
    scale = rates.vector(IMMEDIATE, width) if step.sizes["scale"] else 0.0
    time.each_row(rows, convert + scale, 1 + step.sizes["scale"], 2)


def ropes(time: Timeline, pairs: tuple[int, ...]) -> None:
    """The rows of the call's positions of all rotary tables."""
    rates, rows, machine = time.rates, time.own("t"), time.rates.machine
    for each in pairs:
        if machine.far:
            size = rows * lines(8 * each)
            moving = size * time.cores / rates.channel(1.0)
            time.spend(machine.far[0].name, moving)
        else:
            time.each_row(rows, rates.vector(COPY, 2 * each), 1, 2)
    if machine.far and pairs:
        wait = rates.cycles(machine.far[0].latency_s) + machine.dma.startup_cycles
        time.spend(machine.far[0].name, wait)


def best(time: Timeline, step: Step) -> None:
    """The best token: of each core, then on the first one."""
    rates, rows, width = time.rates, time.rows[step.space], step.sizes["width"]
    own = slice_of(width, FINE_COLUMNS, time.cores)
    time.each_row(rows, rates.vector(BEST, own), 1, 2)
    senders = min(time.cores, -(-width // FINE_COLUMNS))
    time.exchange(time.network.to_one(max(8.0 * rows, 16.0), senders))
    time.each_row(rows, senders * rates.vector(MERGE, 1), senders, 1)


def copy_rows(time: Timeline, width: int) -> None:
    """What comes out of a layer, to where the next one takes it."""
    time.each_row(time.own("t"), time.rates.vector(COPY, width), 1, 1)
