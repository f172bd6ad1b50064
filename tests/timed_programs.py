"""Programs for a machine so simple that their times can be computed by hand."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np

from infc.backends.dataflow.isa import Instruction, Op, Unit, chips, encode, rectangle
from infc.backends.dataflow.machine import (
    ChipLinks,
    Dma,
    FarMemory,
    Machine,
    MatrixUnit,
    Mesh,
    VectorUnit,
)
from infc.backends.dataflow.program import Image, StreamKey
from infc.backends.dataflow.simulator.timing import Timing, simulate_time

# A cycle is 1 ns. Port 256 B/ns, DMA engines, channels and links 64 B/ns, hops 4 ns.
MACHINE = Machine(
    name="dataflow:by-hand",
    chips=1,
    rows=2,
    cols=3,
    clock_hz=1e9,
    issue_cycles=1,
    sram_bytes=1 << 16,
    sram_bytes_per_s=256e9,
    matrix=MatrixUnit(32, 32, 64, MappingProxyType({"int8": 32, "f16": 64}), 256, 8),
    vector=VectorUnit(1024, 32, MappingProxyType({"simple": 1, "special": 8, "reduction": 2}), 4),
    dma=Dma(bytes_per_cycle=64, outstanding=4, startup_cycles=16, burst_bytes=1024),
    far=(FarMemory("hbm", 6, 1 << 20, 64e9, 200e-9),),
    mesh=Mesh(64e9, 4e-9),
    links=None,
    launch_s=1e-6,
    chip_watts=None,
)
CHANNEL_LINES = (1 << 20) // 64
ORIGINS = ["embed", "layer 0", "layer 1"]
I = Instruction  # noqa: E741
Programs = dict[StreamKey, list[Instruction]]


def of_chips(topology: str, number: int, rows: int = 1) -> Machine:
    """Several of `MACHINE`; links between them carry 64 B/ns and take 100 ns."""
    links = ChipLinks(topology, 64e9, 100e-9, rows, number // rows)  # type: ignore[arg-type]
    return replace(MACHINE, chips=number, links=links)


def image_of(programs: Programs, machine: Machine = MACHINE) -> Image:
    """An image of streams, to each of which a halt is added."""
    binary = [encode([*program, I(Op.HALT)]) for program in programs.values()]
    return Image(
        chips=machine.chips,
        rows=machine.rows,
        cols=machine.cols,
        sram_bytes=machine.sram_bytes,
        max_tokens=4,
        max_logit_rows=4,
        streams={key: index for index, key in enumerate(programs)},
        programs=binary,
        origins=ORIGINS,
        regions=[],
        outputs=[],
    )


def timed(programs: Programs, machine: Machine = MACHINE, *, ahead: bool = True) -> Timing:
    """A run of one call whose arguments are zeros."""
    args = np.zeros(16, np.int32)
    return simulate_time(image_of(programs, machine), machine, args, most_spans=200, ahead=ahead)


def ns(seconds: float) -> float:
    """Nanoseconds, to a thousandth."""
    return round(seconds * 1e9, 3)


def ended(programs: Programs, core: int, unit: Unit, machine: Machine = MACHINE) -> float:
    """When the stream of a unit ended, in ns."""
    return ns(float(timed(programs, machine).ended_s[core, unit]))


def load(bytes_: int, channel: int = 0, **fields: int) -> Instruction:
    return I(Op.LOAD, m=1, n=bytes_, a=channel * CHANNEL_LINES, **fields)


def send(bytes_: int, cores: int, where: int = chips(0, 1), **fields: int) -> Instruction:
    return I(Op.SEND, m=1, n=bytes_, k=cores, x=where, **fields)


def only(core: int) -> int:
    """A rectangle of one core."""
    return rectangle(core // 3, core % 3, 1, 1)


def wait(semaphore: int = 0, number: int = 1) -> Instruction:
    return I(Op.WAIT, d=semaphore, n=number)
