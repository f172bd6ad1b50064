"""The image of a program: how the streams of all cores are written, and strictly read.

The file (`programs/<phase>.dfx` in an artifact; little-endian; `docs/dataflow.md` has the tables):

    header        HEADER below; sizes of the sections follow from its counts: there are no offsets
    instructions  64 bytes each, every different one once, in the order of first use
    starts        u32 [programs + 1]: where each program starts among the entries
    entries       u32 each: number of an instruction
    streams       u32 [cores, 4 units]: number of a program, or ABSENT
    origins       u32 each: where its text ends; then the texts, UTF-8
    regions       40 bytes each
    outputs       32 bytes each

Each section is filled up to a multiple of 8 bytes with zeros. Thousands of cores that do the same
with other weights share their programs, and programs that differ in a few instructions share the
others: an instruction of a program takes 4 bytes.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.image_rules import check_image
from infc.backends.dataflow.isa import INSTRUCTION_BYTES, Unit, decode_table, decode_tables
from infc.backends.dataflow.program import (
    Image,
    ImageError,
    Output,
    OutputKind,
    Region,
    RegionKind,
    Space,
    StreamKey,
    share_streams,
)
from infc.diagnostics import Code, InternalError, UserError

__all__ = [
    "Image",
    "Output",
    "OutputKind",
    "Region",
    "RegionKind",
    "Space",
    "StreamKey",
    "read_image",
    "share_streams",
    "write_image",
]

MAGIC: Final = b"\x89DFX\r\n\x1a\n"
"""Like PNG's: a transfer as text changes it."""
VERSION: Final = 1
ABSENT: Final = 0xFFFFFFFF
_COUNTS = (
    "version", "chips", "rows", "cols", "sram_bytes", "max_tokens", "max_logit_rows",
    "instructions", "programs", "entries", "origins", "origin_bytes", "regions", "outputs",
)  # fmt: skip
_LIMITS = _COUNTS[1:7]
HEADER: Final = np.dtype(
    [
        ("magic", "V8"),
        *((field, "<u4") for field in _COUNTS),
        ("size_bytes", "<u8"),
        ("sha256", "V32"),
    ]
)
"""`sha256` is that of the whole file with zeros in its place."""
REGION: Final = np.dtype(
    [
        ("core", "<u4"),
        ("chip", "<u4"),
        ("space", "u1"),
        ("kind", "u1"),
        ("zero", "V6"),
        *((field, "<u8") for field in ("address_bytes", "size_bytes", "source_offset")),
    ]
)
OUTPUT: Final = np.dtype(
    [
        ("kind", "u1"),
        ("zero", "V3"),
        ("core", "<u4"),
        ("address_bytes", "<u8"),
        *((field, "<u4") for field in ("row_stride_bytes", "first_column", "columns", "end")),
    ]
)
_SPACES: tuple[Space, ...] = get_args(Space)
_REGION_KINDS: tuple[RegionKind, ...] = get_args(RegionKind)
_OUTPUT_KINDS: tuple[OutputKind, ...] = get_args(OutputKind)
_SHA256 = slice(HEADER.itemsize - 32, HEADER.itemsize)
_HINT = "compile the model again; a program of another version of infc cannot be read"


def write_image(image: Image) -> bytes:
    """The file. Raises InternalError where the image breaks a rule that reading checks."""
    try:
        tables = decode_tables(image.programs)
        check_image(image, tables)
    except (ImageError, UserError) as error:
        raise InternalError(f"an image cannot be written: {error}") from None
    pool, entries = _pooled(image.programs)
    texts = [text.encode() for text in image.origins]
    streams = np.full((image.cores, len(Unit)), ABSENT, "<u4")
    for (core, unit), index in image.streams.items():
        streams[core, unit] = index
    sections = [
        pool.tobytes(),
        np.cumsum([0, *map(len, tables)]).astype("<u4").tobytes(),
        entries.astype("<u4").tobytes(),
        streams.tobytes(),
        np.cumsum([len(text) for text in texts]).astype("<u4").tobytes() + b"".join(texts),
        _region_records(image.regions),
        _output_records(image.outputs),
    ]
    body = b"".join(section + bytes(-len(section) % 8) for section in sections)
    header = np.zeros(1, HEADER)
    header["magic"] = np.void(MAGIC)
    header["version"] = VERSION
    for field in _LIMITS:
        header[field] = getattr(image, field)
    header["instructions"], header["programs"] = len(pool), len(tables)
    header["entries"] = len(entries)
    header["origins"], header["origin_bytes"] = len(texts), sum(map(len, texts))
    header["regions"], header["outputs"] = len(image.regions), len(image.outputs)
    header["size_bytes"] = HEADER.itemsize + len(body)
    header["sha256"] = np.void(hashlib.sha256(header.tobytes() + body).digest())
    return header.tobytes() + body


def read_image(data: bytes, name: str) -> Image:
    """The image of a file that messages call `name`. Nothing in it is believed.

    Raises UserError PROGRAM_FORMAT where any part of it is not what `write_image` makes.
    """
    try:
        return _read(data, name)
    except ImageError as error:
        raise UserError(
            Code.PROGRAM_FORMAT, f"the program cannot be read: {error}", location=name, hint=_HINT
        ) from None


def _read(data: bytes, name: str) -> Image:
    header = _read_header(data)
    cores = header["chips"] * header["rows"] * header["cols"]
    sizes = {
        "instructions": header["instructions"] * INSTRUCTION_BYTES,
        "starts": 4 * (header["programs"] + 1),
        "entries": 4 * header["entries"],
        "streams": 4 * cores * len(Unit),
        "origins": 4 * header["origins"] + header["origin_bytes"],
        "regions": header["regions"] * REGION.itemsize,
        "outputs": header["outputs"] * OUTPUT.itemsize,
    }
    sections = _cut(data, sizes)
    starts, entries, streams = (
        np.frombuffer(sections[part], "<u4") for part in ("starts", "entries", "streams")
    )
    pool = decode_table(sections["instructions"], f"{name}: table of instructions")
    records = np.frombuffer(sections["instructions"], f"V{INSTRUCTION_BYTES}")
    spans = [entries[start:stop] for start, stop in _program_spans(starts, entries, len(pool))]
    streams = streams.reshape(cores, len(Unit))
    image = Image(
        **{field: header[field] for field in _LIMITS},
        streams={
            (core, Unit(unit)): int(streams[core, unit])
            for core, unit in np.argwhere(streams != ABSENT).tolist()
        },
        programs=[records[span].tobytes() for span in spans],
        origins=_read_origins(sections["origins"], header["origins"]),
        regions=_read_regions(sections["regions"]),
        outputs=_read_outputs(sections["outputs"]),
    )
    check_image(image, [pool[span] for span in spans])
    return image


def _read_header(data: bytes) -> dict[str, int]:
    """The counts, once magic number, version, size and checksum are right."""
    if len(data) < HEADER.itemsize or data[: len(MAGIC)] != MAGIC:
        raise ImageError("expected a file that begins as a program does, got another one")
    record = np.frombuffer(data, HEADER, 1)[0]
    header = {field: int(record[field]) for field in (*_COUNTS, "size_bytes")}
    if header["version"] != VERSION:
        raise ImageError(f"expected version {VERSION}, got {header['version']}")
    if header["size_bytes"] != len(data):
        raise ImageError(f"expected {header['size_bytes']} bytes, got {len(data)}")
    blank = data[: _SHA256.start] + bytes(32)
    digest = hashlib.sha256(blank)
    digest.update(memoryview(data)[_SHA256.stop :])
    if digest.digest() != data[_SHA256]:
        raise ImageError("it is damaged: the checksum does not match")
    return header


def _cut(data: bytes, sizes: dict[str, int]) -> dict[str, bytes]:
    """The sections; what they are filled up with must be zeros, and nothing may follow."""
    needed = HEADER.itemsize + sum(size + -size % 8 for size in sizes.values())
    if needed != len(data):
        raise ImageError(f"expected {needed} bytes by the counts of the header, got {len(data)}")
    sections: dict[str, bytes] = {}
    at = HEADER.itemsize
    for part, size in sizes.items():
        sections[part] = data[at : at + size]
        at += size
        if any(data[at : at + -size % 8]):
            raise ImageError(f"expected zeros behind the section of {part}, got others")
        at += -size % 8
    return sections


def _pooled(programs: list[bytes]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """The different instructions in the order of first use, and all as numbers of them."""
    records = np.frombuffer(b"".join(programs), f"V{INSTRUCTION_BYTES}")
    numbers: dict[bytes, int] = {}
    entries = [numbers.setdefault(record, len(numbers)) for record in map(bytes, records)]
    pool = np.frombuffer(b"".join(numbers), records.dtype)
    return pool, np.array(entries, np.int64)


def _program_spans(
    starts: NDArray[np.uint32], entries: NDArray[np.uint32], instructions: int
) -> list[tuple[int, int]]:
    """First entry of each program and the one behind its last."""
    bounds = starts.astype(np.int64)
    if bounds[0] != 0 or bounds[-1] != len(entries) or (np.diff(bounds) < 1).any():
        raise ImageError(f"expected programs in order that take all {len(entries)} entries")
    # In order of first use each entry is at most one more than the largest before it.
    largest = np.maximum.accumulate(np.concatenate(([-1], entries.astype(np.int64))))
    if largest[-1] != instructions - 1 or (np.diff(largest) > 1).any():
        raise ImageError(f"expected all {instructions} instructions in the order of their use")
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def _read_origins(section: bytes, count: int) -> list[str]:
    ends = np.frombuffer(section, "<u4", count).tolist()
    texts = section[4 * count :]
    if sorted(ends) != ends or (ends[-1] if ends else 0) != len(texts):
        raise ImageError(f"expected texts of origins in order that take all {len(texts)} bytes")
    try:
        return [texts[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
    except UnicodeDecodeError:
        raise ImageError("expected UTF-8 as text of an origin, got other bytes") from None


def _region_records(regions: list[Region]) -> bytes:
    records = np.zeros(len(regions), REGION)
    records["core"] = [ABSENT if region.core is None else region.core for region in regions]
    records["space"] = [_SPACES.index(region.space) for region in regions]
    records["kind"] = [_REGION_KINDS.index(region.kind) for region in regions]
    for field in ("chip", "address_bytes", "size_bytes", "source_offset"):
        records[field] = [getattr(region, field) for region in regions]
    return records.tobytes()


def _read_regions(section: bytes) -> list[Region]:
    records = np.frombuffer(section, REGION)
    _need("a memory of a region", records["space"], len(_SPACES))
    _need("a kind of region", records["kind"], len(_REGION_KINDS))
    _need_zeros("a region", records["zero"])
    return [
        Region(
            core=None if core == ABSENT else core,
            chip=chip,
            space=_SPACES[space],
            address_bytes=address,
            size_bytes=size,
            kind=_REGION_KINDS[kind],
            source_offset=offset,
        )
        for core, chip, space, kind, _, address, size, offset in records.tolist()
    ]


def _output_records(outputs: list[Output]) -> bytes:
    records = np.zeros(len(outputs), OUTPUT)
    records["kind"] = [_OUTPUT_KINDS.index(output.kind) for output in outputs]
    for field in ("core", "address_bytes", "row_stride_bytes", "first_column", "columns"):
        records[field] = [getattr(output, field) for output in outputs]
    return records.tobytes()


def _read_outputs(section: bytes) -> list[Output]:
    records = np.frombuffer(section, OUTPUT)
    _need("a kind of output", records["kind"], len(_OUTPUT_KINDS))
    _need("the end of an output", records["end"], 1)
    _need_zeros("an output", records["zero"])
    return [
        Output(_OUTPUT_KINDS[kind], core, address, stride, first, columns)
        for kind, _, core, address, stride, first, columns, _ in records.tolist()
    ]


def _need(what: str, values: NDArray[Any], count: int) -> None:
    if (values >= count).any():
        raise ImageError(f"expected {what} of 0 to {count - 1}, got {values.max()}")


def _need_zeros(what: str, values: NDArray[Any]) -> None:
    if any(values.tobytes()):
        raise ImageError(f"expected zeros in the unused bytes of {what}, got others")
