"""What a measurement ran on, in words that name no host."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """CPU model, family, cores, the vector and matrix extensions, memory and kernel."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": fields.get("model name", platform.processor()),
        "family_model_stepping": [
            fields.get(key, "") for key in ("cpu family", "model", "stepping")
        ],
        "cores": os.cpu_count(),
        "extensions": [flag for flag in wanted if flag in flags],
        "memory_bytes": int(memory.group(1)) * 1024 if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
