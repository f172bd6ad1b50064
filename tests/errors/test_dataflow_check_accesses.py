"""What the check of dataflow programs refuses of accesses: races, and reads of what nobody wrote.

The programs as they should be come first, then what each lacks.
"""

from __future__ import annotations

import numpy as np
import pytest
from checked_programs import SRAM0, SRAM1, TO_CORE_0, TO_CORE_1, passes, refused, text
from dataflow_programs import MACHINE, image

from infc.backends.dataflow.image import Region
from infc.backends.dataflow.simulator.check import check

LOAD_THEN_PRODUCT = {
    "0 load": "load.far0 d=4096 a=0 m=1 n=4352 signal=1",
    "0 matrix": "wait semaphore=1 count=1\n"
    "mm_q.q8g32 d=2048 a=0 b=1024 c=4096 n=32 m=1 k=64 stride_d=128 stride_a=64 stride_b=8",
}
CREDITS = {
    # Two slots, used in turn by three transfers.
    "0 send": "send d=0 a=0 m=1 n=64 chips=0-0 cores=0-0,1-1 signal=1\n"
    "send d=64 a=64 m=1 n=64 chips=0-0 cores=0-0,1-1 signal=1\n"
    "wait semaphore=2 count=1\n"
    "send d=0 a=128 m=1 n=64 chips=0-0 cores=0-0,1-1 signal=1",
    "1 vector": "wait semaphore=1 count=1\n"
    "v_un.copy d=512 a=0 n=16\n"
    "post.remote semaphore=2 count=1 core=0\n"
    "wait semaphore=1 count=1\n"
    "v_un.copy d=512 a=64 n=16\n"
    "wait semaphore=1 count=1\n"
    "v_un.copy d=512 a=0 n=16",
}
SOURCE = {
    "0 vector": "v_fill d=0 x=1.0 n=16 signal=1\nwait semaphore=2 count=1\nv_fill d=0 x=2.0 n=16",
    "0 send": "wait semaphore=1 count=1\n"
    f"send d=0 a=0 m=1 n=64 {TO_CORE_1} signal=1 signal_local=2",
}
SPILL = {
    "0 send": "store.far0 d=65536 a=0 m=1 n=64 signal=1",
    "0 load": "wait semaphore=1 count=1\nload.far0 d=512 a=65536 m=1 n=64 signal=2",
}


def without(programs: dict[str, str], stream: str, line: int) -> dict[str, str]:
    """Less one instruction, in whose place nothing happens."""
    lines = programs[stream].splitlines()
    lines[line] = "mov to=r1 a=0"
    return {**programs, stream: "\n".join(lines)}


@pytest.mark.parametrize("programs", [LOAD_THEN_PRODUCT, CREDITS, SOURCE, SPILL])
def test_what_waits_is_in_order(programs: dict[str, str]) -> None:
    passes(programs, SRAM0)


def test_a_product_that_does_not_wait_for_its_weights() -> None:
    assert refused(without(LOAD_THEN_PRODUCT, "0 matrix", 0), SRAM0) == text(
        "race: mm_q reads bytes 4096 to 6272 of the sram of core 0, and another instruction writes "
        "them in no certain order",
        "op1",
        "core 0, matrix stream, instruction 1",
        "the other: core 0, load stream, instruction 0 (load), from op0",
    )


def test_a_load_over_what_is_still_read() -> None:
    """The vector unit says that the first load is there, and forgets to wait for the product."""
    programs = {
        "0 load": "load.far0 d=4096 a=0 m=1 n=4352 signal=1\n"
        "wait semaphore=3 count=1\n"
        "load.far0 d=4096 a=128 m=1 n=4352 signal=2",
        "0 vector": "wait semaphore=1 count=1\n"
        "post semaphore=4 count=1\n"
        "wait semaphore=5 count=1\n"
        "post semaphore=3 count=1",
        "0 matrix": LOAD_THEN_PRODUCT["0 matrix"].replace("semaphore=1", "semaphore=4")
        + " signal=5",
    }
    passes(programs, SRAM0)
    # Which of the two is told of the other depends on the order in which streams are followed.
    assert refused(without(programs, "0 vector", 2), SRAM0) == text(
        "race: mm_q reads bytes 4096 to 6272 of the sram of core 0, and another instruction writes "
        "them in no certain order",
        "op1",
        "core 0, matrix stream, instruction 1",
        "the other: core 0, load stream, instruction 2 (load), from op2",
    )


def test_two_loads_to_the_same_place() -> None:
    lines = "load.far0 d=0 a=0 m=1 n=64 signal=1\nload.far0 d=32 a=2 m=1 n=64 signal=1"
    assert refused({"0 load": lines}) == text(
        "race: load writes bytes 32 to 64 of the sram of core 0, and another instruction writes "
        "them in no certain order",
        "op1",
        "core 0, load stream, instruction 1",
        "the other: core 0, load stream, instruction 0 (load), from op0",
    )
    passes({"0 load": lines.replace("\n", "\nwait semaphore=1 count=1\n")})


def test_two_units_write() -> None:
    programs = {
        "0 vector": "v_fill d=256 x=0.0 n=64",
        "0 matrix": "mm_f.f16 d=384 a=0 c=4096 n=32 m=1 k=32 stride_d=128 stride_a=64 "
        "stride_b=2 stride_c=64",
    }
    assert refused(programs, SRAM0) == text(
        "race: v_fill writes bytes 384 to 512 of the sram of core 0, and another instruction "
        "writes them in no certain order",
        "op0",
        "core 0, vector stream, instruction 0",
        "the other: core 0, matrix stream, instruction 0 (mm_f), from op0",
    )
    programs["0 vector"] = "wait semaphore=0 count=1\n" + programs["0 vector"]
    programs["0 matrix"] += " signal=0"
    passes(programs, SRAM0)


def test_a_send_whose_source_is_overwritten() -> None:
    assert refused(without(SOURCE, "0 vector", 1), SRAM0) == text(
        "race: send reads bytes 0 to 64 of the sram of core 0, and another instruction writes them "
        "in no certain order",
        "op1",
        "core 0, send stream, instruction 1",
        "the other: core 0, vector stream, instruction 2 (v_fill), from op2",
    )


def test_an_arrival_says_that_the_source_was_read() -> None:
    programs = {
        "0 vector": SOURCE["0 vector"],
        "0 send": SOURCE["0 send"].replace(" signal_local=2", ""),
        "1 load": "wait semaphore=1 count=1\npost.remote semaphore=2 count=1 core=0",
    }
    passes(programs, SRAM0)


def test_an_arrival_while_it_is_read() -> None:
    assert refused(without(CREDITS, "1 vector", 0), SRAM0, SRAM1) == text(
        "race: v_un reads bytes 0 to 64 of the sram of core 1, and another instruction writes them "
        "in no certain order",
        "op1",
        "core 1, vector stream, instruction 1",
        "the other: core 0, send stream, instruction 0 (send), from op0",
    )


def test_a_read_in_front_of_its_arrival_is_a_race_too() -> None:
    """The reader comes first in the order that is followed, and nothing is there yet."""
    programs = {
        "0 vector": "v_un.copy d=512 a=0 n=16",
        "1 send": f"send d=0 a=0 m=1 n=64 {TO_CORE_0} signal=1",
    }
    assert refused(programs, SRAM1) == text(
        "race: send writes bytes 0 to 64 of the sram of core 0, and another instruction reads them "
        "in no certain order",
        "op0",
        "core 1, send stream, instruction 0",
        "the other: core 0, vector stream, instruction 0 (v_un), from op0",
    )


def test_a_ring_without_a_credit() -> None:
    assert refused(without(CREDITS, "0 send", 2), SRAM0) == text(
        "race: send writes bytes 0 to 64 of the sram of core 1, and another instruction writes "
        "them in no certain order",
        "op3",
        "core 0, send stream, instruction 3",
        "the other: core 0, send stream, instruction 0 (send), from op0",
    )


def test_a_store_that_is_loaded_too_early() -> None:
    assert refused(without(SPILL, "0 load", 0), SRAM0) == text(
        "race: store writes bytes 4194304 to 4194368 of far0 of chip 0, and another instruction "
        "reads them in no certain order",
        "op0",
        "core 0, send stream, instruction 0",
        "the other: core 0, load stream, instruction 1 (load), from op1",
    )


def test_a_post_says_nothing_of_transfers_under_way() -> None:
    programs = {
        "0 load": "load.far0 d=0 a=0 m=1 n=64\npost semaphore=1 count=1",
        "0 vector": "wait semaphore=1 count=1\nv_un.copy d=512 a=0 n=16",
    }
    assert "race: v_un reads bytes 0 to 64" in refused(programs)
    # The signal of a later load, which moves nothing, does.
    programs["0 load"] = "load.far0 d=0 a=0 m=1 n=64\nload.far0 d=0 a=0 m=0 n=0 signal=1"
    passes(programs)


def test_a_multicast_arrives_everywhere_by_itself() -> None:
    """Core 0 has its copy; that core 1 has its own does not follow."""
    both = "chips=0-0 cores=0-0,0-1"
    programs = {
        "2 send": f"send d=0 a=0 m=1 n=64 {both} signal=1",
        "0 vector": "wait semaphore=1 count=1\npost.remote semaphore=2 count=1 core=1",
        "1 vector": "wait semaphore=2 count=1\nv_un.copy d=512 a=0 n=16",
    }
    source = Region(2, 0, "sram", 0, 64, "zero", 0)
    assert refused(programs, source) == text(
        "race: v_un reads bytes 0 to 64 of the sram of core 1, and another instruction writes them "
        "in no certain order",
        "op1",
        "core 1, vector stream, instruction 1",
        "the other: core 2, send stream, instruction 0 (send), from op0",
    )
    programs["1 vector"] = "wait semaphore=1 count=1\n" + programs["1 vector"]
    passes(programs, source)


def test_one_count_for_two_senders_a_round_ahead() -> None:
    """Two slots and one semaphore: both posts may be of the sender that is a round ahead."""
    send = "send d={d} a=0 m=1 n=64 chips=0-0 cores=0-0,0-0 signal={signal}"
    senders = {
        f"{core} send": "\n".join(
            send.format(d=64 * core + 1024 * turn, signal=1) for turn in range(2)
        )
        for core in (1, 2)
    }
    receiver = (
        "wait semaphore=1 count=2\nv_un.copy d=4096 a=64 n=32\n"
        "wait semaphore=1 count=2\nv_un.copy d=4096 a=1088 n=32"
    )
    sources = [Region(core, 0, "sram", 0, 64, "zero", 0) for core in (1, 2)]
    assert refused({**senders, "0 vector": receiver}, *sources) == text(
        "race: v_un reads bytes 64 to 128 of the sram of core 0, and another instruction writes "
        "them in no certain order",
        "op1",
        "core 0, vector stream, instruction 1",
        "the other: core 1, send stream, instruction 0 (send), from op0",
        "semaphore 1 of core 0 has 2 senders: a wait does not say whose posts it took, unless it "
        "needs all that can have been posted",
    )
    apart = {key: lines.replace("signal=1", "signal=2", 1) for key, lines in senders.items()}
    passes({**apart, "0 vector": receiver.replace("semaphore=1", "semaphore=2", 1)}, *sources)


# Reads of what nobody wrote.


def test_memory_that_nobody_wrote() -> None:
    assert refused({"0 vector": "v_un.copy d=512 a=8128 n=32"}, SRAM0) == text(
        "v_un reads bytes 8192 to 8256 of the sram of core 0, which nobody has written",
        "op0",
        "core 0, vector stream, instruction 0",
    )


def test_memory_that_is_written_afterwards() -> None:
    programs = {"0 vector": "v_un.copy d=512 a=0 n=16\nv_fill d=0 x=0.0 n=16"}
    assert refused(programs) == text(
        "v_un reads bytes 0 to 64 of the sram of core 0, which nobody has written",
        "op0",
        "core 0, vector stream, instruction 0",
    )


def test_far_memory_that_nobody_wrote() -> None:
    assert refused({"0 load": "load.far0 d=0 a=16383 m=2 n=64 stride_d=64 stride_a=1"}) == text(
        "load reads bytes 1048576 to 1048640 of far0 of chip 0, which nobody has written",
        "op0",
        "core 0, load stream, instruction 0",
    )


def test_an_accumulator_that_nothing_started() -> None:
    product = LOAD_THEN_PRODUCT["0 matrix"].replace("mm_q.q8g32", "mm_q.q8g32.acc")
    programs = {**LOAD_THEN_PRODUCT, "0 matrix": product}
    data = Region(0, 0, "sram", 0, 2048, "zero", 0)
    assert refused(programs, data) == text(
        "mm_q reads bytes 2048 to 2176 of the sram of core 0, which nobody has written",
        "op1",
        "core 0, matrix stream, instruction 1",
    )


def test_the_same_error_every_time() -> None:
    found = {refused(without(CREDITS, "0 send", 2), SRAM0) for _ in range(3)}
    assert len(found) == 1


def test_arguments_steer() -> None:
    """The second load is only made where the call has two tokens; its wait is not."""
    programs = {
        "0 load": "arg to=r1 index=0\nloop count=r1\nload.far0 d=0 a=0 m=1 n=64 signal=1\n"
        "wait semaphore=2 count=1\nendloop",
        "0 vector": "arg to=r1 index=0\nloop count=r1\nwait semaphore=1 count=1\n"
        "v_un.copy d=512 a=0 n=16\npost semaphore=2 count=1\nendloop",
    }
    for tokens in (0, 1, 5):
        check(image(programs), MACHINE, np.array([tokens, 1, 0, 0, 0], np.int32))
