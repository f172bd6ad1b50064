"""From modules of kernels to what an artifact holds: PTX, machine code, weights."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from infc.backends.cuda.codegen.assembler import Assembled, assemble
from infc.backends.cuda.codegen.ptx import to_ptx
from infc.backends.cuda.packing import write_weights
from infc.backends.cuda.target import arch_of
from infc.ir.attributes import from_attribute, get
from infc.ir.mlir import ir
from infc.target.backend import Programs, WeightData
from infc.target.schema import Target


def emit_programs(module: ir.Module, target: Target, weights: WeightData) -> Programs:
    """The programs of a machine-level module; machine code only where there is an assembler."""
    attributes = module.operation.attributes
    signature = from_attribute(attributes["infc.signature"])
    info = from_attribute(attributes["infc.info"])
    members: dict[str, bytes] = {}
    functions: dict[str, dict[str, int]] = {}
    for name, ptx in to_ptx(module, arch_of(target)).items():
        members[f"{name}.ptx"] = ptx.encode()
        assembled = assemble(ptx, arch_of(target))
        if assembled is not None:
            members[f"{name}.cubin"] = assembled.code
            functions |= _notable(assembled)
    phases = {name: {"persistent": None} | phase for name, phase in info["phases"].items()}
    return Programs(
        members=members,
        write_weights=partial(write_weights, module, weights),
        weight_bytes=get(module.operation, "infc.weight_bytes"),
        signature={**signature, "arch": info["arch"], "phases": phases, "functions": functions},
    )


def _notable(assembled: Assembled) -> dict[str, dict[str, Any]]:
    """What is used by entry points, and by functions that keep something in local memory."""
    return {
        name: asdict(usage)
        for name, usage in assembled.functions.items()
        if usage.registers or usage.stack
    }
