"""What the cost model is told of kernels, and how a model is mapped where nobody says.

Kernels have one mapping each: how a model is spread over the machine is chosen for all of them
together (`partition.Mapping`).
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.needs import product_format
from infc.backends.dataflow.partition import Mapping, Stage
from infc.backends.dataflow.tiles import TileFormat
from infc.cost.roofline import Work
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import A8, ABF16
from infc.target.backend import KernelSummary
from infc.target.schema import Target

_RING_SLOTS = 8
_RING_SHARE = 64
"""A slot takes at most this part of SRAM."""


def activation_forms(storage: str) -> Sequence[str]:
    """Codes of 8 bits for codes, bf16 for bf16; f16 weights take float32 rows, which become f16."""
    if storage == "bf16":
        return [ABF16]
    return ["f32"] if STORAGE_TYPES[storage].is_float else [A8]


def kernel_work(kernel: KernelSummary, target: Target) -> Work:
    """Weights and caches come from the memory that holds the model."""
    memory = target.holding_memory().name
    moved = kernel.weight_bytes + (kernel.activation_bytes if kernel.kind == "attention" else 0)
    operations: dict[str, float] = {}
    for dtype, count in kernel.operations.items():
        name = dtype
        if kernel.kind == "matmul" and dtype == "f32" and kernel.matrices:
            name = product_format(kernel.matrices[0][2]) or dtype
        operations[name] = operations.get(name, 0.0) + count
    return Work(bytes={memory: float(moved)}, operations=operations)


def largest_tile(machine: Machine) -> int:
    """Bytes of a whole tile of weights of the widest form."""
    n, k = machine.matrix.n, machine.matrix.k
    forms = (TileFormat(8, 16, True, 0), TileFormat(16, 0, False, 0))
    return max(form.tile_bytes(n, k) for form in forms)


def default_mapping(
    machine: Machine, stages: tuple[Stage, ...], max_tokens: int, max_logit_rows: int
) -> Mapping:
    """A ring where there is far memory, of a usual size."""
    tile = largest_tile(machine)
    return Mapping(
        stages=stages,
        max_tokens=max_tokens,
        max_logit_rows=max_logit_rows,
        ring_slots=_RING_SLOTS if machine.far else 0,
        slot_bytes=max(machine.sram_bytes // _RING_SHARE // tile, 1) * tile,
    )
