"""What the cost model chooses from, and what each choice asks of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from infc.backends.cpu.codegen.amx import TILE_ROWS
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernel_sizes import kernel_class, kernel_sizes, kernel_ways
from infc.backends.cpu.kernels import attention, matmul
from infc.backends.cpu.kernels.bounded_layout import BoundedLayout
from infc.backends.cpu.kernels.layouts import layout_for, packed_bytes
from infc.backends.cpu.kernels.matmul_space import all_candidates
from infc.backends.cpu.lowering.forms import attention_spec, matmul_mapping_of
from infc.backends.cpu.mapping_costs import mapping_speed
from infc.backends.cpu.packing import planes_for
from infc.backends.cpu.provided import SPEED, provided_candidates
from infc.backends.cpu.target import isa_of
from infc.cost.roofline import Work
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import KVType
from infc.passes.codegen.panels import PANEL_ROWS, panels_of
from infc.reference.a8 import A8_BLOCK
from infc.target.backend import KernelMapping, KernelSummary
from infc.target.schema import Target

REPLICATED_ROWS = 4
"""Up to so many rows every thread computes row operations for itself: a barrier costs more."""

SURVIVING_ROWS = 0.04
"""An assumption of what is counted: the part of a vocabulary whose low plane is read to find the
best token of natural text. What that costs is measured (`infc calibrate --model`)."""
SURVIVING_FLOAT_ROWS = 0.01
"""The same of float weights, whose bounds are twice as tight."""
STAGING = 16.0
"""Operations in float32 that staging a weight as bf16 takes as long as: own measurement, 0.1 ns on
an Emerald Rapids core."""
_FORM_OPERATIONS = {"int8": "a8", "bf16": "abf16", "f32": "f32"}
"""The form of the input of a product, by the arithmetic it runs in."""


def activation_forms(storage: str, k: int, rows: int, isa: Isa) -> Sequence[str]:
    """Forms of the input of a product, the best guess first.

    A few rows are multiplied while the weights stream past; bf16 needs them staged first.
    """
    floats = layout_for(storage).is_float
    streamed = "f32" if floats or k % A8_BLOCK else "a8"
    fits = isa.amx or (floats and isa.bf16_dot)  # AVX-512 is faster with integers
    if not fits or storage == "f32":
        return [streamed]
    return ["abf16", streamed] if rows >= TILE_ROWS else [streamed, "abf16"]


def kernel_candidates(kernel: KernelSummary, target: Target) -> Sequence[KernelMapping]:
    """Mappings of one kernel, the best guess first."""
    if kernel.kind == "matmul" and not kernel.split:
        spec, cache_bytes = matmul_spec(kernel), target.memory("l2").size_bytes
        guess, *others = all_candidates(spec, isa_of(target), cache_bytes)
        # Few and of unknown worth: in front of our variants, so that tuning measures them.
        provided = provided_candidates(kernel, spec, guess, target)
        return [dict(vars(guess)), *provided, *(dict(vars(mapping)) for mapping in others)]
    if kernel.kind in ("head", "matmul"):  # a part of what they read is multiplied at a time
        return [
            asdict(mapping) for mapping in matmul.candidates(matmul_spec(kernel), isa_of(target))
        ]
    if kernel.kind == "attention":
        return _attention_candidates(kernel, isa_of(target))
    if kernel.kind == "rows":
        replicate = kernel.rows <= REPLICATED_ROWS
        return [{"partition": "replicate" if replicate else "rows"}]
    return [{"partition": "items"}]


def matmul_spec(kernel: KernelSummary) -> matmul.MatmulSpec:
    """What the emitter is told of a product; biases and a soft cap, which cost little, apart."""
    return matmul.MatmulSpec(
        k=kernel.matrices[0][1],
        segments=tuple(matmul.Segment(n, layout_for(storage)) for n, _, storage in kernel.matrices),
        activation=next(f for o, f in _FORM_OPERATIONS.items() if o in kernel.operations),
        combine=kernel.gate or None,
        max_rows=kernel.rows,
        out=kernel.out,
    )


def attention_of(
    kernel: KernelSummary, mapping: KernelMapping
) -> tuple[attention.AttentionSpec, attention.AttentionMapping]:
    """An attention and a mapping of it as the emitter takes them."""
    chosen = attention.AttentionMapping(
        row_tile=int(mapping["row_tile"]),
        key_block=int(mapping["key_block"]),
        parts=int(mapping["parts"]),
        tiles=bool(mapping["tiles"]),
    )
    return _attention_spec(kernel), chosen


def _attention_spec(kernel: KernelSummary) -> attention.AttentionSpec:
    shapes = kernel.shapes
    capacity, window = shapes["capacity"], shapes["window"]
    kind = KVType(kernel.kv_dtype, shapes["kv_heads"], shapes["head_dim"], capacity, window)
    return replace(attention_spec(kind, shapes["heads"], 1.0, 0.0, kernel.rows), out=kernel.out)


def _attention_candidates(kernel: KernelSummary, isa: Isa) -> Sequence[KernelMapping]:
    spec = _attention_spec(kernel)
    few = kernel.phase == "decode"
    mappings = attention.split_candidates(spec) if few else attention.candidates(spec, isa)
    return [
        {
            **asdict(mapping),
            "scratch_bytes": attention.attention_scratch_bytes(spec, mapping),
            "shared_bytes": attention.attention_shared_bytes(spec, mapping),
        }
        for mapping in mappings
    ]


def _head_planes(kernel: KernelSummary) -> tuple[float, float]:
    """Both planes of a split matrix of which only the best products of one row are wanted, as parts
    of what the matrix takes in one plane: what is always read, and what is read of rows that
    survive."""
    ((n, k, storage),) = kernel.matrices
    layout = planes_for(storage, k)
    if layout is None:
        return 1.0, 0.0
    if isinstance(layout, BoundedLayout):
        return packed_bytes(layout.high, n, k) / packed_bytes(layout.whole, n, k), 1.0
    low = panels_of(n) * PANEL_ROWS * layout.low_row_bytes(k) / layout.size_bytes(n, k)
    return 1.0 - low, low


def _surviving_rows(kernel: KernelSummary) -> float:
    floats = STORAGE_TYPES[kernel.matrices[0][2]].is_float if kernel.matrices else False
    return SURVIVING_FLOAT_ROWS if floats else SURVIVING_ROWS


def kernel_work(kernel: KernelSummary, mapping: KernelMapping, target: Target) -> Work:
    """Weights come from the largest memory; activations stay in the caches and are not counted.

    A replicated row kernel does its operations once a thread and needs no barrier behind it.
    """
    replicated = mapping.get("partition") == "replicate"
    cores = target.unit("cores").count if replicated else 1
    first, second = _head_planes(kernel) if kernel.kind == "head" else (1.0, 0.0)
    searched = kernel.weight_bytes * (first + _surviving_rows(kernel) * second)
    weights = searched if kernel.typical_rows == 1 else kernel.weight_bytes
    moved = weights + (kernel.activation_bytes if kernel.kind == "attention" else 0)
    operations = kernel.operations
    if mapping.get("tiles"):  # what is left in f32 is a few operations a score
        operations = {"bf16": operations["f32"]}
    elif "bf16" in operations:  # each weight becomes bf16 once a call
        staged = sum(n * k for n, k, _ in kernel.matrices)
        operations = {**operations, "f32": operations.get("f32", 0.0) + STAGING * staged}
    name = kernel_class(kernel, mapping)
    sizes = kernel_sizes(kernel, mapping) if name else {}
    if kernel.kind == "head":  # whatever the rows that are usual: calls of one row search
        sizes["searched_bytes"] = searched
        sizes["whole_bytes"] = float(kernel.weight_bytes)
        sizes["first_bytes"] = kernel.weight_bytes * first
        sizes["second_bytes"] = kernel.weight_bytes * second
    return Work(
        bytes={target.memories[0].name: float(moved)},
        operations={dtype: count * cores for dtype, count in operations.items()},
        barriers=0 if replicated else 1,
        kernel=name,
        sizes=sizes,
        ways=kernel_ways(kernel, mapping),
        speed=_speed(kernel, mapping, target),
    )


def _speed(kernel: KernelSummary, mapping: KernelMapping, target: Target) -> float:
    """What tells mappings of a product apart; a provider's function is as fast as the best guess of
    our own, times what the provider claims."""
    if kernel.kind != "matmul" or kernel.split:
        return 1.0
    spec, claimed, own = matmul_spec(kernel), 1.0, matmul_mapping_of(mapping)
    if SPEED in mapping:
        own, *_ = all_candidates(spec, isa_of(target), target.memory("l2").size_bytes)
        claimed = int(mapping[SPEED]) / 100
    return claimed * mapping_speed(spec, own, kernel.typical_rows, target)
