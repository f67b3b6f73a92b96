"""Factors that make the ranges of channels alike, on both sides of an activation (1906.04721)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]

#: Factors outside are cut: beyond, the values of a channel are nothing but rounding errors.
_LARGEST = 2.0**24


def largest(rows: Array) -> Array:
    """The largest magnitude of every row; infinite where one is NaN."""
    found: Array = np.abs(rows).max(axis=1, initial=0).astype(np.float64)
    found[np.isnan(found)] = np.inf
    return found


def balance(made: Array, read: Array) -> Array:
    """The factors ``sqrt(made / read)``, with which both sides become ``sqrt(made read)``.

    Args:
        made: Range of the weights that make each channel; they are divided by its factor.
        read: Range of the weights that read it; they are multiplied.

    Returns:
        1 where a channel is dead (a range of zero) or a range is not finite.
    """
    alive = (made > 0) & (read > 0) & np.isfinite(made) & np.isfinite(read)
    factors = np.ones(len(made))
    logs = np.log2(made[alive]) - np.log2(read[alive])
    limit = 2 * np.log2(_LARGEST)
    factors[alive] = np.exp2(np.clip(logs, -limit, limit) / 2)
    return factors


def precision(ranges: Array) -> float:
    """How well channels use the range of their tensor: the mean share that they take of it.

    1 when all are alike; near 0 when one makes the others invisible (1906.04721, section 4.1).
    """
    whole = float(ranges.max(initial=0))
    return float(np.mean(ranges / whole)) if 0 < whole < np.inf else 1.0
