"""Whether a sketch that was read from a file has what predictions count with.

A manifest may be anybody's: its types are checked where it is read, what its operations need here.
"""

from __future__ import annotations

from collections.abc import Mapping as Table
from typing import Final

from infc.backends.dataflow.cost.sketch import PRODUCTS, Sketch, Step
from infc.backends.dataflow.partition import Mapping
from infc.backends.dataflow.tiles import tile_format
from infc.ir.storage import STORAGE_TYPES

_NONE: Final = frozenset[str]()
_WIDTH: Final = frozenset({"width"})
_CACHE: Final = _WIDTH | {"kv_heads", "kv_dim", "capacity"}
_SIZES: Final[Table[str, tuple[frozenset[str], frozenset[str]]]] = {
    PRODUCTS: (_WIDTH, frozenset({"gate"})),
    **dict.fromkeys(("add", "mul", "bias", "activation", "softcap"), (_WIDTH, _NONE)),
    **dict.fromkeys(("quantize", "select_rows", "argmax"), (_WIDTH, _NONE)),
    "embed": (_WIDTH, frozenset({"scale"})),
    "rms_norm": (_WIDTH, frozenset({"offset"})),
    "rope": (_WIDTH | {"head_dim"}, frozenset({"pairs"})),
    "kv_append": (_CACHE, frozenset({"window"})),
    "kv_attention": (_CACHE | {"heads"}, frozenset({"window", "softcap"})),
}
"""Sizes that each operation needs: those that are at least 1, and others."""


def holds(sketch: Sketch, mapping: Mapping) -> bool:
    """Whether a call of a program with this sketch and mapping can be predicted."""
    ends = [stage.first_layer + stage.layers for stage in mapping.stages]
    parts = (sketch.head, *sketch.bodies, sketch.tail)
    return (
        max(sketch.layers, default=0) < len(sketch.bodies)
        and max(ends, default=1 + len(sketch.layers)) <= len(sketch.layers)
        and {"t", "r"} <= sketch.most.keys()
        and all(sketch.bodies)
        and all(_complete(step) for steps in parts for step in steps)
    )


def _complete(step: Step) -> bool:
    if step.op not in _SIZES or step.space not in ("t", "r"):
        return False
    (counts, others), sizes = _SIZES[step.op], step.sizes
    if not others <= sizes.keys() or any(sizes.get(name, 0) < 1 for name in counts):
        return False
    if sizes.get("head_dim", 1) < 1 or not (step.takes or step.op == "embed"):
        return False
    tables = [step.kind] if step.op == "embed" else [storage for _, storage in step.matrices]
    if not all(name in STORAGE_TYPES and tile_format(name) is not None for name in tables):
        return False
    if step.op == PRODUCTS:
        return 0 < len(step.makes) == len(step.matrices)
    if step.op == "kv_attention":
        return bool(step.makes) and sizes["heads"] % sizes["kv_heads"] == 0
    return True
