"""How many of a sequence's first positions a core keeps, in registers.

`local(p)`, the positions before p of stripe s, is also the local place of position p on its own
stripe. With period w = 32 * stripes:

    local(p) = p // w * 32 + min(max(p % w - 32 * s, 0), 32)
"""

from __future__ import annotations

from infc.backends.dataflow.codegen.kv_home import BLOCK_POSITIONS, KVHome
from infc.backends.dataflow.codegen.stream import Register, Stream


def emit_local(
    stream: Stream, home: KVHome, stripe: int, target: Register, position: Register
) -> None:
    """target = local(position); `target` and `position` may be the same."""
    if home.stripes == 1:
        if target != position:
            stream.mov(target, 0, position)
        return
    period = BLOCK_POSITIONS * home.stripes
    with stream.registers(1) as (rest,):
        stream.mod(rest, position, period)
        stream.most(rest, rest, -BLOCK_POSITIONS * stripe)
        stream.least(rest, rest, 0, 0, BLOCK_POSITIONS)
        stream.div(target, position, period)
        stream.mul(target, target, BLOCK_POSITIONS)
        stream.add(target, target, rest)


def emit_is_own(
    stream: Stream, home: KVHome, stripe: int, target: Register, position: Register
) -> None:
    """target = 1 where the position is kept by this stripe, else 0."""
    if home.stripes == 1:
        stream.mov(target, 1)
        return
    # The block, modulo the stripes, counted from the own stripe: 0 for what is its own.
    stream.div(target, position, BLOCK_POSITIONS)
    stream.add(target, target, imm=home.stripes - stripe)
    stream.mod(target, target, home.stripes)
    stream.least(target, target, 0, 0, 1)
    stream.mul(target, target, -1)
    stream.add(target, target, imm=1)


def emit_clamp(stream: Stream, target: Register, low: int, high: int) -> None:
    """target = the nearest number between low and high."""
    stream.most(target, target, 0, 0, low)
    stream.least(target, target, 0, 0, high)
