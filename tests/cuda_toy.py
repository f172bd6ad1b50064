"""A toy program for the CUDA runtime, its kernels in Python: the token after `t` is `t + 1`.

The cache of a position holds the token in every number, so that what a call appended can be seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda_device import QueuedDevice
from numpy.typing import NDArray

from infc.backends.cuda.call_block import CALL_BLOCK_BYTES, KINDS, CallBlock
from infc.backends.cuda.kernels.kv_layout import kv_layout_of
from infc.backends.cuda.runtime.driver import KernelLaunch
from infc.backends.cuda.target import resolve_cuda
from infc.target.backend import LoadedPrograms
from infc.target.runnable import KVBlock

VOCAB, SLOTS, CONTEXT = 8, 2, 70
WEIGHTS = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
OFFSETS = {"append": [0, 256], "head": [512], "argmax": [768], "top_k": [1024]}
"""Offsets of operands, which the kernels check."""


def signature(*, persistent: bool = True, thread_bytes: int = 256) -> dict[str, Any]:
    """What `emit` would have written."""

    def launch(phase: str, kernel: str, rows: str, outputs: list[str]) -> dict[str, Any]:
        entry = {
            "module": phase,
            "entry": f"{phase}_{kernel}_entry",
            "threads": 256,
            "shared_bytes": 2048,
            "ctas_per_sm": 1,
        }
        more = {"offsets": OFFSETS[kernel], "rows": rows, "outputs": outputs}
        return {**entry, "kernel": kernel, **more}

    def phase(name: str) -> dict[str, Any]:
        every = list(KINDS)
        whole = {
            "module": name,
            "entry": f"{name}_program",
            "threads": 288,
            "shared_bytes": 200 << 10,
            "ctas_per_sm": 1,
        }
        return {
            "arena_bytes": 1000,
            "thread_bytes": thread_bytes,
            "scratch_bytes": 100,
            "counter_bytes": 300,
            "launches": [
                launch(name, "append", "t", every),
                launch(name, "head", "r", every),
                launch(name, "argmax", "r", ["argmax"]),
                launch(name, "top_k", "r", ["top_k"]),
            ],
            "persistent": whole if persistent and name == "decode" else None,
            "reason": "",
            "kernels": list(OFFSETS),
        }

    return {
        "arch": "sm_90a",
        "phases": {name: phase(name) for name in ("prefill", "decode")},
        "functions": {},
        "vocab_size": VOCAB,
        "max_tokens": [5, 2],
        "max_logit_rows": [5, 2],
        "max_context": CONTEXT,
        "max_slots": SLOTS,
        "max_threads": 1,
        "max_top_k": 3,
        "capacity": [CONTEXT, 64],
        "windows": [0, 64],
        "kv_heads": 2,
        "head_dim": 16,
        "kv_dtype": "f16",
    }


def programs(
    made: dict[str, Any] | None = None, files: dict[str, bytes] | None = None
) -> LoadedPrograms:
    """The toy as the loader hands it over; `files` are its members."""
    files = files or {}
    return LoadedPrograms(
        member=lambda name: memoryview(files[name]),
        extract=lambda name: None,  # type: ignore[arg-type, return-value]
        weights=memoryview(WEIGHTS.tobytes()),
        weights_file=(None, 0),  # type: ignore[arg-type]
        signature=made or signature(),
        target=resolve_cuda("cuda:sm_90a"),
        check=lambda: None,
    )


class Toy:
    """One launch: its call block and what it points to."""

    def __init__(self, device: QueuedDevice, launch: KernelLaunch) -> None:
        self.device = device
        raw = device.memory.read(launch.arguments[0], np.uint8, CALL_BLOCK_BYTES)
        self.block = CallBlock.from_buffer_copy(raw)
        self.tokens = self.array("tokens", self.block.n_tokens)
        assert (device.memory.read(self.block.weights, np.uint8, len(WEIGHTS)) == WEIGHTS).all()
        assert self.block.thread % 256 == self.block.arena % 256 == 0
        device.memory.fill(self.block.thread, launch.grid * 256, 1)

    def array(self, field: str, count: int, dtype: Any = np.int32) -> NDArray[Any]:
        return self.device.memory.read(getattr(self.block, field), dtype, count)

    def append(self) -> None:
        assert not self.array("counters", 75).any(), "the host zeroes them with each call"
        layout, memory = kv_layout_of(signature()), self.device.memory
        positions = self.array("positions", self.block.n_tokens)
        slots = self.array("row_slots", self.block.n_tokens)
        for token, position, slot in zip(self.tokens, positions, slots, strict=True):
            value = np.full((1, 2, 16), token, np.float32)
            layout.import_block(
                lambda offset, size: memory.read(self.block.kv + offset, np.uint8, size),
                lambda offset, data: memory.write(self.block.kv + offset, data),
                int(slot),
                KVBlock(
                    int(position),
                    int(position) + 1,
                    (int(position),) * 2,
                    [value] * 2,
                    [-value] * 2,
                ),
            )

    def logits(self) -> NDArray[np.float32]:
        rows = self.array("logit_rows", self.block.n_logit_rows)
        after = (self.tokens[rows] + 1)[:, None] % VOCAB
        return np.float32(-1.0) * ((np.arange(VOCAB) - after) % VOCAB).astype(np.float32)

    def head(self) -> None:
        self.device.memory.fill(self.block.counters, 300, 1)
        self.device.memory.write(self.block.logits, self.logits())

    def argmax(self) -> None:
        self.device.memory.write(self.block.best, self.logits().argmax(1).astype(np.int32))

    def top_k(self) -> None:
        count = self.block.top_k
        ids = np.argsort(-self.logits(), axis=1)[:, :count].astype(np.int32)
        self.device.memory.write(self.block.top_ids, ids)
        self.device.memory.write(
            self.block.top_logits, np.take_along_axis(self.logits(), ids, axis=1)
        )

    def whole(self) -> None:
        """The persistent program."""
        self.append()
        self.head()
        kind = KINDS[self.block.output_kind]
        if kind != "logits":
            getattr(self, kind)()
        if self.block.trace:
            times = {"logits": [5, 7, 9, 0, 0], "argmax": [5, 7, 9, 12, 0]}
            self.device.memory.write(self.block.trace, np.array(times[kind], np.int64))


def toy_device(**options: Any) -> QueuedDevice:
    """A device that knows the toy's kernels."""

    def kernel(name: str) -> Any:
        def run(device: QueuedDevice, launch: KernelLaunch) -> None:
            assert list(launch.arguments[1:]) == OFFSETS.get(name, [])
            assert launch.cooperative == (name == "whole")
            getattr(Toy(device, launch), name)()

        return run

    kernels = {
        f"{phase}_{name}_entry": kernel(name) for phase in ("prefill", "decode") for name in OFFSETS
    }
    return QueuedDevice(kernels | {"decode_program": kernel("whole")}, **options)
