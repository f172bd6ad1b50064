"""Whether what was compiled fits the memory of its target, and of this machine, before it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from infc.artifact import Artifact
from infc.cost.programs import ProgramBytes
from infc.diagnostics import Code, UserError
from infc.driver.loading import members_of
from infc.ir.kv_storage import position_bytes
from infc.memory.fit import FitReport, fit_report
from infc.target.schema import Memory, Target

HINT = "lower --max-context or --max-batch, or choose a target with more memory"


def check_plan_fits(
    weight_bytes: int,
    plans: Mapping[str, Any],
    signature: Mapping[str, Any],
    target: Target,
    trained_context: int | None = None,
) -> None:
    """Refuse a planned module that does not fit its target's memory.

    A size that is only assumed refuses nothing: `artifact_fit` still says what would fit.

    Args:
        weight_bytes, plans, signature: the module's `infc.weight_bytes`, `infc.report` and
            `infc.signature`.
        target: what it is planned for.
        trained_context: of the model, where that is known.

    Raises:
        UserError: INF2101 with the context or the batch that does fit.
    """
    memory = _largest(target)
    capacity = memory.size_bytes * memory.count
    fit = _fit(weight_bytes, plans, signature, target, capacity, trained_context)
    if not fit.fits and not _is_assumed(target, memory):
        raise UserError(
            Code.PLAN, fit.message, location=f"{memory.name} of {target.name}", hint=HINT
        )


def artifact_fit(artifact: Artifact, phase: str = "decode") -> FitReport | None:
    """What fits the memory of the target of a phase; None where nothing is planned for it."""
    target = Target.model_validate(artifact.manifest.targets[phase])
    memory = _largest(target)
    return _artifact_fit(artifact, phase, target, memory.size_bytes * memory.count)


def check_host(artifact: Artifact) -> None:
    """Refuse an artifact whose memory this machine does not have.

    A device with a memory of its own says so itself, when the programs are loaded.

    Raises:
        UserError: INF2101 with what does fit.
    """
    try:
        capacity = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return  # this system does not tell
    target = Target.model_validate(artifact.manifest.targets["decode"])
    if target.kind == "gpu":
        return
    fit = _artifact_fit(artifact, "decode", target, capacity)
    if fit is not None and not fit.fits:
        raise UserError(
            Code.PLAN,
            fit.message,
            location=f"{artifact.path} on this machine",
            hint="compile it with a smaller --max-context or --max-batch",
        )


def _artifact_fit(
    artifact: Artifact, phase: str, target: Target, capacity_bytes: int
) -> FitReport | None:
    manifest = artifact.manifest
    if phase not in manifest.memory_plan:
        return None
    split = manifest.targets["prefill"] != manifest.targets["decode"]
    # Where the phases have machines of their own, each holds its own program's buffers alone.
    plans = {phase: manifest.memory_plan[phase]} if split else manifest.memory_plan
    _, weights = members_of(phase, split=split)
    limits = ("max_context", "vocab_size", "max_logit_rows")
    return _fit(
        manifest.members[weights].size_bytes,
        plans,
        {**manifest.kv_layout, **{name: manifest.programs[phase][name] for name in limits}},
        target,
        capacity_bytes,
        manifest.model.context_length,
    )


def _fit(
    weight_bytes: int,
    plans: Mapping[str, Any],
    layout: Mapping[str, Any],
    target: Target,
    capacity_bytes: int,
    trained_context: int | None,
) -> FitReport:
    held = program_bytes(weight_bytes, plans, layout, target)
    return fit_report(
        capacity_bytes,
        held.weights,
        held.position,
        held.sequence,
        layout["max_context"],
        layout["max_slots"],
        trained_context,
        held.activations,
    )


def program_bytes(
    weight_bytes: int, plans: Mapping[str, Any], layout: Mapping[str, Any], target: Target
) -> ProgramBytes:
    """The parts: weights, and of each program its arena, one per-thread part for each unit, and the
    logits that it may be asked for.

    A step's rows are the sequences; a prompt's call has as many whatever their number.
    """
    units = max(unit.count for unit in target.compute)
    rows = dict(zip(("prefill", "decode"), layout["max_logit_rows"], strict=True))
    arenas = {
        phase: plan["plans"]["main"]["arena"]["height_bytes"]
        + units * plan["plans"]["main"]["thread"]["height_bytes"]
        + 4 * rows[phase] * layout["vocab_size"]
        for phase, plan in plans.items()
    }
    position = layout["kv_heads"] * position_bytes(layout["kv_dtype"], layout["head_dim"])
    layers = zip(layout["capacity"], layout["windows"], strict=True)
    rings = [held for held, window in layers if window and held < layout["max_context"]]
    return ProgramBytes(
        weights=weight_bytes,
        prefill=arenas.get("prefill", 0),
        decode=arenas.get("decode", 0) / layout["max_slots"],
        position=position * (len(layout["capacity"]) - len(rings)),
        sequence=position * sum(rings),
    )


def _largest(target: Target) -> Memory:
    """The memory that holds weights and caches: the one with most bytes."""
    return max(target.memories, key=lambda memory: memory.size_bytes * memory.count)


def _is_assumed(target: Target, memory: Memory) -> bool:
    path = f"memories.{memory.name}"
    return any(key in target.assumptions for key in (f"{path}.size_bytes", path, "memories", ""))
