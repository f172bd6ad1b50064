"""Programs that a backend would make of a model, as an estimate asks them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from infc.cost.estimate import Estimate
from infc.cost.transformer import Rows
from infc.target.schema import Target


@dataclass(frozen=True)
class ProgramBytes:
    """What a model takes of the memory of a device.

    Attributes:
        weights: as they lie there.
        prefill: activations of a prompt's call, whatever the batch.
        decode: activations of a step, of each sequence.
        position: of the KV cache, a position of a sequence; a fraction where devices share one.
        sequence: of the KV cache, whatever the length of a sequence; likewise.
    """

    weights: int
    prefill: int
    decode: float
    position: float
    sequence: float

    def activations(self, batch: int) -> int:
        """Of the larger one of both phases, with so many sequences at once."""
        return max(self.prefill, math.ceil(batch * self.decode))


class Programs(Protocol):
    """Both programs of a model on one device."""

    @property
    def kv_dtype(self) -> str:
        """Of the KV cache: a dtype of the cost model."""

    @property
    def chunk(self) -> int:
        """Tokens of a prefill call, at most."""

    @property
    def dtype(self) -> str:
        """In which most of a prompt's operations are."""

    @property
    def dtypes(self) -> Sequence[str]:
        """In which the kernels compute."""

    @property
    def memory(self) -> ProgramBytes:
        """Bytes, for the sequences that the programs are for."""

    def step(self, rows: Rows, target: Target) -> Estimate:
        """One step: on their device, or on one whose figures differ from its."""
