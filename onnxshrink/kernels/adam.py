"""Adam (Kingma & Ba 2015, arXiv:1412.6980)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_DECAY = (0.9, 0.999)
_LEAST = 1e-30  # beside a gradient's size: gradients may be of any


class Adam:
    """Moves numbers against their gradients, by about the rate whatever the gradients' size.

    Args:
        numbers: By name; changed in place.
        units: By name, what a step of 1 is for each number.
    """

    def __init__(self, numbers: Mapping[str, Array], units: Mapping[str, Array]):
        self._numbers, self._units = numbers, units
        self.forget()

    def forget(self) -> None:
        """Begin anew, with nothing known of gradients."""
        self._count = 0
        self._means = {name: np.zeros_like(each) for name, each in self._numbers.items()}
        self._squares = {name: np.zeros_like(each) for name, each in self._numbers.items()}

    def step(self, gradients: Mapping[str, Array], rate: float) -> None:
        """One step of this rate; what has no gradient stays."""
        self._count += 1
        for name, gradient in gradients.items():
            slope = gradient * self._units[name]
            mean, square = self._means[name], self._squares[name]
            mean += (1 - _DECAY[0]) * (slope - mean)
            square += (1 - _DECAY[1]) * (slope * slope - square)
            size = np.sqrt(square / (1 - _DECAY[1] ** self._count)) + _LEAST
            direction = mean / (1 - _DECAY[0] ** self._count) / size
            self._numbers[name] -= rate * self._units[name] * direction
