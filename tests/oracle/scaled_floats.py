"""Writes a family as a folder whose linear weights are 8-bit floats with scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from oracle.families import Config, Tensors

Block = tuple[int, int]

_bytes = np.arange(256, dtype=np.uint16)
_halves = (_bytes & 0x80) << 8 | (_bytes & 0x7F) << 7
CODES = _halves.astype("<u2").view("<f2").astype(np.float32) * 256
"""What each code stands for: a float16 whose exponent is 8 too low, subnormals included."""
CODES[[127, 255]] = np.nan

SCHEMES: dict[str, tuple[dict[str, Any], str]] = {
    "tensor": ({"quant_method": "fp8", "activation_scheme": "static"}, "weight_scale"),
    "row": ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "weight_scale"),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "weight_scale"),
    "block": (
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
        "weight_scale_inv",
    ),
}
"""`quantization_config` and how scales are called, by what shares a scale."""


def write_scaled_floats(
    folder: Path, config: Config, tensors: Tensors, scheme: str, scale_type: str = "F32"
) -> Tensors:
    """Write a folder; returns what its tensors mean.

    Args:
        folder: where to.
        config, tensors: from `make_family`.
        scheme: one of `SCHEMES`; `tensor` also writes scales of activations.
        scale_type: `F32` or `BF16`.
    """
    settings, name_of_scale = SCHEMES[scheme]
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    stored: dict[str, tuple[str, NDArray[Any]]] = {}
    meant: Tensors = {}
    for name, numbers in tensors.items():
        if not name.endswith("_proj.weight"):
            stored[name], meant[name] = ("F32", numbers), numbers
            continue
        codes, scales, meant[name] = quantize(numbers, block_of(scheme, numbers.shape), scale_type)
        stored[name] = ("F8_E4M3", codes)
        if scheme == "tensor":
            scales = scales.reshape(() if "q_proj" in name else (1,))
            one = ("F32", np.ones((), np.float32))
            left_aside = "activation_scale" if "q_proj" in name else "input_scale"
            stored[name.replace("weight", left_aside)] = one
            if "k_proj" in name:
                stored[name.replace("k_proj.weight", "k_scale")] = one
        held = (scales.view(np.uint32) >> 16).astype("<u2") if scale_type == "BF16" else scales
        stored[name.replace("weight", name_of_scale)] = (scale_type, held)
    write_safetensors(folder / "model.safetensors", stored)
    return meant


def block_of(scheme: str, shape: tuple[int, ...]) -> Block:
    """Rows and columns that share a scale."""
    n, k = shape
    return {"tensor": (n, k), "block": (128, 128)}.get(scheme, (1, k))


def quantize(
    numbers: NDArray[np.float32], block: Block, scale_type: str = "F32"
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Codes [n, k], scales [blocks down, blocks across], and what they mean together."""
    n, k = numbers.shape
    down, across = -(-n // block[0]), -(-k // block[1])
    scales = np.empty((down, across), np.float32)
    codes = np.empty((n, k), np.uint8)
    meant = np.empty((n, k), np.float32)
    magnitudes = CODES[:127]
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    for i in range(down):
        for j in range(across):
            part = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scale = np.array([np.abs(numbers[part]).max() / 448], np.float32)
            if scale_type == "BF16":
                scale = (scale.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
            scales[i, j] = scale[0]
            found = np.searchsorted(middles, np.abs(numbers[part]) / scale[0]).astype(np.uint8)
            codes[part] = found | np.signbit(numbers[part]).astype(np.uint8) << 7
            meant[part] = CODES[codes[part]] * scale[0]
    return codes, scales, meant


def write_safetensors(path: Path, stored: dict[str, tuple[str, NDArray[Any]]]) -> None:
    """Tensors by name, each with its type's name; NumPy lacks some of the types."""
    header: dict[str, Any] = {}
    offset = 0
    for name, (dtype, held) in stored.items():
        end = offset + held.nbytes
        header[name] = {"dtype": dtype, "shape": list(held.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    body = b"".join(np.ascontiguousarray(held).tobytes() for _, held in stored.values())
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + body)
