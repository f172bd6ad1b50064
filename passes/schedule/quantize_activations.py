"""Products get their input in the form that the cost model likes best.

    linear %x, %w : tensor<..xf32>, tensor<..x!infc.storage<"q5_0">>
      -->  %q = quantize %x ;  linear %q, %w

Where weights stream past a few rows, 8-bit integers with a scale for every 32 (`a8`) keep up with
the memory; where many rows share the weights, the fastest arithmetic wins, which may be bf16
(`abf16`). A backend names the forms it can multiply with; each product is ranked alone.

Requires: layers outlined. Guarantees: a `linear` reads `f32` or one of the forms of
`infc.ir.types.ACTIVATION_FORMS`, shared between products of the same input. Does not handle: widths
that are not a multiple of 32 in `a8` (no backend offers them).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from infc.cost.roofline import estimate_work
from infc.ir import ops
from infc.ir.attributes import get
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.ir.types import ACTIVATION_FORMS, PRODUCT_DTYPES, TensorType, storage_bytes
from infc.passes.schedule.summary import typical_dims
from infc.passes.walk import body, dim_maxima, program_functions, programs
from infc.pipeline.passes import FunctionPass, PassContext
from infc.target.backend import KernelSummary


def quantize_activations(module: ir.Module, ctx: PassContext) -> None:
    """Insert `infc.quantize` before the products of both programs."""
    for program in programs(module):
        forms = _Forms(get(program, "infc.phase"), dim_maxima(program), ctx)
        for function in program_functions(program):
            made: dict[tuple[ir.Value, str], ir.Value] = {}
            for op in body(function):
                if op.operation.name == "infc.linear":
                    _quantize_input(op, forms, made)


def _quantize_input(
    op: ir.OpView, forms: _Forms, made: dict[tuple[ir.Value, str], ir.Value]
) -> None:
    x, matrix = list(op.operation.operands)[:2]
    rows, kind = TensorType.of(x.type).shape[0], TensorType.of(matrix.type)
    form = forms.best(kind, forms.typical[rows] if isinstance(rows, str) else rows)
    if form not in ACTIVATION_FORMS:
        forms.ctx.decline(
            op, f"{kind.element} weights of {kind.shape[1]} columns take {form} inputs"
        )
        return
    if (x, form) not in made:
        with ir.InsertionPoint(op), op.location:
            made[x, form] = ops.quantize(x, form)
    op.operation.operands[0] = made[x, form]


class _Forms:
    """Ranks the forms of a product's input in one program."""

    def __init__(self, phase: str, maxima: Mapping[str, int], ctx: PassContext) -> None:
        self.phase, self.maxima, self.ctx = phase, maxima, ctx
        self.typical = typical_dims(phase, maxima, ctx.options)
        self.best = cache(self._best)

    def _best(self, matrix: TensorType, rows: int) -> str:
        """The form with the least expected time for about `rows` rows; the first of equals."""
        n, k = (int(d) for d in matrix.shape)
        forms = self.ctx.backend.activation_forms(matrix.element, k, rows, self.ctx.target)
        if len(forms) == 1:
            return forms[0]
        return min(forms, key=lambda form: self._seconds(form, n, k, matrix.element, rows))

    def _seconds(self, form: str, n: int, k: int, storage: str, rows: int) -> float:
        """The expected time of a product, under its best mapping."""
        backend, target = self.ctx.backend, self.ctx.target
        kernel = KernelSummary(
            kind="matmul",
            phase=self.phase,
            rows=self.maxima["t"],
            typical_rows=rows,
            operations={PRODUCT_DTYPES[form]: 2.0 * rows * n * k},
            weight_bytes=storage_bytes(storage, (n, k)),
            activation_bytes=storage_bytes(form, (rows, k)) + storage_bytes("f32", (rows, n)),
            shapes={},
            matrices=((n, k, storage),),
        )
        works = [
            backend.work(kernel, mapping, target) for mapping in backend.candidates(kernel, target)
        ]
        return min(estimate_work(work, target).mid for work in works)


QUANTIZE_ACTIVATIONS = FunctionPass(
    "quantize-activations", Level.PHASE, quantize_activations, raises_to=Level.SCHEDULE
)
