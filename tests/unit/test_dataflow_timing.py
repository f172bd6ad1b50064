"""The simulator of time: programs whose time is computed by hand, and rules that hold for all."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infc.backends.dataflow.isa import (
    ACC,
    REMOTE,
    Instruction,
    Op,
    Unary,
    Unit,
    chips,
    encode,
    rectangle,
)
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
from infc.backends.dataflow.simulator.errors import Fault, SimulationError
from infc.backends.dataflow.simulator.timing import Timing, simulate_time
from infc.backends.dataflow.simulator.trace import write_trace

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


def image_of(programs: Programs, machine: Machine = MACHINE) -> Image:
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
    args = np.zeros(16, np.int32)
    return simulate_time(image_of(programs, machine), machine, args, most_spans=200, ahead=ahead)


def ns(seconds: float) -> float:
    return round(seconds * 1e9, 3)


def ended(programs: Programs, core: int, unit: Unit, machine: Machine = MACHINE) -> float:
    return ns(float(timed(programs, machine).ended_s[core, unit]))


def load(bytes_: int, channel: int = 0, **fields: int) -> Instruction:
    return I(Op.LOAD, m=1, n=bytes_, a=channel * CHANNEL_LINES, **fields)


def send(bytes_: int, cores: int, where: int = chips(0, 1), **fields: int) -> Instruction:
    return I(Op.SEND, m=1, n=bytes_, k=cores, x=where, **fields)


def only(core: int) -> int:
    return rectangle(core // 3, core % 3, 1, 1)


def wait(semaphore: int = 0, number: int = 1) -> Instruction:
    return I(Op.WAIT, d=semaphore, n=number)


# One resource at a time.


def test_scalar_instructions_take_a_cycle_each() -> None:
    loop = [I(Op.LOOP, n=5), I(Op.ADD, rd=1, ra=1, a=1), I(Op.ENDLOOP)]
    assert ended({(2, Unit.SEND): loop}, 2, Unit.SEND) == 1 + 5 * 2


def test_the_launch_is_part_of_a_call() -> None:
    timing = timed({(0, Unit.VECTOR): [I(Op.MOV, rd=1, a=7)]})
    assert (ns(timing.seconds), ns(timing.program_seconds)) == (1001, 1)


def test_a_load() -> None:
    # Issue 1, start of the engine 16, channel 2 x 16; then 200 behind the last burst's begin.
    programs = {(0, Unit.LOAD): [load(2048, signal=0)], (0, Unit.VECTOR): [wait()]}
    timing = timed(programs)
    assert ns(float(timing.ended_s[0, Unit.VECTOR])) == 1 + 16 + 16 + 200 + 16 + 1
    assert ns(float(timing.ended_s[0, Unit.LOAD])) == 1
    assert timing.channel_bytes.tolist() == [2048, 0, 0, 0, 0, 0]
    assert timing.port_bytes.tolist() == [2048, 0, 0, 0, 0, 0]
    assert ns(float(timing.waits_s["semaphore"][0, Unit.VECTOR])) == 249
    assert ns(float(timing.busy_s[0, Unit.LOAD])) == 32


def test_rows_of_a_load_take_whole_lines() -> None:
    narrow = I(Op.LOAD, m=3, n=65, stride_a=5, stride_d=128, signal=0)
    programs = {(0, Unit.LOAD): [narrow], (0, Unit.VECTOR): [wait()]}
    assert ended(programs, 0, Unit.VECTOR) == 1 + 16 + 200 + 3 * 128 / 64 + 1


def test_a_load_of_nothing_signals_all_the_same() -> None:
    programs = {(0, Unit.LOAD): [load(0, signal=0)], (0, Unit.VECTOR): [wait()]}
    assert ended(programs, 0, Unit.VECTOR) == 1 + 16 + 1


def test_two_loads_share_a_channel_burst_by_burst() -> None:
    # Core 1's own channel is 1; channel 0 is at core 0, a hop away, both for what it is asked and
    # for what it sends. Core 0 is first: of two bursts each, its second is the channel's third.
    programs = {
        (0, Unit.LOAD): [load(2048, signal=0)],
        (0, Unit.VECTOR): [wait()],
        (1, Unit.LOAD): [load(2048, signal=0)],
        (1, Unit.VECTOR): [wait()],
    }
    timing = timed(programs)
    first = 17
    assert ns(float(timing.ended_s[0, Unit.VECTOR])) == first + 2 * 16 + 200 + 16 + 1
    assert ns(float(timing.ended_s[1, Unit.VECTOR])) == first + 3 * 16 + 200 + 4 + 16 + 1
    assert timing.link_bytes.sum() == 2048


def test_requests_of_one_engine_are_served_in_order() -> None:
    # Both wait for the same channel: the second one's bursts come behind all of the first one's.
    programs = {
        (0, Unit.LOAD): [load(2048, signal=0), load(1024, signal=1)],
        (0, Unit.VECTOR): [wait(0)],
        (0, Unit.MATRIX): [wait(1)],
    }
    timing = timed(programs)
    assert ns(float(timing.ended_s[0, Unit.VECTOR])) == 17 + 16 + 216 + 1
    assert ns(float(timing.ended_s[0, Unit.MATRIX])) == 17 + 32 + 216 + 1


def test_an_engine_has_so_many_requests_under_way() -> None:
    # The fifth is issued when the first has ended (at 233), and waited for the channel until then.
    timing = timed({(0, Unit.LOAD): [load(1024)] * 5})
    assert ns(float(timing.ended_s[0, Unit.LOAD])) == 17 + 200 + 16 + 1
    assert ns(float(timing.waits_s["channel"][0, Unit.LOAD])) == 233 - 4
    assert ns(timing.program_seconds) == 234 + 16 + 216


def test_a_store_reads_its_source_before_it_has_ended() -> None:
    store = I(Op.STORE, m=1, n=2048, signal=0, signal_local=1)
    programs = {
        (0, Unit.SEND): [store],
        (0, Unit.VECTOR): [wait(0)],
        (0, Unit.MATRIX): [wait(1)],
    }
    timing = timed(programs)
    assert ns(float(timing.ended_s[0, Unit.MATRIX])) == 17 + 32 + 1
    assert ns(float(timing.ended_s[0, Unit.VECTOR])) == 17 + 32 + 200 + 1


# Units.


def test_a_matrix_instruction_takes_as_long_as_its_rows_or_its_weights() -> None:
    # 8 to start; 32 rows of 32 cycles, or 32 x 64 bytes of weights at 256 a cycle.
    mm = [I(Op.MM_Q, m=32, n=32, k=64), I(Op.MM_Q, m=1, n=32, k=64)]
    assert ended({(0, Unit.MATRIX): mm[:1]}, 0, Unit.MATRIX) == 1 + 8 + 32
    # The second one is issued while the first is at work.
    assert ended({(0, Unit.MATRIX): mm}, 0, Unit.MATRIX) == 1 + 40 + 16


def test_registers_are_counted_while_the_unit_is_at_work() -> None:
    mm = I(Op.MM_Q, m=32, n=32, k=64)
    step = [I(Op.ADD, rd=1, ra=1, a=4)] * 10
    assert ended({(0, Unit.MATRIX): [mm, *step, mm]}, 0, Unit.MATRIX) == 1 + 40 + 40
    assert ended({(0, Unit.MATRIX): [mm, *step * 5, mm]}, 0, Unit.MATRIX) == 1 + 50 + 1 + 40


@pytest.mark.parametrize(
    ("instruction", "cycles"),
    [
        (I(Op.V_UN, fmt=Unary.COPY, n=1024), 4 + 32),
        (I(Op.V_UN, fmt=Unary.EXP, n=64), 4 + 2 * 8),
        (I(Op.V_RED, n=33), 4 + 2 * 2),
        (I(Op.V_ROPE, n=32), 4 + 2),
        (I(Op.V_MERGE), 4 + 1),
        (I(Op.V_FILL, n=0), 4),
    ],
)
def test_a_vector_instruction(instruction: Instruction, cycles: int) -> None:
    assert ended({(0, Unit.VECTOR): [instruction]}, 0, Unit.VECTOR) == 1 + cycles


def test_units_of_a_core_share_its_port() -> None:
    # At 1 both units ask for the port: the matrix unit, whose stream comes first, for 16640 bytes
    # (w 2048 + 128, x 2048 + 256, 8 x 32 x 32 sums), the vector unit for 12288. At 256 a cycle it
    # gets them at 1 + 49.5 + 48.
    mm = I(Op.MM_Q, m=32, n=32, k=64, flags=ACC)
    bytes_ = 2048 + 128 + 2048 + 256 + 8192
    programs = {(0, Unit.MATRIX): [mm], (0, Unit.VECTOR): [I(Op.V_BIN, n=1024)]}
    timing = timed(programs)
    assert timing.port_bytes[0] == bytes_ + 12288
    assert ns(float(timing.ended_s[0, Unit.MATRIX])) == 1 + bytes_ / 256
    assert ns(float(timing.ended_s[0, Unit.VECTOR])) == 1 + bytes_ / 256 + 48
    assert ns(float(timing.waits_s["port"][0, Unit.VECTOR])) == bytes_ / 256 + 48 - 36


def test_a_ring_of_two_slots_hides_the_shorter_of_load_and_product() -> None:
    rounds, bytes_ = 50, 8192  # 128 ns on the channel, against 40 of the product
    load_stream = [
        I(Op.LOOP, n=rounds),
        wait(1),
        load(bytes_, signal=0),
        I(Op.ENDLOOP),
    ]
    product = [wait(0), I(Op.MM_Q, m=32, n=32, k=64), I(Op.POST, d=1, n=1)]
    matrix = [I(Op.POST, d=1, n=4), I(Op.LOOP, n=rounds), *product, I(Op.ENDLOOP)]
    timing = timed({(0, Unit.LOAD): load_stream, (0, Unit.MATRIX): matrix})
    # The first load is issued at 3; the channel is never idle; behind the last one a product.
    assert ns(timing.program_seconds) == 3 + 16 + rounds * 128 + 200 + 1 + 1 + 40 + 1 + 1
    assert timing.origins[0].binding == "hbm"


# The network.


def test_a_message_to_a_neighbour() -> None:
    programs = {(0, Unit.SEND): [send(1024, only(1), signal=0)], (1, Unit.LOAD): [wait()]}
    assert ended(programs, 1, Unit.LOAD) == 1 + 16 + 4 + 16 + 1


def test_a_message_goes_along_the_row_then_the_column() -> None:
    programs = {
        (0, Unit.SEND): [send(1024, only(5), signal=0, signal_local=3)],
        (5, Unit.LOAD): [wait()],
        (0, Unit.LOAD): [wait(3)],
    }
    timing = timed(programs)
    assert ns(float(timing.ended_s[5, Unit.LOAD])) == 17 + 3 * 4 + 16 + 1
    assert ns(float(timing.ended_s[0, Unit.LOAD])) == 17 + 16 + 1
    used = {(int(link) // 4, int(link) % 4) for link in np.flatnonzero(timing.link_bytes)}
    assert used == {(0, 0), (1, 0), (2, 2)}


def test_two_messages_that_cross_one_link_go_one_after_the_other() -> None:
    # 0 -> 2 and 1 -> 2 share the link from 1 to 2; the one from 1 is there first.
    programs = {
        (0, Unit.SEND): [send(1024, only(2), signal=0)],
        (1, Unit.SEND): [send(1024, only(2), signal=1)],
        (2, Unit.LOAD): [wait(0)],
        (2, Unit.MATRIX): [wait(1)],
    }
    timing = timed(programs)
    assert ns(float(timing.ended_s[2, Unit.MATRIX])) == 17 + 4 + 16 + 1
    assert ns(float(timing.ended_s[2, Unit.LOAD])) == 17 + 16 + 4 + 16 + 1


def test_a_multicast_occupies_each_link_once() -> None:
    everywhere = rectangle(0, 0, 2, 3)
    programs: Programs = {(1, Unit.SEND): [send(1024, everywhere, signal=0)]}
    programs |= {(core, Unit.LOAD): [wait()] for core in range(6)}
    timing = timed(programs)
    hops = [1, 0, 1, 2, 1, 2]
    assert [ns(s) for s in timing.ended_s[:, Unit.LOAD].tolist()] == [
        17 + 16 + 4 * n + 1 for n in hops
    ]
    assert sorted(timing.link_bytes.tolist()) == [0] * 19 + [1024] * 5


def test_a_remote_post_takes_its_way() -> None:
    post = I(Op.POST, d=7, n=3, x=5, flags=REMOTE)
    programs = {(0, Unit.VECTOR): [post], (5, Unit.SEND): [wait(7, 3)]}
    # Its cycle, three hops, 16 bytes at 64 a ns.
    assert ended(programs, 5, Unit.SEND) == 1 + 3 * 4 + 0.25 + 1


def test_a_signal_is_posted_when_the_last_packet_is_written() -> None:
    programs = {(0, Unit.SEND): [send(3000, only(1), signal=0)], (1, Unit.LOAD): [wait()]}
    assert ended(programs, 1, Unit.LOAD) == 17 + 4 + round(3000 / 64, 3) + 1


def of_chips(topology: str, number: int, rows: int = 1) -> Machine:
    links = ChipLinks(topology, 64e9, 100e-9, rows, number // rows)  # type: ignore[arg-type]
    return replace(MACHINE, chips=number, links=links)


@pytest.mark.parametrize(
    ("machine", "ports", "hops"),
    [
        (of_chips("ring", 5), 2, [0, 1, 2, 2, 1]),
        (of_chips("all-to-all", 5), 1, [0, 1, 1, 1, 1]),
        (of_chips("mesh-2d", 6, 2), 4, [0, 1, 2, 1, 2, 3]),
    ],
    ids=["ring", "switch", "mesh"],
)
def test_messages_between_chips(machine: Machine, ports: int, hops: list[int]) -> None:
    # From core 0 to the gateway (core 3, a hop), over the chips, and a hop to core 4.
    number = machine.chips
    programs: Programs = {
        (0, Unit.SEND): [send(1024, only(4), chips(0, number), signal=0)],
    }
    programs |= {(chip * 6 + 4, Unit.LOAD): [wait()] for chip in range(number)}
    timing = timed(programs, machine)
    ends = [ns(timing.ended_s[chip * 6 + 4, Unit.LOAD].item()) for chip in range(number)]
    slow = 1024 * ports / 64
    assert ends[0] == 17 + 4 + 4 + 16 + 1
    assert ends[1:] == [17 + 4 + 100 * n + slow + 4 + 1 for n in hops[1:]]
    between = timing.link_bytes[number * 24 :]
    expected = 1 + (number - 1) if machine.links.topology == "all-to-all" else number - 1  # type: ignore[union-attr]
    assert between.sum() == expected * 1024


@pytest.mark.parametrize(
    ("first", "number"), [(first, number) for first in range(6) for number in range(1, 7 - first)]
)
def test_a_range_of_chips_in_a_mesh_gets_one_copy_each(first: int, number: int) -> None:
    machine = of_chips("mesh-2d", 6, 2)
    programs: Programs = {(9, Unit.SEND): [send(64, only(2), chips(first, number), signal=0)]}
    programs |= {(c * 6 + 2, Unit.LOAD): [wait()] for c in range(first, first + number)}
    timed(programs, machine)
    with pytest.raises(SimulationError, match="1 streams wait"):
        timed(programs | {((first * 6) + 2, Unit.LOAD): [wait(), wait()]}, machine)


# What holds for all programs.

Case = tuple[Machine, Programs]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Streams of all units of some cores that meet at one semaphore of each core."""
    machine = draw(st.sampled_from([MACHINE, of_chips("ring", 3), of_chips("all-to-all", 2)]))
    cores = machine.cores
    posted = dict.fromkeys(range(cores), 0)
    sizes = st.sampled_from([0, 32, 64, 700, 1024, 3000])
    programs: Programs = {}
    for core in draw(st.sets(st.integers(0, cores - 1), min_size=1, max_size=5)):
        for unit in Unit:
            body, times = [], draw(st.integers(1, 4))
            for _ in range(draw(st.integers(0, 4))):
                origin, signal = draw(st.integers(0, 2)), draw(st.booleans())
                number = 0 if signal else 255
                posts = {core: times if signal else 0}
                if draw(st.booleans()):
                    target = draw(st.integers(0, cores - 1))
                    body.append(I(Op.POST, flags=REMOTE, n=2, x=target, origin=origin))
                    posts = {target: 2 * times}
                elif unit == Unit.LOAD:
                    channel = draw(st.integers(0, 5))
                    body.append(load(draw(sizes), channel, signal=number, origin=origin))
                elif unit == Unit.MATRIX:
                    m = draw(st.integers(0, 32))
                    body.append(I(Op.MM_Q, m=m, n=32, k=64, signal=number, origin=origin))
                elif unit == Unit.VECTOR:
                    n = draw(st.integers(0, 1024))
                    body.append(I(Op.V_BIN, n=n, signal=number, origin=origin))
                elif draw(st.booleans()):
                    body.append(
                        I(Op.STORE, m=2, n=draw(sizes), stride_d=99, signal=number, origin=origin)
                    )
                else:
                    chip = draw(st.integers(0, machine.chips - 1))
                    row, col = draw(st.integers(0, 1)), draw(st.integers(0, 2))
                    shape = draw(st.integers(1, 2 - row)), draw(st.integers(1, 3 - col))
                    cores_field = rectangle(row, col, *shape)
                    where = chips(chip, draw(st.integers(1, machine.chips - chip)))
                    body.append(send(draw(sizes), cores_field, where, signal=number, origin=origin))
                    posts = {}
                    if signal:
                        for at in range(chip, chip + (where >> 16)):
                            for r in range(row, row + shape[0]):
                                for c in range(col, col + shape[1]):
                                    posts[at * 6 + r * 3 + c] = times
                for target, more in posts.items():
                    posted[target] += more
            programs[core, unit] = [I(Op.LOOP, n=times), *body, I(Op.ENDLOOP)]
    for core, total in posted.items():
        programs.setdefault((core, Unit.VECTOR), []).append(wait(0, total))
    return machine, programs


def facts(timing: Timing) -> tuple[object, ...]:
    arrays = [timing.ended_s, timing.busy_s, *timing.waits_s.values()]
    moved = [timing.port_bytes, timing.channel_bytes, timing.link_bytes, timing.spans.rows]
    return timing.seconds, timing.origins, *(a.tolist() for a in [*arrays, *moved])


@settings(max_examples=60, deadline=None)
@given(cases())
def test_steps_taken_ahead_change_nothing_and_runs_are_equal(case: Case) -> None:
    machine, programs = case
    first = facts(timed(programs, machine))
    assert first == facts(timed(programs, machine))
    stepwise = facts(timed(programs, machine, ahead=False))
    assert first[:-1] == stepwise[:-1]
    assert sorted(first[-1]) == sorted(stepwise[-1])  # type: ignore[call-overload]


@settings(max_examples=60, deadline=None)
@given(cases())
def test_nothing_is_faster_than_each_of_its_resources(case: Case) -> None:
    machine, programs = case
    timing = timed(programs, machine)
    total = timing.program_seconds + 1e-12
    assert timing.busy_s.max() <= total
    assert timing.port_bytes.max() / machine.sram_bytes_per_s <= total
    assert timing.channel_bytes.max() / 64e9 <= total
    assert timing.link_bytes.max() / 64e9 <= total
    for origin in timing.origins:
        assert max(origin.loads_s.values(), default=0) <= total
    assert sum(o.critical_s for o in timing.origins) == pytest.approx(timing.program_seconds)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 80), max_size=5))
def test_a_channel_is_never_idle_while_someone_asks(lines: list[int]) -> None:
    # Core 0 asks first, for long enough that the other cores' requests are there before it is done.
    sizes = [1024, *(64 * n for n in lines)]
    programs: Programs = {(core, Unit.LOAD): [load(n)] for core, n in enumerate(sizes)}
    end = ns(timed(programs).program_seconds)
    alone = 17 + sum(sizes) / 64 + 200
    assert alone <= end <= alone + 3 * 4


# What goes wrong.


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
            {
                (0, Unit.LOAD): [
                    load(128, 0, m=1) if False else I(Op.LOAD, m=2, n=64, stride_a=CHANNEL_LINES)
                ]
            },
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


# The trace.


def test_a_trace_is_well_formed(tmp_path: Path) -> None:
    mm = I(Op.MM_Q, m=32, n=32, k=64, origin=1)
    programs = {
        (0, Unit.LOAD): [load(2048, signal=0)],
        (0, Unit.MATRIX): [wait(), mm, mm, replace(mm, origin=2)],
        (0, Unit.SEND): [send(1024, only(1), origin=1)],
    }
    path = tmp_path / "trace.json"
    write_trace(timed(programs), ORIGINS, path)
    trace = json.loads(path.read_text())
    assert trace["otherData"]["slices left out"] == 0
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    tracks = {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in trace["traceEvents"]
        if e["name"] == "thread_name"
    }
    matrix = [e for e in slices if tracks[e["pid"], e["tid"]] == "matrix"]
    assert [e["name"] for e in matrix] == ["waits for semaphore", "layer 0", "layer 1"]
    ends: dict[tuple[int, int], float] = {}
    for event in slices:
        track = event["pid"], event["tid"]
        assert event["ts"] >= ends.get(track, 0.0) - 1e-9
        ends[track] = event["ts"] + event["dur"]
    assert ends.keys() == tracks.keys()


def test_a_trace_keeps_the_first_slices_and_says_how_many_it_left_out() -> None:
    numbers = count()
    body = [I(Op.V_FILL, n=32, origin=next(numbers) % 2) for _ in range(50)]
    image = image_of({(0, Unit.VECTOR): body})
    args = np.zeros(16, np.int32)
    timing = simulate_time(image, MACHINE, args, most_spans=20)
    assert (len(timing.spans.rows), timing.spans.left_out) == (20, 30)
    assert timing.spans.rows[:, 1].tolist() == sorted(timing.spans.rows[:, 1].tolist())
    assert len(simulate_time(image, MACHINE, args).spans.rows) == 0
