"""What a target is: facts about a machine, in SI units, and where each of them comes from.

A target says nothing about models and nothing about how a kernel is mapped. It is written as TOML
(see `infc.target.loader`) or made by probing a machine, and travels as canonical JSON inside IR
dumps and artifacts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from infc.target.fitted import FittedClass
from infc.target.units import parse_bytes, parse_quantity

T = TypeVar("T")
Number = TypeVar("Number", int, float)
Kind = Literal["cpu", "gpu", "dataflow", "model-only"]
Scalar = str | int | float | bool
Topology = Literal["all-to-all", "ring", "mesh-2d", "torus-2d", "torus-3d", "dragonfly", "host"]


def _freeze(mapping: Mapping[str, T]) -> Mapping[str, T]:
    return MappingProxyType(dict(sorted(mapping.items())))


def _sorted_names(names: object) -> object:
    """A set or list of strings, sorted and without repetitions; anything else as it is."""
    if isinstance(names, list | tuple | set | frozenset) and all(isinstance(n, str) for n in names):
        return tuple(sorted(set(names)))
    return names


def _within(low: float, high: float, unit: str) -> AfterValidator:
    def check(value: Number) -> Number:
        if not low <= value <= high:
            raise ValueError(f"expected {low:g} to {high:g} {unit}, got {value:g}")
        return value

    return AfterValidator(check)


def _quantity(dimension: str, unit: str, low: float, high: float) -> tuple[object, object]:
    parse = partial(parse_quantity, dimension=dimension)
    return BeforeValidator(parse), _within(low, high, unit)


# Bounds far around all machines there are: what lies beyond them is a slip of the unit, and would
# be a division by nothing further on.
Bytes = Annotated[int, BeforeValidator(parse_bytes), _within(1, 1e18, "bytes")]
BytesPerSecond = Annotated[float, *_quantity("bytes_per_s", "B/s", 1e3, 1e18)]
OperationsPerSecond = Annotated[float, *_quantity("operations_per_s", "OP/s", 1e3, 1e21)]
Nanoseconds = Annotated[float, *_quantity("ns", "ns", 0, 1e12)]
Watts = Annotated[float, *_quantity("watts", "W", 1e-3, 1e9)]
DollarsPerHour = Annotated[float, *_quantity("usd_per_hour", "$/h", 1e-6, 1e9)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=1e-4, le=1)]
Table = Annotated[Mapping[str, T], AfterValidator(_freeze), PlainSerializer(dict)]
"""A read-only mapping, sorted by key."""
Names = Annotated[tuple[str, ...], BeforeValidator(_sorted_names)]
"""A set of strings in a stable order."""


class Facts(BaseModel):
    """Base of all parts of a target: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Efficiency(Facts):
    """Which fraction of a peak real kernels reach: bad, usual and good ones."""

    low: Share
    mid: Share
    high: Share

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.mid <= self.high:
            raise ValueError(
                f"expected low <= mid <= high, got {self.low}, {self.mid}, {self.high}"
            )
        return self


class Memory(Facts):
    """A place where bytes lie.

    Attributes:
        name: unique in the target.
        size_bytes: of one instance.
        count: how many instances: 1 for a shared memory, else one for each compute unit instance
            (or group of them) that has its own.
        bandwidth_bytes_per_s: of one instance.
        unit_bandwidth_bytes_per_s: the most that one instance of a compute unit draws from it,
            where that is less.
        latency_ns: of one dependent access.
        managed_by: caches are filled by hardware, scratchpads by software.
        feeds: names of the memories and compute units that read from it directly.
        efficiency: of the bandwidth.
    """

    name: str
    size_bytes: Bytes
    count: Count = 1
    bandwidth_bytes_per_s: BytesPerSecond
    unit_bandwidth_bytes_per_s: BytesPerSecond | None = None
    latency_ns: Nanoseconds | None = None
    managed_by: Literal["hardware", "software"]
    feeds: Names = ()
    efficiency: Efficiency

    @model_validator(mode="after")
    def _a_unit_draws_no_more_than_there_is(self) -> Self:
        one, all_units = self.unit_bandwidth_bytes_per_s, self.bandwidth_bytes_per_s
        if one is not None and one > all_units:
            raise ValueError(
                f"expected unit_bandwidth_bytes_per_s of at most bandwidth_bytes_per_s "
                f"({all_units:g}), got {one:g}"
            )
        return self


class ComputeUnit(Facts):
    """Something that computes.

    Attributes:
        name: unique in the target.
        count: how many instances: cores, or 1 where the figures are for the whole chip.
        operations_per_s: of one instance, by dtype (`int8`, `bf16`, `f16`, `f32`, `fp8`, ...); a
            multiply-add counts as two. A document may give `chip_operations_per_s` instead, the
            figure of all instances together, as vendors publish it.
        tiles: native tile `(m, n, k)` of a matrix unit, by dtype.
        lanes: elements a vector instruction works on, by dtype.
        efficiency: of the operations.
    """

    name: str
    count: Count = 1
    operations_per_s: Table[OperationsPerSecond]
    tiles: Table[tuple[Count, Count, Count]] = Field(default_factory=lambda: _freeze({}))
    lanes: Table[Count] = Field(default_factory=lambda: _freeze({}))
    efficiency: Efficiency

    @model_validator(mode="before")
    @classmethod
    def _share_of_each_instance(cls, facts: object) -> object:
        """`chip_operations_per_s` divided by the instances."""
        if not isinstance(facts, dict) or "chip_operations_per_s" not in facts:
            return facts
        rest = {key: value for key, value in facts.items() if key != "chip_operations_per_s"}
        peaks, count = facts["chip_operations_per_s"], rest.get("count", 1)
        if "operations_per_s" in rest:
            raise ValueError("expected operations_per_s or chip_operations_per_s, got both")
        if not isinstance(peaks, dict) or not isinstance(count, int) or count < 1:
            return rest | {"operations_per_s": peaks}  # refused by the fields themselves
        return rest | {
            "operations_per_s": {
                dtype: parse_quantity(peak, "operations_per_s") / count
                for dtype, peak in peaks.items()
            }
        }

    @field_validator("operations_per_s", mode="after")
    @classmethod
    def _computes_something(cls, peaks: Mapping[str, float]) -> Mapping[str, float]:
        if not peaks:
            raise ValueError("expected the operations per second of at least one dtype, got none")
        return peaks


class Link(Facts):
    """What joins several chips, or several machines.

    Attributes:
        joins: `chips` of one machine (collectives), or `machines` (pipeline stages, and the KV
            cache on its way from a prefill machine to a decode machine).
        bandwidth_bytes_per_s: of one chip, in one direction, over all its ports.
        latency_ns: of one hop.
        topology: how the chips are wired; `host` goes through the host's memory.
        power_watts: of one chip's ports, where the chip's own figure does not hold it.
    """

    name: str
    joins: Literal["chips", "machines"] = "chips"
    bandwidth_bytes_per_s: BytesPerSecond
    latency_ns: Nanoseconds
    topology: Topology
    power_watts: Watts | None = None


class Target(Facts):
    """One machine, resolved: nothing asks the machine itself after this.

    Attributes:
        name: what `--target` takes.
        backend: the backend that compiles for it.
        kind: `model-only` targets have a cost model and no code generator.
        count: chips of this kind in the machine: as many as its links between `chips` join.
        family: name of the machines that share a profile of calibrated constants; may be empty.
        memories, compute: what one chip consists of.
        model_memory: name of the memory that holds weights and KV cache; None is the largest.
        links: between its chips, and between machines; the first of a sort is the usual one.
        launch_ns: from asking for a program or kernel to its first instruction.
        barrier_ns: one synchronisation of all compute units.
        power_watts: of one chip at full load.
        power_basis: what that covers: the `chip` (or module) alone, or its share of the whole
            `system` with host, cooling and network.
        price_usd_per_hour: of one chip.
        kernels: constants of kernel classes by name, where they were measured on this machine.
        features: questions that passes ask by `has`.
        backend_facts: what only the backend reads.
        sources: dotted path of a fact, or of a table of facts, to where it comes from; the empty
            path is the whole target. See `source_of`.
        assumptions: dotted path of a fact, or of a table of facts, to what was assumed because no
            figure is known.
    """

    name: str
    backend: str
    kind: Kind
    count: Count = 1
    family: str = ""
    memories: tuple[Memory, ...]
    compute: tuple[ComputeUnit, ...]
    model_memory: str | None = None
    links: tuple[Link, ...] = ()
    launch_ns: Nanoseconds
    barrier_ns: Nanoseconds
    power_watts: Watts | None = None
    power_basis: Literal["chip", "system"] = "chip"
    price_usd_per_hour: DollarsPerHour | None = None
    kernels: Table[FittedClass] = Field(default_factory=lambda: _freeze({}))
    features: Names = ()
    backend_facts: Table[Scalar] = Field(default_factory=lambda: _freeze({}))
    sources: Table[str] = Field(default_factory=lambda: _freeze({}))
    assumptions: Table[str] = Field(default_factory=lambda: _freeze({}))

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        if not self.memories or not self.compute:
            raise ValueError("expected at least one memory and one compute unit")
        nodes = [memory.name for memory in self.memories] + [unit.name for unit in self.compute]
        for names in (nodes, [link.name for link in self.links]):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"expected distinct names, got {twice[0]!r} twice")
        for memory in self.memories:
            for fed in memory.feeds:
                if fed not in nodes or fed == memory.name:
                    raise ValueError(
                        f"memory {memory.name!r} feeds {fed!r}: expected one of "
                        f"{', '.join(name for name in nodes if name != memory.name)}"
                    )
        known = [memory.name for memory in self.memories]
        if self.model_memory is not None and self.model_memory not in known:
            raise ValueError(
                f"expected model_memory to be one of {', '.join(known)}, got {self.model_memory!r}"
            )
        if self.count > 1 and self.link("chips") is None:
            raise ValueError(f"expected a link between {self.count} chips, got none")
        return self

    def has(self, feature: str) -> bool:
        """Whether the target has a capability, by name."""
        return feature in self.features

    def memory(self, name: str) -> Memory:
        """The memory of that name; raises KeyError."""
        return _named(self.memories, name)

    def unit(self, name: str) -> ComputeUnit:
        """The compute unit of that name; raises KeyError."""
        return _named(self.compute, name)

    def holding_memory(self) -> Memory:
        """The memory that holds weights and KV cache."""
        if self.model_memory is not None:
            return self.memory(self.model_memory)
        return max(self.memories, key=lambda memory: memory.size_bytes * memory.count)

    def cache(self) -> Memory | None:
        """The memory between the one that holds the model and the compute units, if any."""
        fed = self.holding_memory().feeds
        return next((memory for memory in self.memories if memory.name in fed), None)

    def link(self, joins: Literal["chips", "machines"]) -> Link | None:
        """The usual link between chips or machines, if any."""
        return next((link for link in self.links if link.joins == joins), None)

    def source_of(self, path: str) -> str | None:
        """Where a fact comes from: its own source, or that of the nearest table around it."""
        while True:
            source = self.sources.get(path)
            if source is not None or not path:
                return source
            path = path.rpartition(".")[0]

    def to_json(self) -> str:
        """Canonical JSON: keys sorted, one form for one target, a final newline."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read back what `to_json` wrote; raises pydantic.ValidationError."""
        return cls.model_validate_json(text)


N = TypeVar("N", Memory, ComputeUnit)


def _named(parts: Sequence[N], name: str) -> N:
    """The part of that name; raises KeyError."""
    for part in parts:
        if part.name == name:
            return part
    raise KeyError(name)


@dataclass(frozen=True)
class TargetStatus:
    """One line of `infc targets`.

    Attributes:
        name: what `--target` takes.
        backend: the backend that offers it.
        kind: a `Kind`, or `unknown` for a backend that could not be loaded.
        available: it can be compiled for here.
        reason: why it cannot, or a remark; may be empty.
    """

    name: str
    backend: str
    kind: str
    available: bool
    reason: str = ""
