"""Dataflow programs that the check refuses, with which text, or lets pass."""

from __future__ import annotations

import pytest
from dataflow_programs import MACHINE, NO_ARGS, WEIGHTS, image

from infc.backends.dataflow.image import Region
from infc.backends.dataflow.simulator.check import check
from infc.backends.dataflow.simulator.errors import SimulationError

SRAM0 = Region(0, 0, "sram", 0, 8192, "zero", 0)
SRAM1 = Region(1, 0, "sram", 0, 8192, "zero", 0)
TO_CORE_1 = "chips=0-0 cores=0-0,1-1"
TO_CORE_0 = "chips=0-0 cores=0-0,0-0"


def refused(programs: dict[str, str], *regions: Region) -> str:
    """The whole text of the error that the check raises."""
    with pytest.raises(SimulationError) as caught:
        check(image(programs, (WEIGHTS, *regions)), MACHINE, NO_ARGS)
    return str(caught.value)


def text(message: str, origin: str, where: str, *notes: str) -> str:
    """An error as it is printed."""
    lines = [f"error[INF9001]: {message}", f"  --> {origin}", f"   |  {where}"]
    return "\n".join([*lines, *(f"   |  {note}" for note in notes)])


def passes(programs: dict[str, str], *regions: Region) -> None:
    """The check finds nothing."""
    check(image(programs, (WEIGHTS, *regions)), MACHINE, NO_ARGS)
