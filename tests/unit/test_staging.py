"""Transfers of a scratchpad: problems whose best schedule is known, and plans that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from infc.diagnostics import InternalError, UserError
from infc.memory.staging.bound import lower_bound
from infc.memory.staging.checker import check_staging
from infc.memory.staging.pieces import cut
from infc.memory.staging.plan import Kind, Residence, StagingPlan, Transfer
from infc.memory.staging.problem import Block, Machine, StagingProblem, Step
from infc.memory.staging.scheduler import (
    GREEDY,
    NO_PREFETCH,
    baseline,
    schedule_transfers,
)
from infc.memory.staging.timeline import Timeline, evaluate

KB = 1024


def chain(
    seconds: list[float], sizes: list[int], machine: Machine, *, streamed: bool = False
) -> StagingProblem:
    """Steps that read a weight each."""
    names = [f"w{number}" for number in range(len(seconds))]
    return StagingProblem(
        machine,
        tuple(Block(name, size, starts_far=True) for name, size in zip(names, sizes, strict=True)),
        tuple(
            Step(f"s{name}", time, (name,), streamed=frozenset({name} if streamed else ()))
            for name, time in zip(names, seconds, strict=True)
        ),
    )


def seconds_of(plan: StagingPlan) -> float:
    timeline = evaluate(plan)
    check_staging(plan, timeline)
    return timeline.seconds


class TestKnownSchedules:
    def test_loads_hide_behind_arithmetic(self) -> None:
        # A kilobyte a second: only the first load is waited for.
        machine = Machine(2 * KB, KB)
        problem = chain([1.0] * 4, [KB] * 4, machine)
        assert seconds_of(schedule_transfers(problem)) == pytest.approx(5.0)
        assert seconds_of(baseline(problem, NO_PREFETCH, KB)) == pytest.approx(8.0)
        assert lower_bound(problem).path == pytest.approx(5.0)

    def test_room_for_one_means_no_overlap(self) -> None:
        problem = chain([1.0] * 4, [KB] * 4, Machine(KB, KB))
        assert seconds_of(schedule_transfers(problem)) == pytest.approx(8.0)

    def test_a_streamed_block_may_be_larger_than_the_scratchpad(self) -> None:
        problem = chain([4.0], [4 * KB], Machine(KB, KB), streamed=True)
        plan = schedule_transfers(problem)
        assert len(plan.transfers) >= 8
        assert 4.0 < seconds_of(plan) < 4.5

    def test_what_comes_back_soon_stays(self) -> None:
        machine = Machine(3 * KB, KB)
        blocks = tuple(Block(name, KB, starts_far=True) for name in "abc")
        steps = tuple(Step(f"s{n}", 0.1, (name,)) for n, name in enumerate("abacab"))
        plan = schedule_transfers(StagingProblem(machine, blocks, steps))
        assert len(plan.transfers) == 3
        # A cache does as well here; without one every step loads.
        problem = plan.pieces
        assert len(problem.parts) == 6
        simple = baseline(StagingProblem(machine, blocks, steps), NO_PREFETCH, KB)
        assert len(simple.transfers) == 6
        assert len(baseline(StagingProblem(machine, blocks, steps), GREEDY, KB).transfers) == 3

    def test_values_that_do_not_fit_go_out_and_come_back(self) -> None:
        machine = Machine(2 * KB, KB)
        blocks = (Block("x", KB), Block("y", 2 * KB), Block("z", 64, ends_far=True))
        steps = (
            Step("make", 1.0, (), ("x",)),
            Step("fill", 1.0, (), ("y",)),
            Step("use", 1.0, ("x",), ("z",)),
        )
        plan = schedule_transfers(StagingProblem(machine, blocks, steps))
        kinds = [transfer.kind for transfer in plan.transfers]
        assert kinds == [Kind.STORE, Kind.LOAD, Kind.STORE]
        assert seconds_of(plan) == pytest.approx(3 + 1 + 1 + 64 / KB)

    def test_what_is_not_in_time_is_read_directly(self) -> None:
        machine = Machine(KB, KB, direct_reads=True)
        problem = chain([1.0] * 4, [KB] * 4, machine)
        plan = schedule_transfers(problem)
        assert len(plan.direct) > 0
        assert seconds_of(plan) == pytest.approx(4.0)

    def test_weights_that_fit_stay_from_one_time_to_the_next(self) -> None:
        once = chain([1e-3] * 4, [KB] * 4, Machine(4 * KB, KB))
        again = StagingProblem(once.machine, once.blocks, once.steps, repeats=True)
        assert seconds_of(schedule_transfers(once)) >= 4.0
        plan = schedule_transfers(again)
        assert plan.transfers == ()
        assert seconds_of(plan) == pytest.approx(4e-3)

    def test_two_queues_hide_the_latency_of_one(self) -> None:
        one, two = (Machine(64 * KB, KB, latency_seconds=1.0, queues=n) for n in (1, 2))
        times = [seconds_of(schedule_transfers(chain([0.0] * 8, [KB] * 8, m))) for m in (one, two)]
        assert times[0] == pytest.approx(16.0)
        # Two at a time, each pair behind one latency.
        assert times[1] == pytest.approx(12.0)

    @pytest.mark.parametrize("capacity", [2, 3, 4])
    def test_no_order_of_starts_is_faster(self, capacity: int) -> None:
        # All ways to start each load at or before its use, at most `capacity` pieces there.
        problem = chain([2.0, 0.5, 1.0, 3.0, 0.25], [KB] * 5, Machine(capacity * KB, KB))
        pieces = cut(problem, KB)
        best = min(
            evaluate(_plan_of(pieces, starts)).seconds
            for starts in product(*(range(use + 1) for use in range(5)))
            if all(
                sum(start <= part <= use for use, start in enumerate(starts)) <= capacity
                for part in range(5)
            )
            and list(starts) == sorted(starts)
        )
        assert seconds_of(schedule_transfers(problem)) == pytest.approx(best)


def _plan_of(pieces, starts):  # type: ignore[no-untyped-def]
    residences = tuple(Residence(n, 0, start, n) for n, start in enumerate(starts))
    transfers = tuple(Transfer(Kind.LOAD, n, 0, start, n) for n, start in enumerate(starts))
    return StagingPlan(pieces, residences, transfers, frozenset(), 0, (), 0.0)


class TestTheChecker:
    """Each plan is right but for one thing."""

    @staticmethod
    def plan() -> StagingPlan:
        machine = Machine(2 * KB, KB)
        blocks = (
            *(Block(f"w{n}", KB // 2, starts_far=True) for n in range(3)),
            Block("x", KB // 2),
        )
        steps = (
            Step("a", 1.0, ("w0",), ("x",)),
            Step("b", 1.0, ("w1",)),
            Step("c", 1.0, ("w2", "x")),
        )
        return schedule_transfers(StagingProblem(machine, blocks, steps))

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (
                lambda p: _residence(p, "w1", offset=_stay(p, "w0").offset),
                "'w0' and 'w1' overlap at part 0",
            ),
            (lambda p: _residence(p, "w1", offset=2 * KB), "must lie in 2048 bytes"),
            (lambda p: _residence(p, "w1", offset=32), "needs a multiple of 64, got 32"),
            (lambda p: _residence(p, "x", first=1), "part 0 writes 'x', no room for it"),
            (lambda p: _residence(p, "w2", first=1), "starts before its room is there"),
            (lambda p: _residence(p, "x", last=1), "part 2 reads 'x', not there yet"),
            (lambda p: _residence(p, "w0", first=2, last=1), "first before last, got 2 to 1"),
            (lambda p: _transfer(p, "w1", wait=2), "part 1 reads 'w1', not there yet"),
            (lambda p: _transfer(p, "w1", issue=3, wait=2), "waited for at 2, before its issue"),
            (lambda p: _transfer(p, "w1", queue=1), "is in queue 1, which there is not"),
            (lambda p: replace(p, transfers=p.transfers[1:]), "part 0 reads 'w0', not there yet"),
            (lambda p: replace(p, direct=frozenset({(2, 3)})), "'x' cannot be read directly"),
            (
                lambda p: _residence(p, "w0", resident=True),
                "cannot be there always",
            ),
        ],
    )
    def test_wrong_plans(self, spoil: Callable[[StagingPlan], StagingPlan], message: str) -> None:
        plan = self.plan()
        seconds_of(plan)
        spoiled = spoil(plan)
        with pytest.raises(InternalError, match=_plain(message)):
            check_staging(spoiled, evaluate(plan))

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (
                lambda t: replace(t, transfers=tuple(replace(i, ended=0.1) for i in t.transfers)),
                "512 bytes move, at 1024 bytes a second",
            ),
            (
                lambda t: replace(t, moments=(replace(t.moments[0], start=0.0), *t.moments[1:])),
                "part 0 starts before transfer 0 has ended",
            ),
            (
                lambda t: replace(t, moments=(*t.moments[:2], replace(t.moments[2], end=0.0))),
                "part 2 runs before the one in front of it, or too fast",
            ),
        ],
    )
    def test_wrong_times(self, spoil: Callable[[Timeline], Timeline], message: str) -> None:
        plan = self.plan()
        with pytest.raises(InternalError, match=_plain(message)):
            check_staging(plan, spoil(evaluate(plan)))

    def test_old_bytes_are_not_loaded(self) -> None:
        machine = Machine(2 * KB, KB)
        blocks = (Block("x", KB), Block("y", 2 * KB))
        steps = (
            Step("make", 1.0, (), ("x",)),
            Step("fill", 1.0, (), ("y",)),
            Step("use", 1.0, ("x",)),
        )
        plan = schedule_transfers(StagingProblem(machine, blocks, steps))
        store = next(n for n, t in enumerate(plan.transfers) if t.kind is Kind.STORE)
        without = tuple(t for n, t in enumerate(plan.transfers) if n != store)
        with pytest.raises(InternalError, match="a load of 'x' moves old bytes"):
            check_staging(replace(plan, transfers=without), evaluate(plan))


def _stay(plan: StagingPlan, block: str) -> Residence:
    return next(r for r in plan.residences if plan.pieces.pieces[r.piece].block == block)


def _residence(plan: StagingPlan, block: str, **changes: int) -> StagingPlan:
    stay = _stay(plan, block)
    return replace(
        plan, residences=tuple(replace(r, **changes) if r is stay else r for r in plan.residences)
    )


def _transfer(plan: StagingPlan, block: str, **changes: int) -> StagingPlan:
    number = plan.residences.index(_stay(plan, block))
    return replace(
        plan,
        transfers=tuple(
            replace(t, **changes) if t.residence == number else t for t in plan.transfers
        ),
    )


def _plain(message: str) -> str:
    return message.replace("(", r"\(").replace(")", r"\)")


class TestBadInput:
    @pytest.mark.parametrize(
        ("machine", "text"),
        [
            ({"capacity_bytes": 0}, "expected a scratchpad of at least one byte, got 0 bytes"),
            (
                {"bandwidth_bytes_per_s": 0.0},
                "expected a far memory with a finite bandwidth above zero, got 0.0 bytes a second",
            ),
            ({"latency_seconds": -1.0}, "expected a latency of at least zero, got -1.0 seconds"),
            ({"queues": 0}, "expected at least one DMA queue, got 0"),
        ],
    )
    def test_machines(self, machine: dict[str, float], text: str) -> None:
        with pytest.raises(UserError) as refused:
            Machine(**{"capacity_bytes": KB, "bandwidth_bytes_per_s": 1.0, **machine})  # type: ignore[arg-type]
        assert str(refused.value) == f"error[INF2101]: {text}"

    def test_a_block_larger_than_the_scratchpad(self) -> None:
        with pytest.raises(UserError) as refused:
            chain([1.0], [3 * KB], Machine(2 * KB, 1.0))
        assert str(refused.value) == (
            "error[INF2101]: step 'sw0' needs 3 KiB on chip at once, the scratchpad has 2 KiB\n"
            "   |  its largest block is 'w0' of 3 KiB\n"
            "   = hint: cut the step into smaller ones, or let it stream its largest block"
        )

    def test_pieces_that_cannot_lie_side_by_side(self) -> None:
        names = ("a", "b", "c")
        problem = StagingProblem(
            Machine(128, 1.0),
            tuple(Block(name, 256, starts_far=True) for name in names),
            (Step("s", 1.0, names, streamed=frozenset(names)),),
        )
        with pytest.raises(UserError, match="no schedule fits a scratchpad of 128 B"):
            schedule_transfers(problem)

    @pytest.mark.parametrize(
        ("blocks", "step", "text"),
        [
            ((Block("a", -1),), Step("s", 1.0), "block 'a' has a negative size: -1"),
            ((Block("a", 1), Block("a", 1)), Step("s", 1.0), "two blocks are named 'a'"),
            ((), Step("s", 1.0, ("b",)), "step 's' uses 'b', which is no block"),
            ((Block("a", 1),), Step("s", 1.0, ("a",)), "reads 'a' before anything wrote it"),
            ((), Step("s", -1.0), "must take a time and move bytes of at least zero"),
            ((Block("a", 1, ends_far=True),), Step("s", 1.0), "none writes it"),
        ],
    )
    def test_problems(self, blocks: tuple[Block, ...], step: Step, text: str) -> None:
        with pytest.raises(InternalError, match=text):
            StagingProblem(Machine(KB, 1.0), blocks, (step,))

    def test_thousands_of_blocks(self) -> None:
        problem = chain([1e-3] * 3000, [KB] * 3000, Machine(64 * KB, 1e6))
        assert seconds_of(schedule_transfers(problem)) <= 1.01 * lower_bound(problem).seconds

    def test_no_steps_take_no_time(self) -> None:
        plan = schedule_transfers(StagingProblem(Machine(KB, 1.0), (), ()))
        assert (plan.seconds, plan.transfers, plan.height_bytes) == (0.0, (), 0)
