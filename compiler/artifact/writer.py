"""Write an artifact: stream the members, sum them on the way, and state them in the manifest."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from infc.artifact import zip_format
from infc.artifact.checksums import Summer
from infc.artifact.manifest import (
    MANIFEST,
    Facts,
    Manifest,
    MemberRecord,
    complete,
    encode,
    is_member_name,
)
from infc.artifact.output import OutputFile, whole_file, whole_folder
from infc.diagnostics import InternalError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Form = Literal["zip", "dir"]
MemberSource = bytes | Path | Callable[[BinaryIO], None]
"""A member's bytes, or the file that holds them, or a function that writes them to a stream."""

_PIECE_BYTES = 2 << 20
"""The largest page of x86-64, and of AArch64 with the smallest ones of 4 KiB."""


def write_artifact(
    path: Path,
    facts: Facts,
    members: Mapping[str, MemberSource],
    *,
    form: Form = "zip",
    check: Callable[[Path], None] | None = None,
) -> str:
    """Write the artifact `path` and return its digest (see `Manifest.digest`).

    Args:
        path: the file (`zip`) or folder (`dir`) to make or to replace.
        facts: what the manifest states.
        members: name -> content. Names are relative paths: `programs/...`, `weights/...`,
            `tokenizer/...`, `report/...`. Nothing is held in memory that a source does not hold.
        check: called with the whole artifact before it takes its place; an error keeps it out.

    The same facts and members give the same bytes. Raises UserError OUTPUT where `path` cannot be
    written; whatever is raised, also by a source, nothing is left behind.
    """
    for name in members:
        if not is_member_name(name):
            raise InternalError(f"an artifact cannot have a member called {name!r}")
    write = _write_zip if form == "zip" else _write_folder
    manifest = write(path, facts, members, check or (lambda whole: None))
    return manifest.digest


def _write_zip(
    path: Path,
    facts: Facts,
    members: Mapping[str, MemberSource],
    check: Callable[[Path], None],
) -> Manifest:
    records: dict[str, MemberRecord] = {}
    entries: list[zip_format.Entry] = []
    with whole_file(path) as file:

        def add(name: str, source: MemberSource) -> MemberRecord:
            offset = file.tell()
            data_offset = offset + file.write(zip_format.local_header(name, offset, 0, 0))
            sums = _copy(source, file)
            end = file.tell()
            file.seek(offset)
            file.write(zip_format.local_header(name, offset, sums.size_bytes, sums.crc32))
            file.seek(end)
            entries.append(zip_format.Entry(name, offset, data_offset, sums.size_bytes, sums.crc32))
            return sums.record()

        for name in sorted(members):
            records[name] = add(name, members[name])
        # Last, for it states the sums of the others.
        manifest = complete(facts, records)
        add(MANIFEST, encode(manifest))
        file.write(zip_format.directory(entries, file.tell()))
        check(Path(file.name))
    return manifest


def _write_folder(
    path: Path,
    facts: Facts,
    members: Mapping[str, MemberSource],
    check: Callable[[Path], None],
) -> Manifest:
    with whole_folder(path) as folder:

        def add(name: str, source: MemberSource) -> MemberRecord:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with OutputFile(place, path) as file:
                sums = _copy(source, file)
                file.sync()
            return sums.record()

        manifest = complete(facts, {name: add(name, members[name]) for name in sorted(members)})
        add(MANIFEST, encode(manifest))
        check(folder)
    return manifest


def _copy(source: MemberSource, file: OutputFile) -> Summer:
    """Write one member's bytes and return their sums."""
    with _Sink(file) as sink:
        if isinstance(source, bytes):
            sink.write(source)
        elif isinstance(source, Path):
            with source.open("rb") as content:
                while block := content.read(_PIECE_BYTES):
                    sink.write(block)
        else:
            source(cast("BinaryIO", sink))
        sink.finish()
    return sink.sums


class _Sink(io.BufferedIOBase):
    """Sums what passes through to the file; cannot be read or rewound.

    Writes end where a piece of the file does. The page cache then keeps the file in pages as large
    as a piece (Linux's large folios: XFS from 5.18 on, ext4 from 6.16 on), which are mapped whole
    when the file is loaded. The first touch of 260 MB took half of the time so, and decoding, which
    reads all weights once a token, up to 4% less (Zen 3 under a hypervisor, in turns).
    """

    def __init__(self, file: OutputFile) -> None:
        self.sums = Summer()
        self._file = file
        self._held = bytearray()
        self._room = _PIECE_BYTES - file.tell() % _PIECE_BYTES

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        self.sums.update(view)
        done = 0
        while len(view) - done >= self._room:
            if self._held:
                end = done + self._room
                self._held += view[done:end]
                self.finish()
            else:
                end = len(view) - (len(view) - done - self._room) % _PIECE_BYTES
                self._file.write(view[done:end])
            done, self._room = end, _PIECE_BYTES
        self._held += view[done:]
        self._room -= len(view) - done
        return len(view)

    def finish(self) -> None:
        """Write what is held back. Closing does not: an error may have left something here."""
        self._file.write(self._held)
        self._held.clear()
