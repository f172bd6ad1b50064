"""Lists of buffers like those that memory planners are measured on, made from seeds.

Rows are (lower, upper, size): a buffer of `size` bytes lives in [lower, upper). What is cut out of
a rectangle is known to fit into 1 MiB, though not every planner finds how.
"""

from __future__ import annotations

import random

CAPACITY = 1 << 20
UNIT = 1024
"""Sizes are multiples of it."""
_TIME = 1 << 20

Rows = list[tuple[int, int, int]]


def cut(
    count: int, seed: int, *, pinwheels: float = 0.0, lost: float = 0.0, shortened: float = 0.0
) -> Rows:
    """A rectangle of time and memory cut into about `count` blocks at random.

    Args:
        count: blocks.
        seed: of all choices.
        pinwheels: how often a block is cut into five that no straight cut divides.
        lost: the part of the blocks that is left out.
        shortened: the part whose lives are made shorter, by up to 30%.
    """
    draw = random.Random(seed)
    blocks = [(0, _TIME, 0, CAPACITY // UNIT)]
    while len(blocks) < count:
        areas = [((b - a) * (d - c)) ** 0.5 for a, b, c, d in blocks]
        a, b, c, d = blocks.pop(draw.choices(range(len(blocks)), areas)[0])
        if draw.random() < pinwheels and b - a > 64 and d - c > 8:
            x, y = sorted(draw.sample(range(a + 1, b), 2))
            u, v = sorted(draw.sample(range(c + 1, d), 2))
            blocks += [(a, y, c, u), (y, b, c, v), (x, b, v, d), (a, x, u, d), (x, y, u, v)]
        elif draw.random() < 0.6 and b - a > 16:
            x = draw.randrange(a + 1, b)
            blocks += [(a, x, c, d), (x, b, c, d)]
        elif d - c > 1:
            u = draw.randrange(c + 1, d)
            blocks += [(a, b, c, u), (a, b, u, d)]
        else:
            blocks.append((a, b, c, d))
    rows = []
    for a, b, c, d in blocks:
        if draw.random() < lost:
            continue
        if draw.random() < shortened:
            less = int((b - a) * draw.random() * 0.3)
            a, b = (a + less, b) if draw.random() < 0.5 else (a, b - less)
        rows.append((a, b, (d - c) * UNIT))
    draw.shuffle(rows)
    return rows


def backwards(rows: Rows) -> Rows:
    """The same with time running the other way."""
    end = max(upper for _, upper, _ in rows)
    return [(end - upper, end - lower, size) for lower, upper, size in rows]


def without_some(rows: Rows, seed: int, lost: float) -> Rows:
    """All but about a part `lost` of the rows, in another order."""
    draw = random.Random(seed)
    kept = [row for row in rows if draw.random() >= lost]
    draw.shuffle(kept)
    return kept


def random_lives(count: int, seed: int, *, steps: int, longest: int, sizes: str) -> Rows:
    """Buffers that start anywhere and live for up to `longest` steps; nothing is known to fit.

    Args:
        count: buffers.
        seed: of all choices.
        steps: starts are drawn from as many.
        longest: most lives are much shorter.
        sizes: `even`: each size up to 1 MB is as likely; `skewed`: each order of magnitude is.
    """
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        start = draw.randrange(steps)
        life = 1 + int(longest ** draw.random())
        size = draw.randrange(1, 10**6) if sizes == "even" else int(10 ** draw.uniform(1, 6))
        rows.append((start, start + life, 64 * -(-size // 64)))
    return rows
