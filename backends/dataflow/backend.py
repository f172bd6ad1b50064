"""The backend object of the dataflow accelerator.

What only a compilation needs is imported when it is called: `infc targets` waits for neither MLIR
nor NumPy's larger parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from infc.backends.dataflow.presets import BACKEND_NAME, preset_names, resolve_dataflow
from infc.target.backend import API_VERSION
from infc.target.schema import Target, TargetStatus

if TYPE_CHECKING:
    from infc.ir.mlir import ir


class DataflowBackend:
    """Implements `infc.target.backend.Backend`; its programs run on a simulator."""

    api_version = API_VERSION
    name = BACKEND_NAME

    @property
    def storage_types(self) -> frozenset[str]:
        """Those whose codes and scales a matrix unit takes."""
        from infc.backends.dataflow.needs import PRODUCT_OF_STORAGE

        return frozenset(PRODUCT_OF_STORAGE)

    def targets(self) -> Sequence[TargetStatus]:
        """The presets; each can be simulated on any host."""
        return [
            TargetStatus(name, self.name, "dataflow", True, "simulated") for name in preset_names()
        ]

    def resolve(self, spec: str) -> Target:
        """The facts of a preset or a file, with the number of chips that stands behind `@`."""
        return resolve_dataflow(spec)

    def unsupported(self, op: ir.Operation, target: Target) -> str | None:
        """Units and formats that the target lacks."""
        from infc.backends.dataflow.needs import lacking

        return lacking(op, target)


BACKEND = DataflowBackend()
