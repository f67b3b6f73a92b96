"""Factors that move large values from activations into weights (SmoothQuant, 2211.10438)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]

#: Channels below this share of the largest count as that: none may become large by its factor.
_FLOOR = 1e-4
#: Shares that the search tries.
SHARES = tuple(round(0.1 * number, 1) for number in range(11))


def factors(activation: Array, weight: Array, share: float) -> Array:
    """``activation ** share / weight ** (1 - share)`` for every channel.

    Args:
        activation: Largest magnitude of each channel of the activation.
        weight: Largest magnitude of what each is multiplied with.
        share: 0 leaves the weights alike in range, 1 the channels of the activation.

    Returns:
        What to divide the activation by; 1 throughout where one side is all zeros or not finite.
    """
    most_x, most_w = activation.max(initial=0), weight.max(initial=0)
    if not (0 < most_x < np.inf and 0 < most_w < np.inf):
        return np.ones(len(activation))
    x = np.log(np.maximum(activation, _FLOOR * most_x))
    w = np.log(np.maximum(weight, _FLOOR * most_w))
    found: Array = np.exp(share * x - (1 - share) * w)
    return found


@dataclass(frozen=True)
class ReadingWeight:
    """A weight and what is known of its inputs.

    Attributes:
        matrix: [groups, outputs, inputs].
        moment: E[x x^T] of its inputs, [groups, inputs, inputs].
        channel: The channel of each input, of the shape of ``matrix`` or broadcasting to it.
    """

    matrix: Array
    moment: Array
    channel: npt.NDArray[np.integer]

    def error(self, values: Array, step: float) -> float:
        """Expected squared error of all outputs, both sides rounded to 8 bits.

        Args:
            values: The factor of each channel.
            step: The grid of the activation, after it was divided by them.
        """
        spread = values[self.channel]
        scaled = self.matrix * spread
        grid = np.abs(scaled).max(axis=2, keepdims=True) / 127
        grid[grid == 0] = 1
        wrong = (np.rint(scaled / grid) * grid - scaled) / spread
        rounded = float(np.einsum("goi,gij,goj->", wrong, self.moment, wrong, optimize=True))
        return rounded + step**2 / 12 * float(np.square(scaled).sum())


def best(
    low: Array, high: Array, weight: Array, products: Sequence[ReadingWeight]
) -> tuple[float | None, Array]:
    """The share with the least error of all products that read an activation.

    Args:
        low: Smallest value of each channel of the activation.
        high: Largest value.
        weight: Largest magnitude of what each is multiplied with.
        products: They.

    Returns:
        The share and its factors; None and 1 throughout where no factors do better.
    """
    activation = np.maximum(np.abs(low), np.abs(high))

    def error(values: Array) -> float:
        span = max((high / values).max(), 0) - min((low / values).min(), 0)
        return sum(product.error(values, span / 255) for product in products)

    chosen: tuple[float | None, Array] = None, np.ones(len(low))
    least = error(chosen[1])
    for share in SHARES:
        values = factors(activation, weight, share)
        if (found := error(values)) < least:
            chosen, least = (share, values), found
    return chosen
