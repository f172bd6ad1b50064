"""infc: a hardware-agnostic inference compiler for language models."""

if __name__ != "infc":
    raise ImportError("import infc: the folder name is not the import name")

__version__ = "0.1.0"
