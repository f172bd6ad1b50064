"""A model whose float matrices are quantised on the way in, for `--quantize`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, UserError
from infc.frontends.source import ModelConfig, ModelSource, TensorInfo, TokenizerSource
from infc.ir.storage import STORAGE_TYPES

OFFERED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
"""Storage types that matrices can be converted to."""


class RequantizedSource:
    """A `ModelSource` that answers with quantised matrices where the model has float ones."""

    def __init__(self, source: ModelSource, storage: str) -> None:
        if storage not in OFFERED:
            raise UserError(
                Code.OPTION,
                f"expected --quantize keep, {', '.join(OFFERED)}, got '{storage}'",
                hint="keep leaves the weights as they are in the model",
            )
        self._source = source
        self._storage = storage
        self.path: Path = source.path
        self.format: str = source.format
        self.config: ModelConfig = source.config
        self.tensors: Mapping[str, TensorInfo] = {
            name: self._described(info) for name, info in source.tensors.items()
        }

    def _described(self, info: TensorInfo) -> TensorInfo:
        kind = STORAGE_TYPES[self._storage]
        matrix = len(info.shape) == 2 and STORAGE_TYPES[info.storage].is_float
        if not matrix or info.shape[1] % kind.block_elems:
            return info
        return replace(info, storage=self._storage, size_bytes=kind.size_bytes(info.shape))

    @property
    def tokenizer(self) -> TokenizerSource | None:
        """The model's own."""
        return self._source.tokenizer

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, quantised where `tensors` says so."""
        raw, before, after = self._source.data(name), self._source.tensors[name], self.tensors[name]
        if before.storage == after.storage:
            return raw
        numbers = STORAGE_TYPES[before.storage].dequantize(raw, before.shape)
        kind = gguf.GGMLQuantizationType[self._storage.upper()]
        return np.ascontiguousarray(gguf.quants.quantize(numbers, kind)).reshape(-1)

    def digest(self) -> str:
        """The digest of the model's files."""
        return self._source.digest()

    def files(self) -> list[Path]:
        """The model's files."""
        return self._source.files()

    def close(self) -> None:
        """Close the model."""
        self._source.close()
