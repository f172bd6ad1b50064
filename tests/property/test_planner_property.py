"""Any plan is accepted by the independent checker; small ones are as low as brute force finds."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infc.diagnostics import InternalError
from infc.memory.buffer import Buffer
from infc.memory.checker import check_plan
from infc.memory.planner import plan_arena


def buffers_of(count: int, sizes: int) -> st.SearchStrategy[list[Buffer]]:
    parts = st.tuples(
        st.integers(0, sizes),
        st.sampled_from([1, 1, 2, 4, 6, 64]),
        st.integers(0, 8),
        st.integers(0, 5),
    )
    return st.lists(parts, max_size=count).map(
        lambda rows: [
            Buffer(str(i), size, align, first, first + span)
            for i, (size, align, first, span) in enumerate(rows)
        ]
    )


def together(a: Buffer, b: Buffer) -> bool:
    return a.first <= b.last and b.first <= a.last


def brute_force_height(buffers: list[Buffer]) -> int:
    """First fit in every order: some order builds an optimal plan from the bottom up."""
    best = sum(b.size_bytes + b.align for b in buffers)
    for order in permutations(buffers):
        placed: dict[Buffer, int] = {}
        for buffer in order:
            offset = 0
            for other in sorted(placed, key=lambda b: placed[b]):
                clash = together(buffer, other) and buffer.size_bytes and other.size_bytes
                if clash and offset + buffer.size_bytes > placed[other]:
                    top = max(offset, placed[other] + other.size_bytes)
                    offset = -(-top // buffer.align) * buffer.align
            placed[buffer] = offset
        best = min(best, max((placed[b] + b.size_bytes for b in buffers), default=0))
    return best


@settings(max_examples=150, deadline=None)
@given(buffers_of(count=40, sizes=300), st.integers(0, 3))
def test_the_checker_accepts_every_plan(buffers: list[Buffer], seed: int) -> None:
    plan = plan_arena(buffers, node_limit=300, seed=seed)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert plan.lower_bound_bytes <= plan.height_bytes
    assert plan.optimal == (plan.height_bytes == plan.lower_bound_bytes)
    assert list(plan.offsets) == [b.name for b in buffers]


@settings(max_examples=120, deadline=None)
@given(buffers_of(count=6, sizes=9))
def test_small_plans_are_optimal_and_bounds_are_true(buffers: list[Buffer]) -> None:
    plan = plan_arena(buffers, node_limit=5_000)
    best = brute_force_height([b for b in buffers if b.size_bytes])
    assert plan.lower_bound_bytes <= best
    assert plan.height_bytes == best


@settings(max_examples=60, deadline=None)
@given(buffers_of(count=6, sizes=9), st.integers(-2, 1))
def test_a_capacity_is_reached_or_proven_impossible(buffers: list[Buffer], spare: int) -> None:
    best = brute_force_height([b for b in buffers if b.size_bytes])
    capacity = max(best + spare, 1)
    plan = plan_arena(buffers, capacity_bytes=capacity, node_limit=5_000)
    check_plan(buffers, plan.offsets, plan.height_bytes)
    assert (plan.height_bytes <= capacity) == (best <= capacity)
    assert (plan.lower_bound_bytes > capacity) == (best > capacity)


@settings(max_examples=100, deadline=None)
@given(buffers_of(count=12, sizes=50), st.data())
def test_a_plan_moved_into_a_neighbour_is_refused(
    buffers: list[Buffer], data: st.DataObject
) -> None:
    pairs = [
        (a, b)
        for a in buffers
        for b in buffers
        if a is not b and together(a, b) and a.size_bytes and b.size_bytes
    ]
    if not pairs:
        return
    plan = plan_arena(buffers, node_limit=100)
    moved, fixed = data.draw(st.sampled_from(pairs))
    # Any byte of `fixed` may be the one where `moved` now starts.
    offset = plan.offsets[fixed.name] + data.draw(st.integers(0, fixed.size_bytes - 1))
    with pytest.raises(InternalError):
        check_plan(buffers, {**plan.offsets, moved.name: offset}, plan.height_bytes + 400)


@settings(max_examples=60, deadline=None)
@given(buffers_of(count=12, sizes=50), st.data())
def test_the_checker_agrees_with_looking_at_all_pairs(
    buffers: list[Buffer], data: st.DataObject
) -> None:
    offsets = {b.name: b.align * data.draw(st.integers(0, 120 // b.align)) for b in buffers}
    overlap = any(
        together(a, b)
        and offsets[a.name] < offsets[b.name] + b.size_bytes
        and offsets[b.name] < offsets[a.name] + a.size_bytes
        and a.size_bytes
        and b.size_bytes
        for i, a in enumerate(buffers)
        for b in buffers[:i]
    )
    if overlap:
        with pytest.raises(InternalError, match="overlap"):
            check_plan(buffers, offsets, 200)
    else:
        check_plan(buffers, offsets, 200)
