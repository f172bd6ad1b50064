"""What `--quantize` changed, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infc.driver import PredictionChange


def quantization_object(
    losses: Mapping[str, Mapping[str, Any]], change: PredictionChange | str | None
) -> dict[str, object] | None:
    """The entry of `infc compile --json`; None where no weight was converted.

    Args:
        losses: `quantization` of the manifest.
        change: of the predictions, or why that is not known.
    """
    if not losses:
        return None
    known = None if change is None or isinstance(change, str) else change
    return {
        "weights": {storage: dict(loss) for storage, loss in losses.items()},
        "predictions": None if known is None else known.tokens,
        "mean_divergence_nats": None if known is None else known.mean_divergence,
        "same_choice": None if known is None else known.same_choice,
    }


def quantization_text(
    losses: Mapping[str, Mapping[str, Any]], change: PredictionChange | str | None
) -> str:
    """The lines of `infc compile --quantize`."""
    if not losses:
        return "  all matrices take as few bits already: none was converted\n"
    lines = []
    for storage, loss in losses.items():
        converted = "1 matrix" if loss["tensors"] == 1 else f"{loss['tensors']} matrices"
        lines.append(
            f"  {storage}: {converted}, {loss['numbers'] / 1e6:.1f} million weights, "
            f"relative RMS error {loss['relative_rms_error']:.2%}\n"
        )
    if isinstance(change, str):
        lines.append(f"  change of the predictions: not measured, {change}\n")
    elif change is not None:
        lines.append(
            f"  change of the predictions: mean KL {change.mean_divergence:.4f} nats over "
            f"{change.tokens} tokens, the same likeliest token for {change.same_choice:.0%}\n"
        )
    return "".join(lines)
