"""What is in an artifact: each kernel's work beside its bound, and the map of its memory.

The kernels are those of greedy generation: others run only where a call asks for logits or for the
top tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from infc.artifact import Artifact, open_artifact
from infc.cost.estimate import Estimate
from infc.cost.roofline import Work, estimate_work
from infc.diagnostics import Code, UserError
from infc.driver.explanation_rows import (
    BufferRow,
    CacheRow,
    CodeRow,
    Explanation,
    FrameRow,
    KernelRow,
    ProgramRow,
    StagingRow,
    TransferRow,
)
from infc.driver.loading import available_threads, load_runnable, load_tokenizer
from infc.driver.prediction import (
    Turns,
    greedy_kernels,
    kernel_seconds,
    predict_call,
    program_seconds,
    scaled_work,
)
from infc.driver.sample_text import sample_text
from infc.driver.sections import check_sections
from infc.driver.simulated_rows import (
    SimulatedProgram,
    layout_rows,
    local_memory_rows,
    op_rows,
)
from infc.driver.simulation import simulated_side
from infc.ir.kv_storage import position_bytes
from infc.target.backend import CodeReportingBackend
from infc.target.discovery import load_backend
from infc.target.runnable import Call, OutputKind, Phase
from infc.target.schema import ComputeUnit, Memory, Target

REPEATS = 3
"""Calls of which the one that takes the middle time is shown."""


@dataclass(frozen=True)
class Measured:
    """Times of one call of each phase; empty mappings where they are not known.

    Attributes:
        simulated: of the phases whose machine is simulated.
        notes: on how programs run here.
    """

    threads: int | None = None
    programs: Mapping[str, float] = field(default_factory=dict)
    kernels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    simulated: Mapping[str, SimulatedProgram] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def explain(path: str | Path, *, threads: int | None = None) -> Explanation:
    """Read an artifact's own report and, where this host can run it, measure its kernels.

    Raises:
        UserError: the artifact cannot be opened.
    """
    artifact = open_artifact(path)
    check_sections(artifact)
    manifest = artifact.manifest
    unmeasured = ""
    try:
        measured = measure_kernels(artifact, threads=threads)
    except UserError as error:
        if error.code is not Code.ARTIFACT_HOST:
            raise
        measured, unmeasured = Measured(threads), error.diagnostic.message
    programs: list[ProgramRow] = []
    kernels: list[KernelRow] = []
    frames: list[FrameRow] = []
    buffers: list[BufferRow] = []
    transfers: list[TransferRow] = []
    staging: list[StagingRow] = []
    code: list[CodeRow] = []
    for phase in ("prefill", "decode"):
        program, rows = _explain_program(artifact, phase, measured)
        programs.append(program)
        kernels += rows
        code += _code(artifact, phase)
        for function, plan in _memory_plan(artifact, phase).get("plans", {}).items():
            frames += _frames(phase, function, plan)
            buffers += _buffers(phase, function, plan)
            transfers += _transfers(phase, function, plan)
            if "staging" in plan:
                staging.append(StagingRow(program=phase, **plan["staging"]))
        if phase in measured.simulated:
            more_frames, more_buffers = local_memory_rows(phase, measured.simulated[phase].plans)
            frames += more_frames
            buffers += more_buffers
    return Explanation(
        manifest.model.name,
        manifest.digest,
        manifest.toolchain.get("infc", "unknown"),
        {name: record.size_bytes for name, record in manifest.members.items()},
        measured.threads,
        _cache(manifest.kv_layout),
        tuple(programs),
        tuple(kernels),
        tuple(frames),
        tuple(buffers),
        tuple(transfers),
        tuple(staging),
        op_rows(measured.simulated),
        layout_rows(measured.simulated),
        tuple(code),
        unmeasured,
        (*program_notes(artifact), *measured.notes),
    )


def _code(artifact: Artifact, phase: str) -> list[CodeRow]:
    """What the functions of a program take of a device, where its backend says so."""
    backend = load_backend(artifact.manifest.targets[phase]["backend"])
    if not isinstance(backend, CodeReportingBackend):
        return []
    with artifact.named():
        uses = backend.code_use(artifact.manifest.programs[phase], phase)
    return [CodeRow(phase, **asdict(use)) for use in uses]


def program_notes(artifact: Artifact) -> tuple[str, ...]:
    """What the backends say of the code of an artifact, each sentence once."""
    found: dict[str, None] = {}
    for phase in ("prefill", "decode"):
        backend = load_backend(artifact.manifest.targets[phase]["backend"])
        if isinstance(backend, CodeReportingBackend):
            with artifact.named():
                notes = backend.code_notes(artifact.manifest.programs[phase], phase)
            found |= dict.fromkeys(notes)
    return tuple(found)


def _cache(layout: Mapping[str, Any]) -> CacheRow:
    position = layout["kv_heads"] * position_bytes(layout["kv_dtype"], layout["head_dim"])
    slots = int(layout["max_slots"])
    return CacheRow(layout["kv_dtype"], slots, slots * sum(layout["capacity"]) * position)


def _explain_program(
    artifact: Artifact, phase: str, measured: Measured
) -> tuple[ProgramRow, list[KernelRow]]:
    manifest = artifact.manifest
    target = Target.from_json(json.dumps(manifest.targets[phase]))
    tokens = _expected_prompt(artifact) if phase == "prefill" else 1
    kernels, greedy = [], greedy_kernels(artifact, phase)
    bandwidth: dict[str, float] = {}
    rates: dict[str, float] = {}
    turn = Turns(1, tokens, _expected_prompt(artifact) + (phase == "decode"))
    for kernel in greedy:
        launches = int(kernel["launches"])
        work = scaled_work(kernel, phase, 1, tokens)
        estimate = kernel_seconds(kernel, phase, [turn], target, measured.threads).scale(launches)
        for name in work.bytes:
            bandwidth[name] = _peak(target, Work(bytes={name: 1.0}), measured.threads)
        for name in work.operations:
            rates[name] = _peak(target, Work(operations={name: 1.0}), measured.threads)
        in_memory = launches * _peak_seconds(bandwidth, work.bytes)
        in_units = launches * _peak_seconds(rates, work.operations)
        floor = max(in_memory, in_units)
        seconds = measured.kernels.get(phase, {}).get(kernel["kernel"])
        kernels.append(
            KernelRow(
                program=phase,
                kernel=kernel["kernel"],
                location=kernel["location"],
                launches=launches,
                bytes=sum(work.bytes.values()) * launches,
                operations=sum(work.operations.values()) * launches,
                bound=estimate.bound,
                bound_kind=_bound_kind(target, estimate.bound),
                memory_peak_seconds=in_memory,
                compute_peak_seconds=in_units,
                floor_seconds=floor,
                predicted_seconds=estimate.mid,
                measured_seconds=seconds,
                floor_reached=floor / seconds if seconds else None,
            )
        )
    whole = (
        program_seconds(greedy, phase, [turn], target, measured.threads)
        if kernels
        else _whole_call(artifact, phase, tokens, target)
    )
    limits: Mapping[str, Any] = manifest.programs[phase]
    simulated = measured.simulated.get(phase)
    row = ProgramRow(
        program=phase,
        target=target.name,
        tokens=tokens,
        max_tokens=limits["max_tokens"][0 if phase == "prefill" else 1],
        max_context=limits["max_context"],
        max_slots=limits["max_slots"],
        bandwidth_bytes_per_s=bandwidth,
        operations_per_s=rates,
        predicted_seconds=None if whole is None else whole.mid,
        predicted_seconds_low=None if whole is None else whole.low,
        predicted_seconds_high=None if whole is None else whole.high,
        measured_seconds=measured.programs.get(phase),
        clock="simulated" if simulated else "wall",
        utilisation=simulated.call.utilisation if simulated else {},
    )
    return row, kernels


def _whole_call(artifact: Artifact, phase: str, tokens: int, target: Target) -> Estimate | None:
    """A call of programs whose time is no sum over kernels; None where it is not known."""
    turn = Turns(1, tokens, _expected_prompt(artifact) + (phase == "decode"))
    call = predict_call(artifact, phase, turn, target, wanted=True)
    return None if call is None else call.time


def _peak(target: Target, work: Work, threads: int | None) -> float:
    """How often a second the machine can do some work on one resource, with nothing lost."""
    parts: list[Memory | ComputeUnit] = [*target.memories, *target.compute]
    estimate = estimate_work(work, target, threads)
    part = next(part for part in parts if part.name == estimate.bound)
    return float(round(1.0 / (estimate.by_resource[part.name] * part.efficiency.mid)))


def _peak_seconds(peaks: Mapping[str, float], work: Mapping[str, float]) -> float:
    return sum(amount / peaks[name] for name, amount in work.items())


def _bound_kind(target: Target, bound: str) -> Literal["memory", "compute", "overhead"]:
    if bound in {memory.name for memory in target.memories}:
        return "memory"
    return "compute" if bound in {unit.name for unit in target.compute} else "overhead"


def _frames(phase: str, function: str, plan: Mapping[str, Any]) -> list[FrameRow]:
    return [
        FrameRow(phase, function, space, frame["height_bytes"], frame["lower_bound_bytes"])
        for space, frame in plan.items()
        if space not in ("buffers", "transfers", "staging")
    ]


def _buffers(phase: str, function: str, plan: Mapping[str, Any]) -> list[BufferRow]:
    return [
        BufferRow(
            phase,
            function,
            buffer["space"],
            buffer["buffer"],
            buffer["type"],
            buffer["offset_bytes"],
            buffer["size_bytes"],
            buffer["first"],
            buffer["last"],
        )
        for buffer in plan["buffers"]
    ]


def _transfers(phase: str, function: str, plan: Mapping[str, Any]) -> list[TransferRow]:
    return [
        TransferRow(
            phase,
            function,
            transfer["space"],
            transfer["buffer"],
            transfer["load"],
            transfer["offset_bytes"],
            transfer["size_bytes"],
            transfer["first"],
            transfer["last"],
        )
        for transfer in plan.get("transfers", ())
    ]


def _expected_prompt(artifact: Artifact) -> int:
    """Tokens of the prefill call that the figures are for: those the artifact was compiled for."""
    options: Mapping[str, Any] = artifact.manifest.options
    limits: Mapping[str, Any] = artifact.manifest.programs["prefill"]
    prompt = min(int(options["prompt"]), int(limits["max_tokens"][0]))
    return max(1, min(prompt, int(limits["max_context"]) - REPEATS))


def _memory_plan(artifact: Artifact, phase: str) -> Mapping[str, Any]:
    plans: Mapping[str, Any] = artifact.manifest.memory_plan
    section: Mapping[str, Any] = plans.get(phase, {})
    return section


def measure_kernels(artifact: Artifact, *, threads: int | None = None) -> Measured:
    """Seconds of each kernel by phase and name, all its launches of a call together.

    A prefill call of the expected prompt, then decode calls behind it, of a text's tokens, for what
    the best token needs of a vocabulary head depends on them; of `REPEATS` calls the one in the
    middle, so that its kernels add up to it. A simulated machine is asked instead. Without figures
    where the backend cannot tell.
    """
    runnable = load_runnable(artifact)
    threads = threads or available_threads(runnable)
    runnable.limits.check_threads(threads)
    kv = runnable.new_kv()
    prompt = _expected_prompt(artifact)
    last = int(artifact.manifest.programs["decode"]["max_context"]) - 1
    tokenizer = load_tokenizer(artifact)
    text = None if tokenizer is None else np.array(tokenizer.encode(sample_text()), np.int32)
    programs: dict[str, float] = {}
    kernels: dict[str, dict[str, float]] = {}
    simulated: dict[str, SimulatedProgram] = {}
    for phase in Phase:
        name = phase.name.lower()
        side = simulated_side(runnable, phase)
        if side is not None:
            call = trace_call(phase, prompt, min(prompt, last))
            simulated[name] = SimulatedProgram.of(side, phase, call)
            programs[name] = simulated[name].call.seconds
            continue
        order = _memory_plan(artifact, name).get("order", [])
        calls = [trace_call(phase, prompt, min(prompt + run, last), text) for run in range(REPEATS)]
        runs = [runnable.trace(phase, call, kv, threads=threads) for call in calls]
        known = sorted((run for run in runs if run is not None), key=sum)
        if not known:
            continue
        middle = known[len(known) // 2]
        programs[name] = sum(middle)
        by_kernel = kernels.setdefault(name, {})
        for kernel, seconds in zip(order, middle, strict=True):
            by_kernel[kernel] = by_kernel.get(kernel, 0.0) + seconds
    return Measured(threads, programs, kernels, simulated, tuple(getattr(runnable, "notes", ())))


def trace_call(
    phase: Phase, prompt: int, position: int, text: NDArray[np.int32] | None = None
) -> Call:
    """A prefill call of a prompt, or a decode call at a position.

    Args:
        text: tokens, which follow each other again and again; without any all are the first one.
    """
    start, count = (0, prompt) if phase is Phase.PREFILL else (position, 1)
    return Call(
        tokens=np.resize(np.zeros(1, np.int32) if text is None else text, start + count)[start:],
        row_offsets=np.array([0, count], np.int32),
        slots=np.zeros(1, np.int32),
        positions=np.arange(start, start + count, dtype=np.int32),
        logit_rows=np.array([count - 1], np.int32),
        output=OutputKind.ARGMAX,
    )
