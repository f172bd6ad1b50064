"""The version of the dialect, where loading an artifact can read it without importing MLIR."""

DIALECT_VERSION = 2
"""A dump or an artifact of another version is refused; 2 since top-k outputs and split heads."""
