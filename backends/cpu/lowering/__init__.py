"""From memory-level programs to machine-level functions, in the order data flows.

`forms` reads a kernel function and says which emitter makes it and in which order it wants its
operands, `row_kernel` emits the fused row operations, `programs` walks the calling functions,
`entry` wraps each program in its ABI, `passes` are the two steps of the pipeline.
"""
