"""What a processor's instruction set offers to the code generator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Isa:
    """Facts that decide which instructions the kernels use.

    Attributes:
        triple: LLVM target triple.
        cpu: LLVM processor name the scheduler is tuned for.
        features: LLVM feature string, `+avx2,+fma,...`.
        vector_bytes: width of the widest vector register that should be used.
        vector_registers: how many of them.
        dot_i8: how four products of bytes are summed into an i32 lane:
            `avx512-vnni`, `avx-vnni` (256 bit), or `avx2` (maddubs, maddwd);
            `neon-i8mm` (usdot, and smmla for tiles), or `neon-dot` (sdot).
        bf16_dot: whether `vdpbf16ps` exists, on AArch64 `bfdot`.
        amx: whether there are tile registers and their bf16 products (then `bf16_dot` too).
    """

    triple: str
    cpu: str
    features: str
    vector_bytes: int
    vector_registers: int
    dot_i8: str
    bf16_dot: bool
    amx: bool = False

    @property
    def architecture(self) -> str:
        """`x86_64` or `aarch64`."""
        return self.triple.partition("-")[0]
