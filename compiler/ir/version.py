"""The version of the dialect, where loading an artifact can read it without importing MLIR."""

DIALECT_VERSION = 1
"""A dump or an artifact of another version is refused."""
