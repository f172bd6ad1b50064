"""The two forms of an artifact, opened: the members' names and their mapped bytes."""

from __future__ import annotations

import mmap
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from infc.artifact import zip_format
from infc.artifact.manifest import MANIFEST, MAX_MANIFEST_BYTES, MAX_MEMBERS, is_member_name
from infc.diagnostics import Code, UserError


def member_location(path: Path, name: str) -> str:
    """How an error names a member."""
    return f'{path}: member "{name}"'


@dataclass(frozen=True)
class MappedMembers:
    """All files of an artifact, the manifest among them.

    Attributes:
        views: name -> its bytes, read-only and mapped.
        offsets: name -> where they start in the file they are in, in bytes.
        maps: what holds the mappings.
    """

    views: dict[str, memoryview]
    offsets: dict[str, int]
    maps: list[mmap.mmap]

    def shrunk(self) -> bool:
        """Whether a file is shorter now than what is mapped of it: touching that would be fatal."""
        return any(mapped.size() < len(mapped) for mapped in self.maps)

    def close(self) -> None:
        """Unmap; what somebody still has a view of is unmapped when that view is gone."""
        self.views.clear()
        for mapped in self.maps:
            with suppress(BufferError):
                mapped.close()
        self.maps.clear()


def map_members(path: Path) -> MappedMembers:
    """Map the artifact at `path`, in whichever form it is. The contents are not looked at.

    Raises UserError: ARTIFACT_NOT_FOUND, ARTIFACT_FORMAT (it is no artifact), ARTIFACT_DAMAGED.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            members = _map_folder(path)
        elif stat.S_ISREG(mode):
            members = _map_zip(path)
        else:
            _not_an_artifact(path, "it is neither a file nor a folder")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            Code.ARTIFACT_NOT_FOUND, "there is no artifact here", location=str(path)
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            Code.ARTIFACT_NOT_FOUND,
            f"the artifact cannot be opened: {(reason or 'unknown reason').lower()}",
            location=str(path),
        ) from error
    if members.views[MANIFEST].nbytes > MAX_MANIFEST_BYTES:
        _not_an_artifact(path, f"its manifest.json is larger than {MAX_MANIFEST_BYTES >> 20} MiB")
    return members


def _map_file(path: Path) -> tuple[memoryview, list[mmap.mmap]]:
    """The bytes of a regular file. It must not shrink while it is mapped."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(handle).st_size == 0:
            return memoryview(b""), []
        mapped = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        return memoryview(mapped), [mapped]
    finally:
        os.close(handle)


def _map_zip(path: Path) -> MappedMembers:
    data, maps = _map_file(path)
    if bytes(data[:4]) != zip_format.LOCAL:
        is_model = bytes(data[:4]) == b"GGUF"
        _not_an_artifact(
            path,
            "it is a model in the GGUF format" if is_model else "it is no zip file",
            f"compile it first: infc compile {path} -o model.infc" if is_model else None,
        )
    try:
        entries = zip_format.read_directory(data)
    except zip_format.ZipError as error:
        raise UserError(
            Code.ARTIFACT_DAMAGED,
            f"the artifact is damaged or was not written by infc: {error.reason}",
            location=str(path) if error.entry is None else member_location(path, error.entry),
            hint="copy or compile the artifact again",
        ) from None
    views = {
        name: data[entry.data_offset : entry.data_offset + entry.size_bytes]
        for name, entry in entries.items()
    }
    if MANIFEST not in views:
        _not_an_artifact(path, "it has no manifest.json")
    if zlib.crc32(views[MANIFEST]) != entries[MANIFEST].crc32:
        raise damaged(path, [MANIFEST])
    offsets = {name: entry.data_offset for name, entry in entries.items()}
    return MappedMembers(views, offsets, maps)


def _map_folder(path: Path) -> MappedMembers:
    members = MappedMembers({}, {}, [])
    try:
        for name in _names_below(path, path):
            view, maps = _map_file(path / name)
            members.views[name] = view
            members.offsets[name] = 0
            members.maps.extend(maps)
            if len(members.views) > MAX_MEMBERS:
                _not_an_artifact(path, f"it has more than {MAX_MEMBERS} members")
        if MANIFEST not in members.views:
            _not_an_artifact(path, "it has no manifest.json")
    except BaseException:
        members.close()
        raise
    return members


def _names_below(folder: Path, root: Path) -> Iterator[str]:
    """The files of a folder; what file managers hide in it (`.*`) is not part of it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = Path(entry.path).relative_to(root).as_posix()
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                _not_an_artifact(root, f'"{name}" is a symbolic link')
            if entry.is_dir():
                yield from _names_below(Path(entry.path), root)
            elif not entry.is_file() or not (name == MANIFEST or is_member_name(name)):
                _not_an_artifact(root, f"{name!r} cannot be a member")
            else:
                yield name


def damaged(path: Path, names: list[str]) -> UserError:
    """The report that these members are not what was written."""
    return UserError(
        Code.ARTIFACT_DAMAGED,
        "the artifact is damaged: the checksum does not match",
        location=", ".join(member_location(path, name) for name in names),
        hint="copy or compile the artifact again",
    )


def _not_an_artifact(path: Path, reason: str, hint: str | None = None) -> NoReturn:
    raise UserError(
        Code.ARTIFACT_FORMAT,
        f"expected an infc artifact: {reason}",
        location=str(path),
        hint=hint,
    )
