"""From model files to a description that the compiler takes in.

In the order in which data flow: `files` (reading), `gguf_header` and `safetensors_header`,
`settings` and `findings` (typed look-ups, one report), `families` (what is supported), `rope`,
`gguf_config` and `huggingface_config` (to a `ModelConfig`), `weights` (names and shapes), `gguf`
and `huggingface` (the sources), `opening` (which of them a path needs), `finite` (NaN and
infinity).
"""

from infc.frontends.finite import check_finite
from infc.frontends.opening import open_model

__all__ = ["check_finite", "open_model"]
