"""Schedules that MetaSchedule found, kept as traces: decisions that are replayed, not searched."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from infc.target.schema import Target


def find_record(rows: int, k: int, kind: str, target: Target) -> list[Any] | None:
    """The trace for a function on processors of the target's type, as JSON values; or None."""
    return all_records().get((rows, k, kind, str(target.backend_facts["cpu"])))


@cache
def all_records() -> dict[tuple[int, int, str, str], list[Any]]:
    """Traces by rows, k, storage type of the weights, and type of the processor."""
    text = files("infc.backends.tvm").joinpath("records.json").read_text(encoding="utf-8")
    return {
        (entry["rows"], entry["k"], entry["weights"], entry["cpu"]): entry["trace"]
        for entry in json.loads(text)
    }
