"""Inverse frequencies of rotary position embeddings, with every scaling that the families use.

Powers are taken in float64 from float32 exponents and rounded to float32; all else is float32, in
the order of Hugging Face transformers (`modeling_rope_utils.py`), so that the numbers agree with
its own to a unit in the last place on any machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infc.frontends.source import RopeConfig

_F32 = NDArray[np.float32]
_f32 = np.float32


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1: low frequencies divided, high ones kept, a smooth step between."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al., arXiv 2309.00071), section 3.4.

    Attributes:
        magnitude: factor on cos and sin.
        truncate: round the ends of the ramp to whole dimensions.
    """

    factor: float
    original_context: int
    magnitude: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


Scaling = LinearScaling | Llama3Scaling | YarnScaling


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """YaRN's attention factor, sqrt(1/t): 0.1 ln(factor) + 1 above factor 1."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope(
    dimensions: int,
    base: float,
    scaling: Scaling | None = None,
    *,
    interleaved: bool = False,
    divisors: _F32 | None = None,
) -> RopeConfig:
    """The rotary embedding of `dimensions` rotated dimensions (even).

    Args:
        dimensions: rotated dimensions of a head.
        base: `theta`; frequency i is base ** (-2i / dimensions).
        scaling: of the context, if any.
        interleaved: pairs are neighbours.
        divisors: [dimensions / 2] factors that divide the frequencies (`rope_freqs.weight`).
    """
    exponents = np.arange(0, dimensions, 2, dtype=np.float32) / _f32(dimensions)
    powers = np.power(np.float64(_f32(base)), exponents.astype(np.float64)).astype(np.float32)
    with np.errstate(all="ignore"):
        frequencies = _f32(1) / powers
        if isinstance(scaling, LinearScaling):
            frequencies = frequencies / _f32(scaling.factor)
        elif isinstance(scaling, Llama3Scaling):
            frequencies = _llama3(frequencies, scaling)
        elif isinstance(scaling, YarnScaling):
            frequencies = _yarn(frequencies, powers, dimensions, base, scaling)
        if divisors is not None:
            frequencies = frequencies / divisors
    magnitude = scaling.magnitude if isinstance(scaling, YarnScaling) else 1.0
    return RopeConfig(tuple(frequencies.tolist()), interleaved, magnitude)


def _llama3(frequencies: _F32, scaling: Llama3Scaling) -> _F32:
    factor, context = _f32(scaling.factor), _f32(scaling.original_context)
    low, high = _f32(scaling.low_frequency_factor), _f32(scaling.high_frequency_factor)
    wavelengths = _f32(2 * math.pi) / frequencies
    long = wavelengths > _f32(scaling.original_context / scaling.low_frequency_factor)
    short = wavelengths < _f32(scaling.original_context / scaling.high_frequency_factor)
    scaled = np.where(long, frequencies / factor, frequencies)
    smooth = (context / wavelengths - low) / _f32(high - low)
    between = (_f32(1) - smooth) * scaled / factor + smooth * scaled
    return np.asarray(np.where(~short & ~long, between, scaled), np.float32)


def _yarn(
    frequencies: _F32, powers: _F32, dimensions: int, base: float, scaling: YarnScaling
) -> _F32:
    def dimension_of(rotations: float) -> float:
        """The dimension that makes so many rotations over the original context."""
        turns = scaling.original_context / (rotations * 2 * math.pi)
        return dimensions * math.log(turns) / (2 * math.log(base))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimensions - 1)
    if low == high:
        high += 0.001  # no division by zero: the ramp becomes a step
    steps = np.arange(dimensions // 2, dtype=np.float32)
    ramp = np.clip((steps - _f32(low)) / _f32(high - low), 0, 1).astype(np.float32)
    keep = _f32(1) - ramp
    stretched = _f32(1) / (_f32(scaling.factor) * powers)
    return np.asarray(stretched * (_f32(1) - keep) + frequencies * keep, np.float32)
