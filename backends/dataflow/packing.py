"""Writes the file of packed weights: what every key of a program's contents stands for."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from infc.backends.dataflow.codegen.contents import Key, WeightFile
from infc.backends.dataflow.codegen.scope import factor_key
from infc.backends.dataflow.codegen.tables import RopeSource
from infc.backends.dataflow.codegen.weights import Cut
from infc.backends.dataflow.tiles import U8, Matrix, lines, scale_factor
from infc.diagnostics import InternalError
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import TensorType
from infc.reference.ops import rope_table
from infc.target.backend import WeightData

_KEPT_BYTES = 2**30
"""Of matrices that stay unpacked: every core reads a part of each."""


class Packer:
    """Makes the bytes of keys.

    Args:
        weights: raw bytes by name.
        types: of every tensor, by name.
    """

    def __init__(self, weights: WeightData, types: dict[str, TensorType]) -> None:
        self._weights, self._types = weights, types
        self._factors = {factor_key(source): source for source in types}
        self._matrices: dict[str, Matrix] = {}

    def factor(self, source: str) -> float:
        """By which products with a matrix are multiplied."""
        return scale_factor(self._weights(source), self._types[source].element)

    def write(self, file: WeightFile, out: BinaryIO) -> None:
        """All keys in order, each filled up to a line."""
        for key, size in file.sizes.items():
            data = self.bytes_of(key)
            if len(data) > lines(size):
                raise InternalError(f"{len(data)} bytes for a place of {size}")
            out.write(data.data)
            out.write(bytes(lines(size) - len(data)))

    def bytes_of(self, key: Key) -> U8:
        """What a key stands for."""
        kind: object = key[0]
        rest: tuple[Any, ...] = key[1:]
        if kind == "cuts":
            return self._cuts(*rest)
        if kind == "vectors":
            return np.concatenate([self._vector(source) for source in rest[0]])
        if kind == "rope":
            return _rope(*rest)
        if kind == "rows":
            return self._rows(*rest)
        raise InternalError(f"nothing is packed as {kind}")

    def _matrix(self, source: str) -> Matrix:
        """Unpacked; the oldest ones make way."""
        found = self._matrices.pop(source, None)
        if found is None:
            found = self._open(source)
            kept = sum(matrix.kept_bytes for matrix in self._matrices.values())
            while self._matrices and kept + found.kept_bytes > _KEPT_BYTES:
                kept -= self._matrices.pop(next(iter(self._matrices))).kept_bytes
        self._matrices[source] = found
        return found

    def _open(self, source: str) -> Matrix:
        kind = self._types[source]
        n, k = (int(d) for d in kind.shape)
        return Matrix(self._weights(source), kind.element, (n, k))

    def _vector(self, source: str) -> U8:
        if source in self._factors:
            return np.array([self.factor(self._factors[source])], np.float32).view(np.uint8)
        kind = self._types[source]
        shape = [int(d) for d in kind.shape]
        numbers = STORAGE_TYPES[kind.element].dequantize(self._weights(source), shape)
        return np.ascontiguousarray(numbers, np.float32).view(np.uint8)

    def _cuts(self, bodies: Any) -> U8:
        parts: list[U8] = []
        for turns, reads in bodies:
            for turn in range(turns):
                for cuts in reads:
                    self._strips(cuts, turn, parts)
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)

    def _strips(self, cuts: tuple[Cut, ...], turn: int, parts: list[U8]) -> None:
        """Strip by strip, of several matrices in turns."""
        for start in range(cuts[0].first, cuts[0].stop, cuts[0].tile_n):
            for cut in cuts:
                matrix = self._matrix(cut.weight.sources[turn])
                rows = slice(start, min(start + cut.tile_n, cut.stop))
                for first in range(0, cut.k, cut.tile_k):
                    columns = slice(first, min(first + cut.tile_k, cut.k))
                    parts.append(matrix.tile(rows, columns, rows.stop - rows.start))

    def _rows(self, source: str, first: int = 0, stop: int | None = None) -> U8:
        """Rows as tiles of one row each."""
        return self._matrix(source).rows(slice(first, stop))


def _rope(source: RopeSource) -> U8:
    """Rows of (cos, sin), each filled up to a line."""
    table = rope_table(source.frequencies, source.magnitude, source.positions)
    rows = np.zeros((source.positions, source.row_bytes // 4), np.float32)
    flat = np.ascontiguousarray(table, np.float32).reshape(source.positions, -1)
    rows[:, : flat.shape[1]] = flat
    return rows.reshape(-1).view(np.uint8)
