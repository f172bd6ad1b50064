"""Which form of a module a device takes: machine code, or PTX that its driver translates."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from infc.backends.cuda.runtime.driver import DeviceFacts, Member
from infc.diagnostics import Code, InternalError, UserError

_NOT_FOR_THIS = {
    200: "CUDA_ERROR_INVALID_IMAGE",
    209: "CUDA_ERROR_NO_BINARY_FOR_GPU",
    218: "CUDA_ERROR_INVALID_PTX",
    221: "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
    222: "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    223: "CUDA_ERROR_JIT_COMPILATION_DISABLED",
    225: "CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC",
}
"""Results by which a driver says that it cannot take an image."""

_PTX_NEEDS = {
    (8, 0): (12, 0),
    (8, 1): (12, 1),
    (8, 2): (12, 2),
    (8, 3): (12, 3),
    (8, 4): (12, 4),
    (8, 5): (12, 5),
    (8, 6): (12, 7),
    (8, 7): (12, 8),
    (8, 8): (12, 9),
    (9, 0): (13, 0),
}
"""The CUDA version whose drivers first take a version of PTX (PTX ISA, release notes)."""


def capability_of(arch: str) -> tuple[int, int]:
    """The compute capability of an architecture: (9, 0) of `sm_90a`."""
    digits = arch.removeprefix("sm_").rstrip("af")
    return int(digits[:-1]), int(digits[-1])


def architecture_for(capability: tuple[int, int]) -> str | None:
    """What to compile for where a device has this capability; None where nothing runs on it."""
    exact = {(9, 0): "sm_90a", (10, 0): "sm_100a"}
    return exact.get(capability, "sm_80" if capability >= (8, 0) else None)


def check_architecture(arch: str, facts: DeviceFacts) -> None:
    """Refuse code that can never run on a device.

    Code for `sm_90a` has instructions of that one capability; code for `sm_80` runs on that and
    all later ones, translated by the driver.

    Raises:
        UserError: INF4005.
    """
    wanted = capability_of(arch)
    runs = facts.capability == wanted if arch.endswith("a") else facts.capability >= wanted
    if runs:
        return
    mine = architecture_for(facts.capability)
    which = "of compute capability {}.{}".format(*wanted)
    raise UserError(
        Code.ARTIFACT_HOST,
        f"the artifact is for devices {which}{'' if arch.endswith('a') else ' or later'}, and this "
        f"one is {facts}",
        notes=[f"compiled for cuda:{arch}"],
        hint=f"compile the model again with --target cuda:{mine}"
        if mine
        else "infc makes code for compute capability 8.0 and later",
    )


def load_image(name: str, member: Member, facts: DeviceFacts, load: Callable[[bytes], Any]) -> Any:
    """What `load` makes of `NAME.cubin`, or of `NAME.ptx` where that does not fit the device.

    Args:
        load: raises an InternalError with `number`, the driver's result, and its log as a note.

    Raises:
        UserError: INF4005, the driver takes neither.
    """
    machine_code = member(f"{name}.cubin")
    if machine_code is not None:
        try:
            return load(bytes(machine_code))
        except InternalError as error:
            if getattr(error, "number", None) not in _NOT_FOR_THIS:
                raise
    ptx = member(f"{name}.ptx")
    if ptx is None:
        raise InternalError(f"the programs have neither {name}.ptx nor a fitting {name}.cubin")
    _check_version(bytes(ptx[:4096]), facts)
    try:
        return load(bytes(ptx) + b"\0")
    except InternalError as error:
        if getattr(error, "number", None) not in _NOT_FOR_THIS:
            raise
        log = [line for note in error.__notes__ for line in note.splitlines()[:8] if line]
        raise UserError(
            Code.ARTIFACT_HOST,
            f"the driver of {facts.name}, made for CUDA {_dotted(facts.cuda)}, could not translate "
            f"{name}.ptx: {error.diagnostic.message.partition('failed: ')[2]}",
            notes=log,
            hint="install a newer driver, or compile the model again where an assembler (ptxas, "
            "package nvidia-cuda-nvcc) is found",
        ) from None


def _check_version(head: bytes, facts: DeviceFacts) -> None:
    found = re.search(rb"^\.version (\d+)\.(\d+)", head, re.MULTILINE)
    if found is None:
        raise InternalError("the PTX has no version")
    version = int(found[1]), int(found[2])
    needed = _PTX_NEEDS.get(version, (13, 0))
    if facts.cuda < needed:
        raise UserError(
            Code.ARTIFACT_HOST,
            f"the programs are PTX {_dotted(version)}, which needs a driver for CUDA "
            f"{_dotted(needed)} or later, and this one is for CUDA {_dotted(facts.cuda)}",
            location=str(facts),
            hint="install a newer driver",
        )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
