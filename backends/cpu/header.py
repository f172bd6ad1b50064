"""The C interface of a compiled model: what `infc.h` says."""

from __future__ import annotations

from importlib.resources import files


def c_header() -> str:
    """The text of `infc.h`, the same for every model of this ABI version."""
    return files("infc.backends.cpu").joinpath("infc.h").read_text()
