"""The CPU's kernels: what each emits, in machine-level MLIR."""
