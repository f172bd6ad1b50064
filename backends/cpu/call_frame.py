"""The structure that a program is called with, made once and filled anew for each call.

A step of decode streams all weights through the caches and leaves nothing there: making structure,
arrays and addresses anew in Python then takes several times what it takes in a tight loop.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.backends.cpu.lowering import abi
from infc.diagnostics import InternalError
from infc.target.runnable import TOP_ENTRY, Call, Limits, OutputKind, Phase


class CallFrame:
    """An `infc_call` of one program and the arrays it points to.

    Args:
        limits: bounds of the programs, which the arrays have room for.
        vocab_size: logits a row.
        weights: address of the packed weights.
    """

    def __init__(self, phase: Phase, limits: Limits, vocab_size: int, weights: int) -> None:
        tokens, rows = limits.max_tokens[phase], limits.max_logit_rows[phase]
        self._vocab_size = vocab_size
        self._inputs = {
            "tokens": np.empty(tokens, np.int32),
            "row_offsets": np.empty(limits.max_slots + 1, np.int32),
            "slots": np.empty(limits.max_slots, np.int32),
            "positions": np.empty(tokens, np.int32),
            "logit_rows": np.empty(rows, np.int32),
        }
        self._best = np.empty(rows, np.int32)
        self._top_logits = np.empty((rows, limits.max_top_k), np.float32)
        self._top_ids = np.empty((rows, limits.max_top_k), np.int32)
        self._unseen_logits = np.empty((rows, vocab_size), np.float32)
        made = self._inputs | {
            "best": self._best,
            "top_logits": self._top_logits,
            "top_ids": self._top_ids,
        }
        self._native = abi.InfcCall(
            abi_version=abi.ABI_VERSION,
            struct_size=ctypes.sizeof(abi.InfcCall),
            weights=weights,
            **{name: array.ctypes.data for name, array in made.items()},
        )
        self.address = ctypes.addressof(self._native)

    def fill(self, call: Call, *, arena: int, kv: int, cancel: int, trace: int | None) -> None:
        """Put a call in; the others are addresses, `trace` None where no times are wanted.

        Raises:
            InternalError: the call is larger than the program's limits.
        """
        for name, room in self._inputs.items():
            values = getattr(call, name)
            if len(values) > len(room):
                raise InternalError(
                    f"the call has {len(values)} {name}, and the program takes {len(room)}"
                )
            room[: len(values)] = values
        native = self._native
        native.n_tokens = len(call.tokens)
        native.n_sequences = len(call.slots)
        native.n_logit_rows = len(call.logit_rows)
        native.output_kind = int(call.output)
        native.top_k = call.top_k
        native.arena, native.kv = arena, kv
        native.cancel, native.trace = cancel, trace
        # Without an exact reduced head the best tokens are looked for among all logits.
        self._logits = self._unseen_logits
        if call.output is OutputKind.LOGITS:
            self._logits = np.empty((len(call.logit_rows), self._vocab_size), np.float32)
        native.logits = self._logits.ctypes.data

    def result(self, call: Call) -> NDArray[Any]:
        """What the program made of the call that was put in last: an array of the caller's own."""
        rows = len(call.logit_rows)
        if call.output is OutputKind.LOGITS:
            return self._logits
        if call.output is OutputKind.ARGMAX:
            return self._best[:rows].copy()
        top = np.empty((rows, call.top_k), TOP_ENTRY)
        top["logit"] = self._top_logits[:rows, : call.top_k]
        top["id"] = self._top_ids[:rows, : call.top_k]
        return top
