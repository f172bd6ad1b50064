"""The CUDA backend: prefill on tensor cores, decode as one persistent kernel; MLIR to PTX."""
