"""Opens an artifact and makes it run."""

from __future__ import annotations

import json
from pathlib import Path

from infc.artifact import Artifact, open_artifact
from infc.driver.sections import check_sections
from infc.driver.threads import default_threads
from infc.runtime.session import Session
from infc.runtime.split import SplitRunnable
from infc.runtime.tokenizer import Tokenizer
from infc.target.backend import LoadedPrograms
from infc.target.discovery import load_backend
from infc.target.runnable import Runnable
from infc.target.schema import Target


def load(artifact: str | Path | Artifact, *, threads: int | None = None) -> Session:
    """A session on an artifact.

    Args:
        artifact: its path, or an open one.
        threads: threads every call is run by; None takes one for each physical core this process
            may use, within the limits of its control groups.

    Raises:
        UserError: the artifact is damaged, of another version, or not for this host, or this
            machine has not the memory it takes.
    """
    from infc.driver.fit import check_host  # which needs `members_of`

    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    check_sections(opened)
    check_host(opened)
    runnable = _load_programs(opened)
    if threads is None:
        threads = available_threads(runnable)
    return Session(runnable, load_tokenizer(opened), threads=threads, digest=opened.manifest.digest)


def load_tokenizer(artifact: Artifact) -> Tokenizer | None:
    """The tokenizer of an artifact, if it has one."""
    prefix = "tokenizer/"
    files = {
        name.removeprefix(prefix): bytes(artifact.member(name))
        for name in artifact.names()
        if name.startswith(prefix)
    }
    return Tokenizer.from_files(files) if files else None


def load_runnable(artifact: Artifact) -> Runnable:
    """The programs of an artifact, ready to be called.

    Raises:
        UserError: the artifact is of another version, or not for this host.
    """
    check_sections(artifact)
    return _load_programs(artifact)


def _load_programs(artifact: Artifact) -> Runnable:
    targets = artifact.manifest.targets
    decode = _load_phase(artifact, "decode")
    if targets["prefill"] == targets["decode"]:
        return decode
    return SplitRunnable(_load_phase(artifact, "prefill"), decode)


def members_of(phase: str, *, split: bool) -> tuple[str, str]:
    """The folder of a phase's programs and the member that holds its weights.

    Both phases share one set where they run on one target; else prefill has its own.
    """
    own = f"{phase}/" if split and phase == "prefill" else ""
    return f"programs/{own}", f"weights/{own}weights.bin"


def _load_phase(artifact: Artifact, phase: str) -> Runnable:
    programs = emitted_programs(artifact, phase)
    with artifact.named():
        return load_backend(programs.target.backend).load(programs)


def emitted_programs(artifact: Artifact, phase: str) -> LoadedPrograms:
    """What a backend is given to load the programs of a phase."""
    targets = artifact.manifest.targets
    folder, weights = members_of(phase, split=targets["prefill"] != targets["decode"])
    target = Target.from_json(json.dumps(targets[phase]))
    weights_file = artifact.path if artifact.path.is_file() else artifact.path / weights
    return LoadedPrograms(
        member=lambda name: artifact.member(folder + name),
        extract=lambda name: artifact.extract(folder + name),
        weights=artifact.member(weights),
        weights_file=(weights_file, artifact.member_offset(weights)),
        signature=artifact.manifest.programs[phase],
        target=target,
        check=artifact.check_length,
    )


def available_threads(runnable: Runnable) -> int:
    """The threads that suit this machine, as far as the programs allow."""
    return min(default_threads(), runnable.limits.max_threads)
