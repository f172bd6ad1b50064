"""The CPU backend: code for x86-64 and AArch64, ahead of time, both phases run by all threads.

In the order data flows: `target` and `probe` (which processor), `mappings` (what the cost model
chooses from), `lowering/` (memory level to machine level), `kernels/` (the emitters), `codegen/`
(MLIR to object code), `packing` (the weights file), `emission` (what goes into an
artifact; the C interface is `infc.h`), `runnable` (loading and calling), `backend` (the object that
offers all this).
"""

from infc.backends.cpu.backend import CpuBackend

BACKEND = CpuBackend()

__all__ = ["BACKEND"]
