"""The backends: one folder a chip family, each found through the entry points `infc.backends`."""

if not __name__.startswith("infc."):
    raise ImportError("import infc.backends: the folder name is not the import name")
