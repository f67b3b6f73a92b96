"""How a weight is laid out to be quantized: its shape then, and which weights share a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxshrink.graph import read
from onnxshrink.graph.operators import Matrices
from onnxshrink.graph.operators.one_by_one import SHORT_ROW
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.kernels.affine import Quantized

#: ``stored``: as it is. ``turned``: its transpose. ``matrix``: [outputs, inputs], filled up with
#: zeros to whole blocks.
Order = Literal["stored", "turned", "matrix"]


@dataclass(frozen=True)
class Layout:
    """The shape in which a weight is quantized.

    Attributes:
        view: The weight.
        shape: Its shape then; one axis may be cut in two, blocks and what is in a block.
        axes: Axes along which weights share a scale.
        order: Where its elements go.
    """

    view: WeightView
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    order: Order = "stored"

    def values(self) -> npt.NDArray[np.floating]:
        """The weights, of :attr:`shape`."""
        return self.fold(self.view.array())

    def fold(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array of the weight's own shape, laid out as :attr:`shape`."""
        if self.order == "turned":
            values = values.T
        elif self.order == "matrix":
            values = self.view.to_matrix(values)
            if missing := math.prod(self.shape[1:]) - values.shape[1]:  # else it is no copy
                values = np.pad(values, ((0, 0), (0, missing)))
        return values.reshape(self.shape)

    def arranged(self, stored: Quantized) -> Quantized | None:
        """Codes of the weight's own shape, laid out as :attr:`shape`.

        None where their scales are not shared along :attr:`axes`, or the shape is cut in blocks.
        """
        turned = self.order == "turned"
        if self.order == "matrix" or len(self.shape) != len(self.view.shape):
            return None
        if any(stored.scale.shape[1 - axis if turned else axis] > 1 for axis in self.axes):
            return None
        if not turned:
            return stored
        zero = None if stored.zero_point is None else stored.zero_point.T
        return Quantized(np.ascontiguousarray(stored.codes.T), stored.scale.T, zero, stored.dtype)

    def spread(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What broadcasts to :attr:`shape`, for every weight in the weight's own shape."""
        full, shape = np.broadcast_to(values, self.shape), self.view.shape
        if self.order == "turned":
            turned: npt.NDArray[Any] = full.reshape(shape[::-1]).T
            return turned
        if self.order == "matrix":
            rows = full.reshape(full.shape[0], -1)
            return self.view.from_matrix(rows[:, : self.view.size // full.shape[0]])
        return full.reshape(shape)


def of(
    view: WeightView, *, per_channel: bool = True, block_size: int = 0, turned: bool = False
) -> Layout:
    """The layout for scales per tensor, per channel, or per block of a channel.

    Args:
        view: The weight.
        per_channel: One scale for each output channel instead of one for each tensor.
        block_size: Weights of a channel that share a scale; 0: all of them. A channel that the
            size does not divide keeps one scale.
        turned: See a matrix as its transpose.
    """
    shape, contract = view.shape, tuple(sorted(view.axes.contract))
    order: Order = "turned" if turned else "stored"
    if turned:
        shape, contract = shape[::-1], tuple(1 - axis for axis in contract)
    if not per_channel or not contract:
        return Layout(view, shape, tuple(range(len(shape))), order)
    if block_size:
        first, last = contract[0], contract[-1] + 1
        inner = math.prod(shape[first:last])
        # Axes that lie side by side are cut as one.
        if last - first == len(contract) and inner % block_size == 0:
            split = (inner // block_size, block_size)
            return Layout(view, shape[:first] + split + shape[last:], (first + 1,), order)
    if view.main.is_lookup and view.size // shape[view.axes.out[0]] < SHORT_ROW:
        return Layout(view, shape, view.axes.out, order)
    return Layout(view, shape, contract, order)


def can_turn(view: WeightView) -> bool:
    """Whether a weight is the second input of one Gemm with transB=1, and of nothing else."""
    use = view.main
    return (
        isinstance(use.row, Matrices)
        and use.row.bias is not None
        and (use.index, use.direct) == (1, True)
        and len(view.uses) == 1
        and not view.others
        and not read.obstacle(use.node)
        and read.integer(use.node, "transB", 0) == 1
    )


def blocks(view: WeightView, block_size: int) -> Layout:
    """Rows of [outputs, inputs], each cut in blocks that start with it; the last is filled up."""
    rows = math.prod(view.shape[axis] for axis in view.axes.out)
    count = -(-view.size // rows // block_size)
    return Layout(view, (rows, count, block_size), (2,), "matrix")
