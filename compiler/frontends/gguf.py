"""GGUF files, version 2 and 3, whole or split into shards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from infc.diagnostics import Code, InternalError, UserError
from infc.frontends.families import BY_ARCHITECTURE
from infc.frontends.files import ModelFile, combined_digest
from infc.frontends.findings import Findings
from infc.frontends.gguf_config import ROPE_FACTORS, read_config
from infc.frontends.gguf_header import GgufHeader, StringArray, TensorEntry, read_header
from infc.frontends.settings import Settings
from infc.frontends.source import ModelConfig, TensorInfo, TokenizerSource
from infc.frontends.weights import GGUF_NAMES, resolve_weights
from infc.ir.storage import STORAGE_TYPES

_SHARD_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\..*)?$")
_MAX_SHARDS = 1024
_TOKENS = "tokenizer.ggml.tokens"
_TYPE_NAMES = {int(kind): kind.name for kind in GGMLQuantizationType}


class GgufSource:
    """An opened GGUF model (see `ModelSource`)."""

    format = "gguf"

    def __init__(self, path: Path) -> None:
        """Opens `path` and, where it is a shard, its siblings; raises UserError."""
        self.path = path
        self._files: dict[str, ModelFile] = {}
        self._places: dict[str, tuple[ModelFile, int]] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        try:
            self._metadata, self.config = self._open()
        except BaseException:
            self.close()
            raise

    @property
    def tokenizer(self) -> TokenizerSource | None:
        """The metadata under `tokenizer.`, or None where there are no tokens."""
        fields = {
            key: value.strings() if isinstance(value, StringArray) else value
            for key, value in self._metadata.items()
            if key.startswith("tokenizer.")
        }
        if _TOKENS not in fields:
            return None
        template = fields.get("tokenizer.chat_template")
        return TokenizerSource(
            "gguf", fields, None, template if isinstance(template, str) else None
        )

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor; raises INF1009 where the file changed."""
        file, offset = self._places[name]
        return file.read(offset, self.tensors[name].size_bytes)

    def digest(self) -> str:
        """sha256 of the file, or over all shards."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        if len(self._files) == 1:
            return next(iter(self._files.values())).digest()
        return combined_digest(self._files)

    def files(self) -> list[Path]:
        """The opened files."""
        return [file.path for file in self._files.values()]

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def _open(self) -> tuple[dict[str, object], ModelConfig]:
        findings = Findings(str(self.path))
        headers = self._open_shards(findings)
        metadata = headers[0][1].metadata
        tensors: dict[str, TensorInfo] = {}
        for file, header in headers:
            for info, offset in _place_tensors(file, header, findings):
                if info.name in tensors:
                    findings.tensor("the tensor is in two shards", info.location)
                tensors[info.name] = info
                self._places[info.name] = (file, offset)
        self.tensors = tensors
        architecture = metadata.get("general.architecture")
        family = BY_ARCHITECTURE.get(architecture) if isinstance(architecture, str) else None
        if family is None:
            shown = f'"{architecture}"' if isinstance(architecture, str) else "none"
            findings.unsupported(
                f"expected one of the architectures {', '.join(sorted(BY_ARCHITECTURE))}, "
                f"got {shown}"
            )
            findings.raise_if_any()
            raise InternalError("findings were not raised")
        settings = Settings(metadata, findings, str(self.path), prefix=f"{architecture}.")
        tokens = metadata.get(_TOKENS)
        config = read_config(
            settings,
            family,
            tensors,
            len(tokens) if isinstance(tokens, StringArray | list) else None,
            self._rope_factors,
        )
        tied = GGUF_NAMES.head not in tensors
        if not findings.settings_are_sound:
            findings.raise_if_any()  # shapes that follow from wrong settings say nothing
        config = resolve_weights(config, family, GGUF_NAMES, tensors, findings, tied=tied)
        findings.raise_if_any()
        return metadata, config

    def _rope_factors(self) -> NDArray[np.float32]:
        info = self.tensors[ROPE_FACTORS]
        return STORAGE_TYPES[info.storage].dequantize(self.data(info.name), info.shape)

    def _open_file(self, path: Path) -> tuple[ModelFile, GgufHeader]:
        file = ModelFile(path)
        self._files[path.name] = file
        return file, read_header(file)

    def _open_shards(self, findings: Findings) -> list[tuple[ModelFile, GgufHeader]]:
        """All files of the model with their headers, the first shard first."""
        file, header = self._open_file(self.path)
        count = header.metadata.get("split.count", 1)
        if not isinstance(count, int) or count <= 1:
            return [(file, header)]
        name = _SHARD_NAME.match(self.path.name)
        if name is None or int(name["count"]) != count or count > _MAX_SHARDS:
            raise UserError(
                Code.MODEL_FORMAT,
                f"expected a file name that ends in -NNNNN-of-{count:05}.gguf, as the file is one "
                f'of {count} shards, got "{self.path.name}"',
                location=str(self.path),
                hint="keep the names that the shards were made with",
            )
        shards = []
        for number in range(1, count + 1):
            ending = name["ending"] or ""
            path = self.path.with_name(f"{name['stem']}-{number:05}-of-{count:05}{ending}")
            if path.name == self.path.name:
                shard = (file, header)
            elif not path.exists():
                raise UserError(
                    Code.MODEL_NOT_FOUND,
                    f"shard {number} of {count} is missing",
                    location=str(path),
                    hint="put all shards into one folder",
                )
            else:
                shard = self._open_file(path)
            got = shard[1].metadata.get("split.no")
            if got != number - 1 or shard[1].metadata.get("split.count") != count:
                findings.config(
                    f'expected "split.no" {number - 1} of {count}, got {got} of '
                    f"{shard[1].metadata.get('split.count')}",
                    str(path),
                )
            shards.append(shard)
        announced = shards[0][1].metadata.get("split.tensors.count")
        total = sum(len(shard.tensors) for _, shard in shards)
        if announced is not None and announced != total:
            findings.tensor(f"expected {announced} tensors in all shards, got {total}")
        return shards


def _place_tensors(
    file: ModelFile, header: GgufHeader, findings: Findings
) -> list[tuple[TensorInfo, int]]:
    """The tensors of a file with their offsets; notes those that cannot be used.

    Raises INF1003 where data reach beyond the end of the file.
    """
    placed = [(_describe(file, entry, findings), entry.offset) for entry in header.tensors]
    in_order = sorted((item for item in placed if item[0].size_bytes), key=lambda item: item[1])
    end = max((start + info.size_bytes for info, start in in_order), default=0)
    if end > file.size_bytes:
        raise UserError(
            Code.MODEL_TRUNCATED,
            f"expected tensor data up to byte {end}, got a file of {file.size_bytes} bytes",
            location=str(file.path),
            hint="the file is damaged or was not copied to its end",
        )
    for (before, start), (after, offset) in pairwise(in_order):
        if start + before.size_bytes > offset:
            findings.tensor(f'the data overlap those of "{before.name}"', after.location)
    return placed


def _describe(file: ModelFile, entry: TensorEntry, findings: Findings) -> TensorInfo:
    """The tensor of an entry, of zero bytes where it cannot be used (which is noted)."""
    location = f'{file.path}: tensor "{entry.name}"'
    type_name = _TYPE_NAMES.get(entry.type_number, f"number {entry.type_number}")
    storage = STORAGE_TYPES.get(type_name.lower())
    size_bytes = 0
    if storage is None:
        findings.unsupported(f"storage type {type_name}", location)
    elif entry.shape[-1] % storage.block_elems:
        findings.tensor(
            f"expected rows of a multiple of {storage.block_elems} elements for {storage.name}, "
            f"got {entry.shape[-1]}",
            location,
        )
    else:
        size_bytes = storage.size_bytes(entry.shape)
    return TensorInfo(entry.name, entry.shape, type_name.lower(), size_bytes, location)
