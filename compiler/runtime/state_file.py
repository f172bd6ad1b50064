"""A session's state in a file: tokens, the logical KV cache, and what the last call returned.

The file is NumPy's `.npz` (a zip of arrays with checksums, no pickle). Keys and values are stored
in the cache's own precision, so a restored session continues with the same numbers.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, UserError
from infc.ir.kv_storage import StoredKV, load_kv, store_kv
from infc.target.runnable import KVBlock

VERSION = 1


@dataclass(frozen=True)
class SavedState:
    """Everything a session needs to continue.

    Attributes:
        digest: of the artifact that made it.
        tokens: in the cache, oldest first.
        block: their keys and values.
        logits: float32 `[vocab]`, of the last position, where they were made.
        chosen: the token to append next, where one was chosen.
    """

    digest: str
    tokens: tuple[int, ...]
    block: KVBlock
    logits: NDArray[np.float32] | None
    chosen: int | None


def trimmed(block: KVBlock, layer_starts: list[int]) -> KVBlock:
    """A block without the positions a layer no longer holds; it holds `layer_starts` and on."""
    starts = [max(pair) for pair in zip(block.layer_starts, layer_starts, strict=True)]
    skips = [new - old for new, old in zip(starts, block.layer_starts, strict=True)]
    return KVBlock(
        start=block.start,
        stop=block.stop,
        layer_starts=tuple(starts),
        keys=[keys[skip:] for keys, skip in zip(block.keys, skips, strict=True)],
        values=[values[skip:] for values, skip in zip(block.values, skips, strict=True)],
    )


def write_state(path: Path, state: SavedState, dtype: str) -> None:
    """Write a state whole or not at all; `dtype` is how the cache stores it."""
    arrays: dict[str, NDArray[Any]] = {
        "version": np.array(VERSION),
        "digest": np.array(state.digest),
        "tokens": np.array(state.tokens, np.int32),
        "layer_starts": np.array(state.block.layer_starts, np.int64),
    }
    for layer, (keys, values) in enumerate(zip(state.block.keys, state.block.values, strict=True)):
        stored = store_kv(keys, values, dtype)
        for field in fields(StoredKV):
            if (part := getattr(stored, field.name)) is not None:
                arrays[f"{field.name}.{layer}"] = part
    if state.logits is not None:
        arrays["logits"] = state.logits
    if state.chosen is not None:
        arrays["chosen"] = np.array(state.chosen, np.int32)
    try:
        _write_atomically(path, arrays)
    except OSError as error:
        raise UserError(
            Code.OUTPUT,
            f"the session could not be written: {error.strerror or error}",
            location=str(path),
            hint="check that the folder exists, may be written and has room",
        ) from error


def _write_atomically(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read_state(path: Path, digest: str) -> SavedState:
    """Read a state that an artifact of this digest wrote.

    Raises:
        UserError: INF4001 no such file, INF4003 not a session file or damaged, INF4004 written by
            another version or another artifact.
    """
    if not path.is_file():
        raise UserError(Code.ARTIFACT_NOT_FOUND, "no such session file", location=str(path))
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _state(arrays, digest, path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            Code.ARTIFACT_DAMAGED,
            "expected a session file that Session.save wrote, got something else or a damaged one",
            location=str(path),
            notes=[f"reading it failed: {error}"],
            hint="save the session again",
        ) from error


def _state(arrays: Mapping[str, NDArray[Any]], digest: str, path: Path) -> SavedState:
    version = int(arrays["version"])
    if version != VERSION:
        raise UserError(
            Code.ARTIFACT_VERSION,
            f"expected session format {VERSION}, got {version}",
            location=str(path),
            hint="save the session again with this version of infc",
        )
    saved_by = str(arrays["digest"])
    if saved_by != digest:
        raise UserError(
            Code.ARTIFACT_VERSION,
            f"expected a session of artifact {digest[:12]}, got one of {saved_by[:12]}",
            location=str(path),
            hint="load the artifact that the session was saved with",
        )
    tokens = tuple(arrays["tokens"].tolist())
    starts = tuple(arrays["layer_starts"].tolist())
    layers = [_layer(arrays, layer) for layer in range(len(starts))]
    block = KVBlock(
        start=0,
        stop=len(tokens),
        layer_starts=starts,
        keys=[keys for keys, _ in layers],
        values=[values for _, values in layers],
    )
    return SavedState(
        digest=saved_by,
        tokens=tokens,
        block=block,
        logits=arrays.get("logits"),
        chosen=int(arrays["chosen"]) if "chosen" in arrays else None,
    )


def _layer(
    arrays: Mapping[str, NDArray[Any]], layer: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The keys and values of a layer."""
    parts = {field.name: arrays.get(f"{field.name}.{layer}") for field in fields(StoredKV)}
    if parts["keys"] is None or parts["values"] is None:
        raise KeyError(f"no keys or no values of layer {layer}")
    return load_kv(StoredKV(**parts))  # type: ignore[arg-type]
