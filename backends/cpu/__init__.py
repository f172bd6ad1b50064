"""The CPU backend: AVX2 and AVX-512 code, ahead of time, both phases run by all threads together.

In the order data flows: `target` and `probe` (which processor), `mappings` (what the cost model
chooses from), `lowering/` (memory level to machine level), `kernels/` (the emitters), `codegen/`
(MLIR to object code), `packing` (the weights file), `emission` (what goes into an
artifact; the C interface is `infc.h`), `runnable` (loading and calling), `backend` (the object that
offers all this).
"""

from infc.backends.cpu.backend import CpuBackend

BACKEND = CpuBackend()

__all__ = ["BACKEND"]
