"""A bounded tree search: place every buffer below a given height, or show that none can.

In some best plan no buffer can be moved down, so each lies at zero or rests on a buffer that it
conflicts with. Visit such plans in the order of growing offsets: take the unplaced buffer with the
lowest possible offset (its *floor*) and either place it there or *pass* it. A passed buffer rests
on one that is still unplaced, so its floor rises to the earliest top among those, and it is placed
there only once something placed later supports it; and something must come to lie where it was.
Unplaced buffers that fall into independent parts are placed part by part, and a finished part is
never taken back for another's sake. A branch ends where a column's unplaced buffers no longer fit
above their floors; then the search goes back to a placement that is to blame (`tree`).

The search restarts often, with another order of ties: buffers of columns that failed come first.
Two lanes, one with frequent restarts and one with rare ones, search side by side in rounds of as
many nodes. Where both find a placement in one round, that of the first lane counts, so the answer
does not depend on how fast which of them ran.

Related work: MiniMalloc (github.com/google/minimalloc) and TelaMalloc (doi
10.1145/3567955.3567961).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import fsum

import numpy as np

from infc.memory.columns import Ints, Problem
from infc.memory.heuristics import orders
from infc.memory.tree_state import Instance, new_state, new_trail

_RESTART_NODES = ((1000,), (4000, 1000))
"""Nodes of the attempts of each lane, in turns. Of 26 hard instances with 150,000 nodes each,
attempts of 1,000 solve 8, of 4,000 solve 12, not all of the first among them."""
_ROUND_NODES = 5000
"""Nodes that each lane visits before both are looked at: a multiple of each one's turns."""
_TRAIL_WORDS = 1 << 23
"""64-bit words of a lane's memory at most; larger problems are not searched."""


@dataclass(frozen=True)
class SearchResult:
    """How a search ended.

    Attributes:
        offsets: `[n]` units, where a placement was found.
        impossible: there is no placement: all of the tree was visited, or ruled out.
        nodes: nodes visited.
    """

    offsets: Ints | None
    impossible: bool
    nodes: int


def searchable(problem: Problem) -> bool:
    """Whether a search would fit into its limit of memory."""
    return _trail_length(problem) * _words(problem) <= _TRAIL_WORDS


def search(
    problem: Problem,
    height_bytes: int,
    node_limit: int,
    seed: int,
    out_of_time: Callable[[], bool] = lambda: False,
) -> SearchResult:
    """Look for a placement of at most `height_bytes`.

    Args:
        problem: one that is `searchable`.
        height_bytes: the placement's height at most.
        node_limit: nodes to visit, over both lanes.
        seed: of the orders tried after the fixed ones.
        out_of_time: asked between rounds; ends the search.
    """
    layout = _Layout(problem, height_bytes)
    lanes = [_Lane(layout, turns, [seed, i]) for i, turns in enumerate(_RESTART_NODES)]
    nodes = 0
    with ThreadPoolExecutor(len(lanes)) as threads:
        while nodes < node_limit and not out_of_time():
            share = min(_ROUND_NODES, -(-(node_limit - nodes) // len(lanes)))
            answers = list(threads.map(lambda lane, share=share: lane.run(share), lanes))
            nodes += sum(answer.nodes for answer in answers)
            for answer in answers:
                if answer.offsets is not None or answer.impossible:
                    return SearchResult(answer.offsets, answer.impossible, nodes)
    return SearchResult(None, False, nodes)


class _Layout:
    """A problem as `tree` takes it: sorted by first column, with the conflicts of each buffer."""

    def __init__(self, problem: Problem, height_bytes: int) -> None:
        self.order = np.argsort(problem.first, kind="stable")
        self.size, self.align = problem.size[self.order], problem.align[self.order]
        self.first, self.stop = problem.first[self.order], problem.stop[self.order]
        self.columns = problem.columns
        self.live = problem.live_units()
        inside = np.zeros(problem.columns + 1, np.int64)
        np.add.at(inside, self.first + 1, 1)
        np.add.at(inside, self.stop, -1)
        self.crossing = np.cumsum(inside)[:-1]
        # offset <= ceiling is the same as offset * unit + size_bytes <= height_bytes.
        size_bytes = self.size * problem.unit_bytes - problem.slack[self.order]
        self.ceiling = (height_bytes - size_bytes) // problem.unit_bytes
        # A column may leave up to one unit less one byte to the slack of its topmost buffer.
        self.room = np.array([-(-height_bytes // problem.unit_bytes)], np.int64)
        near = [
            np.flatnonzero((self.first < stop) & (self.stop > first))
            for first, stop in zip(self.first, self.stop, strict=True)
        ]
        near = [others[others != i] for i, others in enumerate(near)]
        self.near = np.concatenate(near).astype(np.uint32)
        self.near_start = np.cumsum([0, *(others.size for others in near)]).astype(np.int64)
        place = np.empty(self.order.size, np.int64)
        place[self.order] = np.arange(self.order.size)
        self.orders = [place[order] for order in orders(problem)]
        self.trail_length, self.words = _trail_length(problem), _words(problem)

    def instance(self, order: Ints) -> Instance:
        """What a visit with an order of ties is to place."""
        rank = np.empty(order.size, np.int64)
        rank[order] = np.arange(order.size)
        return Instance(
            self.size,
            self.align,
            self.first,
            self.stop,
            self.near_start,
            self.near,
            self.ceiling,
            rank,
            self.room,
        )


class _Lane:
    """One sequence of attempts."""

    def __init__(self, layout: _Layout, turns: tuple[int, ...], seed: list[int]) -> None:
        # numba is loaded where something is searched for, and nowhere else.
        from infc.memory import tree

        self.tree, self.layout, self.turns = tree, layout, turns
        self.generator = np.random.default_rng(seed)
        n = layout.size.size
        self.weight = np.zeros(n, np.float64)
        self.attempts = 0
        self.trail = new_trail(layout.trail_length, layout.words)
        self.choices, self.parts = np.empty((n + 1, 6), np.int64), np.empty((n, 4), np.int64)

    def run(self, node_limit: int) -> SearchResult:
        """Go on for some nodes."""
        nodes = 0
        while nodes < node_limit:
            limit = min(self.turns[self.attempts % len(self.turns)], node_limit - nodes)
            state = new_state(self.layout.live, self.layout.crossing, self.weight.size)
            how, visited = self.tree.visit(
                self.layout.instance(self._next_order()),
                state,
                self.trail,
                self.choices,
                self.parts,
                limit,
            )
            nodes += visited
            self.attempts += 1
            if how == self.tree.FOUND:
                offsets = np.empty_like(state.floor)
                offsets[self.layout.order] = state.floor
                return SearchResult(offsets, False, nodes)
            if how == self.tree.EXHAUSTED:
                return SearchResult(None, True, nodes)
            self._learn(state.crowded, state.late)
        return SearchResult(None, False, nodes)

    def _next_order(self) -> Ints:
        """The fixed orders first; then buffers that failed, every other time on top of one."""
        fixed, n = self.layout.orders, self.weight.size
        if self.attempts < len(fixed):
            return fixed[self.attempts]
        # fsum: a mean whose last bit does not depend on how the processor adds.
        spread = self.generator.random(n) * (1.0 + fsum(self.weight) / n)
        if self.attempts % 2 == 0:
            return np.argsort(spread * -1.0 - self.weight, kind="stable").astype(np.int64)
        base = np.empty(n, np.float64)
        base[fixed[self.attempts % len(fixed)]] = np.arange(n) / n
        return np.argsort(base + 0.3 * spread - self.weight, kind="stable").astype(np.int64)

    def _learn(self, crowded: Ints, late: Ints) -> None:
        """Weigh the buffers of columns that failed; halving keeps to the recent failures."""
        before = np.concatenate(([0], np.cumsum(crowded)))
        failures = late + before[self.layout.stop] - before[self.layout.first]
        self.weight = self.weight / 2.0 + failures / max(1.0, float(failures.max()))


def _trail_length(problem: Problem) -> int:
    """Changes a visit may have to remember: one a conflict and a buffer, two a node."""
    # A buffer conflicts with those that start before its end, less those that end by its start.
    before = np.searchsorted(np.sort(problem.first), problem.stop, side="left")
    after = np.searchsorted(np.sort(problem.stop), problem.first, side="right")
    return int((before - after).sum()) + 2 * max(max(turns) for turns in _RESTART_NODES) + 2


def _words(problem: Problem) -> int:
    return -(-problem.size.size // 64)
