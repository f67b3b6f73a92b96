"""How one node multiplies a weight with what it reads, whichever operator it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.operators.rows import (
    Axes,
    Convolution,
    Equation,
    Matrices,
    Recurrent,
    Row,
    batched,
    letters,
    transposed,
)
from onnxshrink.graph.operators.table import of
from onnxshrink.kernels.patches import Window
from onnxshrink.kernels.rows import Rows

_KINDS = (Matrices, Convolution, Equation, Recurrent)


@dataclass(frozen=True, eq=False)
class Product:
    """A node, one input of which is a weight that it multiplies rows of another value with.

    Attributes:
        node: The node.
        index: Which of its inputs the weight is.
        row: What the operator is.
    """

    node: ir.Node
    index: int
    row: Row

    @property
    def convolves(self) -> bool:
        """Whether it sums over windows: channels of its outputs then lie on axis 1."""
        return isinstance(self.row, Convolution)

    @property
    def spreads(self) -> bool:
        """Whether it is a transposed convolution: its weight has its inputs first."""
        return isinstance(self.row, Convolution) and self.row.transposed

    @property
    def recurs(self) -> bool:
        """Whether it belongs to a recurrent layer."""
        return isinstance(self.row, Recurrent)

    @property
    def activation(self) -> ir.Value | None:
        """What the weight is multiplied with: an input, or the state of a recurrent layer."""
        if isinstance(self.row, Recurrent) and self.index == 2:
            return self.node.outputs[0]
        other = self.row.weights[self.index]
        return None if other is None else read.input(self.node, other)

    @property
    def transposes_activation(self) -> bool:
        """Whether the activation's last two axes are swapped before."""
        return isinstance(self.row, Matrices) and transposed(self.node, 1 - self.index)

    @property
    def transposes_weight(self) -> bool:
        """Whether those of the weight are."""
        return isinstance(self.row, Matrices) and transposed(self.node, self.index)

    @property
    def takes_bias(self) -> bool:
        """Whether it can add a vector to its outputs itself."""
        return self._bias is not None

    @property
    def bias(self) -> ir.Value | None:
        """The vector that it adds itself."""
        return None if self._bias is None else read.input(self.node, self._bias)

    @property
    def _bias(self) -> int | None:
        return self.row.bias if isinstance(self.row, Matrices | Convolution) else None

    @property
    def added(self) -> ir.Value | None:
        """What it adds besides, of the shape of its outputs."""
        at = self.row.added if isinstance(self.row, Convolution) else None
        return None if at is None else read.input(self.node, at)

    @property
    def alpha(self) -> float:
        """What its sums are multiplied with.

        Raises:
            Unknown: A function takes it from a caller.
        """
        return read.number(self.node, "alpha", 1.0) if isinstance(self.row, Matrices) else 1.0

    @property
    def beta(self) -> float:
        """What its bias is multiplied with.

        Raises:
            Unknown: A function takes it from a caller.
        """
        return read.number(self.node, "beta", 1.0) if isinstance(self.row, Matrices) else 1.0

    @property
    def function(self) -> str:
        """What becomes of its sums before anybody sees them; empty where nothing does."""
        if isinstance(self.row, Matrices | Convolution):
            return read.text(self.node, "activation", "")
        return ""

    @property
    def inside(self) -> bool:
        """Whether its sums are used within the operator, and are no output of it."""
        inner = isinstance(self.row, Matrices) and self.row.inside
        return inner or isinstance(self.row, Recurrent)

    @property
    def hidden(self) -> str:
        """Why nobody sees its sums and what is added to them; empty where they are its output."""
        if reason := read.obstacle(self.node):
            return reason
        if self.inside:
            return f"what it is multiplied with stays inside of {self.node.op_type}"
        if self.function:
            return f"its {self.function} is part of the operator, and hides what it sums up"
        return "another value is added to its sums in the operator" if self.added else ""

    @property
    def groups(self) -> int:
        """Groups of a convolution's channels, each with weights of its own."""
        return read.integer(self.node, "group", 1) if self.convolves else 1

    @property
    def out_axis(self) -> int:
        """The axis of the outputs' channels.

        Raises:
            ValueError: It has none, or several.
        """
        if isinstance(self.row, Equation):
            return self._equation.out
        if self.convolves:
            return 1
        return -1 if self.index else -2

    @property
    def in_axis(self) -> int:
        """The axis of the activation's channels, which are summed over.

        Raises:
            ValueError: It has none, or several.
        """
        if isinstance(self.row, Equation):
            return self._equation.read
        if self.convolves:
            return 1
        return -2 if self.transposes_activation == bool(self.index) else -1

    def axes(self, rank: int) -> Axes | None:
        """The roles of the axes of the weight where the node takes it."""
        return self.row.axes(self.node, self.index, rank)

    # ---------------------------------------------------------------- rows of the activation

    def layout(self, shape: tuple[int, ...]) -> Rows | Window:
        """How the activation makes rows for a weight of this shape.

        Raises:
            ValueError: Why they cannot be told.
        """
        if reason := read.obstacle(self.node):
            raise ValueError(reason)
        if isinstance(self.row, Convolution):
            return self._window(shape[2:])
        if isinstance(self.row, Equation):
            if len(shape) != len(self._equation.weight):
                raise ValueError("its axes are not those of the equation")
            return Rows(self._equation.read)
        if isinstance(self.row, Recurrent):
            return self._states(shape)
        if len(shape) > 2 and batched(self.node, self.index):
            raise ValueError("its batches lie behind its rows")
        if batched(self.node, 1 - self.index):
            raise ValueError("the batches of its input lie behind the rows")
        return Rows(self.in_axis, shape[:-2])

    def _states(self, shape: tuple[int, ...]) -> Rows:
        """Of the input [steps, batch, width], or of the states [steps, directions, batch, ...]."""
        if self.index == 1:
            return Rows()
        if read.integer(self.node, "layout", 0):
            raise ValueError("its states have the batch first")
        return Rows(batch=shape[:1])

    def _window(self, kernel: tuple[int, ...]) -> Window:
        rank = len(kernel)

        def each(name: str, default: int, count: int = rank) -> tuple[int, ...]:
            found = read.integers(self.node, name)
            return (default,) * count if found is None else found

        strides, dilations, pads = (
            each("strides", 1),
            each("dilations", 1),
            each("pads", 0, 2 * rank),
        )
        rule: Any = read.text(self.node, "auto_pad", "") or "NOTSET"
        if not self.spreads:
            return Window(kernel, strides, dilations, pads, self.groups, rule)
        if rule != "NOTSET" or read.integers(self.node, "output_shape") is not None:
            raise ValueError("its paddings follow from the shape of its input")
        # It is a convolution of its input with zeros between the values, its kernel turned round.
        reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)] * 2
        more = (0,) * rank + each("output_padding", 0)
        around = tuple(r - p + m for r, p, m in zip(reach, pads, more, strict=True))
        if min(around, default=0) < 0:
            raise ValueError("it cuts off part of what its kernel makes")
        ones = (1,) * rank
        return Window(kernel, ones, dilations, around, self.groups, "NOTSET", strides, flipped=True)

    @cached_property
    def _equation(self) -> _Letters:
        """Where the one letter that is summed over stands, and the one of the outputs.

        Raises:
            ValueError: It is no product of rows with a matrix.
        """
        found = letters(self.node)
        if found is None or len(found[0]) != 2 or "." in "".join((*found[0], found[1])):
            raise ValueError("its equation is not one of two operands in letters")
        weight, other = found[0][self.index], found[0][1 - self.index]
        inner = [letter for letter in weight if letter in other]
        outer = [letter for letter in weight if letter not in other]
        if len(inner) != 1 or inner[0] in found[1] or len(outer) != 1 or outer[0] not in found[1]:
            raise ValueError("its equation is no product of rows with a matrix")
        if other.replace(inner[0], "") != found[1].replace(outer[0], ""):
            raise ValueError("its equation moves the axes of its input")
        return _Letters(
            weight, other.index(inner[0]) - len(other), found[1].index(outer[0]) - len(found[1])
        )

    # ------------------------------------------------------------------------- the matrices

    def grouped(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array of the weight's shape as [groups, outputs, inputs].

        Raises:
            ValueError: It is neither a matrix nor a kernel.
        """
        shape = array.shape
        axes = self.axes(len(shape)) if len(shape) > 1 else None
        if axes is None or isinstance(self.row, Recurrent):
            raise ValueError("is not a matrix or a kernel")
        if self.spreads:
            split = array.reshape(self.groups, -1, *shape[1:])
            order = (0, 2, 1, *range(3, split.ndim))
            apart: npt.NDArray[Any] = split.transpose(order)
            return apart.reshape(self.groups, shape[1], -1)
        groups = self.groups if self.convolves else math.prod(shape[:-2])
        turned: npt.NDArray[Any] = array.transpose(axes.out + axes.contract)
        return turned.reshape(groups, -1, math.prod(shape[axis] for axis in axes.contract))


@dataclass(frozen=True)
class _Letters:
    """The letters of a weight; the axis of the activation that is summed over; of the outputs."""

    weight: str
    read: int
    out: int


def product(node: ir.Node, index: int) -> Product | None:
    """How a node multiplies with one of its inputs; None where that is no weight of a product."""
    for kind in _KINDS:
        row = of(node, kind)
        if row is not None and index in row.weights:
            return Product(node, index, row)
    return None


def sides(node: ir.Node) -> tuple[int, ...]:
    """The inputs of a product that may be its weight; none where it is no product."""
    for kind in _KINDS:
        if (row := of(node, kind)) is not None:
            return tuple(row.weights)
    return ()
