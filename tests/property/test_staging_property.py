"""Schedules of transfers for any steps: allowed, timed alike by two programs, within the bound."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from infc.diagnostics import UserError
from infc.memory.staging.bound import lower_bound
from infc.memory.staging.checker import check_staging
from infc.memory.staging.plan import StagingPlan
from infc.memory.staging.problem import Block, Machine, StagingProblem, Step
from infc.memory.staging.scheduler import (
    DOUBLE_BUFFER,
    GREEDY,
    NO_PREFETCH,
    baseline,
    schedule_transfers,
)
from infc.memory.staging.timeline import evaluate


@st.composite
def problems(draw: st.DrawFn) -> StagingProblem:
    """Weights that are read once or again, values that steps make for later ones, outputs."""
    blocks: list[Block] = []
    steps: list[Step] = []
    made: list[str] = []
    for number in range(draw(st.integers(1, 8))):
        reads, streamed, writes = [], set(), []
        for index in range(draw(st.integers(0, 2))):
            name = f"w{number}.{index}"
            blocks.append(Block(name, draw(st.integers(0, 4000)), starts_far=True))
            reads.append(name)
            if draw(st.booleans()):
                streamed.add(name)
        far = [block.name for block in blocks if block.starts_far]
        if far and draw(st.integers(0, 3)) == 0:
            reads.append(draw(st.sampled_from(far)))
        reads += [name for name in made if draw(st.integers(0, 3)) == 0]
        if draw(st.booleans()):
            name = f"a{number}"
            ends_far = draw(st.integers(0, 4)) == 0
            blocks.append(Block(name, draw(st.integers(0, 1500)), ends_far=ends_far))
            writes.append(name)
            made.append(name)
        elif made:
            writes.append(draw(st.sampled_from(made)))
        steps.append(
            Step(
                f"s{number}",
                draw(st.floats(0, 4)),
                tuple(dict.fromkeys(reads)),
                tuple(writes),
                frozenset(streamed),
                draw(st.sampled_from((0, 0, 500))),
            )
        )
    machine = Machine(
        20_000,
        1000.0,
        draw(st.sampled_from((0.0, 0.1))),
        draw(st.integers(1, 4)),
        draw(st.booleans()),
    )
    problem = StagingProblem(machine, tuple(blocks), tuple(steps), draw(st.booleans()))
    return tight(problem, draw(st.floats(0, 1)))


def tight(problem: StagingProblem, share: float) -> StagingProblem:
    """The same with a scratchpad between what the hungriest step needs at least and all of it."""
    machine = problem.machine
    need = [
        sum(
            machine.rounded(problem.block[name].size_bytes)
            for name in dict.fromkeys((*step.reads, *step.writes))
        )
        for step in problem.steps
    ]
    low, high = max(need), sum(machine.rounded(block.size_bytes) for block in problem.blocks)
    capacity = max(1024, round(low + share * (high - low)))
    smaller = Machine(
        capacity,
        machine.bandwidth_bytes_per_s,
        machine.latency_seconds,
        machine.queues,
        machine.direct_reads,
    )
    return StagingProblem(smaller, problem.blocks, problem.steps, problem.repeats)


def judged(plan: StagingPlan) -> float:
    """The seconds of a plan that the checker allows and both timelines agree on."""
    timeline = evaluate(plan)
    check_staging(plan, timeline)
    assert abs(timeline.seconds - plan.seconds) <= 1e-6 * max(1.0, timeline.seconds)
    for mine, theirs in zip(plan.moments, timeline.moments, strict=True):
        assert abs(mine.start - theirs.start) <= 1e-6 * max(1.0, timeline.seconds)
    return timeline.seconds


@settings(max_examples=60, deadline=None)
@given(problems())
def test_schedules_keep_their_promises(problem: StagingProblem) -> None:
    plan = schedule_transfers(problem)
    seconds = judged(plan)
    bound = lower_bound(problem)
    assert seconds >= bound.seconds * (1 - 1e-9)
    assert plan.height_bytes <= problem.machine.capacity_bytes
    # The same pieces by hand: scheduling never loses against any of these.
    largest = max((piece.size_bytes for piece in plan.pieces.pieces), default=0)
    for policy in (DOUBLE_BUFFER, GREEDY, NO_PREFETCH):
        try:
            simple = baseline(problem, policy, max(64, largest))
        except UserError:
            continue
        slow = judged(simple)
        if simple.pieces == plan.pieces:
            assert seconds <= slow * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(problems())
def test_the_same_problem_gives_the_same_plan(problem: StagingProblem) -> None:
    assert schedule_transfers(problem) == schedule_transfers(problem)
