"""The targets of the CUDA backend: classes of devices by compute capability, and this host's.

Target files are in `targets/`. `cuda` is the file of the device's class with what the driver says
put in: how many multiprocessors, sizes of memories.
"""

from __future__ import annotations

from importlib.resources import files

from infc.backends.cuda.codegen.assembler import find_assembler
from infc.backends.cuda.runtime.driver import DeviceFacts
from infc.backends.cuda.runtime.images import architecture_for
from infc.backends.cuda.runtime.probe import probe_device, remedy
from infc.diagnostics import Code, UserError
from infc.target.loader import load_target
from infc.target.schema import Target, TargetStatus

HOST = "cuda"
CLASSES = ("sm_80", "sm_90a", "sm_100a")
"""Target files, which are also the architectures that code is made for."""


def cuda_targets() -> list[TargetStatus]:
    """All targets, this host's device first."""
    device = probe_device()
    problem = device if isinstance(device, str) else unusable(device)
    found = problem or f"this host: {device}"
    runs = None if problem is not None or isinstance(device, str) else class_of(device)
    lacks = "" if find_assembler() else "to PTX alone: ptxas was not found"

    def remark(runs_here: bool) -> str:
        elsewhere = "" if runs_here else "compiles here, runs elsewhere"
        return "; ".join(part for part in (elsewhere, lacks) if part)

    return [
        TargetStatus(HOST, "cuda", "gpu", problem is None, found),
        *(
            TargetStatus(f"cuda:{name}", "cuda", "gpu", True, remark(name == runs))
            for name in CLASSES
        ),
    ]


def resolve_cuda(spec: str) -> Target:
    """The target of that name: `cuda` (this host's device), `cuda:sm_90a`, ...

    Raises:
        UserError: no CUDA target has that name (INF3001), or it is this host's device and there is
            none that can be compiled for (INF3004).
    """
    if spec == HOST:
        return _host_target()
    for name in CLASSES:
        if spec == f"cuda:{name}":
            return _class_target(name)
    known = ", ".join([HOST, *(f"cuda:{name}" for name in CLASSES)])
    raise UserError(
        Code.TARGET_UNKNOWN, f"no CUDA target is named {spec!r}", hint=f"known ones: {known}"
    )


def arch_of(target: Target) -> str:
    """The architecture that code is made for: `sm_90a`, ..."""
    return str(target.backend_facts["arch"])


def shared_bytes_of(target: Target) -> int:
    """Bytes of shared memory that a block may have."""
    return int(target.backend_facts["shared_bytes"])


def sm_count(target: Target) -> int:
    """Multiprocessors of the device."""
    return target.unit("sm").count


def class_of(device: DeviceFacts) -> str | None:
    """The class of a device; None where no code is made for it."""
    return architecture_for(device.capability)


def unusable(device: DeviceFacts) -> str | None:
    """Why no code is made for a device, or None."""
    if class_of(device) is None:
        major, minor = device.capability
        return f"{device.name} has compute capability {major}.{minor}: expected 8.0 or later"
    return None


def _host_target() -> Target:
    device = probe_device()
    problem = device if isinstance(device, str) else unusable(device)
    if problem is not None or isinstance(device, str):
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            f"there is no device to compile for: {problem}",
            hint="; ".join(
                part
                for part in (
                    f"name a class of devices: {', '.join(f'cuda:{name}' for name in CLASSES)}",
                    remedy(str(problem)),
                )
                if part
            ),
        )
    base = _class_target(str(class_of(device)))
    (unit,) = base.compute
    sizes = {"hbm": device.memory_bytes, "l2": device.l2_bytes, "smem": device.shared_bytes_per_sm}
    changes: dict[str, dict[str, float]] = {name: {"size_bytes": sizes[name]} for name in sizes}
    changes["smem"]["count"] = device.multiprocessors
    if device.memory_bytes_per_s:
        changes["hbm"]["bandwidth_bytes_per_s"] = device.memory_bytes_per_s
    memories = tuple(
        memory.model_copy(update=changes.get(memory.name, {})) for memory in base.memories
    )
    probed = "probed: the CUDA driver"
    paths = [
        *(f"memories.{name}.{key}" for name, found in changes.items() for key in found),
        "compute.sm.count",
        "backend_facts.shared_bytes",
    ]
    facts = {**base.backend_facts, "shared_bytes": device.shared_bytes_per_block}
    return Target.model_validate(
        base.model_dump()
        | {
            "name": HOST,
            "memories": memories,
            "compute": (unit.model_copy(update={"count": device.multiprocessors}),),
            "backend_facts": facts,
            "sources": {**base.sources, **dict.fromkeys(paths, probed)},
        }
    )


def _class_target(name: str) -> Target:
    return load_target(files("infc.backends.cuda") / "targets" / f"{name}.toml")
