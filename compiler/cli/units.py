"""Quantities as a person reads them, for the commands."""

from infc.diagnostics.quantities import human_bytes, human_count, human_seconds

__all__ = ["human_bytes", "human_count", "human_seconds"]
