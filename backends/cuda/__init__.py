"""The CUDA backend: prefill on tensor cores, decode as one persistent kernel; MLIR to PTX.

In the order data flows: `target` (which device), `mappings` (what the cost model chooses from),
`lowering/` (memory level to device functions and kernels), `kernels/` (the emitters), `codegen/`
(MLIR to PTX, and machine code), `packing` (the weights file), `emission` (what goes into an
artifact), `runtime/` and `runnable` (loading and calling), `backend` (the object that offers all
this). `lockstep/` executes kernels without a device.
"""

from infc.backends.cuda.backend import CudaBackend

BACKEND = CudaBackend()

__all__ = ["BACKEND"]
