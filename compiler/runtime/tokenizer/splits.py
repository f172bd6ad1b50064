"""All ways to cut texts of a set into two texts of the set, found for the whole set at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_POINT_BITS = 21
"""Code points are smaller than 2**21."""


def every_split(texts: list[str]) -> tuple[NDArray[np.int64], ...]:
    """Where `texts[left] + texts[right] == texts[whole]`, as three arrays left, right and whole.

    Args:
        texts: distinct and not empty.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
    points = points.astype(np.int64)
    stops = np.cumsum(lengths)
    prefixes = _ends_met(points, stops - lengths, lengths, 1)
    suffixes = _ends_met(points, stops - 1, lengths, -1)
    whole = np.repeat(np.arange(len(texts)), lengths)
    # A cut before a character that is not its text's first.
    inside = np.flatnonzero(whole[1:] == whole[:-1]) + 1
    cuts = inside[(prefixes[inside - 1] >= 0) & (suffixes[inside] >= 0)]
    return prefixes[cuts - 1], suffixes[cuts], whole[cuts]


def _ends_met(
    points: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64], step: int
) -> NDArray[np.int64]:
    """For each character, the text that is read from its text's start up to it, or -1.

    All texts walk down their common trie together, a level at a time.

    Args:
        points: the characters of all texts.
        starts: where each text begins to be read.
        lengths: of the texts.
        step: 1 reads forward, -1 backward.
    """
    met = np.full(len(points), -1)
    walking = np.arange(len(lengths))
    nodes = np.zeros(len(lengths), np.int64)
    depth = 0
    while len(walking):
        places = starts[walking] + step * depth
        edges = (nodes << _POINT_BITS) | points[places]
        reached, nodes = np.unique(edges, return_inverse=True)
        depth += 1
        ends = lengths[walking] == depth
        ended_at = np.full(len(reached), -1)
        ended_at[nodes[ends]] = walking[ends]
        met[places] = ended_at[nodes]
        walking, nodes = walking[~ends], nodes[~ends]
    return met
