"""What a simulated machine tells of an artifact's programs, as rows of an explanation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infc.driver.explanation_rows import BufferRow, FrameRow, LayoutRow, OpRow
from infc.target.runnable import Call, Phase
from infc.target.simulated import LocalPlan, MachineLayout, SimulatedCall, SimulatedRunnable

SPACE = "sram"
"""What a core's own memory is called in the rows."""


@dataclass(frozen=True)
class SimulatedProgram:
    """One program: a call of it, and where it is."""

    call: SimulatedCall
    layout: MachineLayout
    plans: Sequence[LocalPlan]

    @classmethod
    def of(cls, side: SimulatedRunnable, phase: Phase, call: Call) -> SimulatedProgram:
        """Ask for all of it."""
        return cls(side.simulate(phase, call), side.layout(phase), side.local_plans(phase))


def op_rows(programs: Mapping[str, SimulatedProgram]) -> tuple[OpRow, ...]:
    """The operations of all programs, in order."""
    return tuple(
        OpRow(
            program=name,
            operation=op.name,
            seconds=op.seconds,
            share=op.seconds / program.call.seconds,
            bound=op.bound,
            bound_kind=program.call.resources.get(op.bound, "overhead"),
            utilisation={
                resource: op.utilisation[resource]
                for resource in program.call.resources
                if resource in op.utilisation
            },
        )
        for name, program in programs.items()
        for op in program.call.ops
    )


def layout_rows(programs: Mapping[str, SimulatedProgram]) -> tuple[LayoutRow, ...]:
    """The layouts; programs that lie alike share one."""
    layouts = [program.layout for program in programs.values()]
    return tuple(
        LayoutRow(
            tuple(name for name, program in programs.items() if program.layout == layout), layout
        )
        for number, layout in enumerate(layouts)
        if layout not in layouts[:number]
    )


def local_memory_rows(
    program: str, plans: Sequence[LocalPlan]
) -> tuple[list[FrameRow], list[BufferRow]]:
    """The plans of cores' memories, as frames named after their stages."""
    frames, buffers = [], []
    for plan in plans:
        function = f"stage{'s' if len(plan.stages) > 1 else ''} {ranges(plan.stages)}"
        frames.append(FrameRow(program, function, SPACE, plan.height_bytes, plan.lower_bound_bytes))
        buffers += [
            BufferRow(
                program,
                function,
                SPACE,
                buffer.name,
                "",
                buffer.offset_bytes,
                buffer.size_bytes,
                buffer.first,
                buffer.last,
            )
            for buffer in plan.buffers
        ]
    return frames, buffers


def ranges(numbers: Sequence[int]) -> str:
    """`0-3, 5`: ascending numbers, runs of them as first and last."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
