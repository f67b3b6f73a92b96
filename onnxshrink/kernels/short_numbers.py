"""Numbers with few digits: what compresses best of all that would do."""

from __future__ import annotations

import math


def shortest_between(low: float, high: float) -> float:
    """The number in [low, high] that is a multiple of the largest power of two.

    Where several are, the one that is nearest to the middle. Binary digits that are not needed are
    zero, so that packers and coders have less to store.

    Args:
        low: The least that will do; finite.
        high: The most; not below ``low``.
    """
    if not low < high:
        return low
    if low <= 0 <= high:
        return 0.0
    step = math.ldexp(1.0, math.frexp(max(abs(low), abs(high)))[1])
    while math.floor(high / step) < math.ceil(low / step):
        step /= 2
    middle = round((low + high) / 2 / step)
    return step * min(max(middle, math.ceil(low / step)), math.floor(high / step))
