"""Runs the two programs in the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from infc.backends.reference.weights import weight_sizes
from infc.diagnostics import Code, InternalError, UserError
from infc.ir.attributes import get
from infc.ir.context import context, parse
from infc.ir.types import KVType
from infc.reference.interpreter import Interpreter
from infc.reference.kv import LayerCache, ReferenceKV
from infc.target.backend import LoadedPrograms
from infc.target.runnable import (
    TOP_ENTRY,
    Call,
    Cancellation,
    KVCache,
    OutputKind,
    Phase,
    kv_shape_of,
    limits_of,
)
from infc.target.signature import Size, other_programs, read_signature


class ReferenceSignature(TypedDict):
    """The signature's own field: offset and bytes of each weight, by name."""

    weights: dict[str, tuple[Size, Size]]


class ReferenceRunnable:
    """Implements `infc.target.runnable.Runnable`."""

    def __init__(self, programs: LoadedPrograms) -> None:
        signature = programs.signature
        self.vocab_size: int = signature["vocab_size"]
        self.limits = limits_of(signature)
        self.kv_shape = kv_shape_of(signature)
        self.planned_bytes = 0
        self._check = programs.check
        self._weights = programs.weights
        self._table = read_signature(ReferenceSignature, signature)["weights"]
        if any(offset + size > len(self._weights) for offset, size in self._table.values()):
            raise other_programs()
        with context() as self._context:
            module = parse(str(programs.member("module.mlir"), "utf-8"), name="module.mlir")
            known = {name: size for name, (_, size) in self._table.items()}
            if not weight_sizes(module).items() <= known.items():
                raise other_programs()
            self._programs = {
                get(op, "sym_name"): Interpreter(op, self._weight_bytes)
                for op in module.body.operations
                if op.operation.name == "builtin.module"
            }
        self._module = module
        prefill, decode = self._programs["prefill"], self._programs["decode"]
        # Both programs dequantise a weight once between them.
        decode.known_weights = prefill.known_weights

    def _weight_bytes(self, name: str) -> NDArray[np.uint8]:
        offset, size_bytes = self._table[name]
        return np.frombuffer(self._weights, np.uint8, size_bytes, offset)

    def new_kv(self) -> ReferenceKV:
        """An empty cache of every layer, all slots."""
        shape = self.kv_shape
        return ReferenceKV(
            [
                LayerCache(
                    KVType(shape.dtype, shape.kv_heads, shape.head_dim, capacity, window or 0),
                    self.limits.max_slots,
                )
                for capacity, window in zip(shape.capacity, shape.windows, strict=True)
            ]
        )

    def run(
        self,
        phase: Phase,
        call: Call,
        kv: KVCache,
        *,
        threads: int,
        cancel: Cancellation | None = None,
    ) -> NDArray[Any]:
        """Interpret one program; `threads` changes nothing."""
        if not isinstance(kv, ReferenceKV):
            raise InternalError("the KV cache belongs to another backend")
        if cancel is not None and cancel.is_set():
            raise UserError(Code.CANCELLED, "the call was cancelled")
        self._check()
        interpreter = self._programs[phase.name.lower()]
        interpreter.caches = kv.layers
        row_slots = np.repeat(call.slots, np.diff(call.row_offsets)).astype(np.int32)
        with self._context:
            logits, best, *top = interpreter.run(
                "main", [call.tokens, call.positions, row_slots, call.logit_rows]
            )
        if call.output is OutputKind.ARGMAX:
            return np.asarray(best, np.int32)
        if call.output is OutputKind.TOP_K:
            found = np.empty((len(logits), call.top_k), TOP_ENTRY)
            found["logit"], found["id"] = (part[:, : call.top_k] for part in top)
            return found
        return np.asarray(logits, np.float32)

    def trace(self, phase: Phase, call: Call, kv: KVCache, *, threads: int) -> None:
        """There are no kernels whose time would mean anything."""

    def close(self) -> None:
        """Forget the module."""
        self._programs.clear()
