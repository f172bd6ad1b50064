"""Chips for which there is a cost model and no code generator: files of facts with their sources.

`targets/` has one file a chip, `links/` one a link that may replace the chips' own, `profiles/`
and `engines/` what was fitted to measured kernels and servers; `backend` offers them all to
`infc targets` and `infc estimate`.
"""

from infc.backends.chips.backend import BACKEND

__all__ = ["BACKEND"]
