"""Bytes shared out among weights: where each one lowers the error most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]

_HALVINGS = 100


def choose(sizes: Sequence[Array], errors: Sequence[Array], budget: float) -> list[int]:
    """One choice for each weight, with the least sum of errors for their bytes.

    Every weight takes the choice with the least ``error + price * size``, and the price is the
    lowest at which all fit (Shoham and Gersho, 1988). No other choices of as few bytes have a
    smaller sum of errors; what is left of the budget then goes to the best single steps that fit.

    Args:
        sizes: For each weight, the bytes of its choices.
        errors: For each weight, what its choices cost: numbers that add up.
        budget: Bytes that all may take together.

    Returns:
        The number of a choice for each weight; the smallest ones where nothing fits.
    """
    ordered = [np.lexsort((error, size)) for size, error in zip(sizes, errors, strict=True)]

    def at(price: float) -> list[int]:
        found = []
        for size, error, order in zip(sizes, errors, ordered, strict=True):
            found.append(int(order[np.argmin(error[order] + price * size[order])]))
        return found

    def total(chosen: list[int]) -> float:
        return float(sum(size[i] for size, i in zip(sizes, chosen, strict=True)))

    smallest = [int(order[0]) for order in ordered]
    if not ordered or total(smallest) > budget:
        return smallest
    low, high, best = 0.0, 1.0, at(0.0)
    if total(best) <= budget:
        return best
    while total(best := at(high)) > budget:
        low, high = high, high * 4
        if not np.isfinite(high):
            return smallest
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = at(middle)
        if total(found) <= budget:
            high, best = middle, found
        else:
            low = middle
        if high - low <= 1e-12 * high:
            break
    return _filled(sizes, errors, best, budget - total(best))


def _filled(
    sizes: Sequence[Array], errors: Sequence[Array], chosen: list[int], room: float
) -> list[int]:
    """Spend what is left, each time on the step that lowers the error most for its bytes."""
    chosen = list(chosen)
    while True:
        best, gain = None, 0.0
        for weight, (size, error) in enumerate(zip(sizes, errors, strict=True)):
            more, less = size - size[chosen[weight]], error[chosen[weight]] - error
            rate = np.where((more <= room) & (less > 0), less / np.maximum(more, 1e-12), 0.0)
            step = int(np.argmax(rate))
            if rate[step] > gain:
                best, gain = (weight, step), float(rate[step])
        if best is None:
            return chosen
        weight, step = best
        room -= float(sizes[weight][step] - sizes[weight][chosen[weight]])
        chosen[weight] = step
