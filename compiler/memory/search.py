"""A bounded tree search: place every buffer below a given height, or show that none can.

In some best plan no buffer can be moved down, so each lies at zero or rests on a buffer that it
conflicts with. Visit such plans in the order of growing offsets: take the unplaced buffer with the
lowest possible offset (its *floor*) and either place it there or *pass* it. A passed buffer rests
on one that is still unplaced, so its floor rises to the earliest top among those, and it is placed
there only once something placed later supports it. Unplaced buffers that fall into independent
parts are placed part by part, and a finished part is never taken back for another's sake. A branch
ends where a column's unplaced buffers no longer fit above the lowest floor among them. The search
restarts often, with another order of ties: buffers of columns that failed come first.

Related work: MiniMalloc (github.com/google/minimalloc) and TelaMalloc (doi
10.1145/3567955.3567961).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import fsum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infc.memory.columns import Ints, Problem
from infc.memory.heuristics import align_up, orders

_NOWHERE = np.iinfo(np.int64).max
"""Above any floor."""
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
            # fsum: a mean whose last bit does not depend on how the processor adds.
            noise = generator.random(weight.size) * (1.0 + fsum(weight) / weight.size)
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


class _Part(NamedTuple):
    """Unplaced buffers that can be placed regardless of all others.

    Attributes:
        members: indices into the problem, sorted by first column, `[m]`.
        floor: lowest offset each may still get, `[m]`.
        supported: whether it would rest on something there, `[m]`. A passed buffer is unsupported
            until something placed later touches its floor.
        rest: the part to be placed after this one; a linked list.
        base: how many alternatives there were when this part came into being.
    """

    members: Ints
    floor: Ints
    supported: NDArray[np.bool_]
    rest: _Part | None
    base: int


_DEAD = _Part(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool), None, 0)
"""Stands for a state from which nothing can be placed."""


class _Tree:
    """One depth-first visit with a fixed order of ties."""

    def __init__(self, problem: Problem, height_bytes: int, order: Ints) -> None:
        n = order.size
        self.size, self.align = problem.size, problem.align
        self.first, self.stop = problem.first, problem.stop
        self.rank = np.empty(n, np.int64)
        self.rank[order] = np.arange(n)
        self.order_size = n
        # offset <= ceiling is the same as offset * unit + size_bytes <= height_bytes.
        size_bytes = self.size * problem.unit_bytes - problem.slack
        self.ceiling = (height_bytes - size_bytes) // problem.unit_bytes
        # A column may leave up to one unit less one byte to the slack of its topmost buffer.
        self.room = -(-height_bytes // problem.unit_bytes)
        spans = [
            np.flatnonzero((self.first <= c) & (self.stop > c)) for c in range(problem.columns)
        ]
        self.column_members = np.concatenate(spans)
        self.column_starts = np.cumsum([0, *(s.size for s in spans)])
        self.offsets = np.zeros(n, np.int64)
        self.conflicts = np.zeros(n, np.float64)
        self.nodes = 0

    def run(self, node_limit: int) -> tuple[Ints | None, bool]:
        """`(offsets or None, whether the tree was exhausted without one)`."""
        everything = np.argsort(self.first, kind="stable").astype(np.int64)
        n = everything.size
        part: _Part | None = _Part(everything, np.zeros(n, np.int64), np.ones(n, bool), None, 0)
        alternatives: list[_Part] = []
        while part is not None:
            if self.nodes >= node_limit:
                return None, False
            self.nodes += 1
            following = self._step(part, alternatives) if self._may_fit(part) else _DEAD
            if following is _DEAD:
                if not alternatives:
                    return None, True
                following = alternatives.pop()
            part = following
        return self.offsets, False

    def _step(self, part: _Part, alternatives: list[_Part]) -> _Part | None:
        """Place the lowest buffer and note the alternative of passing it.

        Returns what to place next: None when all is placed, `_DEAD` when this cannot go on.
        """
        k = int(np.argmin(part.floor * self.order_size + self.rank[part.members]))
        first, stop = self.first[part.members], self.stop[part.members]
        # Sorted by first column, so those that start too late are at the end.
        touching = stop[: int(np.searchsorted(first, stop[k]))] > first[k]
        touching[k] = False
        others = np.flatnonzero(touching)
        passed = self._pass(part, k, others) if others.size else None
        if not part.supported[k]:
            return _DEAD if passed is None else passed
        if passed is not None:
            alternatives.append(passed)
        return self._place(part, k, others, alternatives)

    def _pass(self, part: _Part, k: int, others: Ints) -> _Part:
        """The part with the `k`-th raised to the earliest top of the `others` in conflict."""
        rest = int((part.floor[others] + self.size[part.members[others]]).min())
        align = int(self.align[part.members[k]])
        floor, supported = part.floor.copy(), part.supported.copy()
        floor[k] = -(-rest // align) * align
        supported[k] = False
        return part._replace(floor=floor, supported=supported)

    def _place(self, part: _Part, k: int, others: Ints, alternatives: list[_Part]) -> _Part | None:
        """What to place after the `k`-th went to its floor; None where nothing is left."""
        i = part.members[k]
        self.offsets[i] = part.floor[k]
        top = align_up(part.floor[k] + self.size[i], self.align[part.members[others]])
        floor, supported = part.floor.copy(), part.supported.copy()
        supported[others] |= top >= floor[others]
        floor[others] = np.maximum(floor[others], top)
        kept = np.arange(floor.size) != k
        members, floor, supported = part.members[kept], floor[kept], supported[kept]
        following = part.rest
        if not members.size:
            # The next part does not care how this one was placed: forget its alternatives.
            if following is not None:
                del alternatives[following.base :]
            return following
        reach = np.maximum.accumulate(self.stop[members])
        cuts = np.flatnonzero(self.first[members[1:]] >= reach[:-1]) + 1
        if not cuts.size:
            return part._replace(members=members, floor=floor, supported=supported)
        for low, high in pairwise([0, *(int(cut) for cut in cuts), members.size]):
            inside = slice(low, high)
            following = _Part(
                members[inside], floor[inside], supported[inside], following, len(alternatives)
            )
        return following

    def _may_fit(self, part: _Part) -> bool:
        """Whether no buffer and no column of the part is known to be too high already."""
        members = part.members
        late = part.floor > self.ceiling[members]
        if late.any():
            self.conflicts[members[late]] += 1.0
            return False
        low, high = int(self.first[members[0]]), int(self.stop[members].max())
        begin, end = self.column_starts[low], self.column_starts[high]
        listed = self.column_members[begin:end]
        starts = self.column_starts[low:high] - begin
        floor = np.full(self.order_size, _NOWHERE)
        floor[members] = part.floor
        size = np.zeros(self.order_size, np.int64)
        size[members] = self.size[members]
        lowest = np.minimum.reduceat(floor[listed], starts)
        live = np.add.reduceat(size[listed], starts)
        crowded = lowest + live > self.room
        if crowded.any():
            for column in np.flatnonzero(crowded) + low:
                span = slice(self.column_starts[column], self.column_starts[column + 1])
                self.conflicts[self.column_members[span]] += 1.0
            return False
        return True
