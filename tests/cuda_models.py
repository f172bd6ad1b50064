"""Models compiled for GPUs and run by the lockstep interpreter, through the runtime itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cuda_device import FACTS, QueuedDevice

import infc
from infc.artifact import open_artifact
from infc.backends.cuda.lockstep.launch import launch as run_in_lockstep
from infc.backends.cuda.lockstep.reading import Program, read
from infc.backends.cuda.runtime.driver import KernelLaunch, Member
from infc.driver.loading import load_runnable
from infc.ir.attributes import get
from infc.ir.context import context, parse
from infc.ir.mlir import ir
from infc.target.runnable import Runnable

CAPABILITIES = {"sm_80": (8, 0), "sm_90a": (9, 0), "sm_100a": (10, 0)}
MULTIPROCESSORS = 3
_MACHINE_LEVEL = "*-machine-lower-programs.mlir"


class LockstepDevice(QueuedDevice):
    """A device that executes the kernels of a dump of the machine level.

    Args:
        programs: the modules of kernels, by name.
        seed: of the order in which warps and blocks run; None is the fastest one.
    """

    def __init__(self, programs: dict[str, Program], arch: str, *, seed: int | None = None) -> None:
        facts = replace(FACTS, capability=CAPABILITIES[arch], multiprocessors=MULTIPROCESSORS)
        super().__init__(facts=facts)
        self.programs = programs
        self.seed = seed

    def load_module(self, name: str, member: Member) -> Any:
        assert member(f"{name}.ptx") is not None
        return self.programs[name]

    def function(self, module: Any, name: str, shared_bytes: int) -> Any:
        return (module, name)

    def _run(self, launch: KernelLaunch) -> None:
        program, name = launch.function
        self.launched.append(name)
        run_in_lockstep(
            program,
            name,
            grid=launch.grid,
            threads=launch.threads,
            arguments=launch.arguments,
            device=self.memory,
            shared_bytes=launch.shared_bytes,
            seed=self.seed,
        )


def read_module(dump: Path) -> ir.Module:
    """The machine level of a folder of dumps, in the current context."""
    return parse(machine_level(dump))


def machine_level(dump: Path) -> str:
    """The text of the machine level of a folder of dumps."""
    (path,) = dump.glob(_MACHINE_LEVEL)
    return path.read_text()


@lru_cache(maxsize=4)
def read_programs(text: str) -> dict[str, Program]:
    """The kernels of a dump of the machine level."""
    with context():
        module = parse(text)
        return {
            get(op, "sym_name"): read(op)
            for op in module.body.operations
            if op.operation.name == "gpu.module"
        }


def compile_model(model: Path, folder: Path, arch: str, **options: object) -> Path:
    """The artifact of a model with its dumps beside it: what a `LockstepDevice` runs. PTX, which it
    does not read, is not made."""
    path = folder / f"{arch}.infc"
    asked: dict[str, Any] = {"max_context": 64, "chunk": 16, "max_batch": 3, **options}
    programs = {"prefill": "", "decode": ""}
    with (
        patch("infc.backends.cuda.emission.to_ptx", lambda module, arch: programs),
        patch("infc.backends.cuda.emission.assemble", lambda ptx, arch: None),
    ):
        infc.compile(model, target=f"cuda:{arch}", output=path, dump=folder / arch, **asked)
    return path


@contextmanager
def on_lockstep(
    artifact: Path, *, seed: int | None = None, separate: bool = False
) -> Iterator[tuple[Runnable, LockstepDevice]]:
    """The loaded programs of an artifact of `compile_model`, and the device that runs them.

    With `separate` the decode program is a sequence of kernels even where there is a persistent
    one."""
    opened = open_artifact(artifact)
    if separate:
        opened.manifest.programs["decode"]["phases"]["decode"]["persistent"] = None
    arch = opened.manifest.programs["decode"]["arch"]
    device = LockstepDevice(read_programs(machine_level(artifact.with_suffix(""))), arch, seed=seed)
    with patch("infc.backends.cuda.runtime.probe.open_device", lambda: device):
        runnable = load_runnable(opened)
    yield runnable, device
    runnable.close()
