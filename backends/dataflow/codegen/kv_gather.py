"""What earlier calls left of a layer, from all stripes to all cores of a group.

Blocks of 32 positions of stripe s go to every `stripes`-th place of 32 rows: together they are the
home of a group with one stripe, where position p has row p modulo the rows held.
"""

from __future__ import annotations

from collections.abc import Mapping

from infc.backends.dataflow.codegen.attention_shape import NO_REGISTER, AttentionShape
from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.kv_home import BLOCK_POSITIONS
from infc.backends.dataflow.codegen.kv_rows import destinations, exchange_in_part
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.stream import Register, Stream
from infc.backends.dataflow.isa import Unit
from infc.backends.dataflow.machine import LINE_BYTES


def gather_earlier(scope: Scope, shape: AttentionShape) -> Buffer | None:
    """The rows `[head of the group][position modulo all held]` on every core.

    None where each core has them in its SRAM already.
    """
    home = shape.home
    if scope.kv is not None and home.span == 1:
        return None
    if scope.kv is not None:
        return _spread(scope, shape, scope.kv, scope.cache_base)
    own = _load(scope, shape)
    return own if home.span == 1 else _spread(scope, shape, own, {})


def _load(scope: Scope, shape: AttentionShape) -> Buffer:
    """From far memory: the core's own stripe, as it lies there."""
    home = shape.home
    rows = scope.buffer("earlier.own", home.layer_bytes)
    for core in scope.cores:
        if home.stripe(core.index) >= home.stripes:
            continue
        core.hand(core.vector, core.load)
        s = core.load
        with s.registers(2) as (line, blocks):
            _emit_blocks(scope, s, shape, blocks)
            s.point(line, scope.kv_far[core.index])
            with s.registers(1) as (base,):
                s.div(base, scope.cache_base[core.index, s.unit], LINE_BYTES)
                s.add(line, line, base)
            for head in range(home.heads):
                s.load(
                    rows.at(head * home.head_bytes),
                    Address(head * home.head_bytes // LINE_BYTES, line),
                    BLOCK_POSITIONS * home.row_bytes,
                    blocks,
                    stride_d=BLOCK_POSITIONS * home.row_bytes,
                    stride_a=BLOCK_POSITIONS * home.row_bytes // LINE_BYTES,
                    tier=scope.kv_tier,
                    signal="earlier",
                )
        core.vector.wait("earlier", home.heads)
    return rows


def _spread(
    scope: Scope,
    shape: AttentionShape,
    own: Buffer,
    bases: Mapping[tuple[int, Unit], Register],
) -> Buffer:
    """Every core's stripe to all cores of its group.

    Args:
        own: where the stripe is.
        bases: for each stream the register with the bytes in front of it there.
    """
    home, area = shape.home, scope.group.area
    block = BLOCK_POSITIONS * home.row_bytes
    whole = scope.buffer("earlier", home.heads * home.gathered.head_bytes)

    def sender(core: CoreProgram, arrived: str, sent: str) -> int:
        s, sends = core.send, 0
        group, stripe = divmod(core.index, home.span)
        if stripe >= home.stripes:
            return 0
        base = bases.get((core.index, s.unit), NO_REGISTER)
        with s.registers(1) as (blocks,):
            _emit_blocks(scope, s, shape, blocks)
            for to in destinations(area, group * home.span, home.span):
                for head in range(home.heads):
                    at = head * home.head_bytes
                    s.send(
                        whole.at(head * home.gathered.head_bytes + stripe * block),
                        own.at(at, base),
                        block,
                        blocks,
                        to,
                        stride_d=home.stripes * block,
                        stride_a=block,
                        signal=arrived,
                        sent=sent,
                    )
                    sends += 1
        return sends

    exchange_in_part(scope, sender, home.stripes * home.heads, [whole])
    return whole


def _emit_blocks(scope: Scope, s: Stream, shape: AttentionShape, blocks: Register) -> None:
    """How many of each stripe's blocks hold the whole tiles that earlier calls wrote into."""
    home = shape.home
    period = BLOCK_POSITIONS * home.stripes
    s.mov(blocks, home.tile - 1, scope.position[s.core.index, s.unit])
    s.div(blocks, blocks, home.tile)
    s.mul(blocks, blocks, home.tile)
    s.add(blocks, blocks, imm=period - 1)
    s.div(blocks, blocks, period)
    s.least(blocks, blocks, 0, 0, home.held // BLOCK_POSITIONS)
