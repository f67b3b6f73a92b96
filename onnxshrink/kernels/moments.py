"""Second moments of inputs, ``H = E[x x^T]``, and the one way in which they are damped.

Whatever is fitted to H needs it damped: directions that few inputs showed must not count as free.
How much is a share of the mean square of the inputs, so that it means the same at every scale.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def ridge(moment: npt.NDArray[np.floating], damping: float) -> Array:
    """What damping adds to each element of a diagonal.

    Args:
        moment: H, [..., width, width].
        damping: Share of the mean of H's diagonal.

    Returns:
        [...]. Inputs that are always zero say nothing, and what they are multiplied with should
        stay as it is: 1 where H is zero.
    """
    mean = np.trace(moment, axis1=-2, axis2=-1) / max(moment.shape[-1], 1)
    scaled: Array = np.where(mean > 0, damping * np.where(mean > 0, mean, 1.0), 1.0)
    return scaled


def damped(moment: npt.NDArray[np.floating], damping: float) -> Array:
    """Second moments in which no direction is free.

    Args:
        moment: H, [..., width, width].
        damping: Share of the mean of H's diagonal to add to the diagonal; 1 where H is zero.

    Raises:
        ValueError: H is not finite.
    """
    h: Array = np.array(moment, np.float64)
    if not np.isfinite(h).all():
        raise ValueError("the second moment is not finite")
    places = np.arange(h.shape[-1])
    h[..., places, places] += ridge(h, damping)[..., None]
    return h
