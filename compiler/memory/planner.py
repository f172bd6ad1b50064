"""Offsets for buffers in one arena, as low as can be found within a budget of search nodes.

The same buffers in the same order, seed and budget give the same plan on every machine: nothing
here reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.diagnostics import InternalError
from infc.memory.buffer import ArenaPlan, Buffer
from infc.memory.columns import Ints, Problem, split_into_problems
from infc.memory.heuristics import dive, first_fit, orders
from infc.memory.search import search

_SEARCHED_BUFFERS = 4000
"""Above this many buffers in one problem a node costs too much: only dives are tried."""


def plan_arena(buffers: Sequence[Buffer], *, node_limit: int = 20_000, seed: int = 0) -> ArenaPlan:
    """Give each buffer an offset so that no two live at the same step overlap.

    Args:
        buffers: names are unique.
        node_limit: search nodes over all; zero means heuristics only. A node takes 30-100
            microseconds; nothing is searched where a heuristic reaches the lower bound.
        seed: of the orders tried after the fixed ones.

    Raises:
        InternalError: two buffers share a name.
    """
    offsets = {buffer.name: 0 for buffer in buffers}
    if len(offsets) != len(buffers):
        names = [buffer.name for buffer in buffers]
        twice = next(name for name in names if names.count(name) > 1)
        raise InternalError(f"two buffers of one plan are named {twice!r}")

    problems = split_into_problems(buffers)
    bound = max((p.lower_bound_bytes() for p in problems), default=0)
    height = 0
    # The tallest first: lower ones need not be searched below the height that is needed anyway.
    for problem in sorted(problems, key=lambda p: -p.lower_bound_bytes()):
        goal = max(problem.lower_bound_bytes(), height, bound)
        placed, proven, nodes = _place(problem, goal, node_limit, seed)
        node_limit -= nodes
        bound = max(bound, proven)
        height = max(height, problem.height_bytes(placed))
        for member, offset in zip(problem.members, placed, strict=True):
            offsets[buffers[member].name] = int(offset) * problem.unit_bytes
    return ArenaPlan(offsets, height, bound, height == bound)


def _place(problem: Problem, goal: int, node_limit: int, seed: int) -> tuple[Ints, int, int]:
    """Offsets in units, the bytes proven to be needed, and the nodes used.

    `goal` is the height below which nothing is gained. Most inputs reach it, so it is tried first,
    with half of the budget; then the distance to the best known height is halved, each time with
    half of what is left.
    """
    proven = problem.lower_bound_bytes()
    best = _best_heuristic(problem, goal)
    if problem.size.size > _SEARCHED_BUFFERS:
        return best, proven, 0
    used, low, aim = 0, goal, goal
    while used < node_limit and low < problem.height_bytes(best):
        result = search(problem, aim, max(1, (node_limit - used) // 2), seed)
        used += result.nodes
        if result.offsets is not None:
            best = result.offsets
        else:
            low = aim + 1
            if result.impossible:
                proven = low
        aim = (low + problem.height_bytes(best)) // 2
    return best, proven, used


def _best_heuristic(problem: Problem, goal: int) -> Ints:
    """The lowest of several fast placements; stops at the first that reaches the goal."""
    candidates = orders(problem)
    small = problem.size.size <= _SEARCHED_BUFFERS
    best: Ints | None = None
    for order in candidates:
        for method in (dive, first_fit) if small else (dive,):
            offsets = method(problem, order)
            if best is None or problem.height_bytes(offsets) < problem.height_bytes(best):
                best = offsets
            if problem.height_bytes(best) <= goal:
                return best
    if best is None:
        raise InternalError("no order of placement was tried")
    return best
