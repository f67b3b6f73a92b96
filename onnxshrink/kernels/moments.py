"""Second moments of inputs, ``H = E[x x^T]``, and the one way in which they are damped.

Whatever is fitted to H needs it damped: directions that few inputs showed must not count as free.
How much is a share of the mean square of the inputs, so that it means the same at every scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnxshrink.kernels.observers import MomentSums

Array = npt.NDArray[np.float64]
N = TypeVar("N", bound=np.generic)
_COLUMNS = 512  # that are multiplied at once


class InputMoments:
    """Second moments of the inputs of one weight, added up over all products that it is in.

    A fit sees the half of the inputs with even numbers, and is judged by the half with odd ones.

    Args:
        sums: What was collected, one for each product; all of the same shape.
    """

    def __init__(self, sums: Sequence[MomentSums]):
        self._sums = tuple(sums)
        _, self.groups, self.width, _ = self._sums[0].sums.shape

    def mean(self, half: int | None = None) -> Array:
        """H of every group, [groups, width, width].

        Args:
            half: 0 or 1 for the inputs with even or odd numbers only.
        """
        total: Array = sum((one.mean(half) for one in self._sums[1:]), self._sums[0].mean(half))
        return total

    def narrow(self, half: int | None = None) -> npt.NDArray[np.float32]:
        """The same in float32, as it was collected: that of a wide layer is a large array."""
        kind = np.float32
        first, *more = self._sums
        total = first.mean(half, kind)
        for one in more:
            total += one.mean(half, kind)
        return total

    def damped(self, damping: float) -> Array:
        """H of every group; see :func:`damped`."""
        return damped(self.mean(), damping)

    def fold(self, matrix: npt.NDArray[N]) -> npt.NDArray[N]:
        """A matrix of all outputs as [groups, outputs, width]."""
        return matrix.reshape(self.groups, -1, self.width)

    def loss(self, errors: npt.NDArray[np.floating], half: int | None = None) -> float:
        """Mean squared error of the outputs that errors of the weight make, summed over them."""
        return loss(self.fold(errors), self.mean(half))

    def output_error(
        self, exact: npt.NDArray[np.floating], other: npt.NDArray[np.floating],
        half: int | None = None,
    ) -> float:  # fmt: skip
        """Relative error of the outputs of another matrix; 0 where there are no outputs."""
        wide = exact.astype(np.float64)
        total, wrong = self.loss(wide, half), self.loss(wide - other, half)
        return float(np.sqrt(max(wrong, 0.0) / total)) if total > 0 else 0.0


def loss(error: npt.NDArray[np.floating], moment: npt.NDArray[np.floating]) -> float:
    """Mean squared error of the outputs, summed over them: ``trace(E H E^T)``.

    Args:
        error: Of the weights, [rows, width], or [groups, rows, width].
        moment: H, [width, width], or that of each group.
    """
    if error.ndim == 3:
        return sum(loss(e, h) for e, h in zip(error, moment, strict=True))
    e, total = np.asarray(error, np.float64), 0.0
    for start in range(0, len(moment), _COLUMNS):
        part = slice(start, start + _COLUMNS)  # so that no second copy of H is made
        total += float(
            np.einsum("ij,ij->", e @ np.asarray(moment[:, part], np.float64), e[:, part])
        )
    return total


def ridge(moment: npt.NDArray[np.floating], damping: float) -> Array:
    """What damping adds to each element of a diagonal.

    Args:
        moment: H, [..., width, width].
        damping: Share of the mean of H's diagonal.

    Returns:
        [...]. Inputs that are always zero say nothing, and what they are multiplied with should
        stay as it is: 1 where H is zero.
    """
    mean = np.trace(moment, axis1=-2, axis2=-1, dtype=np.float64) / max(moment.shape[-1], 1)
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
    places = np.arange(h.shape[-1])
    h[..., places, places] = damped_diagonal(h, damping)
    return h


def damped_diagonal(moment: npt.NDArray[np.floating], damping: float) -> Array:
    """The diagonals of :func:`damped`, [..., width]: all that damping changes.

    Raises:
        ValueError: H is not finite.
    """
    if not np.isfinite(moment).all():
        raise ValueError("the second moment is not finite")
    diagonal: Array = np.diagonal(moment, axis1=-2, axis2=-1).astype(np.float64)
    diagonal += ridge(moment, damping)[..., None]
    return diagonal
