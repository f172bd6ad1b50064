"""What a mapping of a product adds to the time that all its mappings share.

The classes of the cost model know sizes; what tells one mapping from another is small beside them
and follows from the machine's facts. Here the same product is timed twice, with these terms and
without, and the ratio is what the cost model is told (`Work.speed`). Instructions are those of the
emitted loops, counted as vectors of 16 lanes; docs/cost-model.md has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.bf16_panels import bf16_panel_bytes
from infc.backends.cpu.kernels.dots import prefetch_pays, steps_in_16_bits
from infc.backends.cpu.kernels.float_tiles import BLOCK_NUMBERS, BLOCK_ROWS, takes_parts
from infc.backends.cpu.kernels.layouts import PackedLayout
from infc.backends.cpu.kernels.matmul import MatmulMapping, MatmulSpec
from infc.backends.cpu.target import isa_of
from infc.cost.peaks import fastest_unit, memory_bandwidth
from infc.passes.codegen.panels import PANEL_ROWS, panels_of
from infc.reference.a8 import A8_BLOCK
from infc.target.schema import Memory, Target

_VECTOR_BYTES: Final = 64
_LANES: Final = 16
_OVERLAP: Final = 3.0
"""Exponent: memory and arithmetic, or a cache and arithmetic, work mostly at the same time; also as
measured on Zen 3, with twelve products under seven tiles each."""
_LOOP: Final = 3.0
"""Instructions of a turn of a loop: two pointers, and the branch."""
_INSTRUCTION_BYTES: Final = 7
_PAGE_AHEAD: Final = 1024
"""How far the processor's own prefetch is ahead of a stream on the mean: it stays in a page of
4 KiB, and starts anew in each."""
_SLOWER: Final = 0.3
"""How much slower than the others one core may be for a while: an assumption, about what a
neighbour on the other thread of a core takes."""
_LINES_FETCHED: Final = 2
"""Lines of code that come from the second cache at a time."""
_NEEDLESS: Final = 0.2
"""Of the time of a stream: what asking for lines ahead costs where that is needless."""
_LATE_ALONE, _NEAR_BYTES, _FARTHER = 0.13, 700.0, 0.025
"""Of a stream of short codes in halves of 256 bits (Zen 3, own measurement of eight products): how
late lines come that nobody asks for, how far ahead that is a third of it, and what each doubling of
the distance beyond 1 KiB costs. Two KiB are enough where sixteen are best on Emerald Rapids."""
_LATE_START: Final = 4e-6
"""Seconds that one core is late: interrupts, and the hand-over. Assumed, as `_SLOWER`."""
_LATENCY: Final = 100e-9
"""Of memory, where the target does not tell."""
_SUMS: Final = 4
"""Parts of a float sum."""
_SCALED_WIDENING: Final = 4.0
"""Instructions that make float32 of 16 floats of 8 bits."""
_STAGED: Final = 2.0
"""Instructions that load and store 16 weights."""
_SPILL: Final = 4.0
"""Instructions that a sum outside of the registers costs each time: a load, a store, and the wait
of the one for the other."""
_NIBBLE: Final = 4
"""Bits."""
_SCALED: Final = 3.0
"""Instructions that scale a group's dots and add them to a sum."""
_KEPT: Final = 1.2
"""Instructions that a float sum costs each time it leaves the registers for a group: a load and a
store, with little waiting."""
_AGAIN: Final = 2.0
"""The same at each step, of what does not fit beside the sums in 16 bits."""
_STEP: Final = 4
"""Numbers that one integer dot product takes a lane."""


def mapping_speed(spec: MatmulSpec, mapping: MatmulMapping, rows: int, target: Target) -> float:
    """How many times as fast as without the mapping's own terms; above 0, at most 1.

    Args:
        spec: the product.
        mapping: one of its candidates.
        rows: of a call.
        target: with the memories' and the instruction set's facts.
    """
    machine = _Machine.of(target)
    if spec.activation == "abf16":
        usual, own, deal = _blocked(spec, mapping, rows, machine)
    elif rows == 1 or not mapping.col_tile or rows < mapping.row_tile:
        usual, own, deal = _streamed(spec, mapping, rows, machine, isa_of(target))
    elif spec.activation == "f32" and takes_parts(isa_of(target), mapping.row_tile):
        usual, own, deal = _in_parts(spec, mapping, rows, machine)
    else:
        usual, own, deal = _tiled(spec, mapping, rows, machine, isa_of(target))
    return usual / (own * (1.0 + deal.unevenness(machine, own)) + deal.start_seconds)


@dataclass(frozen=True)
class _Machine:
    """Rates of one core, in seconds and bytes.

    Attributes:
        cores: that work together.
        bytes_per_s: of main memory, each core's usual part of it.
        latency: of main memory.
        line_seconds: from the second cache to the first, one line after the other.
        near_bytes_per_s: of the second cache.
        near_bytes: what the first cache holds.
        vectors_per_s: multiply-adds of 16 lanes.
        blocks_per_s: multiply-adds of single numbers in bf16; as in float32 where it has none.
        registers: of 16 lanes.
        width: of a register, as a part of 16 lanes: what is no sum needs one at a time, and an
            instruction without lanes counts as one of them.
        meeting: one barrier, which an atomic count is a part of.
    """

    cores: int
    bytes_per_s: float
    latency: float
    line_seconds: float
    near_bytes_per_s: float
    near_bytes: int
    vectors_per_s: float
    blocks_per_s: float
    registers: int
    width: float
    meeting: float

    @staticmethod
    def of(target: Target) -> _Machine:
        """Of a processor."""
        vectors, memory = fastest_unit(target, "f32"), target.holding_memory()
        first, second = _cache(target, "l1"), _cache(target, "l2")
        facts = target.backend_facts
        dtype = "bf16" if any("bf16" in u.operations_per_s for u in target.compute) else "f32"
        blocks = fastest_unit(target, dtype)
        return _Machine(
            cores=vectors.count,
            bytes_per_s=memory.efficiency.mid
            * memory_bandwidth(memory, target, None)
            / vectors.count,
            latency=(memory.latency_ns or 0.0) * 1e-9 or _LATENCY,
            line_seconds=(second.latency_ns or 0.0) * 1e-9,
            near_bytes_per_s=second.bandwidth_bytes_per_s,
            near_bytes=first.size_bytes,
            vectors_per_s=vectors.operations_per_s["f32"] / (2 * _LANES),
            blocks_per_s=blocks.operations_per_s[dtype] / 2,
            width=int(facts["vector_bytes"]) / _VECTOR_BYTES,
            registers=int(facts["vector_bytes"]) * int(facts["vector_registers"]) // _VECTOR_BYTES,
            meeting=target.barrier_ns * 1e-9,
        )

    def compute(self, instructions: float) -> float:
        """Seconds of instructions of all cores."""
        return instructions / (self.vectors_per_s * self.cores)

    def read(self, size: float) -> float:
        """Seconds of bytes of main memory for all cores."""
        return size / (self.bytes_per_s * self.cores)

    def near(self, size: float) -> float:
        """Seconds of bytes of all second caches."""
        return size / (self.near_bytes_per_s * self.cores)


def _cache(target: Target, name: str) -> Memory:
    """That level, or the nearest one that is there."""
    return next((m for m in target.memories if m.name == name), target.memories[-1])


def _together(*parts: float) -> float:
    longest = max(*parts, 1e-30)
    return float(longest * sum((part / longest) ** _OVERLAP for part in parts) ** (1 / _OVERLAP))


@dataclass(frozen=True)
class _Deal:
    """How work comes to the cores.

    Attributes:
        even: share that is split evenly.
        pieces: that the rest is taken in.
        start_seconds: of all runs' beginnings, each core's part.
    """

    even: float
    pieces: int
    start_seconds: float

    def unevenness(self, machine: _Machine, seconds: float) -> float:
        """Share of the time, some seconds without it, for which the others wait for the last core.

        Where all but the slow core have done their even part and the rest, it still works at its
        own; and whoever takes the last piece is alone with half of it on average.
        """
        if machine.cores == 1:
            return 0.0
        # Who has no part of its own to do is not waited for.
        lost = _LATE_START / seconds if self.even else 0.0
        fair = 1.0 + (_SLOWER + lost) / machine.cores
        late = max(0.0, self.even * (1.0 + _SLOWER) + lost - fair)
        if not self.pieces:
            return late
        piece = (1.0 - self.even) / self.pieces * machine.cores
        return max(late, piece / 2.0 * (1.0 - 1.0 / machine.cores))


# ---- streams -------------------------------------------------------------------------------------


def _streamed(
    spec: MatmulSpec, mapping: MatmulMapping, rows: int, machine: _Machine, isa: Isa
) -> tuple[float, float, _Deal]:
    """Weights pass once: a prefetch hides the latency, runs begin cold, loops are unrolled."""
    size = sum(panels_of(s.n) * s.layout.panel_bytes(spec.k) for s in spec.segments)
    plain = looped = code = 0.0
    # Zen's integer instructions have pipes of their own: one turn at a time is as fast as four.
    loop = 0.0 if isa.dot_i8 == "avx2" else machine.width * _LOOP
    for segment in spec.segments:
        turns, instructions = _stream_step(segment.layout, spec.k, rows)
        unroll = min(mapping.unroll, turns)
        plain += panels_of(segment.n) * turns * instructions
        looped += panels_of(segment.n) * turns * (instructions + loop / unroll)
        code += (unroll + turns % unroll) * instructions * _INSTRUCTION_BYTES / machine.width
    memory = machine.read(size)
    if any(prefetch_pays(isa, segment.layout) for segment in spec.segments):
        late = _late(mapping.prefetch_bytes, machine, isa)
    else:
        late = _NEEDLESS if mapping.prefetch_bytes else 0.0
    usual = _together(memory, machine.compute(plain))
    own = _together(memory * (1.0 + late), machine.compute(looped))

    even = mapping.stream_even / 100 if machine.cores > 1 else 1.0
    pieces = math.ceil(size * (1.0 - even) / mapping.stream_piece)
    run = size * even / machine.cores
    # What is asked for at first comes while nothing is multiplied.
    idle = min(machine.compute(plain) / memory, 1.0) / machine.bytes_per_s
    first = machine.latency + min(mapping.prefetch_bytes, run) * idle
    each = machine.latency + min(mapping.prefetch_bytes, mapping.stream_piece) * idle
    starts = first + (each + machine.meeting / 2.0) * pieces / machine.cores
    fetched = code / (_LINES_FETCHED * _VECTOR_BYTES) * machine.line_seconds
    return usual, own, _Deal(even, pieces, starts + fetched)


def _late(ahead: int, machine: _Machine, isa: Isa) -> float:
    """How much longer a stream takes as its lines come late, `ahead` bytes after they were asked
    for, or after the processor's own prefetch asked for them."""
    if isa.dot_i8 == "avx2":
        farther = _FARTHER * math.log2(max(ahead, 1024) / 1024)
        return farther + _LATE_ALONE * math.exp(-ahead / _NEAR_BYTES)
    # The time until a line is wanted is longer than most take to come, and lines come late by
    # chance, some by several times the latency.
    return math.exp(-(ahead or _PAGE_AHEAD) / (machine.latency * machine.bytes_per_s))


def _stream_step(layout: PackedLayout, k: int, rows: int) -> tuple[int, float]:
    """Steps of a panel along k, and the instructions of one."""
    if layout.is_float:
        return max(k // _SUMS, 1), _SUMS * (1.0 + _widening(layout) + rows)
    dots = A8_BLOCK // _STEP
    unpack = {8: 1.0, 6: 1.0, 4: 1.5}.get(layout.bits, 3.0) * dots
    scales = (2.0 + 4.0 * rows) * (A8_BLOCK // layout.group)
    return max(k // A8_BLOCK, 1), unpack + dots * rows + scales


def _widening(layout: PackedLayout) -> float:
    """Instructions that make float32 of 16 floats."""
    return {"f32": 0.0, "f8": _SCALED_WIDENING}.get(layout.kind, 1.0)


# ---- tiles ---------------------------------------------------------------------------------------


def _tiled(
    spec: MatmulSpec, mapping: MatmulMapping, rows: int, machine: _Machine, isa: Isa
) -> tuple[float, float, _Deal]:
    """Tiles of rows and panels: loads beside multiply-adds, sums that leave the registers, and
    panels that leave the first cache."""
    high, wide = mapping.row_tile, max(mapping.col_tile, 1)
    panels = sum(panels_of(segment.n) for segment in spec.segments)
    if spec.activation == "f32":
        dots, loads = 1.0, (1.0 + (spec.segments[0].layout.kind != "f32")) / high
        sums, others = _SUMS * high, 2 * machine.width
        # Each number of a row of weights adds to one of the sums.
        spilt = _SPILL * max(0, sums + others - machine.registers) / sums
        loops = machine.width * _LOOP / (mapping.unroll * _SUMS * high)
        per_row, panel_bytes = float(spec.k), spec.segments[0].layout.panel_bytes(spec.k)
    elif isa.dot_i8 == "avx2":
        shares = [panels_of(segment.n) / panels for segment in spec.segments]
        pairs = [_pair_step(high, wide, segment.layout, machine) for segment in spec.segments]
        dots, loads, spilt, loops = (
            sum(share * part for share, part in zip(shares, parts, strict=True))
            for parts in zip(*pairs, strict=True)
        )
        planes = max(_planes(segment.layout) for segment in spec.segments)
        per_row, panel_bytes = spec.k / _STEP, PANEL_ROWS * spec.k * planes
    else:
        steps = A8_BLOCK / _STEP
        dots, loads = 1.0, 1.0 / high + 1.0 / wide
        # Sums in float and, within a group, in integers.
        sums, others = 2 * high * wide, (wide + 1) * machine.width
        spilt = _SPILL * max(0, sums + others - machine.registers) / (high * wide * steps)
        loops = (machine.width * _LOOP / (high * wide) + 3.0 + 1.0 / high) / steps
        per_row, panel_bytes = spec.k / _STEP, PANEL_ROWS * spec.k
    count = rows * panels * per_row
    usual = machine.compute(count * dots)
    # The last tile does some rows of the one before again.
    done = count * math.ceil(rows / high) * high / rows if spec.activation == "a8" else count
    arithmetic = machine.compute(done * (dots + loads + spilt + loops))
    far = 0.0
    if wide * panel_bytes > machine.near_bytes / 2:
        far = machine.near(math.ceil(rows / high) * panels * panel_bytes)
    own = _together(arithmetic, far)
    if spec.activation == "a8" and isa.dot_i8 == "avx2":
        # Rows come from the second cache, once for each tile of panels.
        own += machine.near(rows * panels * spec.k / wide)
    return usual, own, _panel_deal(mapping, panels, machine)


def _planes(layout: PackedLayout) -> int:
    """Products of a code where pairs of them are summed in 16 bits: bytes are two nibbles."""
    return 1 if layout.bits < 8 else 2


def _pair_step(
    high: int, wide: int, layout: PackedLayout, machine: _Machine
) -> tuple[float, float, float, float]:
    """Products, loads, spills and ends of groups, of one step of a row and panel, where pairs of
    products are summed in 16 bits."""
    planes, steps = _planes(layout), layout.group // _STEP
    fitting = steps_in_16_bits(layout.bits if planes == 1 else _NIBBLE)
    widened = 2.0 * planes / min(fitting, steps)
    loads = planes * (1.0 / high + machine.width / wide)
    cells, others = high * wide, wide + 3.0 * machine.width  # and a row, and two products
    spilt = _KEPT * max(0.0, 2 * cells + others - machine.registers) / (cells * steps)
    spilt += _AGAIN * max(0.0, cells + others - machine.registers) / cells
    return 2.0 * planes, loads, spilt, widened + _SCALED / steps


def _in_parts(
    spec: MatmulSpec, mapping: MatmulMapping, rows: int, machine: _Machine
) -> tuple[float, float, _Deal]:
    """Tiles of float weights that make one part of a sum after the other: loads and broadcasts
    beside multiply-adds, staging for each block of rows, sums that wait on the stack, and rows that
    come from the second cache for each few panels."""
    layout, panels = spec.segments[0].layout, sum(panels_of(s.n) for s in spec.segments)
    count = float(rows * panels * spec.k)
    mean = rows / math.ceil(rows / mapping.row_tile)  # tiles are as equal as can be
    loads = 1.0 / mean + machine.width
    others = 1.0 + machine.width
    spilt = _SPILL * max(0.0, mapping.row_tile + others - machine.registers) / mapping.row_tile
    loops = machine.width * _LOOP / (mapping.unroll * mean)
    kept = 2.0 * _SUMS / BLOCK_NUMBERS
    staged = math.ceil(rows / BLOCK_ROWS) / rows * (_STAGED + _widening(layout))
    arithmetic = machine.compute(count * (1.0 + loads + spilt + loops + kept + staged))
    deal = _panel_deal(mapping, panels, machine)
    again = deal.even / mapping.col_tile + (1.0 - deal.even) / _piece(mapping, panels, machine)
    own = arithmetic + machine.near(4.0 * count * again)
    return machine.compute(count), own, deal


# ---- blocks in bf16 ------------------------------------------------------------------------------


def _blocked(
    spec: MatmulSpec, mapping: MatmulMapping, rows: int, machine: _Machine
) -> tuple[float, float, _Deal]:
    """Runs of staged panels under all rows: what the second cache is read for meanwhile."""
    panels = sum(panels_of(segment.n) for segment in spec.segments)
    gated, panel_bytes = 2 if spec.combine else 1, bf16_panel_bytes(spec.k)
    units = panels // gated
    deal = _panel_deal(mapping, units, machine)
    again = 0.0
    parts = ((deal.even, mapping.col_tile), (1.0 - deal.even, _piece(mapping, units, machine)))
    for share, run in parts:
        again += share * units / run * rows * 2 * spec.k
        if run * gated * panel_bytes > machine.near_bytes:  # else they stay while the rows pass
            again += share * math.ceil(rows / mapping.row_tile) * panels * panel_bytes
    usual = rows * panels * spec.k * PANEL_ROWS / (machine.blocks_per_s * machine.cores)
    return usual, _together(usual, machine.near(again)), deal


def _piece(mapping: MatmulMapping, units: int, machine: _Machine) -> int:
    """Panels that are taken at a time, as `matmul` deals them."""
    fair = units // (machine.cores * max(mapping.tile_pieces, 1)) // 2 * 2
    return max(1, min(max(fair, min(units, 2)), max(mapping.col_tile, 1)))


def _panel_deal(mapping: MatmulMapping, units: int, machine: _Machine) -> _Deal:
    even = mapping.tile_even / 100 if machine.cores > 1 else 1.0
    pieces = math.ceil(units * (1.0 - even) / _piece(mapping, units, machine))
    return _Deal(even, pieces, pieces * machine.meeting / 2.0 / machine.cores)
