"""The rows of an activation that a weight matrix is multiplied with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.patches import spread

Array = npt.NDArray[Any]

_CHUNK_ROWS = 2048


@dataclass(frozen=True)
class Rows:
    """An activation whose rows a weight matrix is multiplied with.

    Attributes:
        axis: The axis that is summed over.
        batch: Sizes of the leading axes of a weight that has several matrices, else empty.
    """

    axis: int = -1
    batch: tuple[int, ...] = ()

    @property
    def groups(self) -> int:
        """Matrices that see rows of their own."""
        return math.prod(self.batch)


PLAIN = Rows()


def rows_of(array: Array, layout: Rows, most: int, feed: int) -> Iterator[npt.NDArray[np.float32]]:
    """Rows of an activation, [rows, groups, width], some at a time."""
    if layout.axis % array.ndim != array.ndim - 1:
        array = np.moveaxis(array, layout.axis, -1)
    groups = layout.groups
    if groups > 1:
        batch, lead = len(layout.batch), array.ndim - 2 - len(layout.batch)
        if lead < 0 or array.shape[lead : lead + batch] != layout.batch:
            raise ValueError(f"an activation of shape {array.shape} for {layout}")
        order = [*range(lead), array.ndim - 2, *range(lead, lead + batch), array.ndim - 1]
        array = array.transpose(order)
    rows = array.reshape(-1, groups, array.shape[-1])
    places = spread(len(rows), most, feed)
    for start in range(0, places.size, _CHUNK_ROWS):
        yield rows[places[start : start + _CHUNK_ROWS]].astype(np.float32)


def joined(layout: object, arrays: Sequence[Array]) -> list[Array]:
    """Activations of one run in as few arrays as may be.

    One product of many rows takes less time than many products of few.

    Args:
        layout: How their values make rows; others than plain rows stay apart.
        arrays: Of one rank.
    """
    plain = isinstance(layout, Rows) and layout.groups == 1 and layout.axis == -1
    alike = len({array.shape[1:] for array in arrays}) == 1 and arrays[0].ndim > 1
    return [np.concatenate(arrays)] if plain and alike else list(arrays)
