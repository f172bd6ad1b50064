"""Schedules that MetaSchedule found, kept as traces: decisions that are replayed, not searched."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from infc.target.schema import Target

_RECORDS = files("infc.backends.tvm").joinpath("records.json")


def find_record(rows: int, k: int, kind: str, target: Target) -> list[Any] | None:
    """The trace for a function on processors of the target's type, as JSON values; or None."""
    return all_records().get((rows, k, kind, str(target.backend_facts["cpu"])))


@cache
def records_digest() -> str:
    """SHA-256 of all of them."""
    return hashlib.sha256(_RECORDS.read_bytes()).hexdigest()


@cache
def all_records() -> dict[tuple[int, int, str, str], list[Any]]:
    """Traces by rows, k, storage type of the weights, and type of the processor."""
    text = _RECORDS.read_text(encoding="utf-8")
    return {
        (entry["rows"], entry["k"], entry["weights"], entry["cpu"]): entry["trace"]
        for entry in json.loads(text)
    }
