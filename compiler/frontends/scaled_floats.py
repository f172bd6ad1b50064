"""Linear weights of 8-bit floats in Hugging Face folders, and the scales beside them.

A weight `NAME.weight` of dtype F8_E4M3 has its scales in `NAME.weight_scale` or, where they come in
blocks, usually in `NAME.weight_scale_inv`; both are factors, whatever the second name says. There
is one for the tensor (shape `[]` or `[1]`), one for each row (`[n]` or `[n, 1]`), or one for each
block of rows and columns (`[ceil(n / rows), ceil(k / columns)]`). So write the quantisers of
transformers (`fp8`, `fbgemm_fp8`) and of compressed-tensors (`float-quantized`), whose settings are
in `quantization_config` of config.json.

Scales of activations and of the KV cache may be there too. Programs do not convert either to 8-bit
floats, so these are left aside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from infc.frontends.findings import Findings
from infc.frontends.settings import Settings
from infc.frontends.source import TensorInfo
from infc.ir.storage import E4M3, STORAGE_TYPES

STORAGE = "f8_e4m3"
_KEY = "quantization_config"
_METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors")
_FORMAT = "float-quantized"
_SCALE_NAMES = ("{}_scale_inv", "{}_scale")
_SCALE_TYPES = ("f32", "bf16", "f16")
_LEFT_ASIDE = (
    ".input_scale",
    ".input_scale_ub",
    ".output_scale",
    ".activation_scale",
    ".k_scale",
    ".v_scale",
)
"""Endings of names of what describes activations and the cache."""

Block = tuple[int, int]
"""Rows and columns that share a scale."""


@dataclass(frozen=True)
class ScaledWeight:
    """Where the scales of a matrix are: the tensor's name, and what shares one of them."""

    scales: str
    block: Block


def read_block(outer: Settings, text: Settings) -> Block | None:
    """The block that shares a scale as `quantization_config` has it; None where it has none.

    Notes a way of quantising that infc does not read.

    Args:
        outer: config.json.
        text: the settings of the text model in it, or the same.
    """
    settings = outer if outer.has(_KEY) else text
    config = settings.nested(_KEY)
    if config is None:
        return None
    method, form = config.text("quant_method", "nothing"), config.text("format", _FORMAT)
    if method not in _METHODS or form != _FORMAT:
        settings.findings.unsupported(
            f'weights quantised as in "{_KEY}": expected one of the methods '
            f'{", ".join(_METHODS)} (in the format "{_FORMAT}"), got '
            + (f'"{method}"' if method not in _METHODS else f'the format "{form}"'),
            settings.location,
        )
        return None
    block = config.raw("weight_block_size")
    if block is None:
        block = _block_of_groups(config.raw("config_groups"))
    return None if block is None else _checked_block(block, config)


def _block_of_groups(groups: object) -> object:
    """The block structure in the first group of compressed-tensors that has one."""
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and weights.get("block_structure") is not None:
            return weights["block_structure"]
    return None


def _checked_block(block: object, config: Settings) -> Block | None:
    group = STORAGE_TYPES[STORAGE].group
    if isinstance(block, list) and len(block) == 2 and all(type(one) is int for one in block):
        rows, columns = block
        if 0 < rows < 1 << 31 and 0 < columns < 1 << 31 and columns % group == 0:
            return rows, columns
    config.findings.unsupported(
        f"expected blocks of some rows and a multiple of {group} columns that share a scale, "
        f"got {str(block)[:60]}",
        config.location,
    )
    return None


def fold_scales(
    tensors: Mapping[str, TensorInfo],
    part: str,
    block: Block | None,
    read: Callable[[str], NDArray[np.uint8]],
    findings: Findings,
) -> tuple[dict[str, TensorInfo], dict[str, ScaledWeight]]:
    """The tensors with scales as parts of their weights, and where each weight's scales are.

    Notes every weight whose scales are missing, or are not as they must be.

    Args:
        tensors: as the files have them.
        part: how names of the model's tensors begin; others are left alone.
        block: of `read_block`.
        read: the bytes of a tensor.
        findings: where to note.
    """
    folded = {name: info for name, info in tensors.items() if not name.endswith(_LEFT_ASIDE)}
    scaled: dict[str, ScaledWeight] = {}
    for name, info in tensors.items():
        if not name.startswith(part) or not info.storage.startswith("f8_"):
            continue
        scales = next((s.format(name) for s in _SCALE_NAMES if s.format(name) in tensors), None)
        if scales is not None:
            folded.pop(scales, None)
        if info.storage != STORAGE:
            continue  # noted with the other types that are not read
        if not _is_matrix(info, findings):
            continue
        folded[name] = replace(info, size_bytes=STORAGE_TYPES[STORAGE].size_bytes(info.shape))
        if scales is None:
            names = " or ".join(f'"{one.format(name)}"' for one in _SCALE_NAMES)
            findings.tensor(f"expected scales in {names}, got neither", info.location)
            continue
        found = _block_of(tensors[scales], info, block, findings)
        if found is not None and _are_finite(tensors[scales], read, findings):
            scaled[name] = ScaledWeight(scales, found)
    return folded, scaled


def _is_matrix(info: TensorInfo, findings: Findings) -> bool:
    elems = STORAGE_TYPES[STORAGE].block_elems
    if len(info.shape) == 2 and info.shape[1] % elems == 0:
        return True
    findings.unsupported(
        f"expected 8-bit floats in matrices only, in rows of a multiple of {elems}, "
        f"got shape {_text(info.shape)}",
        info.location,
    )
    return False


def _block_of(
    scales: TensorInfo, weight: TensorInfo, block: Block | None, findings: Findings
) -> Block | None:
    """What shares a scale, by the shape of the scales."""
    if scales.storage not in _SCALE_TYPES:
        findings.unsupported(f"scales of type {scales.storage.upper()}", scales.location)
        return None
    n, k = weight.shape
    kinds: dict[tuple[int, ...], Block] = {
        (): (n, k),
        (1,): (n, k),
        (1, 1): (n, k),
        (n,): (1, k),
        (n, 1): (1, k),
    }
    shown = f"one number, {n}x1"
    if block is not None:
        shape = (-(-n // block[0]), -(-k // block[1]))
        kinds[shape] = block
        shown += f" or {_text(shape)}"
    else:
        shown = shown.replace(",", " or") + f' (no block in "{_KEY}" of config.json)'
    if scales.shape not in kinds:
        findings.tensor(
            f"expected scales of shape {shown}, got {_text(scales.shape)}", scales.location
        )
    return kinds.get(scales.shape)


def _are_finite(
    scales: TensorInfo, read: Callable[[str], NDArray[np.uint8]], findings: Findings
) -> bool:
    """Whether all scales are finite, and all weights with them."""
    largest = np.nanmax(E4M3)
    with np.errstate(all="ignore"):
        numbers = read_scales(scales, read) * largest
    wrong = int(np.count_nonzero(~np.isfinite(numbers)))
    if wrong:
        findings.tensor(
            f"expected scales that are finite, also times {largest:g}, got {wrong} that are not",
            scales.location,
        )
    return wrong == 0


def read_scales(info: TensorInfo, read: Callable[[str], NDArray[np.uint8]]) -> NDArray[np.float32]:
    """The scales of a tensor, float32 of its shape."""
    return STORAGE_TYPES[info.storage].dequantize(read(info.name), info.shape or (1,))


def scaled_rows(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], block: Block, shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """A matrix as its storage type has it: the codes of a row, then its scales.

    Args:
        codes: of the whole matrix, one dimension.
        scales: any shape, in the order of blocks: those of the first rows come first.
        block: rows and columns that share one.
        shape: [n, k].

    Returns:
        One dimension of bytes.
    """
    n, k = shape
    group = STORAGE_TYPES[STORAGE].group
    grid = scales.reshape(-(-n // block[0]), -(-k // block[1]))
    columns = np.arange(0, k, group) // block[1]
    of_rows = grid[:, columns].repeat(min(block[0], n), axis=0)[:n]  # [n, ceil(k / group)]
    rows = np.empty((n, k + of_rows.shape[1] * of_rows.itemsize), np.uint8)
    rows[:, :k] = codes.reshape(n, k)
    rows[:, k:] = np.ascontiguousarray(of_rows, "<f4").view(np.uint8)
    return rows.reshape(-1)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(str(extent) for extent in shape)
