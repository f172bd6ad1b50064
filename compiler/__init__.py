"""infc: a hardware-agnostic inference compiler for language models.

artifact = infc.compile("model.gguf", target="cpu", max_context=4096)
artifact.save("model.infc")
session = infc.load("model.infc", threads=2)
for piece in session.generate("...", max_new_tokens=64):
    print(piece, end="")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if __name__ != "infc":
    raise ImportError("import infc: the folder name is not the import name")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from infc.artifact import Artifact
    from infc.diagnostics import UserError
    from infc.driver import compile, load
    from infc.runtime.session import Session

__all__ = ["Artifact", "Session", "UserError", "__version__", "compile", "load"]

_HOMES = {
    "Artifact": "infc.artifact",
    "Session": "infc.runtime.session",
    "UserError": "infc.diagnostics",
    "compile": "infc.driver",
    "load": "infc.driver",
}


def __getattr__(name: str) -> Any:
    """Import the compiler when it is first asked for: `infc --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'infc' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
