"""A file or a folder that appears whole or not at all.

What is written lies beside its final place under a name `.infc-tmp-*`, locked by its writer. When
it is complete and on the disk, one rename puts it in place: whoever opens the final name sees the
old content or the new one, and of two writers the last one wins. An error or an interrupt removes
what was written. A writer that was killed leaves its file; the kernel drops its lock, by which the
next writer to the same folder knows that nobody owns the file, and removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from infc.diagnostics import Code, UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

TEMPORARY_PREFIX: Final = ".infc-tmp-"
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2


def output_error(path: Path, error: OSError) -> UserError:
    """The report that `path` could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return UserError(
        Code.OUTPUT,
        f"cannot write the output: {(error.strerror or str(error)).lower()}",
        location=str(path),
        hint="free some space there or choose another place; nothing was left behind"
        if full
        else None,
    )


class OutputFile(io.FileIO):
    """A new file, unbuffered. A failed write is a UserError naming the output it is for."""

    def __init__(self, path: Path, output: Path) -> None:
        try:
            super().__init__(path, "xb")
        except OSError as error:
            raise output_error(output, error) from error
        self._output = output

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of `data`."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += super().write(view[done:]) or 0
        except OSError as error:
            raise output_error(self._output, error) from error
        return done

    def sync(self) -> None:
        """Have the bytes on the disk."""
        try:
            os.fsync(self.fileno())
        except OSError as error:
            raise output_error(self._output, error) from error


def check_output(path: Path, *, folder: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise UserError where nothing can be put at `path`, before any work is done for it.

    Args:
        path: the output.
        folder: whether it becomes a folder.
        inputs: files and folders that are read for it, and are not to be replaced by it.
    """
    try:
        _check_place(path, folder=folder)
        if any(_replaces(path, source) for source in inputs):
            raise _refusal(path, "it is part of the input", "choose another name")
    except OSError as error:
        raise output_error(path, error) from error


def _check_place(path: Path, *, folder: bool) -> None:
    parent = path.parent
    if not parent.is_dir():
        problem = "its folder does not exist"
        raise _refusal(path, problem, f"create it: mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _refusal(path, "its folder is not writable", "choose another place")
    if path.is_symlink():
        # It would be replaced, not followed.
        raise _refusal(path, "it is a link", f"name the file it leads to: {os.path.realpath(path)}")
    if path.is_dir() and not (folder and (path / "manifest.json").is_file()):
        raise _refusal(path, "it is a folder", "name a file in it")
    if path.exists() and not path.is_dir() and (folder or not path.is_file()):
        raise _refusal(path, "something else has that name", "remove it or choose another name")


def _replaces(path: Path, source: Path) -> bool:
    """Whether writing `path` replaces `source`, or a file of the folder `source`."""
    if not path.exists() or not source.exists():
        return False
    if source.is_dir():
        # An artifact beside a model's files is none of them.
        return path.suffix != ".infc" and path.parent.samefile(source)
    return path.samefile(source)


def _refusal(path: Path, problem: str, hint: str) -> UserError:
    return UserError(
        Code.OUTPUT, f"cannot write the output: {problem}", location=str(path), hint=hint
    )


@contextmanager
def whole_file(path: Path) -> Iterator[OutputFile]:
    """A file to write; at the end of the block it is `path`, or after an error it is gone."""
    check_output(path, folder=False)
    remove_abandoned(path.parent)
    while True:
        temporary = _temporary(path)
        file = OutputFile(temporary, path)
        if _own(file.fileno(), temporary):
            break
        file.close()
    with file:
        try:
            yield file
            file.sync()
            try:
                os.replace(temporary, path)
            except OSError as error:
                raise output_error(path, error) from error
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; at the end of the block it is `path`, or after an error it is gone.

    The files in it must have been synced by whoever wrote them.
    """
    check_output(path, folder=True)
    remove_abandoned(path.parent)
    while True:
        temporary = _temporary(path)
        try:
            temporary.mkdir()
            lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise output_error(path, error) from error
        if _own(lock, temporary):
            break
        os.close(lock)
    try:
        yield temporary
        for folder, _, _ in os.walk(temporary):
            _sync_folder(Path(folder))
        _place_folder(temporary, path)
    finally:
        # What lies there now is an unfinished artifact, or the one that was replaced, or nothing.
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def remove_abandoned(folder: Path) -> None:
    """Remove what writers that are no longer alive left in `folder`."""
    for entry in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):
            handle = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            finally:
                os.close(handle)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name[:40]}-{secrets.token_hex(6)}")


def _own(handle: int, temporary: Path) -> bool:
    """Lock what was just made; False where another writer took it for abandoned meanwhile."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: nobody can take the lock, so nobody removes the file.
        return True
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), temporary.stat())
    return False


def _place_folder(temporary: Path, path: Path) -> None:
    """Put a folder in place, in one step: rename(2) replaces an empty folder only, so an artifact
    that is there already is swapped with the new one."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path))
    while True:
        for flag, other_state in (
            (_RENAME_EXCHANGE, errno.ENOENT),
            (_RENAME_NOREPLACE, errno.EEXIST),
        ):
            if libc.renameat2(*names, flag) == 0:
                _sync_folder(path.parent)
                return
            code = ctypes.get_errno()
            # Another writer may put a folder there, or take it away, between the two attempts.
            if code != other_state:
                raise output_error(path, OSError(code, os.strerror(code)))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Some file systems cannot sync a folder: the rename is still whole, only not yet durable.
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
