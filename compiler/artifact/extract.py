"""A program as a file, for the dynamic linker opens files only.

On Linux the file exists in memory alone. Elsewhere, or where that is forbidden, it lies in a folder
of the user's cache that nobody else can write to. Both are named by their content: one program is
one file, however many artifacts hold it and however often it is loaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from pathlib import Path

from infc.artifact.output import output_error, whole_file
from infc.diagnostics import Code, UserError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL

_open_files: dict[str, int] = {}
"""sha256 -> descriptor. Never closed: the linker knows a library by its path, so were a descriptor
closed, its number used again and opened under the same path, it would hand out the old library."""
_lock = threading.Lock()


def as_file(data: memoryview, sha256: str) -> Path:
    """A path at which this process can open these bytes; it stays valid while the process lives.

    Args:
        sha256: of `data`, already checked.
    """
    with _lock:
        if sha256 not in _open_files:
            handle = _in_memory(data, sha256)
            if handle is None:
                return _in_cache(data, sha256)
            _open_files[sha256] = handle
        return Path(f"/proc/self/fd/{_open_files[sha256]}")


def _in_memory(data: memoryview, sha256: str) -> int | None:
    """A sealed file in memory, or None where the system does not let us have one."""
    try:
        handle = os.memfd_create(f"infc-{sha256[:16]}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):
        return None
    try:
        done = 0
        while done < len(data):
            done += os.write(handle, data[done:])
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, _SEALS)
        reachable = Path(f"/proc/self/fd/{handle}").exists()
    except OSError:
        reachable = False
    if not reachable:
        os.close(handle)
        return None
    return handle


def _in_cache(data: memoryview, sha256: str) -> Path:
    folder = _private_folder()
    path = folder / f"{sha256}.so"
    if path.is_symlink() or not path.is_file() or _sha256(path) != sha256:
        path.unlink(missing_ok=True)
        with whole_file(path) as file:
            file.write(data)
    return path


def _private_folder() -> Path:
    """`infc/programs` in the user's cache, ours and closed to others."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of base directories has relative paths ignored.
    cache = Path(configured) if configured.startswith("/") else Path.home() / ".cache"
    folder = cache / "infc" / "programs"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.lstat()
        if state.st_uid != os.getuid():
            raise UserError(
                Code.OUTPUT,
                f"expected a folder of user {os.getuid()}, got one of user {state.st_uid}",
                location=str(folder),
                hint="set XDG_CACHE_HOME to a folder of your own",
            )
        folder.chmod(0o700)
    except OSError as error:
        raise output_error(folder, error) from error
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
