"""Files of a model, read so that a file which changes or shrinks is an error and never a crash.

Reading goes through `pread` into fresh memory, not through a mapping: touching a mapped page of a
file that was cut short kills the process (SIGBUS), and no check beforehand can rule that out. For
packing, which reads each byte once, a copy costs what the page faults of a mapping cost.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, UserError


class ModelFile:
    """One regular file, held open. Its identity at opening is checked at each later access.

    Attributes:
        path: as given.
        size_bytes: at opening.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path`; raises INF1001 where it is no readable regular file."""
        self.path = path
        try:
            # A FIFO would block in open and a device has no size: look before opening.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise UserError(
                    Code.MODEL_NOT_FOUND,
                    "expected a regular file, got another kind",
                    location=str(path),
                )
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise not_found(path, error) from None
        self._opened = os.fstat(self._descriptor)
        self.size_bytes = self._opened.st_size

    def read(self, offset: int, size_bytes: int) -> NDArray[np.uint8]:
        """`size_bytes` bytes from `offset`, read-only, 1-D.

        The range must lie in the file as it was opened. Raises INF1009 where the file is no longer
        what it was.
        """
        self._check_unchanged()
        out = np.empty(size_bytes, np.uint8)
        view = out.data
        done = 0
        while done < size_bytes:
            try:
                got = os.preadv(self._descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise UserError(
                    Code.MODEL_CHANGED,
                    f"the file cannot be read any more: {error.strerror}",
                    location=str(self.path),
                ) from None
            if got == 0:
                raise self._changed("it is shorter")
            done += got
        out.flags.writeable = False
        return out

    def read_all(self) -> bytes:
        """The whole file."""
        return self.read(0, self.size_bytes).tobytes()

    def digest(self) -> str:
        """sha256 of the whole file, hexadecimal."""
        self._check_unchanged()
        with open(os.dup(self._descriptor), "rb") as stream:
            stream.seek(0)  # `read` never moves the position; another digest does
            result = hashlib.file_digest(stream, "sha256").hexdigest()
        self._check_unchanged()
        return result

    def close(self) -> None:
        """Closes the file; harmless the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check_unchanged(self) -> None:
        if self._descriptor < 0:
            raise UserError(Code.MODEL_CHANGED, "the model was closed", location=str(self.path))
        try:
            now = os.stat(self.path)
        except OSError:
            raise self._changed("it is gone") from None
        before = self._opened
        if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            raise self._changed("it was replaced")
        if now.st_size != before.st_size:
            raise self._changed(f"it had {before.st_size} bytes and has {now.st_size}")
        if now.st_mtime_ns != before.st_mtime_ns:
            raise self._changed("it was written to")

    def _changed(self, how: str) -> UserError:
        return UserError(
            Code.MODEL_CHANGED,
            f"the file changed while it was in use: {how}",
            location=str(self.path),
            hint="wait until the file is complete, then start again",
        )


def not_found(path: Path, error: OSError | ValueError) -> UserError:
    """The error for a path that cannot be opened."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(
        Code.MODEL_NOT_FOUND, f"cannot open the model: {why.lower()}", location=str(path)
    )


def combined_digest(files: dict[str, ModelFile]) -> str:
    """sha256 over several files: over the lines `name`, NUL, sha256 of the file, sorted by name."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{files[name].digest()}\n".encode())
    return total.hexdigest()
