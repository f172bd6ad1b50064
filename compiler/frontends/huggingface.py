"""Hugging Face folders: config.json, safetensors whole or in shards, and tokenizer files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, InternalError, Problem, UserError
from infc.frontends.files import ModelFile, combined_digest
from infc.frontends.findings import Findings
from infc.frontends.huggingface_config import find_family, read_config
from infc.frontends.safetensors_header import SafetensorsEntry, parse_json, read_safetensors
from infc.frontends.scaled_floats import (
    ScaledWeight,
    fold_scales,
    read_block,
    read_scales,
    scaled_rows,
)
from infc.frontends.settings import Settings
from infc.frontends.source import ModelConfig, TensorInfo, TokenizerSource
from infc.frontends.weights import huggingface_names, resolve_weights
from infc.ir.storage import STORAGE_TYPES

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
# Parsed and handed on with the tokenizer; config.json because older models keep their end-of-text
# tokens only there.
_TOKENIZER_FIELDS = (
    _CONFIG,
    _TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "generation_config.json",
)


class HuggingFaceSource:
    """An opened Hugging Face folder (see `ModelSource`)."""

    format = "huggingface"

    def __init__(self, path: Path) -> None:
        """Opens the folder; raises UserError."""
        self.path = path
        self._files: dict[str, ModelFile] = {}
        self._places: dict[str, tuple[ModelFile, int]] = {}
        self._stored: Mapping[str, TensorInfo] = {}
        self._scaled: Mapping[str, ScaledWeight] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        try:
            self.config = self._open()
        except BaseException:
            self.close()
            raise

    @cached_property
    def tokenizer(self) -> TokenizerSource | None:
        """The tokenizer's files, or None where there is no tokenizer.json."""
        data = self._content(_TOKENIZER)
        if data is None:
            return None
        fields: dict[str, object] = {}
        for name in _TOKENIZER_FIELDS:
            content = self._content(name)
            if content is not None:
                fields[name] = parse_json(content, str(self.path / name))
        return TokenizerSource("huggingface", fields, data, self._chat_template(fields))

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor; raises INF1009 where its file changed."""
        scaled, codes = self._scaled.get(name), self._read(name)
        if scaled is None:
            return codes
        scales = read_scales(self._stored[scaled.scales], self._read)
        n, k = self.tensors[name].shape
        return scaled_rows(codes, scales, scaled.block, (n, k))

    def _read(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor as they are in its file."""
        file, offset = self._places[name]
        return file.read(offset, self._stored[name].size_bytes)

    def digest(self) -> str:
        """sha256 over the weights, the configuration and the tokenizer's files."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        for name in (_TOKENIZER, _TEMPLATE, *_TOKENIZER_FIELDS):
            self._file(name)
        return combined_digest(self._files)

    def files(self) -> list[Path]:
        """The opened files."""
        return [file.path for file in self._files.values()]

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def _open(self) -> ModelConfig:
        findings = Findings(str(self.path))
        content = self._content(_CONFIG)
        if content is None:
            raise UserError(
                Code.MODEL_NOT_FOUND, f"expected {_CONFIG}, got none", location=str(self.path)
            )
        values = parse_json(content, str(self.path / _CONFIG))
        self._open_weights(findings)
        found = find_family(values, findings, str(self.path / _CONFIG))
        if found is None:
            self._note_foreign_types("", findings)
            findings.raise_if_any()
            raise InternalError("findings were not raised")
        family, settings, tied = found
        outer = Settings(values, findings, str(self.path / _CONFIG))
        others = len(findings)
        block = read_block(outer, settings)
        if len(findings) > others:
            findings.raise_if_any()  # each weight would be a finding of its own
        names = huggingface_names(self.tensors, family)
        self.tensors, self._scaled = fold_scales(
            self._stored, names.part, block, self._read, findings
        )
        self._note_foreign_types(names.part, findings)
        config = read_config(settings, family, self.tensors)
        if not findings.settings_are_sound:
            findings.raise_if_any()  # shapes that follow from wrong settings say nothing
        config = resolve_weights(config, family, names, self.tensors, findings, tied=tied)
        embedding = self.tensors.get(names.embed)
        if embedding is not None and names.embed in self._scaled:
            findings.unsupported("an embedding of 8-bit floats", embedding.location)
        findings.raise_if_any()
        return config

    def _note_foreign_types(self, part: str, findings: Findings) -> None:
        """Notes tensors of the part whose type infc cannot read."""
        for name, info in self.tensors.items():
            if name.startswith(part) and info.storage not in STORAGE_TYPES:
                findings.unsupported(f"storage type {info.storage.upper()}", info.location)

    def _open_weights(self, findings: Findings) -> None:
        """Fills in the tensors and their places."""
        tensors: dict[str, TensorInfo] = {}
        for shard, wanted in self._shards().items():
            file = self._open_inside(shard)
            entries = {entry.name: entry for entry in read_safetensors(file)}
            for name in entries if wanted is None else wanted:
                entry = entries.get(name)
                if entry is None:
                    findings.tensor(
                        f"expected the tensor in {shard} as {_INDEX} says, got none",
                        f'{self.path}: tensor "{name}"',
                    )
                    continue
                tensors[name] = _describe(file, entry, findings)
                self._places[name] = (file, entry.offset)
        self._stored = self.tensors = tensors

    def _shards(self) -> dict[str, list[str] | None]:
        """File name -> the tensors to take from it, None for all."""
        if (self.path / _WEIGHTS).exists():
            return {_WEIGHTS: None}
        content = self._content(_INDEX)
        if content is None:
            raise UserError(
                Code.MODEL_NOT_FOUND,
                f"expected {_WEIGHTS} or {_INDEX}, got neither",
                location=str(self.path),
                hint="infc does not read PyTorch checkpoints: save the model as safetensors",
            )
        location = str(self.path / _INDEX)
        weight_map = parse_json(content, location).get("weight_map")
        if not isinstance(weight_map, Mapping) or not all(
            isinstance(shard, str) for shard in weight_map.values()
        ):
            raise UserError(
                Code.MODEL_FORMAT,
                'expected an object of file names in "weight_map", got another value',
                location=location,
            )
        shards: dict[str, list[str] | None] = {}
        for name, shard in weight_map.items():
            wanted = shards.setdefault(shard, [])
            if wanted is not None:
                wanted.append(name)
        missing = [shard for shard in sorted(shards) if not self._inside(shard).exists()]
        if missing:
            raise UserError(
                Code.MODEL_NOT_FOUND,
                f"{len(missing)} of {len(shards)} shards are missing",
                location=str(self.path),
                problems=[Problem(f"expected {shard}, got none") for shard in missing],
                hint="put all shards into the folder",
            )
        return shards

    def _inside(self, name: str) -> Path:
        """The path of a weights file; raises INF1007 where it is not in the folder."""
        path, folder = self.path / name, self.path.resolve()
        allowed = [folder]
        if folder.parent.name == "snapshots":  # the hub's cache links from here to ../../blobs
            allowed.append(folder.parent.parent / "blobs")
        try:
            target = path.resolve()
            safe = ".." not in Path(name).parts and not Path(name).is_absolute()
        except (OSError, ValueError, RuntimeError):  # NUL bytes, loops of links
            target, safe = path, False
        if not safe or not any(target.is_relative_to(place) for place in allowed):
            raise UserError(
                Code.MODEL_PATH,
                f'expected a file inside the model\'s folder, got "{name}"',
                location=str(self.path / _INDEX),
            )
        return path

    def _open_inside(self, name: str) -> ModelFile:
        self._files[name] = file = ModelFile(self._inside(name))
        return file

    def _file(self, name: str) -> ModelFile | None:
        """A file of the folder, opened once, or None where it is absent."""
        if name not in self._files and (self.path / name).exists():
            self._files[name] = ModelFile(self.path / name)
        return self._files.get(name)

    def _content(self, name: str) -> bytes | None:
        file = self._file(name)
        return None if file is None else file.read_all()

    def _chat_template(self, fields: Mapping[str, object]) -> str | None:
        """The template: its own file, else what tokenizer_config.json says (one, or by name)."""
        content = self._content(_TEMPLATE)
        if content is not None:
            try:
                return content.decode("utf-8")
            except UnicodeDecodeError:
                raise UserError(
                    Code.CHAT_TEMPLATE,
                    "expected UTF-8 in the chat template, got other bytes",
                    location=str(self.path / _TEMPLATE),
                ) from None
        settings = fields.get(_TOKENIZER_CONFIG)
        found = settings.get("chat_template") if isinstance(settings, Mapping) else None
        if isinstance(found, list):
            named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
            found = named.get("default")
        return found if isinstance(found, str) else None


def _describe(file: ModelFile, entry: SafetensorsEntry, findings: Findings) -> TensorInfo:
    location = f'{file.path}: tensor "{entry.name}"'
    if 0 in entry.shape:
        findings.tensor("expected dimensions above zero, got zero", location)
    return TensorInfo(entry.name, entry.shape, entry.dtype.lower(), entry.size_bytes, location)
