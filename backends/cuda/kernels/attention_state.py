"""What a warp knows of its rows while keys pass, and what they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import Value


@dataclass(frozen=True)
class State:
    """What a warp knows of its rows: `r` and, in tiles of 16, `r + 8`, the second half.

    Attributes:
        maxima: f32 `[tile][half]`: the largest score so far, alike in a quad.
        terms: f32 `[tile][half]`: this lane's share of the sum of terms.
        sums: f32, weighted values as the matrix instruction has them. Tiles of 16:
            `[tile][column][4]`, row r elements 2q and 2q + 1 of a column of 8, row r + 8 those. Of
            8: `[pair of columns][4]`, element r of rows 2q and 2q + 1, element r + 8 of those.
    """

    maxima: list[Value]
    terms: list[Value]
    sums: list[Value]

    def values(self) -> list[Value]:
        """All of it, to be carried through a loop."""
        return [*self.maxima, *self.terms, *self.sums]

    def like(self, values: Sequence[Value]) -> State:
        """A state of this shape, of what `values` gave."""
        n = len(self.maxima)
        return State(list(values[:n]), list(values[n : 2 * n]), list(values[2 * n :]))


@dataclass(frozen=True)
class Rows:
    """What a lane's rows see.

    Attributes:
        positions: i32 `[tile][half]`: the row's position; -1 where it sees nothing now.
        least, highest: i32, the same for a warp: of the positions of all its rows.
    """

    positions: list[Value]
    least: Value
    highest: Value
