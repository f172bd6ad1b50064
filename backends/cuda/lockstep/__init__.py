"""Executes kernels on the CPU, as the builder made them: no GPU, no lowering, every access checked.

Each SSA value is an array over the threads of a block that run together. In the order data flows:
`reading` (MLIR to steps), `operations` (what is known; `numbers`, `vectors`, `accesses`, `warps`,
`barriers`, `control`), `memory`, `threads` (who runs and waits), `launch`.
"""

from infc.backends.cuda.lockstep.launch import launch
from infc.backends.cuda.lockstep.memory import Device
from infc.backends.cuda.lockstep.reading import Program, read
from infc.backends.cuda.lockstep.threads import LockstepError

__all__ = ["Device", "LockstepError", "Program", "launch", "read"]
