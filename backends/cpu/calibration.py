"""What was measured on this host, kept in the user's data folder, a file for each machine.

The file is `$XDG_DATA_HOME/infc/machines/<key>.toml` (`~/.local/share` without the variable). The
key is made of the processor's model and features and the cores this process may use, so that a home
shared between machines has one file for each.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from infc.backends.cpu.probe import Host
from infc.cost.machine_profile import (
    MachineProfile,
    calibrated_target,
    dump_machine_profile,
    parse_machine_profile,
)
from infc.diagnostics import Code, UserError
from infc.target.schema import Target

FORMAT = 4
"""Raised when constants change their meaning: profiles of before are then not found."""


def profile_path(host: Host) -> Path:
    """Where the profile of a machine is kept, whether or not there is one."""
    facts = [FORMAT, host.machine, host.cpu, sorted(host.features), host.cores, _caches(host)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    root = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(root) / "infc" / "machines" / f"{key[:16]}.toml"


def read_profile(path: Path) -> MachineProfile | None:
    """The profile in a file; None where there is none.

    Raises:
        UserError: it cannot be read, or contradicts the classes of kernels (INF3006).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            Code.PROFILE_FORMAT, f"cannot read the profile: {error}", location=str(path)
        ) from error
    return parse_machine_profile(text, location=str(path))


def write_profile(path: Path, profile: MachineProfile) -> None:
    """Put a profile in place of the one before, whole or not at all.

    Raises:
        UserError: the folder cannot be written to (INF4006).
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".profile-", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(dump_machine_profile(profile))
        Path(temporary).replace(path)
    except OSError as error:
        raise UserError(
            Code.OUTPUT,
            f"the profile could not be written: {error}",
            location=str(path),
            hint="set XDG_DATA_HOME to a folder of your own",
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def with_calibration(target: Target, host: Host) -> Target:
    """The host's target with what was measured on it, if anything was."""
    profile = read_profile(profile_path(host))
    return target if profile is None else calibrated_target(target, profile)


def _caches(host: Host) -> Sequence[Sequence[int]]:
    return [[cache.level, cache.size_bytes, cache.count] for cache in host.caches]
