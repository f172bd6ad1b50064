"""From machine-level MLIR to object code.

`isa` says what the processor can do, `builder` writes MLIR (scf, vector, arith, llvm), `toolchain`
lowers a module to an object file, `linking` makes a shared object of that.
"""
