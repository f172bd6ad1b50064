"""A model whose matrices are quantised on the way in, for `--quantize`.

Which matrices, and to what:

- vectors (norms, biases) never;
- the vocabulary's matrices (embedding and head) to `q6_k` where fewer bits are asked for, for they
  decide every token;
- where rows are no whole number of blocks of 256, `q6_k` becomes `q8_0` and `q4_k` becomes `q5_0`;
  where they are no whole number of blocks of 32 either, the matrix stays as it is;
- a matrix of integers that takes as few bits already stays as it is: nothing would be won. Floats
  of 8 bits become integers wherever these are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, InternalError, UserError
from infc.frontends.block_encoders import ENCODED, encode
from infc.frontends.source import ModelConfig, ModelSource, TensorInfo, TokenizerSource
from infc.ir.storage import STORAGE_TYPES

_VOCABULARY = ("embed", "head")
_VOCABULARY_STORAGE = "q6_k"
_NARROW_ROWS = {"q6_k": "q8_0", "q4_k": "q5_0"}
"""What stands in for a type with blocks of 256 where rows are shorter."""
_PIECE_NUMBERS = 1 << 20
"""Numbers converted at a time: what bounds the memory beyond the tensor's own bytes."""
_THREADS = 2
"""NumPy leaves the interpreter free during most of the work; more threads would wait for it."""


@dataclass
class Loss:
    """What the weights lost that were converted to one storage type.

    Attributes:
        tensors: how many.
        numbers: in all of them.
        squares: sum of their squares, before.
        errors: sum of the squared differences.
    """

    tensors: int = 0
    numbers: int = 0
    squares: float = 0.0
    errors: float = 0.0

    @property
    def relative_error(self) -> float:
        """Root mean square of the difference over that of the numbers, to four digits."""
        ratio = float(np.sqrt(self.errors / self.squares)) if self.squares else 0.0
        return float(f"{ratio:.4g}")


class RequantizedSource:
    """A `ModelSource` that answers with quantised matrices; `convert` comes before `data`.

    Args:
        source: the model.
        storage: what its matrices are asked to become.
        out: an empty file for what they become, so that memory holds one tensor at a time and
            nothing is converted twice.

    Attributes:
        losses: by storage type, what `convert` changed.

    Raises:
        UserError: no such storage type.
    """

    def __init__(self, source: ModelSource, storage: str, out: BinaryIO) -> None:
        if storage not in ENCODED:
            raise UserError(
                Code.OPTION,
                f"expected --quantize keep, {', '.join(ENCODED)}, got '{storage}'",
                hint="keep leaves the weights as they are in the model",
            )
        self._source = source
        self.path: Path = source.path
        self.format: str = source.format
        self.config: ModelConfig = source.config
        vocabulary = {source.config.weights.get(role) for role in _VOCABULARY}
        self.tensors: Mapping[str, TensorInfo] = {
            name: _described(info, storage, in_vocabulary=name in vocabulary)
            for name, info in source.tensors.items()
        }
        self.losses: dict[str, Loss] = {}
        self._out = out
        self._offsets: dict[str, int] = {}

    def convert(self, names: Iterable[str], progress: Callable[[float], None]) -> list[str]:
        """Quantise those of the tensors that change; returns their names.

        Args:
            names: tensors that `data` will be asked for.
            progress: called with the part of them that is done.

        Raises:
            OSError: the file could not be written.
        """
        changed = [name for name in names if self._changes(name) and name not in self._offsets]
        total = sum(prod(self.tensors[name].shape) for name in changed)
        done = 0
        for name in changed:
            offset = self._out.seek(0, SEEK_END)
            self._convert(name)
            self._offsets[name] = offset
            done += prod(self.tensors[name].shape)
            progress(done / total)
        self._out.flush()
        return changed

    def _changes(self, name: str) -> bool:
        return self.tensors[name].storage != self._source.tensors[name].storage

    def _convert(self, name: str) -> None:
        info = self.tensors[name]
        before = STORAGE_TYPES[self._source.tensors[name].storage]
        after = STORAGE_TYPES[info.storage]
        raw = self._source.data(name)
        rows, k = prod(info.shape[:-1]), info.shape[-1]
        step = max(1, _PIECE_NUMBERS // k)
        row_bytes = before.size_bytes((k,))

        def piece(start: int) -> tuple[NDArray[np.uint8], float, float]:
            shape = (min(step, rows - start), k)
            part = raw[start * row_bytes : (start + shape[0]) * row_bytes]
            numbers = before.dequantize(part, shape)
            blocks = encode(after.name, numbers)
            with np.errstate(all="ignore"):  # scales beyond float16: found by who checks the bytes
                lost = after.dequantize(blocks, shape) - numbers
                sums = [float(np.square(x, dtype=np.float64).sum()) for x in (numbers, lost)]
            return blocks, sums[0], sums[1]

        loss = self.losses.setdefault(after.name, Loss())
        loss.tensors += 1
        loss.numbers += rows * k
        with ThreadPoolExecutor(_THREADS) as pool:
            for blocks, squares, errors in pool.map(piece, range(0, rows, step)):
                self._out.write(blocks.data)
                loss.squares += squares
                loss.errors += errors

    @property
    def tokenizer(self) -> TokenizerSource | None:
        """The model's own."""
        return self._source.tokenizer

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, quantised where `tensors` says so."""
        if not self._changes(name):
            return self._source.data(name)
        if name not in self._offsets:
            raise InternalError(f"tensor {name} is read before it is converted")
        size = self.tensors[name].size_bytes
        return np.frombuffer(os.pread(self._out.fileno(), size, self._offsets[name]), np.uint8)

    def digest(self) -> str:
        """The digest of the model's files."""
        return self._source.digest()

    def files(self) -> list[Path]:
        """The model's files."""
        return self._source.files()

    def close(self) -> None:
        """Close the model."""
        self._source.close()


def _described(info: TensorInfo, asked: str, *, in_vocabulary: bool) -> TensorInfo:
    """What a tensor becomes."""
    if len(info.shape) != 2:
        return info
    if in_vocabulary and _bits(asked) < _bits(_VOCABULARY_STORAGE):
        asked = _VOCABULARY_STORAGE
    if info.shape[1] % STORAGE_TYPES[asked].block_elems:
        asked = _NARROW_ROWS.get(asked, asked)
    kind = STORAGE_TYPES[asked]
    if info.shape[1] % kind.block_elems:
        return info
    if STORAGE_TYPES[info.storage].codebook is None and _bits(info.storage) <= _bits(asked):
        return info
    return replace(info, storage=asked, size_bytes=kind.size_bytes(info.shape))


def _bits(storage: str) -> float:
    """Bits a number, scales included."""
    kind = STORAGE_TYPES[storage]
    return 8 * kind.block_bytes / kind.block_elems
