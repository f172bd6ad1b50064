"""The sections of a manifest, as far as all backends write them alike.

The container carries them without reading them. Whoever reads an artifact here takes them for what
this infc's compiler wrote; `check_sections` makes sure of that once, for artifacts that another
program made, or another infc of the same format.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infc.artifact import Artifact
from infc.cost.kernels.threaded import SIZES, THREADED
from infc.diagnostics import Code, Problem, UserError
from infc.diagnostics.schema import schema_problems
from infc.ir.kv_storage import KV_DTYPES
from infc.ir.version import DIALECT_VERSION
from infc.target.schema import Target
from infc.target.signature import Count, Size, wrong_entries

_PHASES: Final = ("prefill", "decode")
_OF_A_CALL: Final = {"caches"}
"""Sizes that predictions set for each call."""

Amount = Annotated[float, Field(ge=0, le=1e30)]
_OfPhases = Annotated[list[Count], Field(min_length=2, max_length=2)]


class _Section(BaseModel):
    """What must be there; backends may write more."""

    model_config = ConfigDict(strict=True, frozen=True)


class _Options(_Section):
    prompt: Count


class _Cache(_Section):
    kv_dtype: Literal[tuple(KV_DTYPES)]  # type: ignore[valid-type]
    kv_heads: Count
    head_dim: Count
    max_slots: Count
    capacity: Annotated[list[Count], Field(min_length=1)]
    windows: list[Size]


class _Program(_Cache):
    max_tokens: _OfPhases
    max_logit_rows: _OfPhases
    max_context: Count
    max_threads: Count
    max_top_k: Count
    vocab_size: Count


class _Space(_Section):
    height_bytes: Size
    lower_bound_bytes: Size


class _Placed(_Section):
    space: str
    buffer: str
    offset_bytes: Size
    size_bytes: Size
    first: int
    last: int


class _Buffer(_Placed):
    type: str


class _Transfer(_Placed):
    load: str


class _Staging(_Section):
    model_config = ConfigDict(extra="forbid")

    seconds: Amount
    lower_bound_seconds: Amount
    stall_seconds: Amount
    moved_bytes: Size
    scratchpad_bytes: Size


class _Function(_Section):
    """All others are spaces too."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Space] = Field(init=False)

    arena: _Space
    thread: _Space
    buffers: list[_Buffer]
    transfers: list[_Transfer] = []
    staging: _Staging | None = None


class _Plan(_Section):
    plans: dict[str, _Function]
    order: list[str]


class _Ahead(_Section):
    bytes: Count
    bytes_per_s: Count


class _Way(_Section):
    rows: Count
    kernel: str
    height: Count


class _Kernel(_Section):
    kernel: str
    kind: str
    location: str
    launches: Count
    rows: Count
    kernel_class: str = Field("", alias="class")
    barriers: Size
    bytes: dict[str, Amount]
    operations: dict[str, Amount]
    outputs: list[str]
    mapping: dict[str, Any]
    sizes: dict[str, Amount] = {}
    ways: list[_Way] = []
    ahead: _Ahead | None = None


class _Converted(_Section):
    tensors: Count
    numbers: Count
    relative_rms_error: Amount


class _Sections(_Section):
    options: _Options
    programs: dict[Literal["prefill", "decode"], _Program]
    kv_layout: _Cache
    memory_plan: dict[Literal["prefill", "decode"], _Plan]
    cost_estimate: dict[Literal["prefill", "decode"], list[_Kernel]]
    quantization: dict[str, _Converted]


def check_sections(artifact: Artifact) -> None:
    """Raise UserError unless this infc can read what an artifact says of its programs.

    Raises:
        UserError: it is of another dialect (INF4004), or sections of its manifest are not what a
            compiler writes (INF4002).
    """
    manifest = artifact.manifest
    if manifest.dialect_version != DIALECT_VERSION:
        raise UserError(
            Code.ARTIFACT_VERSION,
            f"expected dialect version {DIALECT_VERSION}, got {manifest.dialect_version}",
            location=str(artifact.path),
            hint="compile the model again with this infc",
        )
    names = ("targets", *_Sections.model_fields)
    found = list(_problems({name: getattr(manifest, name) for name in names}))
    if found:
        raise wrong_entries(found, str(artifact.path))


def _problems(manifest: Mapping[str, Any]) -> Iterator[Problem]:
    try:
        _Sections.model_validate({name: manifest[name] for name in _Sections.model_fields})
    except ValidationError as error:
        yield from schema_problems(error)
        return
    for phase in _PHASES:
        target: Target | None = None
        if phase not in manifest["targets"]:
            yield Problem("field required", f"targets.{phase}")
        else:
            try:
                target = Target.from_json(json.dumps(manifest["targets"][phase]))
            except ValidationError as error:
                yield from schema_problems(error, "targets", phase)
        if phase not in manifest["programs"]:
            yield Problem("field required", f"programs.{phase}")
        else:
            yield from _contradictions(manifest, phase, target)


def _contradictions(
    manifest: Mapping[str, Any], phase: str, target: Target | None
) -> Iterator[Problem]:
    """Where sections that can be read do not agree."""
    program = manifest["programs"][phase]
    cache = manifest["kv_layout"]
    if phase == "decode" and any(program.get(name) != value for name, value in cache.items()):
        yield Problem("expected what programs.decode says", "kv_layout")
    if len(program["windows"]) != len(program["capacity"]):
        yield Problem("expected as many windows as capacities", f"programs.{phase}")
    for window, capacity in zip(program["windows"], program["capacity"], strict=False):
        if not window and capacity < program["max_context"]:
            yield Problem("expected a capacity of max_context", f"programs.{phase}")
            break
    planned, kernels = manifest["memory_plan"].get(phase), manifest["cost_estimate"].get(phase)
    if (planned is None) != (kernels is None):
        yield Problem("expected a memory plan where there is a cost estimate", phase)
    if planned is not None and "main" not in planned["plans"]:
        yield Problem("field required", f"memory_plan.{phase}.plans.main")
    if planned is None or kernels is None:
        return
    launches = {kernel["kernel"]: kernel["launches"] for kernel in kernels}
    if Counter(planned["order"]) != launches:
        yield Problem(
            "expected each kernel as often as it is launched", f"memory_plan.{phase}.order"
        )
    if target is None:
        return
    for name in sorted(target.kernels.keys() & THREADED.keys()):
        for spec in THREADED[name].constants:
            value = target.kernels[name].constants.get(spec.name, -1.0)
            if not spec.low <= value <= spec.high:
                wanted = f"expected {spec.name} of {spec.low:g} to {spec.high:g}"
                yield Problem(wanted, f"targets.{phase}.kernels.{name}")
    memories = {memory.name for memory in target.memories}
    for kernel in kernels:
        where = f"cost_estimate.{phase}.{kernel['kernel']}"
        for name in kernel["bytes"].keys() - memories:
            yield Problem(f"the target has no memory {name!r}", f"{where}.bytes")
        ways = [way["kernel"] for way in kernel.get("ways", ())]
        for name in dict.fromkeys((kernel.get("class", ""), *ways)):
            if name in target.kernels and name not in THREADED:
                yield Problem(f"there is no class {name!r}", f"{where}.class")
            elif name in target.kernels:
                for size in sorted(SIZES[name] - _OF_A_CALL - kernel.get("sizes", {}).keys()):
                    yield Problem(f"class {name} asks for {size}", f"{where}.sizes")
