"""Which memory a program writes and which is initial: the ranges that shadow memory is made for."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np

from infc.backends.dataflow.isa import F_K, F_X
from infc.backends.dataflow.simulator.check_accesses import (
    A_OUTER_STEP,
    A_SPACE,
    A_STEP,
    A_USE,
    FAR0,
    FAR1,
    MOST,
    REMOTE_SRAM,
    SRAM,
    WRITE,
    spans,
)
from infc.backends.dataflow.simulator.check_order import destinations
from infc.backends.dataflow.simulator.check_steps import Walked
from infc.backends.dataflow.simulator.shadow import (
    INITIAL,
    PAGE_BYTES,
    Memories,
    Shadow,
)
from infc.backends.dataflow.simulator.walk import UNITS, Ints

_SPACING: Final = 2**48
"""Addresses of one memory after those of the one before, to sort ranges of all at once."""


def memory_name(walked: Walked, memory: int) -> str:
    """What a memory by its number is called."""
    cores = walked.image.cores
    if memory < cores:
        return f"the sram of core {memory}"
    chip, tier = divmod(memory - cores, 2)
    return f"far{tier} of chip {chip}"


def find_memories(walked: Walked) -> Memories:
    """The ranges of an image and its call."""
    image = walked.image
    count = image.cores + 2 * image.chips
    written = _merge(np.concatenate([*_written(walked), np.empty((0, 3), np.int64)]))
    initial = _merge(_initial(walked))
    granule = _granule(walked, written, initial)
    sizes = (written[:, 2] - written[:, 1]) // granule
    first = np.concatenate([[0], np.cumsum(sizes)])
    ranges = np.concatenate([written[:, 1:], first[:-1, None]], axis=1)
    numbers = np.arange(count + 1)
    return Memories(
        np.searchsorted(written[:, 0], numbers).astype(np.int64),
        np.ascontiguousarray(ranges),
        np.searchsorted(initial[:, 0], numbers).astype(np.int64),
        np.ascontiguousarray(initial[:, 1:]),
        granule,
        int(first[np.searchsorted(written[:, 0], image.cores)]),
    )


def new_shadow(memories: Memories) -> Shadow:
    """Shadow memory as at the start of a call."""
    size = memories.granule_bytes
    sizes = memories.written[:, 1] - memories.written[:, 0]
    granules = int(sizes.sum()) // size
    far_pages = (granules - memories.sram_granules) * size // PAGE_BYTES
    written = np.zeros(granules, np.int32)
    for memory, (first, last) in enumerate(pairwise(memories.written_starts.tolist())):
        begin, end = memories.initial_starts[memory : memory + 2].tolist()
        initial = memories.initial[begin:end]
        for start, stop, base in memories.written[first:last].tolist():
            at = int(np.searchsorted(initial[:, 1], start, side="right"))
            while at < len(initial) and initial[at, 0] < stop:
                low, high = max(start, int(initial[at, 0])), min(stop, int(initial[at, 1]))
                written[base + (low - start) // size : base + (high - start) // size] = INITIAL
                at += 1
    return Shadow(
        written,
        np.zeros((3, memories.sram_granules), np.int32),
        np.full(far_pages, -1, np.int64),
        np.empty((1024, 4), np.int64),
        np.zeros(1, np.int64),
    )


def _merge(ranges: Ints) -> Ints:
    """Ranges `[n, 3]` of memory, begin, end: sorted, those that touch made one."""
    if not len(ranges):
        return ranges
    begin = ranges[:, 0] * _SPACING + ranges[:, 1]
    order = np.argsort(begin, kind="stable")
    begin = begin[order]
    end = np.maximum.accumulate(ranges[order, 0] * _SPACING + ranges[order, 2])
    starts = np.flatnonzero(np.concatenate([[True], begin[1:] > end[:-1]]))
    last = np.concatenate([starts[1:] - 1, [len(begin) - 1]])
    memory = begin[starts] // _SPACING
    return np.stack([memory, begin[starts] % _SPACING, end[last] - memory * _SPACING], axis=1)


def _initial(walked: Walked) -> Ints:
    """[regions, 3]: memory, begin, end."""
    image = walked.image
    rows = [
        (
            region.core
            if region.core is not None
            else image.cores + 2 * region.chip + (region.space == "far1"),
            region.address_bytes,
            region.address_bytes + region.size_bytes,
        )
        for region in image.regions
        if region.size_bytes
    ]
    return np.array(rows, np.int64).reshape(-1, 3)


def _written(walked: Walked) -> list[Ints]:
    """What is written, in whole pages, `[ranges, 3]` of memory, begin, end."""
    steps, image = walked.steps, walked.image
    found = []
    for program, (first, last) in enumerate(pairwise(steps.starts.tolist())):
        cores = np.flatnonzero(steps.program == program) // UNITS
        for space, targets, pages in _program_pages(walked, first, last):
            if space == REMOTE_SRAM:
                memories = np.array(targets)
            elif space == SRAM:
                memories = cores
            else:
                chips = np.unique(cores // (image.rows * image.cols))
                memories = image.cores + 2 * chips + space - FAR0
            repeated = np.tile(pages, (len(memories), 1))
            owners = np.repeat(memories, len(pages))
            found.append(np.concatenate([owners[:, None], repeated], axis=1))
    return found


def _program_pages(walked: Walked, first: int, last: int) -> list[tuple[int, list[int], Ints]]:
    """Pages that some steps write, `[ranges, 2]`, by space and destinations."""
    steps, table = walked.steps, walked.streams.table
    row, values = steps.row[first:last], steps.values[first:last]
    found: list[tuple[int, list[int], Ints]] = []
    for slot in range(MOST):
        accesses = walked.accesses[row, slot]
        writes = np.flatnonzero(accesses[:, A_USE] & WRITE > 0)
        if not len(writes):
            continue
        touched = spans(accesses[writes], values[writes])
        writes = writes[touched.rows > 0]
        space = accesses[writes, A_SPACE]
        for kind in (SRAM, FAR0, FAR1):
            at = writes[space == kind]
            if len(at):
                found.append((kind, [], _pages(accesses[at], values[at])))
        sends = writes[space == REMOTE_SRAM]
        where = table[row[sends]][:, [F_X, F_K]]
        for x, k in np.unique(where, axis=0).tolist():
            at = sends[(where[:, 0] == x) & (where[:, 1] == k)]
            targets = destinations(walked, int(row[at[0]]))
            found.append((REMOTE_SRAM, targets, _pages(accesses[at], values[at])))
    return found


def _pages(accesses: Ints, values: Ints) -> Ints:
    """The pages of accesses, `[ranges, 2]`; those between rows that are far apart are left out."""
    touched = spans(accesses, values)
    apart = accesses[:, A_STEP] > PAGE_BYTES
    begin, end = touched.start[~apart], touched.stop[~apart]
    if apart.any():
        rows = touched.rows[apart]
        within = np.arange(int(rows.sum())) - np.repeat(np.cumsum(rows) - rows, rows)
        start = np.repeat(touched.start[apart], rows)
        start = start + within * np.repeat(accesses[apart, A_STEP], rows)
        begin = np.concatenate([begin, start])
        end = np.concatenate([end, start + np.repeat(touched.size[apart], rows)])
    begin, end = begin // PAGE_BYTES, -(-end // PAGE_BYTES)
    pages = np.stack([np.zeros_like(begin), begin, end], axis=1)
    return _merge(np.unique(pages, axis=0))[:, 1:] * PAGE_BYTES


def _granule(walked: Walked, written: Ints, initial: Ints) -> int:
    """The largest power of two that divides all that is touched in written memory."""
    together = PAGE_BYTES
    steps = walked.steps
    for slot in range(MOST):
        accesses = walked.accesses[steps.row, slot]
        found = spans(accesses, steps.values)
        touched = found.rows > 0
        for numbers in (found.start, found.size, accesses[:, A_STEP], accesses[:, A_OUTER_STEP]):
            together |= int(np.bitwise_or.reduce(numbers[touched]))
    # Ranges of initial memory that lie beside written ones do not matter.
    begin, end = (written[:, 0] * _SPACING + written[:, side] for side in (1, 2))
    edges = (initial[:, [0]] * _SPACING + initial[:, 1:]).ravel()
    if len(begin):
        at = np.searchsorted(begin, edges, side="right") - 1
        inside = (at >= 0) & (edges < end[at])
        together |= int(np.bitwise_or.reduce(edges[inside]))
    return together & -together
