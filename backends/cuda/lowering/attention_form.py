"""The form of an attention: rows of queries against their slots' cache, perhaps rounded to bf16."""

from __future__ import annotations

from infc.backends.cuda.codegen.builder import GpuBuilder
from infc.backends.cuda.kernels.attention import (
    AttentionMapping,
    AttentionSpec,
    attention_arrivals,
    attention_scratch_bytes,
    emit_attention,
)
from infc.backends.cuda.lowering.caches import cache_layer
from infc.backends.cuda.lowering.forms import Form
from infc.ir.attributes import get
from infc.ir.types import ABF16, KVType
from infc.passes.codegen.kernel_body import KernelBody


def attention_form(b: GpuBuilder, name: str, body: KernelBody, rows: int) -> Form:
    """Attention of each row with its slot's cache."""
    (op,) = body.named("kv_attention")
    q, cache, positions, row_slots = op.operation.operands
    rounded = body.named("quantize")
    spec = AttentionSpec(
        heads=get(op, "heads"),
        kv=cache_layer(body, cache),
        window=KVType.of(cache.type).window or None,
        scale=get(op, "scale"),
        softcap=get(op, "softcap") or None,
        max_rows=rows,
        out=ABF16 if rounded else "f32",
    )
    fields = (int(body.mapping[name]) for name in ("tiles", "parts", "streams"))
    mapping = AttentionMapping(*fields)
    result = (rounded or [op])[0].operation.results[0]
    pointers = (
        body.source[q],
        body.source[cache],
        body.source[positions],
        body.source[row_slots],
        body.target[result],
    )
    return Form(
        emit_attention(b, name, spec, mapping),
        (*pointers, "scratch", "arrivals", "rows", "cta", "ctas"),
        "t",
        scratch_bytes=attention_scratch_bytes(spec, mapping),
        arrivals=attention_arrivals(spec, mapping),
    )
