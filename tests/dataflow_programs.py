"""Small programs for the dataflow machine, as assembly text by core and unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.assembler import assemble
from infc.backends.dataflow.backend import BACKEND
from infc.backends.dataflow.image import Image, Region, share_streams
from infc.backends.dataflow.isa import Instruction, Unit, encode
from infc.backends.dataflow.machine import Machine

MACHINE = Machine.of(BACKEND.resolve("dataflow:test"))
"""2 x 2 cores with 256 KiB of SRAM, and 4 GiB of far memory."""
NO_ARGS: NDArray[np.int32] = np.zeros(64, np.int32)

WEIGHTS = Region(None, 0, "far0", 0, 1 << 20, "weights", 0)
Programs = Mapping[str, str]
"""Text of the stream `CORE UNIT` (like `0 load`), without its halt."""


def instructions(programs: Programs) -> dict[tuple[int, Unit], list[Instruction]]:
    """The instructions of each stream; instruction i comes from origin i."""
    result = {}
    for key, text in programs.items():
        core, unit = key.split()
        lines = [line for line in text.splitlines() if line.strip()]
        numbered = [f"{line} @{index}" for index, line in enumerate(lines)]
        result[int(core), Unit[unit.upper()]] = assemble("\n".join([*numbered, "halt"]))
    return result


def image(programs: Programs, regions: Sequence[Region] = (WEIGHTS,)) -> Image:
    """An image for `MACHINE`."""
    return image_of(instructions(programs), regions)


def image_of(
    streams: Mapping[tuple[int, Unit], Sequence[Instruction]],
    regions: Sequence[Region] = (WEIGHTS,),
) -> Image:
    """An image for `MACHINE`, without the checks of a file."""
    shared, codes = share_streams({key: encode(found) for key, found in streams.items()})
    most = max(len(found) for found in streams.values())
    origins = [f"op{index}" for index in range(most)]
    return Image(
        chips=1,
        rows=2,
        cols=2,
        sram_bytes=MACHINE.sram_bytes,
        max_tokens=16,
        max_logit_rows=1,
        streams=shared,
        programs=codes,
        origins=origins,
        regions=list(regions),
        outputs=[],
    )
