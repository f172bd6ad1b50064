"""A tokenizer as files: the long arrays in safetensors, the rest in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields

import numpy as np
import safetensors.numpy

from infc.diagnostics import Code, UserError
from infc.runtime.tokenizer.definition import AddedToken, Definition, MergeTable, Vocabulary

META_FILE = "tokenizer.meta.json"
ARRAYS_FILE = "tokenizer.safetensors"
VERSION = 1


def write_definition(definition: Definition) -> dict[str, bytes]:
    """The two files; the same definition gives the same bytes."""
    arrays = {
        f"{name}.{key.name}": getattr(part, key.name)
        for name, part in (("vocabulary", definition.vocabulary), ("merges", definition.merges))
        for key in fields(part)
    }
    if definition.text_order is not None:
        arrays["text_order"] = definition.text_order
    meta = {
        key.name: getattr(definition, key.name)
        for key in fields(definition)
        if key.name not in ("vocabulary", "merges", "text_order")
    }
    meta |= {
        "version": VERSION,
        "added": [asdict(token) for token in definition.added],
        "eos_ids": sorted(definition.eos_ids),
    }
    text = json.dumps(meta, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return {META_FILE: text.encode(), ARRAYS_FILE: safetensors.numpy.save(arrays)}


def read_definition(files: Mapping[str, bytes]) -> Definition:
    """What `write_definition` wrote. UserError: ARTIFACT_DAMAGED."""
    try:
        meta = json.loads(bytes(files[META_FILE]))
        arrays = safetensors.numpy.load(bytes(files[ARRAYS_FILE]))
        version = meta.pop("version")
        if version != VERSION:
            raise ValueError(f"expected version {VERSION}, got {version}")
        definition = Definition(
            **meta
            | {
                "added": tuple(AddedToken(**token) for token in meta["added"]),
                "byte_ids": tuple(meta["byte_ids"]),
                "eos_ids": frozenset(meta["eos_ids"]),
                "prefix": tuple(meta["prefix"]),
                "suffix": tuple(meta["suffix"]),
                "vocabulary": Vocabulary(**_part(arrays, "vocabulary")),
                "merges": MergeTable(**_part(arrays, "merges")),
                "text_order": arrays.get("text_order"),
            }
        )
        _check(definition)
    except (KeyError, TypeError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise UserError(
            Code.ARTIFACT_DAMAGED,
            f"the artifact's tokenizer cannot be read: {error}",
            hint="compile the model again",
        ) from error
    return definition


def _part(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key.split(".")[1]: value for key, value in arrays.items() if key.startswith(f"{name}.")}


def _check(definition: Definition) -> None:
    """ValueError unless every index in the arrays stays inside them."""
    vocabulary, merges = definition.vocabulary, definition.merges
    size, symbols = vocabulary.size, len(merges.starts) - 1
    _ascending("vocabulary.offsets", vocabulary.offsets, size + 1, len(vocabulary.blob))
    _ascending("merges.starts", merges.starts, symbols + 1, len(merges.right))
    if not len(merges.right) == len(merges.rank) == len(merges.merged):
        raise ValueError("expected merges.right, rank and merged of one length")
    if len(merges.characters) != len(merges.character_symbols):
        raise ValueError("expected one symbol a character")
    for name, values, limit in (
        ("merges.right", merges.right, symbols),
        ("merges.merged", merges.merged, size),
        ("merges.character_symbols", merges.character_symbols, symbols),
        ("text_order", definition.text_order, size),
    ):
        if values is not None and len(values) and int(values.max()) >= limit:
            raise ValueError(f"expected {name} below {limit}, got {int(values.max())}")


def _ascending(name: str, values: np.ndarray, count: int, last: int) -> None:
    if (
        len(values) != count
        or values[0] != 0
        or values[-1] != last
        or np.any(np.diff(values.astype(np.int64)) < 0)
    ):
        raise ValueError(f"expected {name} to ascend from 0 to {last}")
