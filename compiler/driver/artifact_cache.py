"""Where artifacts are kept that nobody gave a name: by all that may change their bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infc.driver.artifact_contents import toolchain_versions
from infc.frontends.source import ModelSource
from infc.ir.version import DIALECT_VERSION
from infc.pipeline.options import CompileOptions
from infc.target.discovery import provider_versions
from infc.target.schema import Target


def cache_path(
    source: ModelSource,
    options: CompileOptions,
    targets: Sequence[Target],
    tuned: Sequence[Mapping[str, Any]],
) -> Path:
    """Where the artifact of these inputs is kept.

    Args:
        source: the model.
        options: of the compilation.
        targets: of the phases.
        tuned: records of the kernels that were measured.
    """
    inputs = [source.digest(), asdict(options), DIALECT_VERSION]
    inputs += [target.to_json() for target in targets]
    inputs += toolchain_versions().values()
    inputs += [provider_versions(target.backend) for target in targets]
    inputs += tuned
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "infc" / "artifacts" / f"{key[:32]}.infc"
