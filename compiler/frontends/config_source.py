"""A model of which only the config.json is here: sizes and types of its weights, no numbers.

For what needs no numbers: how programs look and how long they take on a simulated machine.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import InternalError
from infc.frontends.files import not_found
from infc.frontends.findings import Findings
from infc.frontends.huggingface_config import find_family, read_config
from infc.frontends.safetensors_header import parse_json
from infc.frontends.scaled_floats import read_block
from infc.frontends.settings import Settings
from infc.frontends.source import ModelConfig, TensorInfo, TokenizerSource
from infc.frontends.weights import expected_tensors, huggingface_names, resolve_weights
from infc.ir.types import storage_bytes


class ConfigSource:
    """A `ModelSource` without data; vectors are f32."""

    format = "huggingface"
    tokenizer: TokenizerSource | None = None

    def __init__(self, path: Path, storage: str) -> None:
        """Read a config.json.

        Args:
            path: of the file.
            storage: the storage type that every matrix is taken to have.

        Raises:
            UserError: INF1001, INF1002, INF1005, INF1006.
        """
        self.path = path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise not_found(path, error) from None
        self._digest = hashlib.sha256(storage.encode() + b"\n" + content).hexdigest()
        findings = Findings(str(path))
        values = parse_json(content, str(path))
        found = find_family(values, findings, str(path))
        if found is None:
            findings.raise_if_any()
            raise InternalError("findings were not raised")
        family, settings, tied = found
        read_block(Settings(values, findings, str(path)), settings)
        config = read_config(settings, family, None)
        findings.raise_if_any()
        names = huggingface_names({}, family)
        self.tensors = {}
        for _, name, shape, required in expected_tensors(config, family, names, tied=tied):
            element = storage if len(shape) == 2 else "f32"
            if required:
                size = storage_bytes(element, shape)
                self.tensors[name] = TensorInfo(name, shape, element, size, f"{path}: {name}")
        self.config: ModelConfig = resolve_weights(
            config, family, names, self.tensors, findings, tied=tied
        )

    def data(self, name: str) -> NDArray[np.uint8]:
        """There are none."""
        raise InternalError(f"a configuration has no bytes of {name!r}")

    def digest(self) -> str:
        """Of the file and the storage type."""
        return self._digest

    def files(self) -> list[Path]:
        """The configuration."""
        return [self.path]

    def close(self) -> None:
        """Nothing is open."""
