"""What each op means, in NumPy: the oracle of every test.

Plain, direct and float32 throughout (sums in the order NumPy chooses). Letters: t rows (tokens),
d width, h heads, e head dimension, p positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


def embed(tokens: I32, table: F32, scale: float) -> F32:
    """`scale * table[tokens]`: `[t]`, `[vocab, d]` -> `[t, d]`."""
    return table[tokens] * np.float32(scale)


def rms_norm(x: F32, gain: F32, eps: float, offset: float, head_dim: int | None) -> F32:
    """`x / sqrt(mean(x**2) + eps) * (gain + offset)`, over rows or over each head of a row."""
    width = head_dim or x.shape[-1]
    groups = x.reshape(x.shape[0], x.shape[-1] // width, width)
    mean = np.mean(groups * groups, axis=-1, keepdims=True, dtype=np.float32)
    normed = groups / np.sqrt(mean + np.float32(eps)) * (gain + np.float32(offset))
    return normed.reshape(x.shape)


def linear(x: F32, matrix: F32, bias: F32 | None) -> F32:
    """`x @ matrix.T + bias`: `[t, k]`, `[n, k]`, `[n]` -> `[t, n]`."""
    y = x @ matrix.T
    return y if bias is None else y + bias


def rope_table(inverse_frequencies: Sequence[float], magnitude: float, positions: int) -> F32:
    """cos and sin of each angle, computed in float32 as the model libraries do: `[p, e/2, 2]`."""
    frequencies = np.asarray(inverse_frequencies, np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies[None, :]
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1) * np.float32(magnitude)


def rope(x: F32, positions: I32, table: F32, head_dim: int, interleaved: bool) -> F32:
    """Rotate pairs of each head: `(a, b) -> (a cos - b sin, b cos + a sin)`.

    Pairs are `(i, i + pairs)`, or `(2i, 2i + 1)` where interleaved; what lies past `2 * pairs`
    passes through.
    """
    t, pairs = x.shape[0], table.shape[1]
    heads = x.reshape(t, -1, head_dim)
    cos, sin = table[positions, None, :, 0], table[positions, None, :, 1]
    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    a, b = heads[:, :, first], heads[:, :, second]
    out = heads.copy()
    out[:, :, first] = a * cos - b * sin
    out[:, :, second] = b * cos + a * sin
    return out.reshape(x.shape)


def attend(
    q: F32,
    keys: F32,
    values: F32,
    q_positions: I32,
    k_positions: I32,
    scale: float,
    window: int,
    softcap: float,
) -> F32:
    """Causal grouped-query attention of one sequence.

    Args:
        q: `[t, h, e]`.
        keys, values: `[p, kv_h, e]`; query head i reads kv head `i // (h / kv_h)`.
        q_positions, k_positions: a query sees keys at `0 <= distance`, and `< window` if not 0.

    Returns:
        `[t, h, e]`.
    """
    groups = q.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, groups, axis=1), np.repeat(values, groups, axis=1)
    scores = np.einsum("the,phe->htp", q, keys, optimize=True) * np.float32(scale)
    if softcap:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    distance = q_positions[:, None] - k_positions[None, :]
    visible = distance >= 0
    if window:
        visible &= distance < window
    scores = np.where(visible, scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = scores / scores.sum(axis=-1, keepdims=True, dtype=np.float32)
    mixed: F32 = np.einsum("htp,phe->the", weights, values, optimize=True).astype(np.float32)
    return mixed


def activation(x: F32, kind: str) -> F32:
    """`silu(x) = x / (1 + exp(-x))`; `gelu_tanh` is GELU's tanh form."""
    if kind == "silu":
        with np.errstate(over="ignore"):
            return np.divide(x, np.float32(1) + np.exp(-x), dtype=np.float32)
    inner = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
    out: F32 = np.multiply(np.float32(0.5) * x, np.float32(1) + np.tanh(inner), dtype=np.float32)
    return out


def softcap(x: F32, cap: float) -> F32:
    """`cap * tanh(x / cap)`."""
    out: F32 = np.float32(cap) * np.tanh(x / np.float32(cap))
    return out


def argmax(x: F32, ids: I32 | None = None) -> I32:
    """The index of each row's largest element, the lowest of equals: `[r, n]` -> `[r]`."""
    if ids is not None:
        return top_k(x, 1, ids)[1][:, 0]
    found: I32 = np.argmax(x, axis=-1).astype(np.int32)
    return found


def top_k(x: F32, count: int, ids: I32 | None = None) -> tuple[F32, I32]:
    """The largest elements of each row and their indices, best first, of equals the lowest index.

    `[r, n]` -> `[r, count]` twice; with `ids` `[r, n]` an index is what stands there. What is no
    number counts as minus infinity, and minus infinity has index 0.
    """
    if ids is None:
        ids = np.broadcast_to(np.arange(x.shape[1], dtype=np.int32), x.shape)
    values = np.where(np.isnan(x), np.float32(-np.inf), x)
    order = np.lexsort((ids, -values), axis=-1)[:, :count]
    largest, found = np.take_along_axis(values, order, 1), np.take_along_axis(ids, order, 1)
    return largest, np.where(largest == -np.inf, np.int32(0), found)


def head_candidates(x: F32, matrix: F32, count: int, columns: int) -> tuple[F32, I32]:
    """The `count` best logits of `x @ matrix.T` in the first of `columns` places, nothing behind.

    A place with nothing holds minus infinity and index 0.
    """
    values, ids = top_k(linear(x, matrix, None), count)
    behind = ((0, 0), (0, columns - count))
    return (
        np.pad(values, behind, constant_values=np.float32(-np.inf)),
        np.pad(ids, behind),
    )
