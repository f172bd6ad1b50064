"""A provider of kernels whose functions are written in C, and ways in which one can be wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from infc.target.backend import KernelMapping, KernelSummary
from infc.target.provider import (
    PROVIDER_API_VERSION,
    Candidate,
    KernelFunction,
    ProviderStatus,
)
from infc.target.schema import Target

SOURCE = """
static float widened({type} bits) {{
    {widen}
}}

void {symbol}(const float *x, const {type} *panel, float *sums) {{
    for (int row = 0; row < {rows}; row++)
        for (int column = 0; column < 16; column++) {{
            float parts[4] = {{0, 0, 0, 0}};
            for (int i = 0; i < {k}; i++)
                parts[i % 4] = __builtin_fmaf(widened(panel[16 * i + column]),
                                              x[{k} * row + i], parts[i % 4]);
            sums[16 * row + column] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
        }}
}}
"""
WEIGHTS = {
    "n16.f32": ("float", "return bits;"),
    "n16.bf16": (
        "unsigned short",
        "union { unsigned u; float f; } wide = {(unsigned)bits << 16}; return wide.f;",
    ),
}


class CProvider:
    """Says that it is `speed` times as fast as the cost model expects; compiles with gcc."""

    api_version = PROVIDER_API_VERSION
    name = "plain-c"
    backend = "cpu"

    def __init__(self, folder: Path, speed: float = 2.0, available: bool = True) -> None:
        self.folder, self.speed, self.available = folder, speed, available
        self.row_tile: object = None
        self.source = SOURCE
        self.made: list[KernelFunction] = []

    def status(self) -> ProviderStatus:
        return ProviderStatus(self.name, self.backend, self.available, "a test")

    def candidates(self, kernel: KernelSummary, target: Target) -> Sequence[Candidate]:
        rows = self.row_tile or min(kernel.typical_rows, 3)
        return [Candidate({"row_tile": rows, "flavour": "plain"}, self.speed)]  # type: ignore[dict-item]

    def object_code(
        self, function: KernelFunction, mapping: KernelMapping, target: Target
    ) -> bytes:
        assert function.contract == "panel-sums"
        assert mapping["flavour"] == "plain"
        assert mapping["provider"] == self.name
        self.made.append(function)
        kind, widen = WEIGHTS[function.layout]
        text = self.source.format(
            symbol=function.symbol, type=kind, widen=widen, **dict(function.shapes)
        )
        source, out = self.folder / "sums.c", self.folder / "sums.o"
        source.write_text(text)
        flags = ["-O1", "-march=x86-64-v3", "-fPIC", "-ffp-contract=off", "-c"]
        subprocess.run(["gcc", *flags, source, "-o", out], check=True)
        return out.read_bytes()
