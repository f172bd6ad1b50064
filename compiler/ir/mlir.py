"""The one place that imports MLIR: everything else takes it from here.

The bindings ship as `xtc-mlir-python-bindings`; upstream plans wheels under another name with the
same import name, so the choice is kept to this file.
"""

from __future__ import annotations

from mlir import ir, rewrite
from mlir.dialects import arith, func, gpu, irdl, llvm, math, nvvm, scf, vector
from mlir.dialects._ods_common import _cext as bindings
from mlir.passmanager import PassManager

__all__ = [
    "PassManager",
    "arith",
    "func",
    "gpu",
    "ir",
    "irdl",
    "llvm",
    "math",
    "nvvm",
    "rewrite",
    "scf",
    "vector",
]

# `infc.ir.infc` stands for the dialect.
bindings.globals.append_dialect_search_prefix("infc.ir")
