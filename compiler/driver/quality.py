"""What quantising the weights did to the model's predictions: both ways of it run on one text.

The model is compiled once more with its weights as they are, for the same target and for as many
tokens as the text has, and both artifacts predict every next token. The divergence is that of the
quantised predictions from the others, so what both round alike does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from infc.artifact import Artifact
from infc.diagnostics import Code, UserError
from infc.diagnostics.progress import Progress
from infc.driver.compilation import compile
from infc.driver.loading import load
from infc.driver.sample_text import sample_text
from infc.runtime.session import Session

MAX_TOKENS = 192
"""As much of the text as is read, which bounds the time and the logits' memory."""


@dataclass(frozen=True)
class PredictionChange:
    """Predictions with quantised weights against those with the model's own.

    Attributes:
        tokens: predictions that were compared.
        mean_divergence: of Kullback and Leibler, of the quantised from the others, in nats.
        same_choice: part of the predictions whose likeliest token is the same.
    """

    tokens: int
    mean_divergence: float
    same_choice: float


def measure_prediction_change(
    model: str | Path, artifact: Artifact, *, target: str, progress: Progress | None = None
) -> PredictionChange | str:
    """Compare an artifact with its model.

    Args:
        model: what `artifact` was compiled from.
        artifact: with quantised weights.
        target: what its prefill was compiled for.
        progress: called with the stage and the fraction done, 0.0 to 1.0.

    Returns:
        The change, or why it cannot be measured here.
    """
    report = progress or (lambda stage, fraction: None)
    try:
        quantized = load(artifact)
    except UserError as error:
        if error.diagnostic.code is not Code.ARTIFACT_HOST:
            raise
        return "the artifact's programs do not run on this machine"
    try:
        tokens = quantized.tokenizer.encode(sample_text())
    except UserError as error:
        if error.diagnostic.code is not Code.TOKENIZER_MISSING:
            raise
        return "the model has no tokenizer to read a text with"
    tokens = tokens[: min(MAX_TOKENS, quantized.limits.max_context)]
    with TemporaryDirectory(prefix=".infc-tmp-", dir=artifact.path.parent) as folder:
        report("compiling with unquantised weights", 0.1)
        try:
            exact = compile(
                model,
                target=target,
                output=Path(folder) / "exact.infc",
                max_context=len(tokens),
                chunk=len(tokens),
                kv_dtype=str(artifact.manifest.kv_layout["kv_dtype"]),
            )
        except UserError as error:
            if error.diagnostic.code is not Code.TARGET_UNSUPPORTED:
                raise
            return f"{target} cannot run the model as it is in its file"
        with exact:
            report("comparing predictions", 0.8)
            change = compare(load(exact), quantized, tokens)
    report("done", 1.0)
    return change


def compare(exact: Session, quantized: Session, tokens: list[int]) -> PredictionChange:
    """Feed the tokens to two fresh sessions and compare what each predicts behind every token."""
    one = exact.prefill(tokens, all_logits=True)
    other = quantized.prefill(tokens, all_logits=True)
    divergence = same = 0.0
    for expected, got in zip(one, other, strict=True):
        p, q = _log_softmax(expected), _log_softmax(got)
        divergence += float(np.sum(np.exp(p) * (p - q)))
        same += float(p.argmax() == q.argmax())
    # Rounding can make a sum negative where both say the same.
    return PredictionChange(len(tokens), max(0.0, divergence / len(tokens)), same / len(tokens))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logarithms of probabilities of `[vocab]` logits."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    return wide
