"""Bytes and operations of a call, whatever the machine and the mapping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from infc.backends.dataflow.cost.sketch import PRODUCTS, Sketch, Step
from infc.ir.types import storage_bytes

_F16 = 2


@dataclass(frozen=True)
class Amounts:
    """What a call needs at least.

    Attributes:
        bytes: of weights, keys and values, each once.
        operations: multiplications and additions of products and of attention.
    """

    bytes: float
    operations: float

    @classmethod
    def of(cls, sketch: Sketch, *, tokens: int, position: int, logit_rows: int) -> Self:
        """Of one call.

        Args:
            sketch: of the program.
            tokens: of the call.
            position: of the first one.
            logit_rows: whose logits are wanted.
        """
        moved, operations = 0.0, 0.0
        steps = [step for layer in sketch.layers for step in sketch.bodies[layer]]
        for step in [*sketch.head, *steps, *(sketch.tail if logit_rows else ())]:
            rows = tokens if step.space == "t" else logit_rows
            if step.op == PRODUCTS:
                k = step.sizes["width"]
                moved += sum(storage_bytes(storage, (n, k)) for n, storage in step.matrices)
                operations += sum(2.0 * rows * n * k for n, _ in step.matrices)
            elif step.op == "kv_attention":
                seen, held = _positions(step, tokens, position)
                e, kv_heads = step.sizes["kv_dim"], step.sizes["kv_heads"]
                moved += 2.0 * _F16 * kv_heads * e * (held + tokens)
                operations += 4.0 * step.sizes["heads"] * e * seen
        return cls(moved, operations)


def _positions(step: Step, tokens: int, position: int) -> tuple[int, int]:
    """Pairs of a query and a position that it sees, and earlier positions that are read."""
    window = step.sizes["window"]
    last = range(position + 1, position + tokens + 1)
    seen = sum(min(stop, window) if window else stop for stop in last)
    return seen, min(position, window - 1) if window else position
