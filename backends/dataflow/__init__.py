"""The dataflow accelerator: cores whose memories and moves are scheduled at compile time.

In the order data flows: `presets` and `machine` (which machine), `mappings` and `partition` (how
a model is spread over it), `codegen/` (from the schedule level to instructions), `tiles` and
`packing` (the weights file), `image` (the programs' file), `emission` (what goes into an artifact),
`simulator/` (what a program computes, how long it takes, whether its accesses are in order),
`runnable` (loading and calling), `backend` (the object that offers all this).
"""

from infc.backends.dataflow.backend import BACKEND

__all__ = ["BACKEND"]
