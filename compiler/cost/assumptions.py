"""What an estimate takes for granted: figures nobody published, and simplifications."""

from __future__ import annotations

from collections.abc import Iterator

from infc.cost.bounds import Machinery
from infc.cost.file_weights import FileWeights
from infc.cost.kernels.queries import DTYPE_BYTES
from infc.cost.programs import Programs
from infc.cost.transformer import ACTIVATION, Split
from infc.cost.workload import Workload
from infc.target.schema import Target


def assumptions_of(
    split: Split,
    workload: Workload,
    machinery: Machinery,
    weights: FileWeights | None,
    *,
    equal_lengths: bool,
) -> tuple[str, ...]:
    """One sentence each, the target's figures first; `weights` are those of a file."""
    programs = machinery.programs
    return (
        *_figures(machinery.target, split),
        *(_constants(machinery) if programs is None else _programs(machinery, programs, workload)),
        *([] if programs is not None else _weights(split, weights, machinery.target)),
        *_workload(workload, machinery, equal_lengths=equal_lengths),
    )


def _figures(target: Target, split: Split) -> Iterator[str]:
    """Assumed figures that a deployment reads, and those that are missing."""
    read = [f"memories.{target.holding_memory().name}", "launch_ns"]
    read += [f"compute.{unit.name}" for unit in target.compute]
    links = [target.link("chips")] if split.devices > 1 else []
    links += [target.link("machines")] if split.devices > target.count else []
    read += [f"links.{link.name}" for link in links if link is not None]
    read += ["power_watts", "price_usd_per_hour"]
    for path, reason in target.assumptions.items():
        if path == "" or any(path == part or path.startswith(f"{part}.") for part in read):
            yield f"{target.name}: {path}: {reason}" if path else f"{target.name}: {reason}"
    if split.tensor > target.count:
        yield (
            f"{target.name}: collectives among {split.tensor} devices run as within one machine "
            f"of {target.count}"
        )


def _constants(machinery: Machinery) -> Iterator[str]:
    """Where the constants of kernels and of the engine were measured."""
    target, profile, engine = machinery.target, machinery.profile, machinery.engine
    if profile is None and target.kernels:
        source = target.source_of("kernels") or "measured"
        yield f"kernels are infc's own on {target.name}, with the constants of {source}"
        yield "a prompt is one call, and each token multiplies the whole vocabulary head"
    elif profile is None:
        yield f"no kernel was measured on {target.name}: efficiencies are those of its target file"
    elif profile.target != target.name:
        yield (
            f"kernels reach the same shares of {target.name}'s figures as were measured on "
            f"{profile.target}"
        )
    if engine is None:
        apart = "" if profile is None and target.kernels else ", each launched by itself"
        yield f"no serving engine: the kernels' times alone{apart}"
        return
    yield f"the engine's own time is that of {engine.name} ({engine.versions}) on {engine.target}"


def _programs(machinery: Machinery, programs: Programs, workload: Workload) -> Iterator[str]:
    """What the times of whole programs lean on."""
    target = machinery.target
    yield (
        f"the programs are those that infc compile makes of this file for {target.name}: weights "
        f"in the file's types, a prompt in calls of up to {programs.chunk} tokens"
    )
    if target.kernels:
        source = target.source_of("kernels") or "measured"
        yield f"the times of their kernels have the constants of {source}"
    else:
        yield f"no kernel was measured on {target.name}: efficiencies are those of its target file"
    if workload.at_once > 1:
        yield "prompts are read one after the other"


def _weights(split: Split, weights: FileWeights | None, target: Target) -> Iterator[str]:
    """What weights take and what multiplies them."""
    if weights is None:
        if DTYPE_BYTES[split.dtype] < DTYPE_BYTES[ACTIVATION]:
            yield f"embedding, head, norms and activations stay in {ACTIVATION}"
        return
    yield f"weights take the bytes of the file, in {', '.join(weights.types)}"
    head = f", that with the head ({weights.head_type}) in {split.head_dtype}"
    yield (
        f"products run in {split.dtype}{head if split.head_dtype != split.dtype else ''}: what is "
        f"nearest to the weights of what {target.name} computes in"
    )
    yield f"norms and activations stay in {ACTIVATION}"


def _workload(workload: Workload, machinery: Machinery, *, equal_lengths: bool) -> Iterator[str]:
    """Simplifications of the requests."""
    if workload.concurrency > 1:
        lengths = "all requests are equally long" if equal_lengths else "lengths vary"
        yield f"users send the next request when they have the last answer; {lengths}"
    if machinery.target.power_basis == "chip" and machinery.target.power_watts is not None:
        yield "power is that of the chips at full load the whole time"
