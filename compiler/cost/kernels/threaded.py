"""Kernels that threads share: products, attention and operations on rows of one processor.

A product reads weights once a call. With few rows they *stream* past the vector units, which unpack
and multiply while the next ones come; with many they are *blocked*: each weight is staged in the
form that is multiplied, and many rows share it. Attention goes along the rows of the cache, or
works on tiles of many queries and keys. Constants of work beside the products are counted in
operations of the vector units in float32, so that they follow the clock and the width of these.

A vocabulary head of which the best token is wanted is a stream of its first plane, and of a share
of its second one that depends on the text (docs/exact-head.md); rows that are fetched one by one
cost more than their bytes, which the share holds too.

Columns beside the sizes of a kernel (`compiler/cost/calibrated.py` adds them): `threads`, `bytes`
of main memory, `bytes_per_s` that the threads draw from it together, `peak` and `vector_peak` in
operations a second of one thread, `barrier_seconds` of all barriers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from infc.cost.kernels.classes import (
    Array,
    Columns,
    ConstantSpec,
    KernelClass,
    Times,
    Values,
)
from infc.cost.kernels.machine import Machine

WEIGHT_KINDS: Final = ("8bit", "6bit", "5bit", "4bit", "float")
"""How weights lie packed: codes of so many bits, and floats. Codes of 5 and 6 bits cost more than
those of half a byte, and not alike: those of 6 also have a scale for each 16 numbers, not 32."""
STREAM: Final = "stream-product"
HEAD_SEARCH: Final = "head-search"
_CALL = ConstantSpec(
    "call_seconds", "s", 0.0, 5e-5, "a call's own time: its set-up, and threads that end apart"
)
_MEMORY = ConstantSpec(
    "memory_share", "1", 0.2, 1.2, "share of the measured read bandwidth that the kernel draws"
)
_DOTS = ConstantSpec("dot_share", "1", 0.05, 1.2, "share of the peak that the products reach")
_ROW = ConstantSpec(
    "element_operations", "operations", 0.0, 400.0, "vector operations an element of a row costs"
)


def _kinds(verb: str, high: float, kinds: Sequence[str] = WEIGHT_KINDS) -> tuple[ConstantSpec, ...]:
    """A constant for each way in which weights lie packed."""
    return tuple(
        ConstantSpec(
            f"{verb}_{kind}",
            "operations",
            0.0,
            high,
            f"vector operations to {verb} a weight ({kind})",
        )
        for kind in kinds
    )


_STREAM = (
    _MEMORY,
    _DOTS,
    *_kinds("unpack", 64.0),
    ConstantSpec("overlap", "1", 1.0, 8.0, "exponent: 1 reads and computes in turns, 8 together"),
    _CALL,
)
SURVIVORS, FLOAT_SURVIVORS = "survivors", "float_survivors"
_SURVIVED = "share of the rows whose second plane a token is worth"
_HEAD = (
    *_STREAM,
    ConstantSpec(SURVIVORS, "1", 0.0, 1.5, f"{_SURVIVED}: weights in codes"),
    ConstantSpec(FLOAT_SURVIVORS, "1", 0.0, 1.5, f"{_SURVIVED}: floats"),
)
_GATE = ConstantSpec("gate_operations", "operations", 0.0, 400.0, "for the activation of a gate")
_BLOCKED = (_DOTS, *_kinds("stage", 128.0), _GATE, _CALL)
_STAGED_KINDS: Final = tuple(kind for kind in WEIGHT_KINDS if kind != "float")
_STAGED = (
    *(
        ConstantSpec(f"share_{kind}", "1", 0.05, 2.0, f"share of the peak of products ({kind})")
        for kind in _STAGED_KINDS
    ),
    ConstantSpec("stage_codes", "operations", 0.0, 128.0, "vector operations to stage a weight"),
    _GATE,
    _CALL,
)
_FLOATS = (_DOTS, *_kinds("stage", 128.0, ("float",)), _CALL)
_ROW_ATTENTION = (
    _MEMORY,
    _DOTS,
    ConstantSpec("score_operations", "operations", 0.0, 400.0, "for the exponential of a score"),
    ConstantSpec("part_seconds", "s", 0.0, 2e-5, "to set up and add a part of the cache"),
    ConstantSpec("overlap", "1", 1.0, 8.0, "exponent: 1 reads and computes in turns, 8 together"),
    _CALL,
)
_TILE_ATTENTION = (
    _DOTS,
    ConstantSpec("score_operations", "operations", 0.0, 400.0, "for the exponential of a score"),
    ConstantSpec("edge_keys", "1", 0.0, 256.0, "keys beyond those it sees that a query works on"),
    ConstantSpec("stage_operations", "operations", 0.0, 400.0, "to stage an element of the cache"),
    _ROW,
    _CALL,
)
_ROWS = (
    ConstantSpec("operation_cost", "1", 0.1, 100.0, "vector operations that a counted one costs"),
    ConstantSpec("byte_operations", "operations/byte", 0.0, 40.0, "to move a byte of a row"),
    _CALL,
)


def _together(memory: Array, compute: Array, overlap: float) -> Array:
    longest = np.maximum(np.maximum(memory, compute), 1e-30)
    ratio = (memory / longest) ** overlap + (compute / longest) ** overlap
    return np.asarray(longest * ratio ** (1.0 / overlap))


def _times(
    rows: Columns, constants: Values, memory: Array, compute: Array, overlap: float = 1.0
) -> Times:
    fixed = constants["call_seconds"] + rows["barrier_seconds"]
    return Times(
        _together(memory, compute, overlap) + fixed,
        {"memory": memory, "compute": compute, "launch": fixed},
        np.zeros(len(memory), np.intp),
    )


def _memory_seconds(rows: Columns, constants: Values) -> Array:
    return np.asarray(rows["bytes"] / (constants["memory_share"] * rows["bytes_per_s"]))


def _preparation(rows: Columns, constants: Values, verb: str) -> Array:
    """Vector operations for all weights once."""
    return np.asarray(
        sum(rows[f"weights_{kind}"] * constants[f"{verb}_{kind}"] for kind in WEIGHT_KINDS)
    )


def _weights(rows: Columns) -> Array:
    return np.asarray(sum(rows[f"weights_{kind}"] for kind in WEIGHT_KINDS))


def stream_times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Few rows: weights are unpacked as they pass, again for every `height` rows."""
    vectors = rows["vector_peak"] * rows["threads"]
    passes = np.ceil(rows["rows"] / rows["height"])
    dots = 2.0 * rows["rows"] * _weights(rows)
    compute = dots / (constants["dot_share"] * rows["peak"] * rows["threads"])
    compute = compute + passes * _preparation(rows, constants, "unpack") / vectors
    memory = _memory_seconds(rows, constants)
    return _times(rows, constants, memory, compute, constants["overlap"])


def head_times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """A stream of the first plane, and of the second one as far as it survives the bounds."""
    floats = rows["weights_float"] > 0
    survivors = np.where(floats, constants[FLOAT_SURVIVORS], constants[SURVIVORS])
    read = rows["first_bytes"] + survivors * rows["second_bytes"]
    kinds = {f"weights_{kind}" for kind in WEIGHT_KINDS}
    share = read / rows["whole_bytes"]
    parts = {name: column * share if name in kinds else column for name, column in rows.items()}
    return stream_times({**parts, "bytes": read}, machine, constants)


def blocked_times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Many rows share weights that are staged once a call; rows come in blocks of `height`.

    Weights are read as they are staged, at the measured bandwidth: a kernel's own share of it could
    not be told from the cost of staging. Nor could the reading of rows again, and the writing of
    results, from the products (docs/cost-model.md).
    """
    dots = 2.0 * _padded(rows) * _weights(rows) / constants["dot_share"]
    return _many_rows(rows, constants, dots, _preparation(rows, constants, "stage"))


def staged_times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """The same with integers, of which AVX2 multiplies short ones with fewer instructions."""
    dots, staging = np.zeros_like(rows["rows"]), np.zeros_like(rows["rows"])
    for kind in _STAGED_KINDS:
        weights = rows[f"weights_{kind}"]
        dots = dots + 2.0 * _padded(rows) * weights / constants[f"share_{kind}"]
        staging = staging + weights * constants["stage_codes"]
    return _many_rows(rows, constants, dots, staging)


def float_times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """The same in float32: tiles are cut as equal as can be, so that no block is padded."""
    dots = 2.0 * rows["rows"] * rows["weights_float"] / constants["dot_share"]
    staging = rows["weights_float"] * constants["stage_float"]
    compute = dots / (rows["peak"] * rows["threads"])
    compute = compute + staging / (rows["vector_peak"] * rows["threads"])
    return _times(rows, constants, rows["bytes"] / rows["bytes_per_s"], compute)


def _padded(rows: Columns) -> Array:
    return np.asarray(np.ceil(rows["rows"] / rows["height"]) * rows["height"])


def _many_rows(rows: Columns, constants: Values, dots: Array, staging: Array) -> Times:
    """Products that would take `dots` operations at the peak, staging, and gates."""
    gates = constants["gate_operations"] * rows["rows"] * rows["columns"] * rows["gated"]
    products = dots / (rows["peak"] * rows["threads"])
    compute = products + (staging + gates) / (rows["vector_peak"] * rows["threads"])
    return _times(rows, constants, rows["bytes"] / rows["bytes_per_s"], compute)


def seen_keys(rows: Array, context: Array, window: Array) -> Array:
    """Pairs of a query and a key that it sees: the last `rows` of `context` positions.

    `window` of 0 lets a query see all before it.
    """
    first = context - rows
    last = np.where(window > 0, np.minimum(context, window), context)
    begin = np.where(window > 0, np.minimum(first, window), first)
    growing = last - begin
    return np.asarray((begin + last + 1.0) / 2.0 * growing + (rows - growing) * last)


def row_attention_times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Each query goes along its part of the cache of its sequence."""
    caches = rows["caches"]
    seen = seen_keys(rows["rows"] / caches, rows["context"], rows["window"])
    pairs = caches * seen * rows["heads"]
    # A head's cache that few parts share keeps as many threads busy.
    busy = np.minimum(rows["threads"], rows["units"] * rows["rows"])
    dots = 4.0 * pairs * rows["head_dim"] / (constants["dot_share"] * rows["peak"])
    scores = constants["score_operations"] * pairs / rows["vector_peak"]
    parts = constants["part_seconds"] * rows["units"] * rows["rows"]
    held = np.where(
        rows["window"] > 0, np.minimum(rows["context"], rows["window"]), rows["context"]
    )
    drawn = caches * held * rows["position_bytes"] / rows["bytes_per_s"]
    memory = np.asarray(drawn / constants["memory_share"])
    return _times(rows, constants, memory, (dots + scores + parts) / busy, constants["overlap"])


def tile_attention_times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Blocks of queries meet blocks of keys on matrix units."""
    seen = seen_keys(rows["rows"], rows["context"], rows["window"])
    pairs = (seen + constants["edge_keys"] * rows["rows"]) * rows["heads"]
    dots = 4.0 * pairs * rows["head_dim"] / (constants["dot_share"] * rows["peak"])
    width = rows["head_dim"] * rows["rows"]
    operations = (
        constants["score_operations"] * pairs
        + constants["stage_operations"] * rows["context"] * rows["kv_heads"] * rows["head_dim"]
        + constants["element_operations"] * width * rows["heads"]
    )
    compute = (dots + operations / rows["vector_peak"]) / rows["threads"]
    return _times(rows, constants, np.zeros_like(compute), compute)


def row_times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Operations on rows in the caches; what every thread does for itself is not shared."""
    operations = (
        constants["operation_cost"] * rows["row_operations"]
        + constants["byte_operations"] * rows["row_bytes"]
    ) * rows["rows"]
    sharing = np.where(rows["replicated"] > 0, 1.0, rows["threads"])
    compute = operations / (rows["vector_peak"] * sharing)
    return _times(rows, constants, np.zeros_like(compute), compute)


def _no_sizes(query: Any, machine: Machine) -> Mapping[str, float]:
    return {}


def _no_dtype(query: Any, machine: Machine) -> str:
    return ""


def _threaded(name: str, constants: tuple[ConstantSpec, ...], times: Any) -> KernelClass[Any]:
    return KernelClass(name, constants, ("any",), _no_dtype, _no_sizes, times)


THREADED: Final = {
    kernel_class.name: kernel_class
    for kernel_class in (
        _threaded(STREAM, _STREAM, stream_times),
        _threaded(HEAD_SEARCH, _HEAD, head_times),
        _threaded("blocked-product", _BLOCKED, blocked_times),
        _threaded("staged-product", _STAGED, staged_times),
        _threaded("float-product", _FLOATS, float_times),
        _threaded("row-attention", _ROW_ATTENTION, row_attention_times),
        _threaded("tile-attention", _TILE_ATTENTION, tile_attention_times),
        _threaded("rows", _ROWS, row_times),
        _threaded("rotary", _ROWS, row_times),
    )
}
"""By name. `blocked-product` stages weights as bf16, `staged-product` as 8-bit integers,
`float-product` as float32."""

_PRODUCT_SIZES = ("rows", "height", *(f"weights_{kind}" for kind in WEIGHT_KINDS))
_MANY_SIZES = (*_PRODUCT_SIZES, "columns", "gated")
_ATTENTION_SIZES = ("rows", "context", "window", "heads", "head_dim")
_ROW_SIZES = ("rows", "row_operations", "row_bytes", "replicated")
SIZES: Final[Mapping[str, frozenset[str]]] = {
    name: frozenset(sizes)
    for name, sizes in {
        STREAM: _PRODUCT_SIZES,
        HEAD_SEARCH: (*_PRODUCT_SIZES, "first_bytes", "second_bytes", "whole_bytes"),
        "blocked-product": _MANY_SIZES,
        "staged-product": tuple(name for name in _MANY_SIZES if name != "weights_float"),
        "float-product": ("rows", "weights_float"),
        "row-attention": (*_ATTENTION_SIZES, "units", "caches", "position_bytes"),
        "tile-attention": (*_ATTENTION_SIZES, "kv_heads"),
        "rows": _ROW_SIZES,
        "rotary": _ROW_SIZES,
    }.items()
}
"""What the formula of a class asks of a kernel, beside what a call has."""
