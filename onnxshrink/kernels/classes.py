"""Where an output holds the scores of classes, of which the largest is the answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.probabilities import are_probabilities
from onnxshrink.kernels.slices import LONGEST, kinds

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Classes:
    """The axis that numbers classes, and which of its places are classes.

    Attributes:
        axis: Of the output.
        places: Numbers along it; None: all. Beside scores lie boxes, say.
    """

    axis: int
    places: npt.NDArray[np.int64] | None = None

    def rows(self, array: Floats) -> Floats:
        """[rows, classes]; an output whose shape is not what it was has its classes last."""
        axis, places = self.axis, self.places
        if axis >= array.ndim or (places is not None and places[-1] >= array.shape[axis]):
            axis, places = array.ndim - 1, None
        moved = np.moveaxis(array, axis, -1)
        moved = moved if places is None else moved[..., places]
        return moved.reshape(-1, moved.shape[-1])


def classes(output: Floats) -> Classes:
    """The classes of an output of one axis or more, by its shape and its values.

    They are last, but in images [N, C, H, W], and in detections [N, 4 + C, places], whose axis 1
    holds things of several kinds where the last one does not. Probabilities say it themselves.
    """
    last = output.ndim - 1
    if output.ndim < 3 or not np.isfinite(output).all() or not output.size:
        return Classes(last)
    single = [axis for axis in (1, last) if are_probabilities(output, axis)]
    if len(single) == 1:
        return Classes(single[0])
    mixed = {axis: _majority(output, axis) for axis in (1, last)}
    if output.ndim > 3:
        square = output.shape[1] == output.shape[2] != output.shape[3]
        axis = last if square else 1
    else:
        axis = 1 if mixed[1] is not None and mixed[last] is None else last
    return Classes(axis, mixed[axis])


def _majority(output: Floats, axis: int) -> npt.NDArray[np.int64] | None:
    """The places of the kind that most are of; None where all are of one kind."""
    if not 2 <= output.shape[axis] <= LONGEST:
        return None
    moved = np.moveaxis(output, axis, 0).reshape(output.shape[axis], -1)
    found = kinds(np.einsum("ij,ij->i", moved, moved))
    counts = np.bincount(found)
    return None if len(counts) == 1 else np.flatnonzero(found == counts.argmax())
