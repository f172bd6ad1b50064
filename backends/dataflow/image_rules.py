"""What an image must be, beyond each field of each instruction: grid, streams, memory, outputs.

Nothing here depends on figures of a machine: that an image fits one is checked where it is loaded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.instruction import F_D, F_FLAGS, F_K, F_OP, F_ORIGIN, F_X, Table
from infc.backends.dataflow.operations import REMOTE, SEMAPHORES, Op, Unit
from infc.backends.dataflow.program import Image, ImageError, Output, Region
from infc.backends.dataflow.validity import find_stream_problem

LINE_BYTES: Final = 64
"""Unit of far addresses."""
MOST_CHIPS: Final = (1 << 16) - 1
MOST_CORES_A_SIDE: Final = 255
_MOST: Final = (1 << 31) - 1
"""Of what an immediate holds: SRAM addresses, lines of far memory, elements of `args`."""
_BEST_BYTES: Final = 8
_LOGIT_BYTES: Final = 4


def check_image(image: Image, tables: Sequence[Table]) -> None:
    """Raise ImageError where the image breaks a rule.

    Args:
        image: to be checked.
        tables: its programs, decoded: every field is known to be allowed.
    """
    _check_limits(image)
    _check_tables(image, tables)
    _check_streams(image, tables)
    _check_regions(image)
    _check_outputs(image)


def _between(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ImageError(f"expected {what} of {low} to {high}, got {value}")


def _check_limits(image: Image) -> None:
    _between("a number of chips", image.chips, 1, MOST_CHIPS)
    _between("a number of rows", image.rows, 1, MOST_CORES_A_SIDE)
    _between("a number of columns", image.cols, 1, MOST_CORES_A_SIDE)
    _between("SRAM bytes", image.sram_bytes, 1, _MOST)
    _between("a limit of tokens", image.max_tokens, 1, _MOST)
    _between("a limit of logit rows", image.max_logit_rows, 1, image.max_tokens)


def _check_tables(image: Image, tables: Sequence[Table]) -> None:
    """Instructions refer to what the image has."""
    for index, table in enumerate(tables):
        codes, x, k = table[:, F_OP], table[:, F_X], table[:, F_K]
        chip_stop = (x & 0xFFFF) + (x >> 16)
        row_stop = (k & 255) + (k >> 16 & 255)
        col_stop = (k >> 8 & 255) + (k >> 24)
        send = codes == Op.SEND
        remote = (codes == Op.POST) & (table[:, F_FLAGS] & REMOTE != 0)
        for wrong, what in (
            (table[:, F_ORIGIN] >= len(image.origins), "an origin that the image has"),
            (remote & (x >= image.cores), "a core that the image has"),
            (send & (chip_stop > image.chips), "chips that the image has"),
            (send & ((row_stop > image.rows) | (col_stop > image.cols)), "cores of the grid"),
        ):
            if wrong.any():
                at = int(np.argmax(wrong))
                raise ImageError(
                    f"expected {what} in instruction {at} of program {index}, got another"
                )


def _check_streams(image: Image, tables: Sequence[Table]) -> None:
    """Programs are different and used, are streams of their units, and share no semaphore."""
    if len(set(image.programs)) != len(image.programs):
        raise ImageError("expected different programs, got one twice")
    used: set[tuple[int, Unit]] = set()
    of_core: dict[int, dict[Unit, int]] = defaultdict(dict)
    for (core, unit), index in image.streams.items():
        _between("the core of a stream", core, 0, image.cores - 1)
        _between("the program of a stream", index, 0, len(tables) - 1)
        used.add((index, unit))
        of_core[core][unit] = index
    missing = set(range(len(tables))) - {index for index, _ in used}
    if missing:
        raise ImageError(f"expected a core that runs program {min(missing)}, got none")
    for index, unit in sorted(used):
        problem = find_stream_problem(tables[index], unit)
        if problem is not None:
            raise ImageError(f"{problem.message}, in instruction {problem.at} of program {index}")
    waited = [_waited(table) for table in tables]
    checked: set[tuple[int, ...]] = set()
    for core, programs in sorted(of_core.items()):
        together = tuple(sorted(programs.values()))
        if together not in checked:
            checked.add(together)
            _check_waits(core, [waited[index] for index in together])


def _waited(table: Table) -> NDArray[np.bool_]:
    """Which semaphores a stream waits for: bool [SEMAPHORES]."""
    found = np.zeros(SEMAPHORES, np.bool_)
    found[table[table[:, F_OP] == Op.WAIT, F_D]] = True
    return found


def _check_waits(core: int, waited: Sequence[NDArray[np.bool_]]) -> None:
    shared = np.stack(waited).sum(axis=0) > 1
    if shared.any():
        semaphore = np.argmax(shared)
        raise ImageError(
            f"expected one stream of core {core} to wait for semaphore {semaphore}, got more"
        )


def _check_regions(image: Image) -> None:
    places: dict[tuple[int, str], list[Region]] = defaultdict(list)
    for region in image.regions:
        _check_region(image, region)
        owner = region.chip if region.core is None else region.core
        places[owner, region.space].append(region)
    for (owner, space), regions in places.items():
        what = f"SRAM of core {owner}" if space == "sram" else f"{space} of chip {owner}"
        spans = [(r.address_bytes, r.address_bytes + r.size_bytes) for r in regions]
        _check_apart(f"regions of {what}", spans)


def _check_region(image: Image, region: Region) -> None:
    start, size = region.address_bytes, region.size_bytes
    _between("the chip of a region", region.chip, 0, image.chips - 1)
    if region.space == "sram":
        if region.core is None:
            raise ImageError("expected a core for a region of SRAM, got none")
        first = region.chip * image.rows * image.cols
        _between("the core of a region", region.core, first, first + image.rows * image.cols - 1)
        memory = image.sram_bytes
    else:
        if region.core is not None:
            raise ImageError(f"expected no core for far memory, got {region.core}")
        if start % LINE_BYTES:
            raise ImageError(f"expected a multiple of {LINE_BYTES} as far address, got {start}")
        memory = _MOST * LINE_BYTES
    _between("the address of a region", start, 0, memory - 1)
    _between("the size of a region", size, 1, memory - start)
    most = 0 if region.kind == "zero" else (1 << 63) - 1
    _between(f"a source offset of {region.kind}", region.source_offset, 0, most)


def _check_apart(what: str, spans: Iterable[tuple[int, int]]) -> None:
    end = 0
    for start, stop in sorted(spans):
        if start < end:
            raise ImageError(f"expected {what} apart, got two that overlap at {start}")
        end = stop


def _check_outputs(image: Image) -> None:
    """Every output lies in its SRAM; logits cover the vocabulary once; one best."""
    for output in image.outputs:
        _check_output(image, output)
    end = 0
    for output in sorted(image.outputs, key=lambda output: output.first_column):
        if output.kind == "logits":
            if output.first_column != end:
                raise ImageError(f"expected logits from column {end} on, got {output.first_column}")
            end += output.columns
    if sum(output.kind == "best" for output in image.outputs) > 1:
        raise ImageError("expected one output of the best token, got more")


def _check_output(image: Image, output: Output) -> None:
    _between("the core of an output", output.core, 0, image.cores - 1)
    if output.kind == "best":
        row_bytes = _BEST_BYTES
        _between("a column of the best token", output.first_column, 0, 0)
        _between("columns of the best token", output.columns, 0, 0)
    else:
        row_bytes = _LOGIT_BYTES * output.columns
        _between("a column of logits", output.first_column, 0, _MOST)
        _between("columns of logits", output.columns, 1, _MOST - output.first_column)
    for what, value in (("address", output.address_bytes), ("row", output.row_stride_bytes)):
        if value % 4:
            raise ImageError(f"expected a multiple of 4 bytes as {what} of an output, got {value}")
    _between("bytes of a row of an output", output.row_stride_bytes, row_bytes, _MOST)
    size = (image.max_logit_rows - 1) * output.row_stride_bytes + row_bytes
    _between("the address of an output", output.address_bytes, 0, image.sram_bytes - size)
