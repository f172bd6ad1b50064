"""What the cost model chooses from, and what each choice asks of the machine."""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.cuda.target import arch_of, sm_count
from infc.cost.roofline import Work
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.target.backend import KernelMapping, KernelSummary
from infc.target.schema import Target

KV_DTYPES = ("f16", "bf16")
"""What a cache may hold; the first where nothing is asked for."""
REPLICATED_ROWS = 8
"""Up to so many rows of a step every block computes row operations for itself, a warp a row: all
blocks reading them from the L2 takes less than a barrier of all of them."""
