"""The targets of the CPU backend: classes of x86-64 and AArch64 processors, and this host.

Target files are in `targets/`. `cpu` is the file of the host's class with what was probed put in:
instruction sets, cores, sizes of caches and memory; and what `infc calibrate` measured on it.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources import files

from infc.backends.cpu.calibration import with_calibration
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.codegen.linking import linker_problem
from infc.backends.cpu.probe import Host, probe_host
from infc.diagnostics import Code, UserError
from infc.target.loader import load_target
from infc.target.schema import Memory, Target, TargetStatus

HOST = "cpu"
_CLASSES = {
    "x86_64": ("x86-64-amx", "x86-64-v4", "x86-64-v3"),
    "aarch64": ("aarch64-v8.6", "aarch64"),
}
"""Target files by architecture, the most capable first."""
_SLOW_BF16 = 80e9
"""A `vdpbf16ps` every other cycle at 2.5 GHz: what Intel cores do (own measurement on Emerald
Rapids: 90 GFLOP/s; AMD's do one a cycle or more), so products in float32 are faster there."""
_AVX512 = frozenset({"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl", "avx512vnni"})
"""Without VNNI AVX-512 is not worth its lower clock here, so such a host counts as x86-64-v3."""
_LEAST = {
    "x86_64": "compile for cpu:x86-64-v3 and run on a processor with AVX2",
    "aarch64": "compile for cpu:aarch64 and run on a processor with dot products (Armv8.2-A)",
}
"""What a host that cannot run programs can still do."""


def cpu_targets() -> list[TargetStatus]:
    """All targets, this host first."""
    host = probe_host()
    problem = _unusable(host)
    remark = problem or f"this host: {host.cpu}, {host.cores} cores"
    found = [TargetStatus(HOST, "cpu", "cpu", problem is None, remark)]
    return found + [
        _class_status(name, machine, host) for machine, names in _CLASSES.items() for name in names
    ]


def _class_status(name: str, machine: str, host: Host) -> TargetStatus:
    target = _class_target(name)
    problem = linker_problem(machine)
    if problem is not None:
        return TargetStatus(target.name, "cpu", "cpu", False, problem)
    missing = missing_features(target, host.features)
    lacks = f"lacks {', '.join(missing)}" if machine == host.machine else f"is {host.machine}"
    remark = f"compiles here, runs elsewhere: this host {lacks}" if missing else ""
    return TargetStatus(target.name, "cpu", "cpu", True, remark)


def resolve_cpu(spec: str) -> Target:
    """The target of that name: `cpu` (this host, as calibrated), `cpu:x86-64-v3`, ...

    Raises:
        UserError: no CPU target has that name (INF3001), or it is this host and cannot be compiled
            for (INF3004), or its profile is wrong (INF3006).
    """
    if spec == HOST:
        host = probe_host()
        return with_calibration(host_target(host), host)
    classes = [name for names in _CLASSES.values() for name in names]
    for name in classes:
        if spec == f"cpu:{name}":
            return _class_target(name)
    known = ", ".join([HOST, *(f"cpu:{name}" for name in classes)])
    raise UserError(
        Code.TARGET_UNKNOWN, f"no CPU target is named {spec!r}", hint=f"known ones: {known}"
    )


def host_target(host: Host) -> Target:
    """The target file of the host's class with the probed facts put in.

    Raises:
        UserError: the host lacks what even the lesser class needs (INF3004).
    """
    problem = _unusable(host)
    if problem is not None:
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            f"infc cannot run programs on this host: {problem}",
            hint=_LEAST.get(host.machine),
        )
    base = _class_target(_class_of(host))
    wide, tiles = host.features >= _AVX512, bool(base.backend_facts.get("amx"))
    features = {
        feature
        for feature in host.features
        if (wide or not feature.startswith("avx512")) and (tiles or not feature.startswith("amx"))
    }
    cores = base.unit("cores").model_dump() | {"count": host.cores}
    bf16_dot = not features.isdisjoint({"avx512bf16", "bf16"})
    if not bf16_dot:
        cores["operations_per_s"].pop("bf16", None)
        cores["lanes"].pop("bf16", None)
    elif "avx512bf16" in features and not tiles and not host.cpu.startswith("znver"):
        cores["operations_per_s"]["bf16"] = _SLOW_BF16
    memories = _memories(base, host)
    probed = "probed: Linux /proc and /sys, LLVM's processor name and features"
    sizes = [f"memories.{memory.name}.size_bytes" for memory in memories]
    probed_paths = ["features", "backend_facts", "compute.cores.count", *sizes]
    facts = {
        **base.backend_facts,
        "cpu": host.cpu,
        "disabled": ",".join(sorted(host.disabled | (host.features - features))),
        "dot_i8": _dot_i8(features),
        "bf16_dot": bf16_dot,
    }
    return Target.model_validate(
        base.model_dump()
        | {
            "name": HOST,
            "memories": memories,
            "compute": (cores,),
            "features": features,
            "backend_facts": facts,
            "sources": {**base.sources, **dict.fromkeys(probed_paths, probed)},
            "assumptions": {k: v for k, v in base.assumptions.items() if k not in sizes},
        }
    )


def isa_of(target: Target) -> Isa:
    """What the code generator needs to know of a target.

    Raises:
        UserError: the target file lacks a fact or gives it the wrong type.
    """
    facts = target.backend_facts
    try:
        disabled = [f"-{name}" for name in str(facts.get("disabled", "")).split(",") if name]
        # Off first: an enabled feature brings along those it builds on.
        features = disabled + [f"+{name}" for name in target.features]
        return Isa(
            triple=str(facts["triple"]),
            cpu=str(facts["cpu"]),
            features=",".join(features),
            vector_bytes=int(facts["vector_bytes"]),
            vector_registers=int(facts["vector_registers"]),
            dot_i8=str(facts["dot_i8"]),
            bf16_dot=bool(facts["bf16_dot"]),
            amx=bool(facts.get("amx", False)),
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            Code.TARGET_FORMAT,
            f"target {target.name!r} lacks a usable fact for the code generator: {error}",
            location="backend_facts",
        ) from error


def missing_features(target: Target, host_features: Collection[str]) -> list[str]:
    """Features the target's programs use and the host lacks (LLVM's names), sorted.

    `host_features` are those of `probe.host_features()`, read when the programs are loaded.
    """
    return sorted(set(target.features) - set(host_features))


def _class_target(name: str) -> Target:
    return load_target(files("infc.backends.cpu") / "targets" / f"{name}.toml")


def _unusable(host: Host) -> str | None:
    if host.machine not in _CLASSES:
        return f"the code generator emits x86-64 and AArch64 only, and this host is {host.machine}"
    missing = missing_features(_class_target(_CLASSES[host.machine][-1]), host.features)
    return f"the processor lacks {', '.join(missing)}" if missing else None


def _class_of(host: Host) -> str:
    """The class of a usable host."""
    *better, least = _CLASSES[host.machine]
    for name in better:
        wanted = _AVX512 if name == "x86-64-v4" else _class_target(name).features
        if host.features >= frozenset(wanted):
            return name
    return least


def _dot_i8(features: Collection[str]) -> str:
    known = {"avx512vnni": "avx512-vnni", "avxvnni": "avx-vnni", "avx2": "avx2"}
    known |= {"i8mm": "neon-i8mm", "dotprod": "neon-dot"}
    return next(path for feature, path in known.items() if feature in features)


def _memories(base: Target, host: Host) -> tuple[Memory, ...]:
    """The memories of the class with the host's sizes; levels the host lacks are left out."""
    if not host.caches:
        return base.memories
    caches = {f"l{cache.level}": cache for cache in host.caches}
    kept: list[Memory] = []
    for memory in base.memories:
        if memory.name == "dram":
            size = host.memory_bytes or memory.size_bytes
            kept.append(memory.model_copy(update={"size_bytes": size}))
        elif memory.name in caches:
            cache = caches[memory.name]
            kept.append(
                memory.model_copy(update={"size_bytes": cache.size_bytes, "count": cache.count})
            )
    # Outermost first: each level feeds the next one that is there.
    fed = [*(memory.name for memory in kept[1:]), "cores"]
    return tuple(
        memory.model_copy(update={"feeds": (name,)}) for memory, name in zip(kept, fed, strict=True)
    )
