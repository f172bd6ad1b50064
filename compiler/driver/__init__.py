"""The whole way, from a model to an artifact to a session; the command line and `infc` use it.

`compilation` is the way from a model to an artifact: `target_compilation` of each phase, from
`importing` or one of `dumps`, then `artifact_contents`; `artifact_cache` is for those without a
name. `oracle` is `--verify`, `loading` opens artifacts, `prediction` and `explanation` read what an
artifact says about itself, `disturbance` how disturbed the machine is meanwhile, `fit`
compares it with a memory, `quality` measures what `--quantize` did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infc.driver.calibration import Calibration, calibrate
    from infc.driver.compilation import cached_compile, compile
    from infc.driver.disturbance import DisturbanceProbe
    from infc.driver.dumps import run_opt
    from infc.driver.explanation import explain, program_notes
    from infc.driver.explanation_rows import BufferRow, Explanation, KernelRow
    from infc.driver.fit import artifact_fit
    from infc.driver.loading import load
    from infc.driver.prediction import PhasePrediction, predict
    from infc.driver.quality import PredictionChange, measure_prediction_change
    from infc.driver.tuning import TunedKernel, Tuning

__all__ = [
    "BufferRow",
    "Calibration",
    "DisturbanceProbe",
    "Explanation",
    "KernelRow",
    "PhasePrediction",
    "PredictionChange",
    "TunedKernel",
    "Tuning",
    "artifact_fit",
    "cached_compile",
    "calibrate",
    "compile",
    "explain",
    "load",
    "measure_prediction_change",
    "predict",
    "program_notes",
    "run_opt",
]

_HOMES = {
    "BufferRow": "explanation_rows",
    "Calibration": "calibration",
    "DisturbanceProbe": "disturbance",
    "Explanation": "explanation_rows",
    "KernelRow": "explanation_rows",
    "PhasePrediction": "prediction",
    "PredictionChange": "quality",
    "TunedKernel": "tuning",
    "Tuning": "tuning",
    "artifact_fit": "fit",
    "cached_compile": "compilation",
    "calibrate": "calibration",
    "compile": "compilation",
    "explain": "explanation",
    "load": "loading",
    "measure_prediction_change": "quality",
    "predict": "prediction",
    "program_notes": "explanation",
    "run_opt": "dumps",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: loading an artifact does not wait for the compiler."""
    if name not in _HOMES:
        raise AttributeError(f"module 'infc.driver' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"infc.driver.{_HOMES[name]}"), name)
