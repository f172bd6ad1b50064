"""The check of dataflow programs against all that can happen in small ones.

The oracle runs a program in every order that streams, transfers and semaphores allow. Two accesses
to the same bytes race where each can begin while the other is not over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import pytest
from dataflow_programs import MACHINE, NO_ARGS, WEIGHTS, image, image_of
from hypothesis import given, settings
from hypothesis import strategies as st

from infc.backends.dataflow.image import Region
from infc.backends.dataflow.isa import Instruction, Op, Unit, chips, rectangle
from infc.backends.dataflow.simulator.check import check
from infc.backends.dataflow.simulator.errors import Fault, SimulationError

SLOT = 64
STREAMS = ((0, Unit.LOAD), (0, Unit.VECTOR), (0, Unit.SEND), (1, Unit.VECTOR))
LOAD, NEAR, SEND, FAR = range(4)
SENDERS = 7
"""Four streams, what is loaded, what has arrived, sources that have been read."""
INITIAL = [WEIGHTS, *(Region(core, 0, "sram", 0, 4 * SLOT, "zero", 0) for core in (0, 1))]

Slot = tuple[int, int]
"""Core and number."""


@dataclass(frozen=True)
class Act:
    """`wait` for or `post` to stream `other`, or `work`: read and write a slot, then post.

    `signal` is the stream that waits for what a work posts (None: nobody), `release` that of the
    source of a send.
    """

    kind: Literal["wait", "post", "work"]
    other: int = 0
    read: int = 0
    write: int = 0
    signal: int | None = None
    release: int | None = None


Program = tuple[tuple[Act, ...], ...]


def semaphore(sender: int, waiter: int, shared: bool) -> int:
    """Each sender its own, or one for all senders."""
    return waiter if shared else SENDERS * waiter + sender


def slots(stream: int, act: Act) -> tuple[Slot | None, Slot]:
    """What a work reads and writes; far memory is not counted."""
    if stream == LOAD:
        return None, (0, act.write)
    if stream == SEND:
        return (0, act.read), (1, act.write)
    core = STREAMS[stream][0]
    return (core, act.read), (core, act.write)


def encoded(stream: int, act: Act, shared: bool) -> Instruction:
    core = STREAMS[stream][0]
    if act.kind == "wait":
        # The number of a wait's sender is where `read` is.
        return Instruction(Op.WAIT, d=semaphore(act.read, stream, shared), n=1)
    if act.kind == "post":
        home = STREAMS[act.other][0]
        number = semaphore(stream, act.other, shared)
        remote = {"flags": 2, "x": home} if home != core else {}
        return Instruction(Op.POST, d=number, n=1, **remote)
    sender = {LOAD: 4, SEND: 5}.get(stream, stream)
    places = {"d": SLOT * act.write, "a": SLOT * act.read}
    if act.signal is not None:
        places["signal"] = semaphore(sender, act.signal, shared)
    if stream == LOAD:
        return Instruction(Op.LOAD, n=SLOT, m=1, **{**places, "a": 0})
    if stream == SEND:
        if act.release is not None:
            places["signal_local"] = semaphore(6, act.release, shared)
        where = {"x": chips(0, 1), "k": rectangle(0, 1, 1, 1)}
        return Instruction(Op.SEND, n=SLOT, m=1, **places, **where)
    return Instruction(Op.V_UN, n=SLOT // 4, **places)


Access = tuple[int, int, Slot, bool]
"""Stream, index, where, and whether it is a write."""


class Everything:
    """All states that a program can reach."""

    def __init__(self, program: Program, shared: bool) -> None:
        self.program, self.shared = program, shared
        self.accesses = [
            (stream, index, slot, written)
            for stream, acts in enumerate(program)
            for index, act in enumerate(acts)
            if act.kind == "work"
            for slot, written in zip(slots(stream, act), (False, True), strict=True)
            if slot is not None
        ]
        self.begun_early: set[tuple[Access, Access]] = set()
        """(a, b): b can begin while a is not over."""
        self.stuck = False
        start = ((0, 0, 0, 0), (), 0, 0, 0)
        seen, todo = {start}, [start]
        while todo:
            state = todo.pop()
            following = list(self.following(*state))
            at = state[0]
            if not following and any(i < len(a) for i, a in zip(at, program, strict=True)):
                self.stuck = True
            for after in following:
                if after not in seen:
                    seen.add(after)
                    todo.append(after)

    def works(self, stream: int, upto: int) -> list[int]:
        return [i for i, act in enumerate(self.program[stream][:upto]) if act.kind == "work"]

    def is_over(
        self, access: Access, at: tuple[int, ...], loaded: int, read: int, sent: int
    ) -> bool:
        stream, index, _, written = access
        if index >= at[stream]:
            return False
        if stream in (LOAD, SEND):
            over = loaded if stream == LOAD else sent if written else read
            return self.works(stream, index + 1).index(index) < over
        return True

    def following(
        self, at: tuple[int, ...], counters: tuple[int, ...], loaded: int, read: int, sent: int
    ) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int, int, int]]:
        def posted(sender: int, waiter: int | None) -> tuple[int, ...]:
            """Counters are a sorted bag of semaphores."""
            if waiter is None:
                return counters
            return tuple(sorted((*counters, semaphore(sender, waiter, self.shared))))

        for stream, acts in enumerate(self.program):
            if at[stream] == len(acts):
                continue
            act = acts[at[stream]]
            after = tuple(i + (s == stream) for s, i in enumerate(at))
            if act.kind == "wait":
                number = semaphore(act.read, stream, self.shared)
                if number in counters:
                    left = list(counters)
                    left.remove(number)
                    yield after, tuple(left), loaded, read, sent
            elif act.kind == "post":
                yield after, posted(stream, act.other), loaded, read, sent
            else:
                self.note(stream, at, loaded, read, sent)
                synchronous = stream not in (LOAD, SEND)
                now = posted(stream, act.signal) if synchronous else counters
                yield after, now, loaded, read, sent
        loads, sends = self.works(LOAD, at[LOAD]), self.works(SEND, at[SEND])
        if loaded < len(loads):
            act = self.program[LOAD][loads[loaded]]
            yield at, posted(4, act.signal), loaded + 1, read, sent
        if read < len(sends):
            act = self.program[SEND][sends[read]]
            yield at, posted(6, act.release), loaded, read + 1, sent
        if sent < read:
            act = self.program[SEND][sends[sent]]
            yield at, posted(5, act.signal), loaded, read, sent + 1

    def note(self, stream: int, at: tuple[int, ...], loaded: int, read: int, sent: int) -> None:
        """The next work of a stream begins."""
        beginning = [a for a in self.accesses if a[:2] == (stream, at[stream])]
        for other in self.accesses:
            if other[:2] != (stream, at[stream]) and not self.is_over(
                other, at, loaded, read, sent
            ):
                self.begun_early.update((other, mine) for mine in beginning)

    def races(self) -> bool:
        return any(
            a[2] == b[2]
            and (a[3] or b[3])
            and a[:2] != b[:2]
            and (a, b) in self.begun_early
            and (b, a) in self.begun_early
            for a, b in combinations(self.accesses, 2)
        )


def acts(stream: int) -> st.SearchStrategy[tuple[Act, ...]]:
    others = st.sampled_from([s for s in range(4) if s != stream])
    # A work posts to streams of the core where its semaphores are.
    here = [s for s in range(4) if STREAMS[s][0] == STREAMS[stream][0] and s != stream]
    arrived = [FAR] if stream == SEND else here or [FAR]
    signals = st.sampled_from([None, *arrived, *arrived])
    releases = st.sampled_from([None, LOAD, NEAR]) if stream == SEND else st.none()
    number = st.integers(0, 1)
    wait = st.builds(Act, kind=st.just("wait"), read=st.integers(0, SENDERS - 1))
    post = st.builds(Act, kind=st.just("post"), other=others)
    work = st.builds(
        Act, kind=st.just("work"), read=number, write=number, signal=signals, release=releases
    )
    return st.lists(st.one_of(wait, post, work, work), max_size=4).map(tuple)


def balanced(program: Sequence[Sequence[Act]], shared: bool) -> Program:
    """Each wait for a sender that has posts left, if there is one."""
    left: dict[int, int] = {}
    for stream, found in enumerate(program):
        sender = {LOAD: 4, SEND: 5}.get(stream, stream)
        for act in found:
            posts = [(stream, act.other)] if act.kind == "post" else []
            if act.kind == "work":
                posts = [(sender, act.signal), (6, act.release)]  # type: ignore[list-item]
            for by, waiter in posts:
                if waiter is not None:
                    number = semaphore(by, waiter, shared)
                    left[number] = left.get(number, 0) + 1
    result = []
    for stream, found in enumerate(program):
        kept = []
        for act in found:
            if act.kind == "wait":
                senders = [by for by in range(SENDERS) if left.get(semaphore(by, stream, shared))]
                if not senders:
                    continue
                act = replace(act, read=senders[act.read % len(senders)])
                left[semaphore(act.read, stream, shared)] -= 1
            kept.append(act)
        result.append(tuple(kept))
    return tuple(result)


def verdict(program: Program, shared: bool) -> Fault | None:
    streams = {
        key: [*(encoded(s, act, shared) for act in program[s]), Instruction(Op.HALT)]
        for s, key in enumerate(STREAMS)
    }
    try:
        check(image_of(streams, INITIAL), MACHINE, NO_ARGS)
    except SimulationError as error:
        return error.fault
    return None


PROGRAMS = st.tuples(*(acts(stream) for stream in range(4)))


@settings(max_examples=150, deadline=None)
@given(PROGRAMS)
def test_one_sender_a_semaphore_is_exact(drawn: tuple[tuple[Act, ...], ...]) -> None:
    program = balanced(drawn, shared=False)
    everything = Everything(program, shared=False)
    expected = Fault.DEADLOCK if everything.stuck else Fault.RACE if everything.races() else None
    assert verdict(program, shared=False) is expected


@settings(max_examples=150, deadline=None)
@given(PROGRAMS)
def test_no_race_of_shared_semaphores_is_missed(drawn: tuple[tuple[Act, ...], ...]) -> None:
    program = balanced(drawn, shared=True)
    everything = Everything(program, shared=True)
    found = verdict(program, shared=True)
    assert (found is Fault.DEADLOCK) == everything.stuck
    if not everything.stuck and everything.races():
        assert found is Fault.RACE


PIPELINE = {
    # Weights through a ring of two slots, products, activations, results to core 1 and back.
    "0 load": """loop count=4
        wait semaphore=0 count=1
        load.far0 d=4096 a=0 m=1 n=4352 signal=1
        wait semaphore=0 count=1
        load.far0 d=12288 a=68 m=1 n=4352 signal=1
        endloop""",
    "0 matrix": """post semaphore=0 count=2
        loop count=4
        wait semaphore=2 count=1
        wait semaphore=1 count=1
        mm_q.q8g32 d=1024 a=0 b=256 c=4096 n=32 m=1 k=64 signal=0
        wait semaphore=1 count=1
        mm_q.q8g32 d=1152 a=0 b=256 c=12288 n=32 m=1 k=64 signal=0
        post semaphore=3 count=1
        endloop""",
    "0 vector": """v_fill d=2048 x=1.0 n=64
        loop count=4
        v_q8 d=0 b=256 a=2048 n=64
        post semaphore=2 count=1
        wait semaphore=3 count=1
        v_un.silu d=2048 a=1024 n=64
        wait semaphore=5 count=1
        v_un.copy d=2304 a=2048 n=64 signal=6
        endloop""",
    "0 send": """post semaphore=5 count=1
        loop count=4
        wait semaphore=6 count=1
        wait semaphore=7 count=1
        send d=0 a=2304 m=1 n=256 chips=0-0 cores=0-0,1-1 signal=1 signal_local=5
        endloop""",
    "1 vector": """post.remote semaphore=7 count=1 core=0
        loop count=4
        wait semaphore=1 count=1
        v_un.copy d=512 a=0 n=64
        post.remote semaphore=7 count=1 core=0
        endloop""",
}
WAITS = [
    (key, index)
    for key, text in PIPELINE.items()
    for index, line in enumerate(text.splitlines())
    if "wait" in line
]


def test_a_pipeline_is_in_order() -> None:
    check(image(PIPELINE), MACHINE, NO_ARGS)


@pytest.mark.parametrize(("stream", "index"), WAITS)
def test_no_wait_of_a_pipeline_can_be_left_out(stream: str, index: int) -> None:
    lines = PIPELINE[stream].splitlines()
    lines[index] = "mov to=r1 a=0"
    programs = {**PIPELINE, stream: "\n".join(lines)}
    with pytest.raises(SimulationError, match="race: ") as caught:
        check(image(programs), MACHINE, NO_ARGS)
    assert caught.value.fault is Fault.RACE
