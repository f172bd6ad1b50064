"""Which frontend a path needs: decided by contents, never by the file's ending."""

from __future__ import annotations

from pathlib import Path

from infc.diagnostics import Code, UserError
from infc.frontends.files import ModelFile, not_found
from infc.frontends.gguf import GgufSource
from infc.frontends.gguf_header import MAGIC
from infc.frontends.huggingface import HuggingFaceSource
from infc.frontends.source import ModelSource

_ZIP = b"PK\x03\x04"  # PyTorch checkpoints
_PICKLE = b"\x80"
_HINT = "give a GGUF file, or a folder with config.json and model.safetensors"


def open_model(path: str | Path) -> ModelSource:
    """Opens a GGUF file, a Hugging Face folder, or a folder that holds one GGUF file.

    Args:
        path: a file of any ending, or a folder. Of a split GGUF model any shard will do.

    Raises:
        UserError: INF1001 to INF1009: missing, damaged, inconsistent or unsupported; everything
            that is inconsistent or unsupported is in one report.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _open_folder(path)
    except (OSError, ValueError) as error:
        raise not_found(path, error) from None
    file = ModelFile(path)
    try:
        start = file.read(0, min(file.size_bytes, 64)).tobytes()
    finally:
        file.close()
    if start.startswith(MAGIC):
        return GgufSource(path)
    raise UserError(
        Code.MODEL_FORMAT,
        f"expected a GGUF file or a Hugging Face folder, got {_guess(start)}",
        location=str(path),
        hint=_HINT,
    )


def _open_folder(folder: Path) -> ModelSource:
    if (folder / "config.json").exists():
        return HuggingFaceSource(folder)
    candidates = [path for path in sorted(folder.iterdir()) if _is_gguf(path)]
    # Of a split model one shard leads to the others; sorted, the first comes first.
    stems = {path.name.split("-of-")[0].rsplit("-", 1)[0] for path in candidates}
    if len(candidates) == 1 or (candidates and len(stems) == 1 and "-of-" in candidates[0].name):
        return GgufSource(candidates[0])
    got = "none" if not candidates else ", ".join(path.name for path in candidates)
    raise UserError(
        Code.MODEL_NOT_FOUND,
        f"expected config.json or one GGUF file in the folder, got {got}",
        location=str(folder),
        hint=_HINT,
    )


def _is_gguf(path: Path) -> bool:
    try:
        file = ModelFile(path)
    except UserError:
        return False
    try:
        return file.read(0, min(file.size_bytes, len(MAGIC))).tobytes() == MAGIC
    finally:
        file.close()


def _guess(start: bytes) -> str:
    """What a file with this start seems to be."""
    if not start:
        return "an empty file"
    if start.startswith(_ZIP):
        return "a zip file (perhaps a PyTorch checkpoint)"
    if start.startswith(_PICKLE):
        return "a Python pickle, which infc never loads"
    if len(start) > 8 and start[8:9] == b"{":
        return "a single safetensors file"
    if start.lstrip()[:1] == b"{":
        return "a JSON file"
    return f"a file that starts with {start[:8]!r}"
