"""Measured kernels of `data/silicon` as queries of the cost model."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infc.cost.kernels.queries import Collective, DecodeAttention, Gemm, PrefillAttention, Query

FOLDER: Final = Path(__file__).parent / "data" / "silicon"
TARGET: Final = "nvidia-h100-sxm"
_DTYPES: Final = {"bfloat16": "bf16", "fp8": "fp8"}
_NCCL_BYTES: Final = {"half": 2, "int8": 1}
_NCCL_KINDS: Final = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "alltoall": "all-to-all",
}
_ALL_REDUCE_BYTES: Final = 2
_SOURCE: Final = "ai-dynamo/aiconfigurator, commit 095f58a, Apache-2.0"


@dataclass(frozen=True)
class Table:
    """Measurements of one class of kernels.

    Attributes:
        kernel_class: its name.
        queries: one a row.
        seconds: measured, `float64[rows]`.
        source: in words.
    """

    kernel_class: str
    queries: list[Query]
    seconds: NDArray[np.float64]
    source: str


def tables() -> dict[str, Table]:
    """All classes that were measured, by name."""
    gemm, collectives = _rows("h100_gemm.csv"), _rows("h100_nccl.csv")
    found = (
        _table("gemm-16bit", map(_gemm, [r for r in gemm if r["gemm_dtype"] == "bfloat16"])),
        _table("gemm-8bit", map(_gemm, [r for r in gemm if r["gemm_dtype"] == "fp8"])),
        _table("prefill-attention", map(_prefill, _rows("h100_prefill_attention.csv"))),
        _table("decode-attention", map(_decode, _rows("h100_decode_attention.csv"))),
        _table("all-reduce", map(_all_reduce, _rows("h100_allreduce.csv"))),
        _table("exchange", map(_nccl, [r for r in collectives if r["op_name"] in _NCCL_KINDS])),
    )
    return {table.kernel_class: table for table in found}


Row = Mapping[str, str]
Measured = tuple[Query, float]


def _table(name: str, measured: Iterable[Measured]) -> Table:
    pairs = list(measured)
    made_with = "NCCL" if name == "exchange" else "TensorRT-LLM 1.3"
    return Table(
        name,
        [query for query, _ in pairs],
        np.array([seconds for _, seconds in pairs]),
        f"{made_with} on H100 SXM: {_SOURCE}",
    )


def _rows(file: str) -> list[Row]:
    with (FOLDER / file).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _seconds(row: Row) -> float:
    return float(row["latency_ms"]) * 1e-3


def _gemm(row: Row) -> Measured:
    sizes = (int(row[name]) for name in ("m", "n", "k"))
    return Gemm(*sizes, _DTYPES[row["gemm_dtype"]]), _seconds(row)


def _prefill(row: Row) -> Measured:
    query = PrefillAttention(
        _DTYPES[row["attn_dtype"]],
        _DTYPES[row["kv_cache_dtype"]],
        int(row["batch_size"]),
        int(row["isl"]),
        int(row["num_heads"]),
        int(row["num_key_value_heads"]),
        int(row["head_dim"]),
        int(row["window_size"]),
    )
    return query, _seconds(row)


def _decode(row: Row) -> Measured:
    query = DecodeAttention(
        _DTYPES[row["attn_dtype"]],
        _DTYPES[row["kv_cache_dtype"]],
        int(row["batch_size"]),
        int(row["step"]) + 1,  # the new position sees itself
        int(row["num_heads"]),
        int(row["num_key_value_heads"]),
        int(row["head_dim"]),
        int(row["window_size"]),
    )
    return query, _seconds(row)


def _all_reduce(row: Row) -> Measured:
    moved = int(row["message_elements"]) * _ALL_REDUCE_BYTES
    return Collective("all-reduce", int(row["num_gpus"]), moved), _seconds(row)


def _nccl(row: Row) -> Measured:
    moved = int(row["message_size"]) * _NCCL_BYTES[row["nccl_dtype"]]
    return Collective(_NCCL_KINDS[row["op_name"]], int(row["num_gpus"]), moved), _seconds(row)
