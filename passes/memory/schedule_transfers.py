"""What kernels use is brought into a scratchpad in time, and back where somebody needs it.

    %w = packed_ref @w3                      %w = packed_ref @w3
    call @k0_matmul(%x, %w, %y)              %s = alloc %sram {offset = 4096, ...}
    %v = packed_ref @w4                -->   %t = prefetch %w, %s {queue = 0}
    call @k1_matmul(%y, %v, %z)              ...
                                             call @k0_matmul(%a, %b, %c)
                                             wait %t
                                             call @k1_matmul(%c, %s, %d)

Requires: bufferised programs, before buffers are planned.
Guarantees: for a target with a memory that software manages and another that feeds it, buffers of
the arena and weights that kernels use lie in the scratchpad (the space has its name) from before
they are used until after; what is not in time is read where it lies, if the far memory feeds the
compute units; every prefetch has its wait. `@main` holds the whole program. A kernel that is called
with weights here and there is one function for each choice. Other targets are left alone.
Does not handle: cutting kernels (a kernel's buffers must fit together), buffers of single threads,
call operands and caches (kernels move these themselves), weights that stay from call to call.

The schedule is that of `infc.memory.staging`; its timeline is made by an evaluator, and both are
checked by a checker, that share no code with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.cost.roofline import Work, estimate_work
from infc.ir.attributes import get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.ir.types import BufferType, is_buffer
from infc.memory.staging.bound import lower_bound
from infc.memory.staging.checker import check_staging
from infc.memory.staging.plan import StagingPlan
from infc.memory.staging.problem import Block, Machine, StagingProblem, Step
from infc.memory.staging.scheduler import schedule_transfers as schedule
from infc.memory.staging.timeline import evaluate
from infc.passes.memory.inline_layers import inline_layers
from infc.passes.memory.insert_barriers import written_arguments
from infc.passes.memory.place_transfers import place_transfers
from infc.passes.walk import body, program_functions, programs
from infc.pipeline.passes import FunctionPass, PassContext
from infc.target.schema import Memory, Target

ALIGN = 64
"""Bytes, of every offset in a scratchpad."""


def schedule_transfers(module: ir.Module, ctx: PassContext) -> None:
    """Schedule both programs."""
    memories = _scratchpad(ctx.target)
    if memories is None:
        return
    packed = {
        get(op, "sym_name"): op
        for op in module.body.operations
        if op.operation.name == "infc.packed"
    }
    for program in programs(module):
        inline_layers(program)
        blocks = Blocks.of(program, packed)
        problem = _problem(program, blocks, memories, ctx.target)
        plan = schedule(problem)
        timeline = evaluate(plan)
        check_staging(plan, timeline)
        place_transfers(program, blocks.names, plan, memories[0].name)
        main = next(f for f in program_functions(program) if get(f, "sym_name") == "main")
        main.attributes["infc.staging"] = to_attribute(
            {
                "seconds": timeline.seconds,
                "lower_bound_seconds": lower_bound(problem).seconds,
                "stall_seconds": plan.stall_seconds,
                "moved_bytes": plan.moved_bytes,
                "scratchpad_bytes": problem.machine.capacity_bytes,
            }
        )
        _say_what_is_direct(program, plan, ctx)


def _scratchpad(target: Target) -> tuple[Memory, Memory] | None:
    """The first memory that software manages and something feeds, and the one that feeds it."""
    for near in target.memories:
        for far in target.memories:
            if near.managed_by == "software" and near.name in far.feeds:
                return near, far
    return None


@dataclass(frozen=True)
class Blocks:
    """The blocks of a program.

    Attributes:
        names: of each buffer of `@main` that is scheduled; a weight has one name everywhere.
        sizes: bytes by name.
    """

    names: dict[ir.Value, str]
    sizes: dict[str, int]

    @staticmethod
    def of(program: ir.OpView, packed: dict[str, ir.OpView]) -> Blocks:
        """Weights, and what `@main` places in the arena."""
        names: dict[ir.Value, str] = {}
        sizes: dict[str, int] = {}
        main = next(f for f in program_functions(program) if get(f, "sym_name") == "main")
        for op in body(main):
            if op.operation.name == "infc.packed_ref":
                weight = packed[get(op, "packed")]
                # As a report of what does not fit names it.
                name = f"@{get(op, 'packed')} {get(weight, 'source', 'rope table')}"
                size = get(weight, "size_bytes")
            elif (
                op.operation.name == "infc.alloc"
                and BufferType.of(op.operation.results[0].type).space == "arena"
            ):
                name, size = f"%{len(sizes)}", get(op, "size_bytes")
            else:
                continue
            names[op.operation.results[0]] = name
            sizes[name] = size
        return Blocks(names, sizes)


def _problem(
    program: ir.OpView, blocks: Blocks, memories: tuple[Memory, Memory], target: Target
) -> StagingProblem:
    near, far = memories
    functions = {get(f, "sym_name"): f for f in program_functions(program)}
    machine = Machine(
        # Several scratchpads count as one: who uses which is decided elsewhere.
        near.size_bytes * near.count,
        far.bandwidth_bytes_per_s * far.count,
        (far.latency_ns or 0.0) * 1e-9,
        int(target.backend_facts.get("dma_queues", 1)),
        direct_reads=any(unit.name in far.feeds for unit in target.compute),
        align_bytes=ALIGN,
    )
    steps = [
        _step(op, functions[get(op, "callee")], blocks, memories, target)
        for op in body(functions["main"])
        if op.operation.name == "func.call"
    ]
    used = {name for step in steps for name in (*step.reads, *step.writes)}
    return StagingProblem(
        machine,
        tuple(
            Block(name, size, starts_far=name.startswith("@"))
            for name, size in blocks.sizes.items()
            if name in used
        ),
        tuple(steps),
    )


def _step(
    op: ir.OpView,
    kernel: ir.OpView,
    blocks: Blocks,
    memories: tuple[Memory, Memory],
    target: Target,
) -> Step:
    """A call of a kernel: the arithmetic, and what it moves over the scratchpad's ports."""
    near, far = memories
    written = written_arguments(kernel)
    reads: list[str] = []
    writes: list[str] = []
    staged = 0
    for index, operand in enumerate(op.operation.operands):
        name = blocks.names.get(operand) if is_buffer(operand.type) else None
        if name is not None:
            (writes if index in written else reads).append(name)
            staged += blocks.sizes[name]
    work = get(kernel, "infc.work")
    moved = Work({near.name: staged}, work["operations"], barriers=work["barriers"])
    return Step(
        get(op, "callee"),
        estimate_work(moved, target).mid,
        tuple(dict.fromkeys(reads)),
        tuple(dict.fromkeys(writes)),
        # Caches and call operands: what the kernel moves besides its buffers.
        far_bytes=max(0, int(work["bytes"].get(far.name, 0)) - staged),
    )


def _say_what_is_direct(program: ir.OpView, plan: StagingPlan, ctx: PassContext) -> None:
    for part, piece in sorted(plan.direct):
        name = plan.pieces.pieces[piece].block
        ctx.decline(program, f"step {part} reads {name} in far memory: no room or time to move it")


SCHEDULE_TRANSFERS = FunctionPass("schedule-transfers", Level.MEMORY, schedule_transfers)
