"""Open an artifact: map it, and find damage before anything in it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from infc.artifact.checksums import chunk_count, find_damage, sha256_matches
from infc.artifact.extract import as_file
from infc.artifact.manifest import MANIFEST, Facts, Manifest, MemberRecord, decode
from infc.artifact.members import MappedMembers, damaged, map_members, member_location
from infc.artifact.writer import Form, MemberSource, write_artifact
from infc.diagnostics import Code, UserError

_WEIGHTS = "weights/"
_OF_CONTENT = (Code.ARTIFACT_FORMAT, Code.ARTIFACT_DAMAGED)


class Artifact:
    """An opened artifact; made by `open_artifact`.

    Attributes:
        path: where it lies.
        manifest: what it says about itself.
    """

    def __init__(self, path: Path, manifest: Manifest, members: MappedMembers) -> None:
        self.path = path
        self.manifest = manifest
        self._members = members

    def names(self) -> tuple[str, ...]:
        """The members, sorted; the manifest is not one."""
        return tuple(sorted(self.manifest.members))

    def member(self, name: str) -> memoryview:
        """A member's bytes, read-only, mapped from the file.

        In the single-file form `weights/` start at a page, everything else at 64 bytes.

        Raises UserError ARTIFACT_FORMAT where the artifact has no such member.
        """
        self._record(name)
        return self._members.views[name][:]

    def member_offset(self, name: str) -> int:
        """Where a member starts in its file, in bytes: in `path`, or 0 in `path / name`."""
        self._record(name)
        return self._members.offsets[name]

    def extract(self, name: str) -> Path:
        """A file with a member's bytes, for `dlopen`; it outlives the artifact.

        Good in this process only. Raises UserError as `member` does, and OUTPUT where the file
        cannot be made.
        """
        record = self._record(name)
        return as_file(self._members.views[name], record.sha256)

    def check_length(self) -> None:
        """Refuse to go on with a file that was truncated since it was opened.

        Cheap enough for every call of a program. Raises UserError ARTIFACT_DAMAGED.
        """
        if self._members.shrunk():
            raise UserError(
                Code.ARTIFACT_DAMAGED,
                "the artifact was truncated while it was in use",
                location=str(self.path),
                hint="copy or compile the artifact again, and replace it whole (mv), not in place",
            )

    @contextmanager
    def named(self) -> Iterator[None]:
        """What is found to be wrong with the content inside is said of this artifact: those who
        read it, backends above all, need not know where it lies."""
        try:
            yield
        except UserError as error:
            found = error.diagnostic
            if found.location is not None or found.code not in _OF_CONTENT:
                raise
            raise UserError(
                found.code,
                found.message,
                location=str(self.path),
                notes=found.notes,
                hint=found.hint,
                problems=found.problems,
            ) from error

    def save(self, path: Path | str) -> None:
        """Copy the artifact to another place, in the same form.

        Raises UserError OUTPUT where `path` cannot be written; nothing half-written is left.
        """
        form: Form = "zip" if self.path.is_file() else "dir"
        members: dict[str, MemberSource] = {
            name: partial(_write_view, self._members.views[name]) for name in self.names()
        }
        facts = {name: getattr(self.manifest, name) for name in Facts.model_fields}
        write_artifact(Path(path), Facts(**facts), members, form=form)

    def verify(self) -> None:
        """Compare the sha256 of every member; raises UserError ARTIFACT_DAMAGED naming all bad."""
        records = self.manifest.members
        names = self.names()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            right = pool.map(
                lambda name: sha256_matches(self._members.views[name], records[name]), names
            )
            bad = [name for name, good in zip(names, right, strict=True) if not good]
        if bad:
            raise damaged(self.path, bad)

    def close(self) -> None:
        """Unmap the members, apart from those that somebody still has a view of."""
        self._members.close()

    def __enter__(self) -> Artifact:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _record(self, name: str) -> MemberRecord:
        record = self.manifest.members.get(name)
        if record is None:
            raise UserError(
                Code.ARTIFACT_FORMAT,
                f'the artifact has no member "{name}"',
                location=str(self.path),
                hint="compile the model again with this infc",
            )
        return record


def _write_view(view: memoryview, out: BinaryIO) -> None:
    out.write(view)


def open_artifact(path: Path | str) -> Artifact:
    """Map an artifact and check it: form, version, members, and every byte for damage.

    Programs and all else that is small are compared by sha256; weights by the CRC-32 of their
    chunks, on all cores, at the speed at which they come from memory or disk (`Artifact.verify`
    compares their sha256 too). The file is not to be changed in place while it is open; `infc`
    itself replaces whole files only, which an open artifact does not notice.

    Raises UserError: ARTIFACT_NOT_FOUND, ARTIFACT_FORMAT, ARTIFACT_DAMAGED, ARTIFACT_VERSION.
    """
    path = Path(path)
    members = map_members(path)
    try:
        manifest = decode(bytes(members.views[MANIFEST]), str(path))
        _check_members(path, manifest, members)
    except BaseException:
        members.close()
        raise
    return Artifact(path, manifest, members)


def _check_members(path: Path, manifest: Manifest, members: MappedMembers) -> None:
    views, records = members.views, manifest.members
    for name in sorted(records.keys() - views.keys()):
        raise _member_error(path, name, "it is missing")
    for name in sorted(views.keys() - records.keys() - {MANIFEST}):
        raise _member_error(path, name, "the manifest does not list it")
    for name, record in records.items():
        size = views[name].nbytes
        if size != record.size_bytes:
            raise _member_error(path, name, f"expected {record.size_bytes} bytes, got {size}")
        if len(record.crc32) != chunk_count(size):
            raise _member_error(path, name, "the manifest has not one checksum a chunk")
    bad = find_damage(
        {name: (views[name], record) for name, record in records.items() if _is_weight(name)}
    )
    if bad is None:
        small = (name for name in sorted(records) if not _is_weight(name))
        bad = next((n for n in small if not sha256_matches(views[n], records[n])), None)
    if bad is not None:
        raise damaged(path, [bad])


def _is_weight(name: str) -> bool:
    return name.startswith(_WEIGHTS)


def _member_error(path: Path, name: str, problem: str) -> UserError:
    return UserError(
        Code.ARTIFACT_DAMAGED,
        f"the artifact is damaged: {problem}",
        location=member_location(path, name),
        hint="copy or compile the artifact again",
    )
