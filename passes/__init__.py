"""The passes, in the order data flows: graph, phase, schedule, memory; code generation is a
backend's own."""

if not __name__.startswith("infc."):
    raise ImportError("import infc.passes: the folder name is not the import name")
