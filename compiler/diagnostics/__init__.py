"""Errors with stable codes, and the renderers that print them.

Two families only: `UserError` (the model, the options or the target is at fault; shown without a
traceback) and `InternalError` (infc is at fault). Only the command line prints.
"""

from infc.diagnostics.errors import (
    Code,
    Diagnostic,
    InfcError,
    InternalError,
    Problem,
    UserError,
    count,
)

__all__ = ["Code", "Diagnostic", "InfcError", "InternalError", "Problem", "UserError", "count"]
