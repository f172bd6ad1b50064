"""Writes a schedule of `infc.memory.staging` into a program; part of `schedule-transfers`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from infc.ir import ops
from infc.ir.attributes import get, to_attribute
from infc.ir.mlir import ir
from infc.ir.types import BufferType
from infc.memory.staging.plan import Kind, StagingPlan
from infc.passes.memory.bufferize import FRAME
from infc.passes.memory.plan_memory import allocations, live_buffers
from infc.passes.walk import body, program_functions


def place_transfers(
    program: ir.OpView, names: Mapping[ir.Value, str], plan: StagingPlan, space: str
) -> None:
    """Rewrite a program whose `@main` calls kernels only.

    Args:
        names: the block of each of its buffers that is scheduled.
        plan: the parts are the calls, in order; each block is one piece.
        space: the scratchpad's name.
    """
    placer = _Placer(program, names, plan, space)
    placer.run()
    _retype_kernels(program)


class _Placer:
    """Goes through the calls of `@main` and puts buffers and transfers in front of them."""

    def __init__(
        self, program: ir.OpView, names: Mapping[ir.Value, str], plan: StagingPlan, space: str
    ) -> None:
        functions = program_functions(program)
        self.main = next(f for f in functions if get(f, "sym_name") == "main")
        self.names, self.plan, self.space = names, plan, space
        self.calls = [op for op in body(self.main) if op.operation.name == "func.call"]
        self.home = self._homes()
        self.frame = self._frame()
        self.buffers: dict[int, ir.Value] = {}
        self.tokens: dict[int, ir.Value] = {}
        self.issued: dict[tuple[Kind, int], list[int]] = defaultdict(list)
        self.waited: dict[tuple[Kind, int], list[int]] = defaultdict(list)
        for number, transfer in enumerate(plan.transfers):
            self.issued[transfer.kind, transfer.issue].append(number)
            self.waited[transfer.kind, transfer.wait].append(number)

    def _homes(self) -> dict[str, ir.Value]:
        """Where each block lies in far memory; those of weights come before all calls."""
        homes: dict[str, ir.Value] = {}
        first = body(self.main)[0]
        for value, name in self.names.items():
            maker = value.owner
            if maker.name == "infc.packed_ref" and name not in homes:
                maker.move_before(first.operation)
            homes.setdefault(name, value)
        return homes

    def _frame(self) -> ir.Value:
        kind = BufferType(FRAME, "frame", self.space).mlir()
        height = -(-self.plan.height_bytes // 64) * 64
        with ir.InsertionPoint(body(self.main)[0]), self.main.location:
            frame = ops.create("infc.space", results=[kind], size_bytes=height).results[0]
        live = [0] * len(self.calls)
        pieces = self.plan.pieces
        for residence in self.plan.residences:
            size = pieces.machine.rounded(pieces.pieces[residence.piece].size_bytes)
            for part in range(residence.first, residence.last + 1):
                live[part] += size
        heights = {"height_bytes": height, "lower_bound_bytes": max(live, default=0)}
        self.main.attributes["infc.plan"] = to_attribute({self.space: heights})
        return frame

    def run(self) -> None:
        """Rewrite `@main`."""
        for number, call in enumerate(self.calls):
            with ir.InsertionPoint(call):
                self._at(number)
            for index, operand in enumerate(call.operation.operands):
                name = self.names.get(operand)
                if name is not None:
                    call.operation.operands[index] = self._operand(name, number)
        with ir.InsertionPoint(body(self.main)[-1]):
            self._at(len(self.calls))
        for value in self.names:
            if not list(value.uses):
                value.owner.erase()
        self._record_lifetimes()

    def _at(self, part: int) -> None:
        """The transfers in front of a part, in the order a plan defines."""
        for number, residence in enumerate(self.plan.residences):
            if residence.first == part:
                self.buffers[number] = self._allocate(number)
        for kind in (Kind.STORE, Kind.LOAD):
            issued, waited = self.issued[kind, part], self.waited[kind, part]
            if issued == waited and len(issued) == 1:
                # Nothing happens meanwhile.
                source, target = self._ends(issued[0])
                with source.owner.location:
                    ops.move(source, target)
                continue
            for number in issued:
                source, target = self._ends(number)
                with source.owner.location:
                    queue = self.plan.transfers[number].queue
                    self.tokens[number] = ops.prefetch(source, target, queue=queue)
            for number in waited:
                with self.tokens[number].owner.location:
                    ops.wait(self.tokens[number])

    def _block(self, residence: int) -> str:
        return self.plan.pieces.pieces[self.plan.residences[residence].piece].block

    def _ends(self, number: int) -> tuple[ir.Value, ir.Value]:
        """Source and target of a transfer."""
        transfer = self.plan.transfers[number]
        near, far = self.buffers[transfer.residence], self.home[self._block(transfer.residence)]
        return (far, near) if transfer.kind is Kind.LOAD else (near, far)

    def _allocate(self, number: int) -> ir.Value:
        residence = self.plan.residences[number]
        home = self.home[self._block(number)]
        kind = BufferType.of(home.type)
        near = BufferType(kind.tensor, kind.layout, self.space)
        size = self.plan.pieces.pieces[residence.piece].size_bytes
        with home.owner.location:
            return ops.alloc(self.frame, near, offset=residence.offset, size_bytes=size)

    def _operand(self, name: str, part: int) -> ir.Value:
        """Where a call finds a block: in its latest stay, or at home."""
        found = [
            number
            for number, residence in enumerate(self.plan.residences)
            if self._block(number) == name and residence.first <= part <= residence.last
        ]
        if not found:
            return self.home[name]
        return self.buffers[max(found, key=lambda number: self.plan.residences[number].first)]

    def _record_lifetimes(self) -> None:
        allocs = allocations(self.main, self.space)
        for op, buffer in zip(allocs, live_buffers(self.main, allocs), strict=True):
            op.attributes["first"] = to_attribute(buffer.first)
            op.attributes["last"] = to_attribute(buffer.last)


def _retype_kernels(program: ir.OpView) -> None:
    """Make one function of a kernel for each choice of spaces that it is called with."""
    functions = {get(f, "sym_name"): f for f in program_functions(program)}
    calls = [op for op in body(functions["main"]) if op.operation.name == "func.call"]
    made: dict[tuple[str, tuple[ir.Type, ...]], str] = {}
    taken = set(functions)
    for call in calls:
        callee, kinds = get(call, "callee"), tuple(v.type for v in call.operation.operands)
        if (callee, kinds) not in made:
            name = made[callee, kinds] = _free_name(callee, taken, made)
            with ir.InsertionPoint(functions[callee]):
                copy = functions[callee].operation.clone()
            copy.attributes["sym_name"] = ir.StringAttr.get(name)
            copy.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(kinds, []))
            for argument, kind in zip(copy.regions[0].blocks[0].arguments, kinds, strict=True):
                argument.set_type(kind)
        call.attributes["callee"] = ir.FlatSymbolRefAttr.get(made[callee, kinds])
    for name, function in functions.items():
        if name != "main":
            function.operation.erase()


def _free_name(
    callee: str, taken: set[str], made: Mapping[tuple[str, tuple[ir.Type, ...]], str]
) -> str:
    """A kernel's own name at first, then another for each further choice of spaces."""
    name, number = callee, 2
    if any(known == callee for known, _ in made):
        while name in taken:
            name, number = f"{callee}_{number}", number + 1
        taken.add(name)
    return name
