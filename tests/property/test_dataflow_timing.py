"""The simulator of time: what holds for all programs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timed_programs import MACHINE, I, Programs, load, ns, of_chips, send, timed, wait

from infc.backends.dataflow.isa import REMOTE, Op, Unit, chips, rectangle
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.simulator.timing import Timing

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
