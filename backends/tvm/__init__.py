"""Kernels by TVM for the programs of another backend: the optional part `infc[tvm]`.

`provider` is the object that the entry point names, `panel_sums` the computation and its schedules
in TensorIR, `object_file` the way from a schedule to an object file that needs no TVM when it runs,
`records` the schedules that MetaSchedule found. TVM is imported when a kernel of its is made.
"""

from infc.backends.tvm.provider import TvmProvider

PROVIDER = TvmProvider()

__all__ = ["PROVIDER"]
