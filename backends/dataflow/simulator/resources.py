"""The machine in ticks: what the simulator of time charges for, and how long each of it takes.

A *tick* is a femtosecond. Times are whole ticks, so that sums do not depend on their order; the
durations of bytes are rounded to the nearest tick.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.isa import (
    ACC,
    BLOCK,
    CODES4,
    F_FLAGS,
    F_FMT,
    F_K,
    F_OP,
    GROUP16,
    MINS,
    Conversion,
    Float,
    Op,
    Unary,
)
from infc.backends.dataflow.machine import Format, Machine, VectorClass

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

TICKS_PER_S: Final = 10**15
NO_FORMAT: Final = -1
"""Ticks of a matrix instruction of a format that the machine lacks."""
RING, SWITCH, CHIP_MESH, ONE_CHIP = range(4)
_TOPOLOGIES: Final = {"ring": RING, "all-to-all": SWITCH, "mesh-2d": CHIP_MESH}
_FORMATS: Final = get_args(Format)
_CLASSES: Final = get_args(VectorClass)


class Rates(NamedTuple):
    """All figures of a machine that take time; ticks, or ticks a byte (`per_byte`).

    Attributes:
        cycle, issue: ticks of one cycle; of the issue of an instruction for a unit.
        matrix: `[formats, m + 1]`, of an instruction with so many rows; `NO_FORMAT`: there is none.
        lanes, vector_startup, vector_step: of the vector unit; the steps by class, `[3]`.
        port_per_byte: of the SRAM of a core.
        dma_per_byte, dma_startup, outstanding, burst_bytes: of one DMA engine.
        chips, rows, cols, cores, chip_cores, gateway: as in `Machine`.
        links: four out of every core, then the ports of every chip.
        mesh_per_byte, mesh_hop: of a link between cores.
        topology, chip_cols, chip_ports, chip_per_byte, chip_hop: of the links between chips.
        channels: `[tiers]`, of a chip.
        channel_first: `[tiers]`, of the channels of a chip, which one is a tier's first.
        channel_total: channels of all tiers of a chip.
        channel_lines: `[tiers]`, of 64 bytes.
        channel_core: `[channel_total]`, the core that a channel is at.
        far_per_byte, far_latency: `[tiers]`, of a channel.
    """

    cycle: int
    issue: int
    matrix: Ints
    lanes: int
    vector_startup: int
    vector_step: Ints
    port_per_byte: float
    dma_per_byte: float
    dma_startup: int
    outstanding: int
    burst_bytes: int
    chips: int
    rows: int
    cols: int
    cores: int
    links: int
    chip_cores: int
    gateway: int
    mesh_per_byte: float
    mesh_hop: int
    topology: int
    chip_cols: int
    chip_ports: int
    chip_per_byte: float
    chip_hop: int
    channels: Ints
    channel_first: Ints
    channel_total: int
    channel_lines: Ints
    channel_core: Ints
    far_per_byte: Floats
    far_latency: Ints

    @classmethod
    def of(cls, machine: Machine) -> Rates:
        """The figures of a machine."""
        cycle = ticks(1 / machine.clock_hz)
        matrix, vector, links, tiers = machine.matrix, machine.vector, machine.links, machine.far
        spans = np.full((len(_FORMATS), matrix.m + 1), NO_FORMAT, np.int64)
        for row, form in enumerate(_FORMATS):
            if form in matrix.tile_cycles:
                spans[row] = [matrix.cycles(form, m) * cycle for m in range(matrix.m + 1)]
        counts = [tier.channels for tier in tiers]
        topology = _TOPOLOGIES[links.topology] if links else ONE_CHIP
        ports = 4 if topology == CHIP_MESH else 2
        return cls(
            cycle=cycle,
            issue=machine.issue_cycles * cycle,
            matrix=spans,
            lanes=vector.lanes,
            vector_startup=vector.startup_cycles * cycle,
            vector_step=np.array([vector.step_cycles[kind] * cycle for kind in _CLASSES], np.int64),
            port_per_byte=TICKS_PER_S / machine.sram_bytes_per_s,
            dma_per_byte=cycle / machine.dma.bytes_per_cycle,
            dma_startup=machine.dma.startup_cycles * cycle,
            outstanding=machine.dma.outstanding,
            burst_bytes=machine.dma.burst_bytes,
            chips=machine.chips,
            rows=machine.rows,
            cols=machine.cols,
            cores=machine.cores,
            links=machine.cores * 4 + (machine.chips * ports if links else 0),
            chip_cores=machine.chip_cores,
            gateway=machine.gateway,
            mesh_per_byte=TICKS_PER_S / machine.mesh.link_bytes_per_s,
            mesh_hop=ticks(machine.mesh.hop_s),
            topology=topology,
            chip_cols=links.cols if links else 1,
            chip_ports=ports,
            chip_per_byte=TICKS_PER_S / links.port_bytes_per_s if links else 0.0,
            chip_hop=ticks(links.hop_s) if links else 0,
            channels=np.array(counts, np.int64),
            channel_first=np.cumsum([0, *counts])[:-1].astype(np.int64),
            channel_total=sum(counts),
            channel_lines=np.array([tier.channel_bytes // 64 for tier in tiers], np.int64),
            channel_core=np.array(
                [machine.channel_core(t, c) for t, n in enumerate(counts) for c in range(n)],
                np.int64,
            ),
            far_per_byte=np.array([TICKS_PER_S / t.channel_bytes_per_s for t in tiers], np.float64),
            far_latency=np.array([ticks(tier.latency_s) for tier in tiers], np.int64),
        )


def ticks(seconds: float) -> int:
    """Seconds in whole ticks."""
    return round(seconds * TICKS_PER_S)


class Costs(NamedTuple):
    """What each instruction of a table asks of its unit and of the SRAM port.

    Attributes:
        kind: `[instructions]`, the row of `Rates.matrix` or of `Rates.vector_step`.
        elements: `[instructions, 2]`, of a vector instruction: a + b n.
        bytes: `[instructions, 4]`, that cross the port: a + b n + c m + d m n.
    """

    kind: Ints
    elements: Ints
    bytes: Floats


_SIMPLE, _SPECIAL, _REDUCTION = (_CLASSES.index(k) for k in ("simple", "special", "reduction"))
_WIDTHS: Final = {
    Conversion.F32_BF16: 6,
    Conversion.F32_F16: 6,
    Conversion.BF16_F32: 6,
    Conversion.F16_F32: 6,
    Conversion.I32_F32: 8,
}
"""Bytes read and written by an element's conversion."""
_VECTOR: Final[dict[Op, tuple[int, tuple[int, int], tuple[float, float]]]] = {
    # class, elements a + b n, bytes a + b n
    Op.V_BIN: (_SIMPLE, (0, 1), (0, 12)),
    Op.V_BINS: (_SIMPLE, (0, 1), (4, 8)),
    Op.V_IMM: (_SIMPLE, (0, 1), (0, 8)),
    Op.V_UN: (_SPECIAL, (0, 1), (0, 8)),
    Op.V_RED: (_REDUCTION, (0, 1), (4, 4)),
    Op.V_CVT: (_SIMPLE, (0, 1), (0, 8)),
    Op.V_Q8: (_REDUCTION, (0, 1), (0, 5 + 4 / BLOCK)),
    Op.V_DQ: (_SIMPLE, (0, 1), (0, 4)),
    Op.V_ROPE: (_SIMPLE, (0, 2), (0, 24)),
    Op.V_FILL: (_SIMPLE, (0, 1), (0, 4)),
    Op.V_ARGMAX: (_REDUCTION, (0, 1), (8, 4)),
    Op.V_MERGE: (_SIMPLE, (1, 0), (24, 0)),
}


def costs_of(table: Ints) -> Costs:
    """The costs of all instructions `[instructions, fields]`; zeros where neither unit works."""
    count = len(table)
    costs = Costs(np.zeros(count, np.int64), np.zeros((count, 2), np.int64), np.zeros((count, 4)))
    op, fmt, flags = table[:, F_OP], table[:, F_FMT], table[:, F_FLAGS]
    k = table[:, F_K].astype(np.float64)
    for code, (kind, elements, moved) in _VECTOR.items():
        rows = op == code
        costs.kind[rows] = kind
        costs.elements[rows] = elements
        costs.bytes[rows, :2] = moved
    plain = (op == Op.V_UN) & np.isin(fmt, (Unary.COPY, Unary.NEG))
    costs.kind[plain] = _SIMPLE
    for conversion, width in _WIDTHS.items():
        costs.bytes[(op == Op.V_CVT) & (fmt == conversion), 1] = width
    # Of quantised weights: codes, and for each group a scale and perhaps a min, both f16.
    codes = np.where(fmt & CODES4, 0.5, 1.0)
    groups = np.where(fmt & MINS, 4.0, 2.0) / np.where(fmt & GROUP16, 16, 32)
    dequantised = op == Op.V_DQ
    costs.bytes[dequantised, 1] += (codes + groups)[dequantised]
    accumulators = np.where(flags & ACC, 8.0, 4.0)
    quantised, floating = op == Op.MM_Q, op == Op.MM_F
    for rows, weight, row in (
        (quantised, k * (codes + groups), k * (1 + 4 / BLOCK)),
        (floating, 2 * k, 2 * k),
    ):
        costs.bytes[rows, 1] = weight[rows]
        costs.bytes[rows, 2] = row[rows]
        costs.bytes[rows, 3] = accumulators[rows]
    four_bits = quantised & ((fmt & CODES4) != 0)
    costs.kind[quantised] = _FORMATS.index("int8")
    costs.kind[four_bits] = _FORMATS.index("int4")
    costs.kind[floating] = _FORMATS.index("bf16")
    costs.kind[floating & (fmt == Float.F16)] = _FORMATS.index("f16")
    return costs
