"""What an operator can be: one class of rows for each kind.

A row says what an operator computes and which of its inputs is what; it says nothing about what a
pass does with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxshrink.graph import read


@dataclass(frozen=True)
class Axes:
    """The role of each axis of an operand.

    Attributes:
        out: Axes that number outputs (channels, neurons, rows); each has a scale of its own.
        contract: Axes that are summed over, or read together as one row.
        groups: Channel groups folded into axis 0 (ConvTranspose), else 1.
    """

    out: tuple[int, ...]
    contract: tuple[int, ...]
    groups: int = 1

    @classmethod
    def split(cls, rank: int, contract: Sequence[int], groups: int = 1) -> Axes:
        """Those that are summed over, and all the others."""
        inner = tuple(axis % rank for axis in contract)
        return cls(tuple(axis for axis in range(rank) if axis not in inner), inner, groups)


@dataclass(frozen=True)
class Row:
    """One operator."""

    @property
    def weights(self) -> Mapping[int, int | None]:
        """Inputs that may be its weight: each with the input that it is used together with."""
        return {}

    def takes(self, index: int) -> bool:
        """Whether an input may be its weight."""
        return index in self.weights

    def axes(self, node: ir.Node, index: int, rank: int) -> Axes | None:
        """The roles of the axes of a weight; None where it plays no such role.

        Args:
            node: The operator.
            index: Which of its inputs the weight is.
            rank: How many axes it has.
        """
        return None


@dataclass(frozen=True)
class Matrices(Row):
    """``alpha * A B + beta * C``, where A and B may be transposed, and a function of that.

    Attributes:
        sides: The inputs that may be a weight; each is multiplied with the other one of 0 and 1.
        bias: The input that is added; None where there is none.
        inside: Whether the operator goes on with the product, and nobody else sees it.
    """

    sides: tuple[int, ...] = (0, 1)
    bias: int | None = None
    inside: bool = False

    @property
    def weights(self) -> Mapping[int, int | None]:
        """Either side."""
        return {side: 1 - side for side in self.sides}

    def axes(self, node: ir.Node, index: int, rank: int) -> Axes | None:
        """A matrix, or several of them."""
        if rank < 2:
            return Axes.split(rank, [0])
        last = (index == 0) != transposed(node, index)
        return Axes.split(rank, [-1 if last else 0 if batched(node, index) else -2])


@dataclass(frozen=True)
class Equation(Row):
    """A sum of products in letters, of two operands (Einsum)."""

    @property
    def weights(self) -> Mapping[int, int | None]:
        """Either operand."""
        return {0: 1, 1: 0}

    def axes(self, node: ir.Node, index: int, rank: int) -> Axes | None:
        """Letters that the result has number outputs."""
        found = letters(node)
        if found is None or index >= len(found[0]):
            return None
        term, right = found[0][index], found[1]
        if len(term) != rank or "." in term or len(set(term)) != rank:
            return None
        return Axes.split(rank, [axis for axis, letter in enumerate(term) if letter not in right])


@dataclass(frozen=True)
class Convolution(Row):
    """A sum over windows, or the spreading of values over windows, and a function of that.

    Attributes:
        transposed: Whether it spreads.
        added: An input of the outputs' shape that is added to them; None where there is none.
    """

    transposed: bool = False
    added: int | None = None
    bias: int = 2

    @property
    def weights(self) -> Mapping[int, int | None]:
        """The kernel."""
        return {1: 0}

    def axes(self, node: ir.Node, index: int, rank: int) -> Axes | None:
        """[outputs, inputs / groups, places], or [inputs, outputs / groups, places]."""
        if not self.transposed:
            return Axes.split(rank, range(1, rank))
        return Axes.split(rank, [0, *range(2, rank)], _integer(node, "group", 1))


@dataclass(frozen=True)
class Deformed(Row):
    """A sum over places that other inputs move, so that no window of its input tells what it reads.

    Attributes:
        bias: The input that is added.
    """

    bias: int = 3

    @property
    def weights(self) -> Mapping[int, int | None]:
        """The kernel, by itself."""
        return {1: None}

    def axes(self, node: ir.Node, index: int, rank: int) -> Axes | None:
        """[outputs, inputs / groups, places]."""
        return Axes.split(rank, range(1, rank))


@dataclass(frozen=True)
class Recurrent(Row):
    """A layer that reads its own output of the step before.

    Attributes:
        gates: How many matrices lie above each other in a weight.
        resets: Whether a gate resets the state before a matrix is multiplied with it, unless
            ``linear_before_reset`` says otherwise.
    """

    gates: int
    resets: bool = False

    @property
    def weights(self) -> Mapping[int, int | None]:
        """What the input is multiplied with, and the state, which is no input."""
        return {1: 0, 2: None}

    def axes(self, node: ir.Node, index: int, rank: int) -> Axes | None:
        """[directions, gates * outputs, inputs]."""
        return Axes.split(rank, [2]) if rank == 3 else None


@dataclass(frozen=True)
class Lookup(Row):
    """Rows of tables, picked by their numbers.

    Attributes:
        tables: Each table with the input that holds the numbers; None where that is not one input.
    """

    tables: tuple[tuple[int, int | None], ...] = ((0, 1),)

    @property
    def weights(self) -> Mapping[int, int | None]:
        """The tables."""
        return dict(self.tables)

    def axes(self, node: ir.Node, index: int, rank: int) -> Axes | None:
        """Rows lie along the axis that is looked up."""
        axis = _integer(node, "axis", 0) % rank
        return Axes.split(rank, [other for other in range(rank) if other != axis])


@dataclass(frozen=True)
class Limit(Row):
    """Keeps each number, or takes the limit that it is beyond.

    Attributes:
        ends: The inputs that hold the lowest and the highest; where there are none, every input is
            a limit to the others.
    """

    ends: tuple[int, int] | None = None


@dataclass(frozen=True)
class Control(Row):
    """Runs graphs that are inside it.

    Attributes:
        repeats: Whether one of them runs again and again; else one of them is chosen.
        slices: Whether it takes its inputs apart along an axis.
    """

    repeats: bool = False
    slices: bool = False


@dataclass(frozen=True)
class Ranking(Row):
    """Puts numbers in order, or drops the small ones."""


@dataclass(frozen=True)
class OneHot(Row):
    """Makes a row of each number, with one value at its place and another elsewhere.

    Attributes:
        depth: The input that holds how long a row is.
    """

    depth: int = 1


@dataclass(frozen=True)
class Random(Row):
    """Makes numbers that differ from run to run.

    Attributes:
        like: Whether all that it takes of its operand is the shape.
    """

    like: bool = False


@dataclass(frozen=True)
class Reduction(Row):
    """Makes one number of all along some axes, with f(s x) = s f(x)."""


@dataclass(frozen=True)
class QuantizedRow(Row):
    """Takes codes, and their scales beside them.

    Attributes:
        codes: Inputs that may hold codes of weights or biases, rather than scales or zero points.
        gain: The input that its outputs are multiplied with, channel by channel, in floating point.
        shift: The one that is then added.
        floats: Whether it makes codes of floating-point numbers.
        zero_behind: Whether their zero point stands two inputs behind codes.
    """

    codes: tuple[int, ...]
    gain: int | None = None
    shift: int | None = None
    floats: bool = False
    zero_behind: bool = False


@dataclass(frozen=True)
class DynamicQuantizer(Row):
    """Makes codes of floating-point numbers, and the scale and zero point for them."""


@dataclass(frozen=True)
class ShapeOf(Row):
    """Says how long the axes of its input are.

    Attributes:
        product: Whether it says how many elements that makes.
    """

    product: bool = False


@dataclass(frozen=True)
class Selection(Row):
    """Keeps some numbers, or the places of some: how many depends on the numbers."""


@dataclass(frozen=True)
class Relation(Row):
    """Whether one number is another, or lies on one side of it.

    Attributes:
        orders: Whether it asks for a side.
        equal: Whether two that are equal will do.
    """

    orders: bool = False
    equal: bool = False


@dataclass(frozen=True)
class Logic(Row):
    """Makes one truth of one or two.

    Attributes:
        negates: Whether it turns one round.
    """

    negates: bool = False


@dataclass(frozen=True)
class Rounding(Row):
    """Makes whole numbers of numbers."""


@dataclass(frozen=True)
class RunningSum(Row):
    """Each number and all before it along an axis, added up."""


@dataclass(frozen=True)
class Fill(Row):
    """One number again and again, in the shape that its input says."""


@dataclass(frozen=True)
class Series(Row):
    """Numbers from a first to a last, at equal steps."""


@dataclass(frozen=True)
class Rotary(Row):
    """Turns pairs of numbers by angles that grow with their place in a sequence.

    Attributes:
        places: The input that holds the places.
    """

    places: int


def transposed(node: ir.Node, side: int) -> bool:
    """Whether an operand of a product of matrices has its last two axes swapped before."""
    return bool(_integer(node, "transB" if side else "transA", 0))


def batched(node: ir.Node, side: int) -> bool:
    """Whether the first axis of an operand is moved before its last (FusedMatMul)."""
    return bool(_integer(node, "transBatchB" if side else "transBatchA", 0))


def letters(node: ir.Node) -> tuple[tuple[str, ...], str] | None:
    """The letters of each operand of an Einsum, and of its result; None where that is left open."""
    try:
        equation = read.text(node, "equation", "").replace(" ", "")
    except read.Unknown:
        return None
    left, _, right = equation.partition("->")
    return (tuple(left.split(",")), right) if right else None


def _integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute; its default where a function takes it from a caller."""
    try:
        return read.integer(node, name, default)
    except read.Unknown:
        return default
