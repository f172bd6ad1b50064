"""The order of the passes, one readable tuple a level.

A backend takes `SHARED`, cuts it at the level it needs and adds its own steps; it never copies it.
"""

from __future__ import annotations

from infc.passes.graph.canonicalize import CANONICALIZE
from infc.passes.memory.bufferize import BUFFERIZE
from infc.passes.memory.insert_barriers import INSERT_BARRIERS
from infc.passes.memory.pack_weights import PACK_WEIGHTS
from infc.passes.memory.plan_memory import PLAN_MEMORY
from infc.passes.memory.record_plan import RECORD_PLAN
from infc.passes.memory.schedule_transfers import SCHEDULE_TRANSFERS
from infc.passes.phase.outline_layers import OUTLINE_LAYERS
from infc.passes.phase.split_phases import SPLIT_PHASES
from infc.passes.schedule.choose_mappings import CHOOSE_MAPPINGS
from infc.passes.schedule.fuse_kernels import FUSE_KERNELS
from infc.passes.schedule.quantize_activations import QUANTIZE_ACTIVATIONS
from infc.passes.schedule.split_head import SPLIT_HEAD
from infc.pipeline.passes import Pipeline

GRAPH = (CANONICALIZE,)
PHASE = (
    SPLIT_PHASES,
    # Layers first: every later pass then works on one copy of each class.
    OUTLINE_LAYERS,
)
SCHEDULE = (
    # Before kernels are formed: a quantize belongs into the row kernel in front of its product.
    QUANTIZE_ACTIVATIONS,
    SPLIT_HEAD,
    FUSE_KERNELS,
    CHOOSE_MAPPINGS,
)
MEMORY = (
    # Needs the mappings: they say which results every thread computes for itself.
    BUFFERIZE,
    # Before the arena is planned: what moves to a scratchpad needs no place in it.
    SCHEDULE_TRANSFERS,
    PLAN_MEMORY,
    # Needs the offsets: buffers that share memory must not be touched at the same time.
    INSERT_BARRIERS,
    PACK_WEIGHTS,
    RECORD_PLAN,
)

SHARED = Pipeline((*GRAPH, *PHASE, *SCHEDULE, *MEMORY))
