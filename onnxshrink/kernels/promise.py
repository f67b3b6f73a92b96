"""What can be said of inputs that nobody has seen, from those that were held back.

One-sided intervals: a share is at least so much, an error at most so much, with a confidence.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.9
_DRAWS = 1000
_FEWEST = 4  # fewer units than this cannot tell how much they vary


def share_at_least(kept: int, count: int, confidence: float = CONFIDENCE) -> float:
    """Lower end of the interval of a share (Clopper and Pearson, 1934).

    Args:
        kept: How many of the rows agree.
        count: How many rows there are.
        confidence: Of the one end.
    """
    from scipy.special import betaincinv

    return float(betaincinv(kept, count - kept + 1, 1 - confidence)) if kept else 0.0


def rows_for(least: float, lost: int = 0, confidence: float = CONFIDENCE) -> int:
    """How many rows it takes to promise a share, if no more of them differ; 0: no number does.

    Args:
        least: The share.
        lost: How many differ.
        confidence: Of the promise.
    """
    from scipy.special import gammaincinv

    if least >= 1:
        return 0
    # The interval of a count (Garwood, 1936) is next to that of a share so close to 1.
    rows = math.ceil(gammaincinv(lost + 1, confidence) / (1 - least))
    while rows > lost + 1 and share_at_least(rows - 1 - lost, rows - 1, confidence) >= least:
        rows -= 1
    return rows


def ratio_at_most(
    parts: npt.ArrayLike, wholes: npt.ArrayLike, confidence: float = CONFIDENCE
) -> float:
    """Upper end of the interval of ``sum(parts) / sum(wholes)``, by the bootstrap over inputs.

    Draws are the same in every run. Of fewer than four inputs nothing can be said: infinity.

    Args:
        parts: For each input, for instance the squared error.
        wholes: For each input, for instance the squared signal.
        confidence: Of the one end.
    """
    from scipy.special import ndtri, stdtrit

    part, whole = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    if part.size < _FEWEST:
        return math.inf
    if not part.sum():
        return 0.0
    if not np.isfinite(part).all() or not whole.sum():
        return math.inf
    drawn = np.random.default_rng(0).integers(0, part.size, (_DRAWS, part.size))
    sums = whole[drawn].sum(axis=1)
    ratios = np.divide(part[drawn].sum(axis=1), sums, out=np.full(_DRAWS, math.inf), where=sums > 0)
    # Draws of few inputs vary too little: the correction of a variance, and Student's for the end.
    middle, free = float(part.sum() / whole.sum()), part.size - 1
    end = float(ndtri(confidence)) or 1.0
    wider = math.sqrt(part.size / free) * (float(stdtrit(free, confidence)) / end or 1.0)
    return middle + (float(np.quantile(ratios, confidence)) - middle) * wider
