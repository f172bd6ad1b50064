"""The parts of a machine from the facts of a target; what is wrong with them is collected."""

from __future__ import annotations

from math import isqrt
from types import MappingProxyType
from typing import Final

from infc.backends.dataflow.facts import FactReader
from infc.backends.dataflow.parts import (
    FORMAT_BITS,
    LINE_BYTES,
    PORTS,
    ChipLinks,
    Dma,
    FarMemory,
    Format,
    MatrixUnit,
    VectorClass,
    VectorUnit,
)
from infc.target.schema import ComputeUnit, Memory

_TOLERANCE: Final = 0.05
"""Published peaks are rounded; what follows from cycles and clock may differ by this much."""


def check_sram(facts: FactReader, sram: Memory | None, cores: int) -> None:
    """One for each core, of a size that addresses reach."""
    if sram is None:
        return
    if sram.count != cores:
        facts.problem(
            f"expected the sram of each of {cores} cores, got {sram.count}", "memories.sram.count"
        )
    if sram.size_bytes % LINE_BYTES or sram.size_bytes >= 2**31:
        facts.problem(
            f"expected a multiple of {LINE_BYTES} bytes below 2 GiB a core, got {sram.size_bytes}",
            "memories.sram.size_bytes",
        )


def read_matrix(facts: FactReader, cores: int, clock_hz: float) -> MatrixUnit:
    """One native tile for all formats; its cycles follow from the operations and the clock."""
    unit = facts.unit("matrix")
    weight_rate = facts.whole("matrix_weight_bytes_per_cycle")
    startup = facts.whole("matrix_startup_cycles", least=0)
    if unit is None:
        return MatrixUnit(1, 1, 1, MappingProxyType({}), weight_rate, startup)
    _check_count(facts, unit, cores)
    sizes = sorted(set(unit.tiles.values()))
    if len(sizes) != 1:
        facts.problem(
            "expected one native tile for all formats, got "
            + (", ".join("x".join(map(str, size)) for size in sizes) or "none"),
            "compute.matrix.tiles",
        )
    m, n, k = sizes[0] if sizes else (1, 1, 1)
    if k % 32:
        facts.problem(f"expected a depth that is a multiple of 32, got {k}", "compute.matrix.tiles")
    cycles: dict[Format, int] = {}
    for form in FORMAT_BITS:
        if form not in unit.tiles:
            continue
        path = f"compute.matrix.operations_per_s.{form}"
        if form not in unit.operations_per_s:
            facts.problem("expected operations of a format that has a tile, got none", path)
            continue
        cycles[form] = max(1, round(2 * m * n * k * clock_hz / unit.operations_per_s[form]))
        peak = 2 * m * n * k * clock_hz / cycles[form]
        _check_peak(facts, path, unit.operations_per_s[form], peak)
    if not cycles:
        facts.problem(
            f"expected a tile of one of {', '.join(FORMAT_BITS)}, got "
            + (", ".join(unit.tiles) or "none"),
            "compute.matrix.tiles",
        )
    return MatrixUnit(m, n, k, MappingProxyType(cycles), weight_rate, startup)


def read_vector(facts: FactReader, cores: int, clock_hz: float) -> VectorUnit:
    """Its operations are checked against lanes, cycles of a step and clock."""
    unit = facts.unit("vector")
    kinds: tuple[VectorClass, ...] = ("simple", "special", "reduction")
    steps = {kind: facts.whole(f"vector_{kind}_cycles") for kind in kinds}
    native = facts.whole("vector_native_elements", least=32)
    startup = facts.whole("vector_startup_cycles", least=0)
    lanes = 1
    if unit is not None:
        _check_count(facts, unit, cores)
        lanes = unit.lanes.get("f32", 0)
        if lanes < 1:
            facts.problem("expected the lanes of f32, got none", "compute.vector.lanes")
        elif "f32" not in unit.operations_per_s:
            facts.problem(
                "expected the operations of f32, got none", "compute.vector.operations_per_s"
            )
        else:
            _check_peak(
                facts,
                "compute.vector.operations_per_s.f32",
                unit.operations_per_s["f32"],
                lanes * clock_hz / steps["simple"],
            )
    if native % 32:
        facts.problem(
            f"expected a multiple of 32, got {native}", "backend_facts.vector_native_elements"
        )
    return VectorUnit(native, max(lanes, 1), MappingProxyType(steps), startup)


def _check_count(facts: FactReader, unit: ComputeUnit, cores: int) -> None:
    if unit.count != cores:
        facts.problem(
            f"expected the {unit.name} unit of each of {cores} cores, got {unit.count}",
            f"compute.{unit.name}.count",
        )


def _check_peak(facts: FactReader, path: str, said: float, follows: float) -> None:
    if abs(said - follows) > _TOLERANCE * follows:
        facts.problem(
            f"expected about the {follows:.4g} that follow from whole cycles and the clock, "
            f"got {said:.4g}",
            path,
        )


def read_dma(facts: FactReader) -> Dma:
    """Bursts are whole lines."""
    burst = facts.whole("dma_burst_bytes", least=LINE_BYTES)
    if burst % LINE_BYTES:
        facts.problem(
            f"expected a multiple of {LINE_BYTES}, got {burst}", "backend_facts.dma_burst_bytes"
        )
    return Dma(
        facts.whole("dma_bytes_per_cycle"),
        facts.whole("dma_outstanding"),
        facts.whole("dma_startup_cycles", least=0),
        burst,
    )


def read_far(facts: FactReader, cores: int) -> tuple[FarMemory, ...]:
    """All memories but the SRAM, the fastest first."""
    tiers = []
    for memory in facts.target.memories:
        path = f"memories.{memory.name}"
        if memory.name == "sram":
            continue
        if cores % memory.count:
            facts.problem(
                f"expected channels that divide {cores} cores, got {memory.count}", f"{path}.count"
            )
        if memory.size_bytes % LINE_BYTES:
            facts.problem(
                f"expected channels of a multiple of {LINE_BYTES} bytes, got {memory.size_bytes}",
                f"{path}.size_bytes",
            )
        if memory.latency_ns is None:
            facts.problem("expected a latency, got none", f"{path}.latency_ns")
        tiers.append(
            FarMemory(
                memory.name,
                memory.count,
                memory.size_bytes,
                memory.bandwidth_bytes_per_s,
                (memory.latency_ns or 0.0) * 1e-9,
            )
        )
    if len(tiers) > 2:
        facts.problem(
            f"expected at most two memories besides the sram, got {len(tiers)}", "memories"
        )
    return tuple(sorted(tiers, key=lambda tier: -tier.bytes_per_s))


def read_links(facts: FactReader) -> ChipLinks | None:
    """The usual link between chips, where there are several."""
    target = facts.target
    link = target.link("chips")
    if link is None or target.count == 1:
        return None
    shape = (1, target.count)
    if link.topology == "mesh-2d":
        # As square as the number of chips allows.
        rows = next(r for r in range(isqrt(target.count), 0, -1) if target.count % r == 0)
        shape = (rows, target.count // rows)
    elif link.topology not in ("ring", "all-to-all"):
        facts.problem(
            f"expected one of {', '.join(PORTS)}, got {link.topology}",
            f"links.{link.name}.topology",
        )
        return None
    return ChipLinks(
        link.topology, link.bandwidth_bytes_per_s, link.latency_ns * 1e-9, shape[0], shape[1]
    )
