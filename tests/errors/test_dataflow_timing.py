"""What the simulator of time refuses."""

import pytest
from timed_programs import CHANNEL_LINES, I, Programs, load, send, timed, wait

from infc.backends.dataflow.isa import Op, Unit, rectangle
from infc.backends.dataflow.simulator.errors import Fault, SimulationError


def test_a_deadlock_names_all_who_wait() -> None:
    programs = {
        (0, Unit.LOAD): [wait(1, 2)],
        (4, Unit.VECTOR): [I(Op.MOV, rd=1, a=3), I(Op.WAIT, d=9, n=1, origin=2)],
        (1, Unit.MATRIX): [I(Op.POST, d=9, n=1)],
    }
    with pytest.raises(SimulationError) as caught:
        timed(programs)
    error = caught.value
    assert (error.fault, error.core, error.unit) == (Fault.DEADLOCK, 0, "load")
    assert "2 streams wait for semaphores that nobody will post" in str(error)
    assert error.diagnostic.notes[1:] == (
        "core 0, load stream, instruction 0 of embed: semaphore 1 is 0, waits for 2",
        "core 4, vector stream, instruction 1 of layer 1: semaphore 9 is 0, waits for 1",
    )


@pytest.mark.parametrize(
    ("programs", "fault", "message"),
    [
        (
            {(0, Unit.LOAD): [I(Op.LOAD, m=2, n=64, stride_a=CHANNEL_LINES)]},
            Fault.BOUNDS,
            "expected a transfer inside one channel, got one across two",
        ),
        (
            {(0, Unit.LOAD): [load(64, 6)]},
            Fault.BOUNDS,
            "expected lines of a far memory, got some outside",
        ),
        (
            {(0, Unit.LOAD): [load(64, 0, fmt=1)]},
            Fault.BOUNDS,
            "expected lines of a far memory, got some outside",
        ),
        (
            {(3, Unit.MATRIX): [I(Op.MM_F, m=1, n=32, k=64)]},
            Fault.OPERAND,
            "expected a format that the matrix unit has",
        ),
        (
            {(3, Unit.MATRIX): [I(Op.MM_Q, m=33, n=32, k=64)]},
            Fault.LIMIT,
            "expected at most the rows of the unit's native tile, got more",
        ),
        (
            {(3, Unit.VECTOR): [I(Op.MOV, rd=1, a=-2), I(Op.V_FILL, rn=1)]},
            Fault.OPERAND,
            "expected sizes and counts of at least 0, got a negative one",
        ),
        (
            {(0, Unit.SEND): [send(64, rectangle(0, 2, 1, 2))]},
            Fault.OPERAND,
            "expected cores of the machine, got others",
        ),
        (
            {(0, Unit.SEND): [I(Op.ARG, rd=1, a=16)]},
            Fault.BOUNDS,
            "expected the index of one of 16 arguments, got 16",
        ),
    ],
)
def test_what_the_machine_does_not_have(programs: Programs, fault: Fault, message: str) -> None:
    with pytest.raises(SimulationError) as caught:
        timed(programs)
    assert caught.value.fault == fault
    assert message in str(caught.value)
