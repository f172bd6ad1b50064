"""From the llvm dialect to what an artifact holds: shared object, header, weights."""

from __future__ import annotations

from functools import partial
from importlib.resources import files

from infc.backends.cpu.codegen.linking import link_shared
from infc.backends.cpu.codegen.toolchain import code_only, emit_object
from infc.backends.cpu.packing import write_weights
from infc.backends.cpu.provided import provided_objects
from infc.backends.cpu.target import isa_of
from infc.ir.attributes import from_attribute
from infc.ir.mlir import ir
from infc.target.backend import Programs, WeightData
from infc.target.schema import Target


def emit_programs(module: ir.Module, target: Target, weights: WeightData) -> Programs:
    """The programs of a machine-level module."""
    attributes = module.operation.attributes
    info = from_attribute(attributes["infc.info"])
    signature = from_attribute(attributes["infc.signature"])
    own = emit_object(code_only(module), isa_of(target))
    shared = link_shared(own, *provided_objects(module, target))
    header = files("infc.backends.cpu").joinpath("infc.h").read_bytes()
    return Programs(
        members={"model.so": shared, "infc.h": header},
        write_weights=partial(write_weights, module, weights),
        weight_bytes=info["weight_bytes"],
        signature={**signature, "info": info},
    )
