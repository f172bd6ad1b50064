"""The NumPy meaning as a backend: runs anywhere, tests everything, is slow.

Its programs are the phase-level IR itself; its weights are the model's tensors as they are.
"""

from infc.backends.reference.backend import ReferenceBackend

BACKEND = ReferenceBackend()

__all__ = ["BACKEND"]
