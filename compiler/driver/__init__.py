"""The whole way, from a model to an artifact to a session; the command line and `infc` use it.

`compilation` compiles and resumes, `oracle` is `--verify`, `loading` opens artifacts, `prediction`
and `explanation` read what an artifact says about itself.
"""

from infc.driver.compilation import cached_compile, compile, run_opt
from infc.driver.explanation import BufferRow, Explanation, KernelRow, explain
from infc.driver.loading import load
from infc.driver.prediction import PhasePrediction, predict

__all__ = [
    "BufferRow",
    "Explanation",
    "KernelRow",
    "PhasePrediction",
    "cached_compile",
    "compile",
    "explain",
    "load",
    "predict",
    "run_opt",
]
