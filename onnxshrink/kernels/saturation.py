"""What 16-bit sums of byte products do to a layer on CPUs without VNNI.

There, ``u8 x s8`` products are made by ``VPMADDUBSW``: two neighbouring products along the summed
axis are added with saturation to 16 bits, and only then to 32. ``255 * 127 * 2`` does not fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_MOST = np.iinfo(np.int16).max
_LEAST = np.iinfo(np.int16).min
_CHUNK = 2**22  # pair sums at a time


def can_saturate(weights: npt.NDArray[np.int8], highest: int = 255) -> npt.NDArray[np.bool_]:
    """Whether some input would make a pair sum of each output overflow.

    Args:
        weights: [outputs, inputs].
        highest: The largest code of the inputs, of which the smallest is 0.
    """
    pairs = _pairs(weights.astype(np.int64))
    above = np.maximum(pairs, 0).sum(-1).max(-1, initial=0) * highest > _MOST
    below = np.minimum(pairs, 0).sum(-1).min(-1, initial=0) * highest < _LEAST
    found: npt.NDArray[np.bool_] = above | below
    return found


def least_scale(weights: npt.NDArray[np.floating], highest: int = 255) -> npt.NDArray[np.floating]:
    """The finest scale of each output with which no pair sum can overflow, but for rounding.

    Args:
        weights: [outputs, inputs].
        highest: The largest code of the inputs, of which the smallest is 0.

    Returns:
        [outputs]; 0 for outputs of zeros.
    """
    pairs = _pairs(np.asarray(weights, np.float64))
    above = np.maximum(pairs, 0).sum(-1).max(-1, initial=0)
    below = np.maximum(-pairs, 0).sum(-1).max(-1, initial=0)
    scale: npt.NDArray[np.floating] = np.maximum(above, below) / (_MOST // highest)
    return scale


def tamed(weights: npt.NDArray[np.int8], highest: int = 255) -> npt.NDArray[np.int8]:
    """The same codes where no pair sum can overflow; in others the larger code of a pair is less.

    Args:
        weights: [outputs, inputs], for scales of :func:`least_scale` or coarser ones: rounding then
            takes a pair one code beyond, at most two.
        highest: The largest code of the inputs, of which the smallest is 0.
    """
    pairs = _pairs(weights.astype(np.int64))
    most = _MOST // highest
    for sign in (1, -1):
        beyond = np.maximum(np.maximum(sign * pairs, 0).sum(-1) - most, 0)
        row, pair = np.nonzero(beyond)
        larger = np.argmax(sign * pairs[row, pair], -1)
        pairs[row, pair, larger] -= sign * beyond[row, pair]
    kept: npt.NDArray[np.int8] = pairs.reshape(len(pairs), -1)[:, : weights.shape[1]].astype(
        np.int8
    )
    return kept


def products(rows: npt.NDArray[np.uint8], weights: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """What such a CPU computes: ``rows @ weights.T`` with every pair sum cut to 16 bits.

    Args:
        rows: Codes of activations, [rows, inputs].
        weights: Codes of weights, [outputs, inputs].
    """
    whole: npt.NDArray[np.int64] = rows.astype(np.int64) @ weights.T.astype(np.int64)
    return whole - lost(rows, weights)


def lost(rows: npt.NDArray[np.uint8], weights: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """What saturation takes from each sum, [rows, outputs]; 0 where nothing overflows."""
    total = np.zeros((len(rows), len(weights)), np.int64)
    risky = np.flatnonzero(can_saturate(weights, int(rows.max(initial=0))))
    if not risky.size:
        return total
    left, right = _pairs(rows.astype(np.int32)), _pairs(weights[risky].astype(np.int32))
    step = max(1, _CHUNK // max(right.size // 2, 1))
    for at in range(0, len(rows), step):
        part = left[at : at + step]
        sums = part[:, None, :, 0] * right[None, :, :, 0]
        sums += part[:, None, :, 1] * right[None, :, :, 1]
        sums -= np.clip(sums, _LEAST, _MOST)
        total[at : at + step, risky] = sums.sum(-1)
    return total


def _pairs(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[rows, inputs] as [rows, pairs, 2]; an odd one is paired with 0."""
    padded = np.pad(matrix, ((0, 0), (0, matrix.shape[1] % 2)))
    return padded.reshape(len(matrix), -1, 2)
