"""Rotary kernels: norms and rotations of heads, and the call's rows of keys and values."""

from __future__ import annotations

from infc.backends.dataflow.codegen.kv_home import KVHome
from infc.backends.dataflow.codegen.kv_rows import destinations, own_keys
from infc.backends.dataflow.cost.rates import (
    BINARY,
    BY_NUMBER,
    CONVERT,
    COPY,
    FILL,
    IMMEDIATE,
    REDUCE,
    ROTATE,
    SPECIAL,
)
from infc.backends.dataflow.cost.sketch import Step
from infc.backends.dataflow.cost.timeline import Timeline
from infc.ir.types import KVType

_F32, _F16 = 4, 2


def kind_of(step: Step) -> KVType:
    """The cache of a step."""
    sizes = step.sizes
    return KVType("f16", sizes["kv_heads"], sizes["kv_dim"], sizes["capacity"], sizes["window"])


def home_of(time: Timeline, step: Step) -> KVHome:
    """Where the layer's cache lies."""
    return KVHome.of(kind_of(step), time.cores, time.rates.machine)


def _heads(time: Timeline, step: Step) -> int:
    """Heads that a core works on."""
    heads = step.sizes["width"] // step.sizes["head_dim"]
    return heads if time.spaces["t"].shared else max(heads // time.groups, 1)


def head_norm(time: Timeline, step: Step) -> None:
    """A norm of each head, row by row."""
    rates, e, heads = time.rates, step.sizes["head_dim"], _heads(time, step)
    if step.sizes["offset"]:
        time.vector(rates.vector(IMMEDIATE, e))
    each = rates.vector(REDUCE, e) + rates.vector(BY_NUMBER, e) + rates.vector(BINARY, e)
    factors = 2 * rates.vector(IMMEDIATE, heads) + rates.vector(SPECIAL, heads)
    time.each_row(time.own("t"), heads * each + factors, 3 * heads + 3, 1)


def rope(time: Timeline, step: Step) -> None:
    """The rotation of each head."""
    rates, e, pairs = time.rates, step.sizes["head_dim"], step.sizes["pairs"]
    body = rates.vector(ROTATE, 2 * pairs)
    if e > 2 * pairs:
        body += rates.vector(COPY, e - 2 * pairs)
    time.each_row(time.own("t") * _heads(time, step), body, 1 + (e > 2 * pairs), 1)


def append(time: Timeline, step: Step) -> None:
    """The call's own rows of keys and values in f16, on all cores of their group."""
    rates, home, space = time.rates, home_of(time, step), time.spaces["t"]
    e, rows = home.kind.head_dim, time.own("t")
    heads = home.kind.kv_heads if space.shared else home.heads
    padding = home.value_offset - _F16 * e
    # Without padding between keys and values a vector takes all heads at once.
    flat = space.shared and not padding
    if flat:
        time.each_row(rows, 2 * rates.vector(CONVERT, heads * e), 2, 2)
    else:
        each = rates.vector(CONVERT, e) + (rates.vector(FILL, padding // _F32) if padding else 0.0)
        time.each_row(rows, 2 * heads * each, 2 * heads, 2)
    if space.most == 1:
        return
    tail = -time.rows["t"] % own_keys(rates.machine, space)
    fill = home.heads * rates.vector(FILL, home.row_bytes // _F32)
    time.each_row(tail, fill, home.heads, 1)
    if space.shared:
        groups = range(0, home.groups * home.span, home.span)
        parts = sum(len(destinations(time.area, first, home.span)) for first in groups)
        size = float(rows * home.row_bytes * home.heads)
        sends = parts * home.heads * (2 if flat else 1)
        time.exchange(time.network.to_all(size, home.groups), sends)
