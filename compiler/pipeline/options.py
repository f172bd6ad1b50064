"""What a compilation was asked for: limits bound the plan, hints only steer the cost model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from infc.diagnostics import Code, UserError
from infc.ir.attributes import from_attribute, to_attribute
from infc.ir.kv_storage import KV_DTYPES
from infc.ir.mlir import ir

LARGEST_SIZE = 2**24
"""The most that an option counts."""


@dataclass(frozen=True)
class CompileOptions:
    """Options of a compilation, recorded in the IR so that a dump says all it needs.

    Attributes:
        max_context: positions a sequence may have.
        max_batch: sequences at once: KV slots, and rows of a decode call.
        chunk: tokens a prefill call takes at most; longer prompts loop.
        logit_rows: rows of logits a prefill call may return.
        prompt, new_tokens, batch: the expected use; hints to the cost model.
        quantize: `keep`, or the storage type that float matrices are converted to.
        kv_dtype: `f32`, `f16`, `bf16` or `int8`, or `auto`: f32 where all weights are, else f16.
        max_threads: threads a call may be run by.
    """

    max_context: int = 4096
    max_batch: int = 1
    chunk: int = 512
    logit_rows: int = 16
    prompt: int = 512
    new_tokens: int = 128
    batch: int = 1
    quantize: str = "keep"
    kv_dtype: str = "auto"
    max_threads: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not type(field.default):
                raise UserError(
                    Code.OPTION,
                    f"expected {field.name} to be of type {field.type}, got {type(value).__name__}",
                )
            if isinstance(value, int) and not 1 <= value <= LARGEST_SIZE:
                raise UserError(
                    Code.OPTION,
                    f"expected {field.name} between 1 and {LARGEST_SIZE}, got {value}",
                    hint=f"choose a {field.name} in that range",
                )
        if self.kv_dtype not in ("auto", *KV_DTYPES):
            raise UserError(
                Code.OPTION,
                f"expected kv_dtype auto, {', '.join(KV_DTYPES)}, got '{self.kv_dtype}'",
                hint="auto keeps f16, or f32 where all weights are f32",
            )

    @property
    def prefill_rows(self) -> int:
        """Rows of a prefill call."""
        return min(self.chunk, self.max_context) if self.max_batch == 1 else self.chunk

    def to_attribute(self) -> ir.Attribute:
        """As an attribute of the module."""
        return to_attribute(asdict(self))

    @staticmethod
    def from_module(module: ir.Module) -> CompileOptions:
        """The options a module was compiled with.

        Raises:
            UserError: INF2001 where the module carries none.
        """
        attributes = module.operation.attributes
        if "infc.options" not in attributes:
            raise UserError(Code.IR_SYNTAX, "the module carries no infc.options")
        stated = from_attribute(attributes["infc.options"])
        known = [field.name for field in fields(CompileOptions)]
        unknown = sorted(set(stated) - set(known)) if isinstance(stated, dict) else [str(stated)]
        if unknown:
            raise UserError(
                Code.IR_SYNTAX,
                f"infc.options states '{unknown[0]}', which is no option",
                hint=f"the options are {', '.join(known)}",
            )
        return CompileOptions(**stated)
