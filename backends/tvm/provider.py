"""The provider object: which kernels TVM offers, and their code."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from infc.backends.tvm.records import find_record, records_digest
from infc.ir.storage import STORAGE_TYPES
from infc.target.backend import KernelMapping, KernelSummary
from infc.target.provider import (
    PROVIDER_API_VERSION,
    Candidate,
    KernelFunction,
    ProviderStatus,
)
from infc.target.schema import Target

VERSIONS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
"""With later versions of the second one MetaSchedule crashes (9 of 9 tries; none with this one)."""
_REVISION = 1
"""Of the schedules: what was measured of others does not hold for these."""
_PARTS = 4
"""Sums by k modulo so much, as the contract of the functions says."""
_FILE_BYTES = 2048
"""Vector registers together hold so much where they are 32 of 64 bytes."""


class TvmProvider:
    """Implements `infc.target.provider.KernelProvider`."""

    api_version = PROVIDER_API_VERSION
    name = "tvm"
    backend = "cpu"

    def status(self) -> ProviderStatus:
        """Whether the right versions are installed; imports nothing of them."""
        reason = _problem()
        if reason is not None:
            return ProviderStatus(self.name, self.backend, False, reason)
        versions = {**VERSIONS, "schedules": str(_REVISION), "records": records_digest()}
        return ProviderStatus(self.name, self.backend, True, _remark(), versions)

    def candidates(self, kernel: KernelSummary, target: Target) -> Sequence[Candidate]:
        """Products of float weights in float32, as TVM schedules them: no faster than others as
        far as TVM knows, so that measurements decide."""
        if kernel.kind != "matmul" or set(kernel.operations) != {"f32"}:
            return []
        if any(k % _PARTS or not STORAGE_TYPES[s].is_float for _, k, s in kernel.matrices):
            return []
        return [
            Candidate(
                {
                    "row_tile": rows,
                    "schedule": schedule,
                    "schedule_revision": _REVISION,
                    "tvm": VERSIONS["apache-tvm"],
                }
            )
            for rows in _row_tiles(kernel, target)
            for schedule in _schedules(kernel, rows, target)
        ]

    def object_code(
        self, function: KernelFunction, mapping: KernelMapping, target: Target
    ) -> bytes:
        """The function by TVM's own code generator."""
        from infc.backends.tvm.object_file import compile_function
        from infc.backends.tvm.panel_sums import scheduled

        rows, k = function.shapes["rows"], function.shapes["k"]
        kind = function.layout.rpartition(".")[2]
        schedule = scheduled(str(mapping["schedule"]), rows, k, kind, target)
        return compile_function(schedule, function.symbol, target)


def _row_tiles(kernel: KernelSummary, target: Target) -> list[int]:
    """Rows whose sums, four vectors each, fit the registers beside the weights."""
    facts = target.backend_facts
    large = int(facts["vector_bytes"]) * int(facts["vector_registers"]) >= _FILE_BYTES
    tiles = [1] if kernel.typical_rows == 1 else [6, 4] if large else [1, 2]
    return [rows for rows in tiles if rows <= kernel.rows]


def _schedules(kernel: KernelSummary, rows: int, target: Target) -> list[str]:
    """Names of schedules: by hand for all, by MetaSchedule where each matrix has a record."""
    tuned = all(find_record(rows, k, storage, target) for _, k, storage in kernel.matrices)
    return ["registers", "tuned"] if tuned else ["registers"]


def _problem() -> str | None:
    """Why TVM cannot be used, or None."""
    for name, wanted in VERSIONS.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            return f"{name} is not installed: pip install 'infc[tvm]'"
        if found != wanted:
            return f"expected {name} {wanted}, got {found}: pip install 'infc[tvm]'"
    return None


def _remark() -> str:
    return f"apache-tvm {VERSIONS['apache-tvm']}: products of float weights, compared by --tune"
