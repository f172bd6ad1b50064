"""Every access against those before it: who wrote each byte last, who has read it since; compiled.

Streams are followed in an order in which semaphores let them run. Each has a vector clock: for each
unit of each core, and for the sources that each send unit has read, how much of it is certain to be
over. An *access* is the number of a line of `log`, which says what must be over for it to be over:

- a synchronous instruction: the time of its unit (that counts up at every post);
- a transfer's read of its source: the number of transfers whose source the unit has read;
- the arrival of a transfer: that some unit of the core it signals at has learned of it, and at what
  time of that unit. Only streams of that core can wait for it, and others know of it through them.

`shadow` has for every granule of memory that the program writes the last write, and the last reads
of the matrix, vector and send units. Reads of far memory are in lists, one for each page.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.simulator.check_accesses import (
    A_BASE,
    A_CONST,
    A_DEN,
    A_NEEDS,
    A_NUM,
    A_OUTER,
    A_OUTER_STEP,
    A_ROW_COUNT,
    A_ROWS,
    A_SCALE,
    A_SPACE,
    A_STEP,
    A_USE,
    FAR0,
    FAR1,
    MOST,
    READ,
    REMOTE_SRAM,
    WRITE,
    M,
    N,
)
from infc.backends.dataflow.simulator.compiled import borrowing_part
from infc.backends.dataflow.simulator.walk import UNITS, Ints

Clocks = NDArray[np.int32]

PARTS: Final = UNITS + 1
"""Entries of a core in a clock: its units, and the sources that its send unit has read."""
SOURCES: Final = UNITS
PAGE_BYTES: Final = 4096
"""Memory that is written is known by pages; of others there is no shadow."""
NOBODY: Final = 0
"""The access that wrote memory that nobody wrote."""
INITIAL: Final = 1
"""The access that wrote the regions of the image."""
FIRST_ACCESS: Final = 2

L_PART, L_TIME, L_STREAM, L_STEP, L_BEFORE, L_LEARNED = range(6)
"""Columns of the log: entry of the clock, or -1 - core where it is learned; what it must reach;
stream and step; the transfer before it that has the same way; time of each unit of the core when it
learned of it, or 0."""
LOG_COLUMNS: Final = L_LEARNED + UNITS

FINE, UNWRITTEN, RACE, NOT_POSTED = range(4)
"""Kinds of problems. `NOT_POSTED`: a wait joins a post that has not been; that is a fault of the
check itself."""
(
    P_KIND, P_MEMORY, P_BEGIN, P_END, P_USE, P_OTHER, P_OTHER_USE, P_STREAM, P_STEP, P_ACCESS,
) = range(10)  # fmt: skip
"""Columns of a problem: bytes of a memory, and who does what there."""


class Program(NamedTuple):
    """What is followed.

    Attributes:
        table, accesses: of all programs.
        row, values, starts, program: of `Steps`.
        op_counts: `[instructions]`, sync ops.
        target_starts, targets: cores of each SEND, by instruction.
        chip_cores: cores of a chip.
    """

    table: Ints
    accesses: Ints
    row: Ints
    values: Ints
    starts: Ints
    program: Ints
    op_counts: Ints
    target_starts: Ints
    targets: Ints
    chip_cores: int


class Memories(NamedTuple):
    """SRAM of each core, then both tiers of each chip.

    Attributes:
        written_starts: `[memories + 1]`, the first of the written ranges of each memory.
        written: `[ranges, 3]`: begin, end (whole pages), and the range's first granule.
        initial_starts: `[memories + 1]`, the first of the initial ranges of each memory.
        initial: `[ranges, 2]`: begin, end.
        granule_bytes: every access to written memory is of whole granules.
        sram_granules: those of SRAM come first.
    """

    written_starts: Ints
    written: Ints
    initial_starts: Ints
    initial: Ints
    granule_bytes: int
    sram_granules: int


class Shadow(NamedTuple):
    """What is known of memory that is written.

    Attributes:
        written: `[granules]`, the last write.
        read: `[3, granules of SRAM]`, the last read of the matrix, vector and send unit since.
        far_head: `[pages of far memory]`, the last read in `far_reads`, or -1.
        far_reads: `[most, 4]`: access, begin and end in granules, the read before it or -1.
        far_count: `[1]`, reads in `far_reads`.
    """

    written: Clocks
    read: Clocks
    far_head: Ints
    far_reads: Ints
    far_count: Ints


class Access(NamedTuple):
    """A part of what a step reads or writes.

    Attributes:
        number: of the access.
        memory: which memory.
        reader: the unit's line of `Shadow.read`.
        use: `READ` or `WRITE`.
        first, last: granules.
    """

    number: int
    memory: int
    reader: int
    use: int
    first: int
    last: int


@borrowing_part
def is_over(log: Clocks, number: int, clock: Clocks) -> bool:
    """Whether an access is certain to be over for a stream with this clock."""
    entry_ = log[number, L_PART]
    if entry_ >= 0:
        return bool(clock[entry_] >= log[number, L_TIME])
    first = (-1 - entry_) * PARTS
    for unit in range(UNITS):
        learned = log[number, L_LEARNED + unit]
        if 0 < learned <= clock[first + unit]:
            return True
    return False


@borrowing_part
def _find(ranges: Ints, begin: int, end: int, at: int) -> int:
    """The first of the sorted ranges from `begin` to `end` that ends behind `at`."""
    while begin < end:
        middle = (begin + end) // 2
        if ranges[middle, 1] > at:
            end = middle
        else:
            begin = middle + 1
    return begin


@borrowing_part
def _run_end(values: Clocks, at: int, last: int) -> int:
    """Where the values that are equal to the one at `at` end."""
    value = values[at]
    for end in range(at + 1, last):
        if values[end] != value:
            return end
    return last


@borrowing_part
def _read(
    memories: Memories, shadow: Shadow, log: Clocks, clock: Clocks, access: Access, problem: Ints
) -> None:
    """Read granules."""
    written, first, last = shadow.written, access.first, access.last
    if first < memories.sram_granules:
        shadow.read[access.reader, first:last] = access.number
    else:
        page_granules = PAGE_BYTES // memories.granule_bytes
        begin, end = first - memories.sram_granules, last - 1 - memories.sram_granules
        for page in range(begin // page_granules, end // page_granules + 1):
            at = shadow.far_count[0]
            shadow.far_reads[at, 0] = access.number
            shadow.far_reads[at, 1], shadow.far_reads[at, 2] = first, last
            shadow.far_reads[at, 3] = shadow.far_head[page]
            shadow.far_head[page] = at
            shadow.far_count[0] = at + 1
    at = first
    while at < last:
        writer, end = written[at], _run_end(written, at, last)
        if writer == NOBODY or not is_over(log, writer, clock):
            problem[P_KIND] = UNWRITTEN if writer == NOBODY else RACE
            problem[P_BEGIN], problem[P_END] = at, end
            problem[P_OTHER], problem[P_OTHER_USE] = writer, WRITE
            return
        at = end


@borrowing_part
def _write(
    memories: Memories, shadow: Shadow, log: Clocks, clock: Clocks, access: Access, problem: Ints
) -> None:
    """Write granules."""
    first, last = access.first, access.last
    planes = 4 if first < memories.sram_granules else 1
    for plane in range(planes):
        values = shadow.written if plane == 0 else shadow.read[plane - 1]
        new = access.number if plane == 0 else NOBODY
        at = first
        while at < last:
            before, end = values[at], _run_end(values, at, last)
            if before != NOBODY and not is_over(log, before, clock):
                problem[P_KIND], problem[P_BEGIN], problem[P_END] = RACE, at, end
                problem[P_OTHER] = before
                problem[P_OTHER_USE] = WRITE if plane == 0 else READ
                return
            at = end
        values[first:last] = new
    if planes == 4:
        return
    page_granules = PAGE_BYTES // memories.granule_bytes
    begin, end = first - memories.sram_granules, last - 1 - memories.sram_granules
    for page in range(begin // page_granules, end // page_granules + 1):
        at = shadow.far_head[page]
        while at >= 0:
            begin = max(first, shadow.far_reads[at, 1])
            end = min(last, shadow.far_reads[at, 2])
            if begin < end and not is_over(log, shadow.far_reads[at, 0], clock):
                problem[P_KIND], problem[P_BEGIN], problem[P_END] = RACE, begin, end
                problem[P_OTHER], problem[P_OTHER_USE] = shadow.far_reads[at, 0], READ
                return
            at = shadow.far_reads[at, 3]


@borrowing_part
def _touch(
    memories: Memories,
    shadow: Shadow,
    log: Clocks,
    clock: Clocks,
    access: Access,
    begin: int,
    end: int,
    problem: Ints,
) -> None:
    """Read or write bytes in one row."""
    first_range = memories.written_starts[access.memory]
    last_range = memories.written_starts[access.memory + 1]
    size, at = memories.granule_bytes, begin
    while at < end and problem[P_KIND] == FINE:
        place = _find(memories.written, first_range, last_range, at)
        start, stop = end, end
        if place < last_range:
            start = memories.written[place, 0]
        if start <= at:
            stop = min(stop, memories.written[place, 1])
            base = memories.written[place, 2]
            part_ = Access(
                access.number,
                access.memory,
                access.reader,
                access.use,
                base + (at - start) // size,
                base + (stop - start) // size,
            )
            if access.use == READ:
                _read(memories, shadow, log, clock, part_, problem)
            else:
                _write(memories, shadow, log, clock, part_, problem)
            if problem[P_KIND] != FINE:
                problem[P_BEGIN] = start + (problem[P_BEGIN] - base) * size
                problem[P_END] = start + (problem[P_END] - base) * size
        else:
            # Nobody writes here.
            first_initial = memories.initial_starts[access.memory]
            last_initial = memories.initial_starts[access.memory + 1]
            stop = min(stop, start)
            known = _find(memories.initial, first_initial, last_initial, at)
            if known < last_initial and memories.initial[known, 0] <= at:
                stop = min(stop, memories.initial[known, 1])
            else:
                if known < last_initial:
                    stop = min(stop, memories.initial[known, 0])
                problem[P_KIND], problem[P_BEGIN], problem[P_END] = UNWRITTEN, at, stop
                problem[P_OTHER] = NOBODY
        at = stop
    if problem[P_KIND] != FINE:
        problem[P_MEMORY], problem[P_USE] = access.memory, access.use


@borrowing_part
def _touch_rows(
    program: Program,
    memories: Memories,
    shadow: Shadow,
    log: Clocks,
    clock: Clocks,
    step: int,
    form: Ints,
    access: Access,
    problem: Ints,
) -> None:
    """Read or write all rows of an access of a step."""
    values = program.values[step]
    needs = form[A_NEEDS]
    if (needs >> N & 1 and values[N] <= 0) or (needs >> M & 1 and values[M] <= 0):
        return
    rows = form[A_ROW_COUNT] if form[A_ROWS] < 0 else values[form[A_ROWS]]
    size = values[N] * form[A_NUM] // form[A_DEN] + form[A_CONST]
    start = values[form[A_BASE]] * form[A_SCALE]
    if form[A_STEP] == size:
        # Rows without gaps are one.
        rows, size = 1, rows * size
    for outer in range(form[A_OUTER]):
        for row in range(rows):
            begin = start + outer * form[A_OUTER_STEP] + row * form[A_STEP]
            _touch(memories, shadow, log, clock, access, begin, begin + size, problem)
            if problem[P_KIND] != FINE:
                return


@borrowing_part
def touch_all(
    program: Program,
    memories: Memories,
    shadow: Shadow,
    log: Clocks,
    clock: Clocks,
    s: int,
    step: int,
    source: int,
    arrival: int,
    problem: Ints,
) -> None:
    """All that a step reads (access `source`) and writes (from access `arrival` on)."""
    row, core = program.row[step], s // UNITS
    for slot in range(MOST):
        form = program.accesses[row, slot]
        space = form[A_SPACE]
        memory = core
        if space in (FAR0, FAR1):
            cores = program.program.size // UNITS
            memory = cores + core // program.chip_cores * 2 + space - FAR0
        for use in (READ, WRITE):
            if not form[A_USE] & use:
                continue
            targets = 1
            begin = program.target_starts[row]
            if space == REMOTE_SRAM:
                targets = program.target_starts[row + 1] - begin
            number = source if use == READ else arrival
            for target in range(targets):
                if space == REMOTE_SRAM:
                    memory = program.targets[begin + target]
                access = Access(number + target, memory, s % UNITS - 1, use, 0, 0)
                _touch_rows(program, memories, shadow, log, clock, step, form, access, problem)
                if problem[P_KIND] != FINE:
                    return
