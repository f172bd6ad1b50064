"""The program of a whole machine as data: streams of all cores, and what the host must know.

`image` writes and reads it, `image_rules` says what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from infc.backends.dataflow.operations import Unit

Space: TypeAlias = Literal["sram", "far0", "far1"]
RegionKind: TypeAlias = Literal["weights", "kv", "table", "zero"]
OutputKind: TypeAlias = Literal["logits", "best"]
StreamKey: TypeAlias = tuple[int, Unit]
"""Core and unit."""


@dataclass(frozen=True)
class Region:
    """A range of memory that has contents before the first call.

    Attributes:
        core: whose SRAM; None in far memory.
        chip: the core's, or whose far memory.
        space: `sram`, `far0` or `far1`.
        address_bytes, size_bytes: the range; in far memory the address is a multiple of 64.
        kind: what the host fills it with: `weights` and `table` from the file of packed weights,
            `zero` with zeros; `kv` is of the cache, which the host keeps from call to call.
        source_offset: where the contents start, in bytes; 0 for `zero`.
    """

    core: int | None
    chip: int
    space: Space
    address_bytes: int
    size_bytes: int
    kind: RegionKind
    source_offset: int


@dataclass(frozen=True)
class Output:
    """Where the host finds a result after a call: row i at `address_bytes + i * row_stride_bytes`.

    Attributes:
        kind: `logits`: float32 of some columns of the vocabulary; `best`: a float32, the largest
            logit, and an int32, its token.
        core: in whose SRAM.
        address_bytes, row_stride_bytes: multiples of 4.
        first_column, columns: of the vocabulary; both 0 for `best`.
    """

    kind: OutputKind
    core: int
    address_bytes: int
    row_stride_bytes: int
    first_column: int
    columns: int


@dataclass(frozen=True)
class Image:
    """One phase's program for a whole machine.

    Attributes:
        chips, rows, cols: of the machine; core = (chip * rows + row) * cols + col.
        sram_bytes: of each core.
        max_tokens, max_logit_rows: of a call.
        streams: (core, unit) -> index in `programs`; one that is absent does nothing.
        programs: different binary streams, each used by some core.
        origins: texts that the instructions' field `origin` counts in.
        regions: what the host fills before the first call.
        outputs: where the host finds results.
    """

    chips: int
    rows: int
    cols: int
    sram_bytes: int
    max_tokens: int
    max_logit_rows: int
    streams: dict[StreamKey, int]
    programs: list[bytes]
    origins: list[str]
    regions: list[Region]
    outputs: list[Output]

    @property
    def cores(self) -> int:
        """Of all chips."""
        return self.chips * self.rows * self.cols

    def program(self, core: int, unit: Unit) -> bytes | None:
        """The binary stream of a unit, or None where it does nothing."""
        index = self.streams.get((core, unit))
        return None if index is None else self.programs[index]


class ImageError(ValueError):
    """What is wrong with an image: a sentence."""


def share_streams(
    streams: Mapping[StreamKey, bytes],
) -> tuple[dict[StreamKey, int], list[bytes]]:
    """`streams` and `programs` of an image: equal ones become one, by core and unit in order."""
    programs: dict[bytes, int] = {}
    shared = {key: programs.setdefault(streams[key], len(programs)) for key in sorted(streams)}
    return shared, list(programs)
