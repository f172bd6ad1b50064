"""The Python module of the dialect, for MLIR's bindings to find; classes of its own it has none.

The bindings look for the module of an operation's or a type's dialect each time they hand one out
until they find it: an import that fails, a hundred thousand times a compilation, unless this file
exists. `infc.ir.mlir` tells them where.
"""
