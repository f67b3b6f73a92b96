"""Moments of normal values behind an activation function."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Floats = npt.NDArray[np.float64]


def clipped_mean(
    mean: Floats, deviation: Floats, low: float = 0.0, high: float = math.inf
) -> Floats:
    """E[min(max(z, low), high)] of normal z (1906.04721, appendix C).

    Args:
        mean: Means.
        deviation: Standard deviations; 0 is a constant.
        low: Lower limit, -inf for none.
        high: Upper limit, inf for none.
    """
    wide = np.maximum(deviation, np.finfo(np.float64).tiny)
    found = mean.astype(np.float64, copy=True)
    for limit, sign in ((low, 1.0), (high, -1.0)):
        if math.isfinite(limit):
            # E[max(z, l)] = E[z] + E[max(l - z, 0)], E[min(z, h)] = E[z] - E[max(z - h, 0)].
            beyond = sign * (limit - mean)
            with np.errstate(over="ignore"):
                z = np.clip(beyond / wide, -40, 40)  # further out all of it lies on one side
            density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
            excess = beyond * ndtr(z) + deviation * density
            found += sign * np.where(deviation > 0, excess, np.maximum(beyond, 0))
    return found
