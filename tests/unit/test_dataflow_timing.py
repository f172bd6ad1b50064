"""The simulator of time: programs whose time is computed by hand."""

import numpy as np
import pytest
from timed_programs import I, Programs, ended, load, ns, of_chips, only, send, timed, wait

from infc.backends.dataflow.isa import ACC, REMOTE, Instruction, Op, Unary, Unit, chips, rectangle
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.simulator.errors import SimulationError

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
