"""Offsets for buffers in one arena, as low as can be found within a budget of search nodes.

The same buffers in the same order, seed and budget give the same plan on every machine: nothing
here reads a clock. A caller that has one may end the search early with it; then time decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from infc.diagnostics import InternalError
from infc.memory.buffer import LARGEST_TOTAL_BYTES, ArenaPlan, Buffer, Stop
from infc.memory.columns import Ints, Problem, split_into_problems
from infc.memory.heuristics import dive, first_fit, orders
from infc.memory.reuse import merge_reused

_SEARCHED_BUFFERS = 4000
"""Above this many buffers in one problem a node costs too much: only dives are tried."""
_DIVE_STEPS = 12 * 10**8
"""Dives take time with the square of the number of buffers: this many steps in all, some 3 s."""
_LOWERING = 16
"""What fits a given capacity is lowered further with this part of the nodes."""


def plan_arena(
    buffers: Sequence[Buffer],
    *,
    node_limit: int = 100_000,
    seed: int = 0,
    capacity_bytes: int | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> ArenaPlan:
    """Give each buffer an offset so that no two live at the same step overlap.

    Args:
        buffers: names are unique.
        node_limit: search nodes over all; zero means heuristics only. A node takes about 10
            microseconds for some hundred buffers; nothing is searched where a heuristic reaches
            the lower bound.
        seed: of the orders tried after the fixed ones.
        capacity_bytes: a height that is to be reached before anything else is tried.
        out_of_time: asked between rounds of the search; ends it with the best plan found.

    Raises:
        InternalError: two buffers share a name, sizes add up to more than `LARGEST_TOTAL_BYTES`, or
            a buffer is to take the place of one that does not make way for it.
    """
    if len({buffer.name for buffer in buffers}) != len(buffers):
        names = [buffer.name for buffer in buffers]
        twice = next(name for name in names if names.count(name) > 1)
        raise InternalError(f"two buffers of one plan are named {twice!r}")
    total = sum(buffer.size_bytes + buffer.align for buffer in buffers)
    if total > LARGEST_TOTAL_BYTES:
        raise InternalError(f"expected at most {LARGEST_TOTAL_BYTES} bytes to plan, got {total}")

    planner = _Planner(node_limit, seed, capacity_bytes, out_of_time)
    merged, owners = merge_reused(buffers)
    plan = planner.plan(merged)
    if len(merged) == len(buffers):
        return plan
    offsets = {name: plan.offsets[owner] for name, owner in owners.items()}
    return ArenaPlan(
        offsets, plan.height_bytes, plan.lower_bound_bytes, plan.optimal, plan.method, plan.stop
    )


class _Planner:
    """What is left of the budget, and what ended the search."""

    def __init__(
        self,
        node_limit: int,
        seed: int,
        capacity_bytes: int | None,
        out_of_time: Callable[[], bool],
    ) -> None:
        self.nodes_left, self.seed = node_limit, seed
        self.capacity, self.out_of_time = capacity_bytes, out_of_time
        self.lowering_nodes = node_limit if capacity_bytes is None else node_limit // _LOWERING
        self.too_large = False
        self.method: Literal["heuristic", "search"] = "heuristic"

    def plan(self, buffers: Sequence[Buffer]) -> ArenaPlan:
        offsets = {buffer.name: 0 for buffer in buffers}
        problems = split_into_problems(buffers)
        bound = max((p.lower_bound_bytes() for p in problems), default=0)
        # The tallest first: lower ones need not be searched below the height needed anyway.
        problems.sort(key=lambda p: -p.lower_bound_bytes())
        placed = [self._best_heuristic(p, bound) for p in problems]
        if self.capacity is not None and self.capacity >= bound:
            for i, problem in enumerate(problems):
                placed[i], proven = self._reach(problem, placed[i], self.capacity)
                bound = max(bound, proven)
        height = 0
        for i, problem in enumerate(problems):
            # What fits is lowered, and what cannot fit; else all nodes went into fitting it.
            if self.capacity is None or not bound <= self.capacity < _tallest(problems, placed):
                placed[i], proven = self._lower(problem, placed[i], max(height, bound))
                bound = max(bound, proven)
            height = max(height, problem.height_bytes(placed[i]))
        for problem, places in zip(problems, placed, strict=True):
            for member, offset in zip(problem.members, places, strict=True):
                offsets[buffers[member].name] = int(offset) * problem.unit_bytes
        return ArenaPlan(
            offsets, height, bound, height == bound, self.method, self._stop(height == bound)
        )

    def _stop(self, optimal: bool) -> Stop | None:
        if optimal:
            return None
        if self.out_of_time():
            return "time limit"
        return "too many buffers" if self.too_large else "node limit"

    def _reach(self, problem: Problem, best: Ints, height: int) -> tuple[Ints, int]:
        """A placement that reaches a height, or else the one given, and the bytes proven."""
        if problem.height_bytes(best) <= height:
            return best, 0
        offsets, impossible, used = self._search(problem, height, self.nodes_left)
        self.nodes_left -= used
        return (best if offsets is None else offsets), (height + 1 if impossible else 0)

    def _lower(self, problem: Problem, best: Ints, goal: int) -> tuple[Ints, int]:
        """A lower placement than `best`, where one is found, and the bytes proven to be needed.

        `goal` is the height below which nothing is gained. Many inputs reach it, so it is tried
        first, with half of the budget; then the distance to the best known height is halved, each
        time with half of what is left.
        """
        proven = 0
        low = aim = goal
        while self.lowering_nodes > 0 and low < problem.height_bytes(best):
            offsets, impossible, used = self._search(problem, aim, -(-self.lowering_nodes // 2))
            if used == 0:
                break
            self.lowering_nodes -= used
            if offsets is not None:
                best = offsets
            else:
                low = aim + 1
                proven = low if impossible else proven
            aim = (low + problem.height_bytes(best)) // 2
        return best, proven

    def _search(
        self, problem: Problem, height: int, node_limit: int
    ) -> tuple[Ints | None, bool, int]:
        """Offsets, whether there are none, and the nodes used: zero where nothing was searched."""
        # Here, as most plans need no search.
        from infc.memory.search import search, searchable

        if problem.size.size > _SEARCHED_BUFFERS or not searchable(problem):
            self.too_large = True
            return None, False, 0
        result = search(problem, height, node_limit, self.seed, self.out_of_time)
        if result.offsets is not None:
            self.method = "search"
        return result.offsets, result.impossible, result.nodes

    def _best_heuristic(self, problem: Problem, goal: int) -> Ints:
        """The lowest of several fast placements; stops at the first that reaches the goal."""
        n = problem.size.size
        methods = (dive, first_fit) if n <= _SEARCHED_BUFFERS else (dive,)
        best: Ints | None = None
        for order in orders(problem)[: max(1, _DIVE_STEPS // (n * n))]:
            for method in methods:
                if best is not None and (problem.height_bytes(best) <= goal or self.out_of_time()):
                    return best
                offsets = method(problem, order)
                if best is None or problem.height_bytes(offsets) < problem.height_bytes(best):
                    best = offsets
        if best is None:
            raise InternalError("no order of placement was tried")
        return best


def _tallest(problems: Sequence[Problem], placed: Sequence[Ints]) -> int:
    return max(
        (p.height_bytes(places) for p, places in zip(problems, placed, strict=True)), default=0
    )
