"""What the dataflow machine refuses to execute: full texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dataflow_programs import MACHINE, NO_ARGS, image, image_of

from infc.backends.dataflow.isa import Instruction, Op, Unit
from infc.backends.dataflow.program import Image, Region
from infc.backends.dataflow.simulator.errors import Fault, SimulationError
from infc.backends.dataflow.simulator.execute import execute
from infc.backends.dataflow.simulator.memory import Memory
from infc.diagnostics import InternalError, UserError


def refusal(programs: dict[str, str]) -> SimulationError:
    made = image(programs)
    with pytest.raises(SimulationError) as caught:
        execute(made, MACHINE, Memory.of(made), NO_ARGS)
    return caught.value


MM_Q = "mm_q.q8g32 d=0 a=4096 b=8192 c=16384 n={n} m={m} k={k} stride_d={d} stride_a=64 stride_b=8"
MM_F = "mm_f.f16 d=0 a=4096 c={c} n=4 m=4 k=8 stride_d=16 stride_a={a} stride_b=2 stride_c={s}"


def mm_q(n: int = 4, m: int = 4, k: int = 64, d: int = 16) -> str:
    return MM_Q.format(n=n, m=m, k=k, d=d)


def mm_f(c: int = 8192, a: int = 16, s: int = 16) -> str:
    return MM_F.format(c=c, a=a, s=s)


SIZE = MACHINE.sram_bytes
CASES = [
    ("load", "load.far0 d=262100 a=0 n=64 m=1 stride_d=0 stride_a=0", Fault.BOUNDS,
     "load: expected d inside 262144 bytes, got bytes 262100 to 262164"),
    ("load", "load.far0 d=0 a=16383 n=65 m=1 stride_d=0 stride_a=0", Fault.BOUNDS,
     "load: expected a inside 1048576 bytes, got bytes 1048512 to 1048577"),
    ("load", "load.far1 d=0 a=0 n=64 m=1 stride_d=0 stride_a=0", Fault.BOUNDS,
     "load: expected a inside 0 bytes, got bytes 0 to 64"),
    ("send", "store.far0 d=16380 a=0 n=64 m=3 stride_d=2 stride_a=64", Fault.BOUNDS,
     "store: expected d inside 1048576 bytes, got bytes 1048320 to 1048640"),
    ("send", "send d=0 a=262143 n=2 m=1 stride_d=0 stride_a=0 chips=0-0 cores=0-0,1-1",
     Fault.BOUNDS, "send: expected a inside 262144 bytes, got bytes 262143 to 262145"),
    ("send", "send d=0 a=0 n=2 m=1 stride_d=0 stride_a=0 chips=0-0 cores=0-2,1-1",
     Fault.OPERAND, "send: expected cores inside the grid, got some outside"),
    ("send", "send d=0 a=0 n=2 m=1 stride_d=0 stride_a=0 chips=1-1 cores=0-0,1-1",
     Fault.OPERAND, "send: expected cores inside the grid, got some outside"),
    ("vector", "post.remote semaphore=1 count=1 core=4",
     Fault.OPERAND, "post: expected cores inside the grid, got some outside"),
    ("matrix", mm_q(n=33), Fault.LIMIT, "mm_q: expected n of at most 32, got 33"),
    ("matrix", mm_q(m=33), Fault.LIMIT, "mm_q: expected m of at most 32, got 33"),
    ("matrix", mm_q(k=96), Fault.LIMIT, "mm_q: expected k of at most 64, got 96"),
    ("matrix", mm_q(d=18), Fault.ALIGNMENT, "mm_q: expected d at a multiple of 4 bytes, got 18"),
    ("matrix", mm_f(c=8193), Fault.ALIGNMENT,
     "mm_f: expected c at a multiple of 2 bytes, got 8193"),
    ("matrix", mm_f(a=17), Fault.ALIGNMENT, "mm_f: expected a at a multiple of 2 bytes, got 17"),
    ("matrix", mm_f(s=15), Fault.ALIGNMENT, "mm_f: expected c at a multiple of 2 bytes, got 15"),
    ("matrix", mm_f(c=SIZE - 62), Fault.BOUNDS,
     "mm_f: expected c inside 262144 bytes, got bytes 262082 to 262146"),
    ("vector", "v_un.exp d=0 a=4096 n=1025", Fault.LIMIT,
     "v_un: expected n of at most 1024, got 1025"),
    ("vector", "v_un.exp d=2 a=4096 n=4", Fault.ALIGNMENT,
     "v_un: expected d at a multiple of 4 bytes, got 2"),
    ("vector", "v_bin.add d=8 a=0 b=4096 n=4", Fault.OPERAND,
     "v_bin: expected a apart from d, got bytes 8 to 16 of both"),
    ("vector", "v_cvt.f16_f32 d=0 a=0 n=4", Fault.OPERAND,
     "v_cvt: expected a apart from d, got bytes 0 to 8 of both"),
    ("vector", "mov to=r1 a=33\nv_q8 d=0 b=4096 a=8192 n=r1", Fault.OPERAND,
     "v_q8: expected n to be a multiple of 32, got 33"),
    ("vector", "mov to=r1 a=-8\nv_un.exp d=r1 a=4096 n=4", Fault.BOUNDS,
     "v_un: expected d inside 262144 bytes, got bytes -8 to 8"),
    ("vector", "mov to=r1 a=-8\nv_un.exp d=0 a=4096 n=r1", Fault.OPERAND,
     "v_un: expected n of at least 0, got -8"),
    ("load", "mov to=r1 a=-8\nload.far0 d=0 a=0 n=4 m=r1 stride_d=0 stride_a=0", Fault.OPERAND,
     "load: expected m of at least 0, got -8"),
    ("vector", "mov to=r1 a=-8\nloop count=r1\nendloop", Fault.OPERAND,
     "loop: expected a count of at least 0, got -8"),
    ("vector", "arg to=r1 index=64", Fault.BOUNDS,
     "arg: expected the index of one of 64 arguments, got 64"),
    ("vector", "wait semaphore=1 count=65536", Fault.LIMIT,
     "wait: expected at most 65535 in a semaphore, got 65536"),
    ("vector", "post semaphore=1 count=65535\npost semaphore=1 count=2", Fault.LIMIT,
     "post: expected at most 65535 in a semaphore, got 65537"),
    ("vector", "mov to=r1 a=-1\npost semaphore=1 count=r1", Fault.OPERAND,
     "post: expected the count of at least 0, got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("unit", "text", "fault", "message"), CASES)
def test_what_an_instruction_may_not_do(unit: str, text: str, fault: Fault, message: str) -> None:
    at = len(text.splitlines()) - 1 if "loop" not in text else 1
    error = refusal({f"2 {unit}": text})
    assert str(error) == (
        f"error[INF9001]: {message}\n  --> op{at}\n   |  core 2, {unit} stream, instruction {at}"
    )
    found = (error.fault, error.origin, error.core, error.unit, error.instruction)
    assert found == (fault, f"op{at}", 2, unit, at)


def test_streams_that_wait_for_one_another() -> None:
    error = refusal(
        {
            "0 vector": "post semaphore=3 count=1\nwait semaphore=4 count=1",
            "0 matrix": "loop count=2\nwait semaphore=3 count=1\nendloop\npost semaphore=4 count=1",
            "3 load": "wait semaphore=9 count=2",
            "1 send": "",
        }
    )
    assert error.fault is Fault.DEADLOCK
    assert str(error) == (
        "error[INF9001]: 3 streams cannot go on, and nobody else can\n"
        "  --> op1\n"
        "   |  core 0, matrix stream, instruction 1\n"
        "   |  core 0, matrix stream, instruction 1 (op1) waits for 1 in semaphore 3, which has 0\n"
        "   |  core 0, vector stream, instruction 1 (op1) waits for 1 in semaphore 4, which has 0\n"
        "   |  core 3, load stream, instruction 0 (op0) waits for 2 in semaphore 9, which has 0"
    )


def test_a_deadlock_of_many_streams_lists_some() -> None:
    units = ("load", "matrix", "vector", "send")
    error = refusal(
        {
            f"{core} {unit}": f"wait semaphore={at} count=1"
            for core in range(3)
            for at, unit in enumerate(units)
        }
    )
    lines = str(error).splitlines()
    assert lines[0] == "error[INF9001]: 12 streams cannot go on, and nobody else can"
    assert lines[-1] == "   |  and 4 more"
    assert len(lines) == 12


def test_a_semaphore_has_one_stream_that_waits_for_it() -> None:
    error = refusal(
        {
            "0 load": "post semaphore=3 count=2\nwait semaphore=3 count=1",
            "0 matrix": "wait semaphore=3 count=1",
        }
    )
    assert error.fault is Fault.OPERAND
    assert error.diagnostic.message == "wait: semaphore 3 is waited for by the load stream too"


def test_an_image_of_another_machine() -> None:
    made = image({"0 load": "mov to=r1 a=1"})
    other = replace(MACHINE, cols=3)
    with pytest.raises(InternalError, match="expected an image for 1 chips of 2 x 3 cores, got"):
        execute(made, other, Memory.of(made), NO_ARGS)


def test_a_program_that_is_no_stream() -> None:
    """An image that comes from no file has not been checked yet; compiled code relies on it."""
    made = image_of({(0, Unit.LOAD): [Instruction(Op.LOOP, n=2), Instruction(Op.HALT)]})
    with pytest.raises(InternalError) as caught:
        execute(made, MACHINE, Memory.of(made), NO_ARGS)
    expected = "program 0, instruction 1: expected endloop for every loop, got 1 too few"
    assert caught.value.diagnostic.message == expected


def test_memory_of_another_kind() -> None:
    made = image({"0 load": "mov to=r1 a=1"})
    memory = Memory.of(made)
    wide = replace(memory, sram=memory.sram[:, ::2])
    with pytest.raises(InternalError, match="expected memory as contiguous arrays of uint8"):
        execute(made, MACHINE, wide, NO_ARGS)


def test_nothing_is_touched_where_there_are_no_rows() -> None:
    made = image(
        {
            "0 load": "load.far0 d=999999 a=0 n=0 m=1 stride_d=0 stride_a=0 signal=1",
            "0 matrix": mm_q(m=0).replace("d=0", "d=999999") + " signal=2",
            "0 vector": "v_fill d=999999 x=1.0 n=0 signal=3",
            "0 send": "wait semaphore=1 count=1\nwait semaphore=2 count=1\nwait semaphore=3 count=1"
            "\nsend d=0 a=999999 n=5 m=0 chips=0-0 cores=0-1,0-1 signal=4 signal_local=5"
            "\nwait semaphore=5 count=1",
            **{f"{core} vector": "wait semaphore=4 count=1" for core in (1, 2, 3)},
        }
    )
    memory = Memory.of(made)
    report = execute(made, MACHINE, memory, NO_ARGS)
    assert not memory.sram.any()
    assert report.instructions.tolist() == [[1, 1, 1, 5], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert report.multiply_adds == 0


def test_calls_start_afresh() -> None:
    """Registers, loops and semaphores are 0 again; memory stays."""
    made = image(
        {
            "0 vector": "add to=r1 a=r1+4 b=r0\npost semaphore=1 count=1\n"
            "v_imm.add d=r1 a=r1 x=1.0 n=1"
        }
    )
    memory = Memory.of(made)
    for call in (1, 2):
        execute(made, MACHINE, memory, NO_ARGS)
        assert memory.sram[0].view(np.float32)[:3].tolist() == [0, call, 0]


def with_far_memory(end_bytes: int) -> Image:
    made = image({"0 load": "mov to=r1 a=1"})
    end = Region(None, made.chips - 1, "far0", end_bytes - 64, 64, "zero", 0)
    return replace(made, regions=[*made.regions, end])


def test_far_memories_may_be_larger_than_the_host() -> None:
    far = Memory.of(with_far_memory(1 << 40)).far[0]
    assert far.shape[1] == 1 << 40
    far[-1, -64:] = 7
    assert far[-1, -64:].sum() == 7 * 64
    assert not far[-1, -(1 << 20) : -64].any()


def test_far_memories_beyond_all_addresses() -> None:
    with pytest.raises(UserError) as caught:
        Memory.of(with_far_memory(1 << 58))
    text = str(caught.value)
    assert text.startswith(
        "error[INF4005]: the memories of the simulated machine take 262144 TiB of addresses, "
        "which this host does not give: "
    )
    assert text.endswith(
        "\n   = hint: lift the limit on addresses (ulimit -v, vm.overcommit_memory)"
    )
