"""A bounded tree search: place every buffer below a given height, or show that none can.

In some best plan no buffer can be moved down, so each lies at zero or rests on a buffer that it
conflicts with. Visit such plans in the order of growing offsets: take the unplaced buffer with the
lowest possible offset (its *floor*) and either place it there or *pass* it. A passed buffer rests
on one that is still unplaced, so its floor rises to the earliest top among those. The search ends a
branch where a column's unplaced buffers no longer fit above the lowest floor among them. It
restarts often, with another order of ties: buffers of columns that failed come first.

Related work: MiniMalloc (github.com/google/minimalloc) and TelaMalloc (doi
10.1145/3567955.3567961).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infc.memory.columns import Ints, Problem
from infc.memory.heuristics import align_up, orders

_PLACED = np.iinfo(np.int64).max // 4
"""The floor of a placed buffer: above any real one, and safe to add a size to."""
_RESTART_NODES = 1000
"""Nodes before a restart. Rarer restarts leave hard instances unsolved."""


@dataclass(frozen=True)
class SearchResult:
    """How a search ended.

    Attributes:
        offsets: `[n]` units, where a placement was found.
        impossible: the whole tree was visited without one: none exists.
        nodes: nodes visited.
    """

    offsets: Ints | None
    impossible: bool
    nodes: int


def search(problem: Problem, height_bytes: int, node_limit: int, seed: int) -> SearchResult:
    """Look for a placement of at most `height_bytes`, visiting at most `node_limit` nodes."""
    generator = np.random.default_rng(seed)
    fixed = orders(problem)
    weight = np.zeros(problem.size.size, np.float64)
    nodes = attempt = 0
    while nodes < node_limit:
        if attempt < len(fixed):
            order = fixed[attempt]
        else:
            noise = generator.random(weight.size) * (1.0 + weight.mean())
            order = np.argsort(-(weight + noise), kind="stable").astype(np.int64)
        tree = _Tree(problem, height_bytes, order)
        offsets, exhausted = tree.run(min(_RESTART_NODES, node_limit - nodes))
        nodes += tree.nodes
        if offsets is not None or exhausted:
            return SearchResult(offsets, exhausted, nodes)
        # Halving keeps the weights about the recent failures.
        weight = weight / 2.0 + tree.conflicts / max(1.0, float(tree.conflicts.max()))
        attempt += 1
    return SearchResult(None, False, nodes)


class _Tree:
    """One depth-first visit; buffers are permuted so that `argmin` breaks ties by the order."""

    def __init__(self, problem: Problem, height_bytes: int, order: Ints) -> None:
        self.order = order
        self.size, self.align = problem.size[order], problem.align[order]
        self.first, self.stop = problem.first[order], problem.stop[order]
        # offset <= ceiling is the same as offset * unit + size_bytes <= height_bytes.
        size_bytes = self.size * problem.unit_bytes - problem.slack[order]
        self.ceiling = (height_bytes - size_bytes) // problem.unit_bytes
        # A column may give up to one unit less one byte to the slack of its topmost buffer.
        self.room = -(-height_bytes // problem.unit_bytes)
        self.live = problem.live_units()
        spans = [
            np.flatnonzero((self.first <= c) & (self.stop > c)) for c in range(problem.columns)
        ]
        self.column_members = np.concatenate(spans)
        self.column_starts = np.cumsum([0, *(s.size for s in spans[:-1])])
        self.column_of = np.repeat(np.arange(problem.columns), [s.size for s in spans])
        self.conflicts = np.zeros(order.size, np.float64)
        self.nodes = 0

    def run(self, node_limit: int) -> tuple[Ints | None, bool]:
        """`(offsets by original index or None, whether the tree was exhausted)`."""
        n = self.order.size
        # A branch is (floors, units unplaced by column, offsets, buffers placed).
        stack = [(np.zeros(n, np.int64), self.live, np.zeros(n, np.int64), 0)]
        while stack:
            if self.nodes >= node_limit:
                return None, False
            self.nodes += 1
            floor, live, offsets, placed = stack.pop()
            if placed == n:
                result = np.empty(n, np.int64)
                result[self.order] = offsets
                return result, False
            if not self._may_fit(floor, live):
                continue
            i = int(np.argmin(floor))
            conflicting = (self.first < self.stop[i]) & (self.stop > self.first[i])
            conflicting &= floor != _PLACED
            conflicting[i] = False
            others = np.flatnonzero(conflicting)
            if others.size:
                passed = floor.copy()
                rest = int((floor[others] + self.size[others]).min())
                passed[i] = -(-rest // int(self.align[i])) * int(self.align[i])
                if passed[i] <= self.ceiling[i]:
                    stack.append((passed, live, offsets, placed))
            top = floor[i] + self.size[i]
            now = floor.copy()
            now[others] = np.maximum(floor[others], align_up(top, self.align[others]))
            now[i] = _PLACED
            remaining = live.copy()
            remaining[self.first[i] : self.stop[i]] -= self.size[i]
            moved = offsets.copy()
            moved[i] = floor[i]
            stack.append((now, remaining, moved, placed + 1))
        return None, True

    def _may_fit(self, floor: Ints, live: Ints) -> bool:
        """Whether no unplaced buffer and no column is known to be too high already."""
        late = (floor > self.ceiling) & (floor != _PLACED)
        if late.any():
            self.conflicts[late] += 1.0
            return False
        lowest = np.minimum.reduceat(floor[self.column_members], self.column_starts)
        crowded = (lowest + live > self.room) & (live > 0)
        if crowded.any():
            self.conflicts[self.column_members[crowded[self.column_of]]] += 1.0
            return False
        return True
