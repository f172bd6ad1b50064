"""Passes on the model as it was imported: the same level in, the same level out."""
