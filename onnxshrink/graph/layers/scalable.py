"""Activations whose channels may be scaled, and the constants that make up for it.

With positive factors s, ``W2 relu(W1 x + b1) = (W2 s) relu((W1 x + b1) / s)``. A :class:`Site` is
an activation that only weights read; going up from it through operators that keep factors, there is
a weight, or the factors of a norm, that takes ``1 / s``. Ranges change, answers do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import operators, read, weights
from onnxshrink.graph.analysis import shapes
from onnxshrink.graph.analysis.pointwise import bounds
from onnxshrink.graph.analysis.shape_rules import Shape
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.operators import (
    Arithmetic,
    Elementwise,
    Gains,
    Limit,
    Norm,
    Product,
    Recurrent,
    Reduction,
)
from onnxshrink.graph.read import Unknown
from onnxshrink.graph.weights.views import Use, WeightView

Array = npt.NDArray[np.floating]

#: Functions within a product with f(s x) = s f(x) for s > 0.
_FUNCTIONS = {"", "LeakyRelu", "Relu"}
_NO_LIMIT = 1e38


class Unscalable(Exception):
    """Why the channels of an activation cannot be scaled."""


@dataclass(frozen=True)
class Channels:
    """Where the channels of an activation lie in a constant.

    Attributes:
        axis: Their axis; where an activation was flattened a channel has several places in a row.
        count: How many there are.
        groups: Groups of a convolution, which number channels along axis 0 as well.
    """

    axis: int
    count: int
    groups: int = 1

    def apart(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A constant as [channels, rest]."""
        if self.groups == 1:
            moved = np.moveaxis(array, self.axis, 0)
        else:
            moved = np.moveaxis(array.reshape(self.groups, -1, *array.shape[1:]), 2, 1)
        return moved.reshape(self.count, -1)

    def spread(self, values: Array, shape: tuple[int, ...]) -> Array:
        """One value for each channel, as an array that broadcasts to a constant of this shape."""
        if self.groups > 1:
            table = values.reshape(self.groups, -1).repeat(shape[0] // self.groups, axis=0)
            return table.reshape(*table.shape, *[1] * (len(shape) - 2))
        along = [1] * len(shape)
        along[self.axis] = shape[self.axis]
        return values.repeat(shape[self.axis] // self.count).reshape(along)


@dataclass(frozen=True)
class ScaledConstant:
    """A constant and its channels."""

    view: WeightView
    channels: Channels


@dataclass(frozen=True)
class Ceiling:
    """A Clip between zero and a limit.

    Attributes:
        node: The operator.
        limit: Its upper limit.
        axis: The axis of the channels, counted from the end.
        places: Values of one channel in a row along that axis.
    """

    node: ir.Node
    limit: float
    axis: int
    places: int


@dataclass(frozen=True, eq=False)
class Site:
    """An activation that weights read.

    Attributes:
        value: The activation.
        last: Whether its channels lie on its last axis; else on its second.
        readers: The weights that it is multiplied with.
        source: What takes the inverse factors: a weight by its outputs, or the factors of a norm.
        shifts: What is added after the source, and takes them too.
        ceilings: Limits on the way, which must take them as well.
        why_not: Why nothing can take them; empty when all above can.
    """

    value: ir.Value
    last: bool
    readers: tuple[ScaledConstant, ...]
    source: ScaledConstant | None = None
    shifts: tuple[ScaledConstant, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    why_not: str = ""

    @property
    def channels(self) -> int:
        """How many factors it has."""
        return (self.source or self.readers[0]).channels.count


def find(model: Model, *, norms: bool) -> tuple[list[Site], dict[str, str]]:
    """Every activation that weights read, in the order of the graph.

    Args:
        model: The model.
        norms: Whether the factors of a norm, or of another product by channels, will do as a
            source; else only a weight does.

    Returns:
        The sites, and the weights that read an activation in a way that factors cannot follow,
        with the reason.
    """
    views = {view.value: view for view in weights.find(model)}
    operands = {(use.node, use.index): (view, use) for view in views.values() for use in view.uses}
    readers: dict[ir.Value, list[ScaledConstant]] = {}
    unfit: dict[str, str] = {}
    for node in model.nodes:
        product = _product(node)
        if product is None or (node, 1) not in operands or node.inputs[0] is None:
            continue
        view, use = operands[node, 1]
        try:
            readers.setdefault(node.inputs[0], []).append(_part(view, use, reads=True))
        except (Unscalable, ValueError) as reason:
            unfit[view.name] = str(reason)
    known = shapes.walk(model).shapes
    sites = []
    for value, parts in readers.items():
        if parts:
            product = parts[0].view.main.product
            last = product is not None and not product.convolves
            ascent = _Ascent(views, operands, known, norms, last)
            sites.append(ascent.site(value, tuple(parts)))
    return sites, unfit


def _product(node: ir.Node) -> Product | None:
    """A convolution, or a product with a weight on the right whose sums are its outputs."""
    found = operators.product(node, 1)
    return found if found is not None and not isinstance(found.row, Recurrent) else None


def _own(view: WeightView) -> WeightView:
    """A constant that nothing else uses.

    Raises:
        Unscalable: It is not.
    """
    if view.locked:
        raise Unscalable(f"{view.name!r} {view.locked}")
    if len(view.uses) + len(view.others) > 1:
        raise Unscalable(f"{view.name!r} is used more than once")
    return view


def _part(view: WeightView, use: Use, *, reads: bool) -> ScaledConstant:
    """A weight and where the channels lie that it reads, or those that it makes.

    Raises:
        Unscalable: It is not the only one to have them, or that cannot be told.
    """
    product, shape = use.product, _own(view).shape
    if product is None:
        raise Unscalable(f"{view.name!r} is multiplied with nothing")
    if product.convolves and use.direct:
        if reads == product.spreads:
            return ScaledConstant(view, Channels(0, shape[0]))
        groups = product.groups
        return ScaledConstant(view, Channels(1, groups * shape[1], groups))
    if reads:
        plain = not product.convolves and product.in_axis == -1
        axes, what = use.axes.contract, "its input's channels"
    else:
        plain, axes, what = len(shape) == 2, use.axes.out, f"the channels that {view.name!r} makes"
    if not plain or len(axes) != 1:
        raise Unscalable(f"{what} cannot be told")
    return ScaledConstant(view, Channels(axes[0], shape[axes[0]]))


@dataclass
class _Ascent:
    """The way up from an activation to its source.

    Attributes:
        last: Whether channels lie on the last axis here; else on the second.
        flat: Whether a Flatten lies below: columns are channels times places there.
        width: Channels that the readers see, or columns where they are flattened.
        shifts: What is added on the way, and the axis of its channels counted from the end.
        ceilings: Clip operators, their limits, the axis, and whether a Flatten lies below.
    """

    views: Mapping[ir.Value, WeightView]
    operands: Mapping[tuple[ir.Node, int], tuple[WeightView, Use]]
    shapes: Mapping[ir.Value, Shape]
    norms: bool
    last: bool
    flat: bool = False
    width: int = 0
    shifts: list[tuple[ir.Value, int]] = field(default_factory=list)
    ceilings: list[tuple[ir.Node, float, int, bool]] = field(default_factory=list)

    def site(self, value: ir.Value, readers: tuple[ScaledConstant, ...]) -> Site:
        """What there is to scale for an activation."""
        last = self.last
        try:
            self._check(value, readers)
            self.width = readers[0].channels.count
            source = self._source(value)
            count = source.channels.count
            if count != self.width and not (self.flat and self.width % count == 0):
                raise Unscalable(f"{self.width} channels are read, but {count} made")
            shifts = tuple(self._shifts(count))
        except (Unscalable, Unknown) as reason:
            return Site(value, last, readers, why_not=str(reason))
        if self.flat:  # a channel has several columns
            readers = tuple(
                ScaledConstant(part.view, Channels(part.channels.axis, count)) for part in readers
            )
        places = self.width // count
        ceilings = tuple(
            Ceiling(node, limit, axis, 1 if flat else places)
            for node, limit, axis, flat in self.ceilings
        )
        return Site(value, last, readers, source, shifts, ceilings)

    def _check(self, value: ir.Value, readers: Sequence[ScaledConstant]) -> None:
        own = {part.view.main.node for part in readers}
        others = sorted({use.node.op_type for use in value.uses() if use.node not in own})
        if others or len(value.uses()) != len(own):
            raise Unscalable(f"its input is also read by {', '.join(others) or 'itself'}")
        if value.is_graph_output():
            raise Unscalable("its input is an output of a graph")
        if len({part.channels.count for part in readers}) > 1:
            raise Unscalable("the weights that read its input disagree about its channels")

    def _up(self, value: ir.Value | None) -> ScaledConstant:
        """The source of a value that only the way so far may use."""
        if value is None:
            raise Unscalable("an operator before it has no input")
        if len(value.uses()) > 1 or value.is_graph_output():
            raise Unscalable(f"{value.name!r}, before it, has other uses")
        return self._source(value)

    def _source(self, value: ir.Value) -> ScaledConstant:
        node = value.producer()
        if node is None:
            raise Unscalable("its input comes from outside its graph")
        product, gains = _product(node), operators.gains(node)
        if product is not None:
            return self._product(product)
        if gains is not None and gains.norm is not None and node.outputs[0] is value:
            return self._norm(gains, gains.norm)
        if node.domain or node.outputs[0] is not value:
            raise Unscalable(f"its input comes from {node.op_type}")
        if (row := operators.of(node, Arithmetic)) is not None:
            return self._scaling(node, row) if row.scales else self._sum(node)
        if not self._keeps_factors(node):
            raise Unscalable(f"its input comes from {node.op_type}, which does not keep factors")
        return self._up(node.inputs[0])

    def _product(self, product: Product) -> ScaledConstant:
        node = product.node
        if (node, 1) not in self.operands:
            raise Unscalable(f"its input comes from {node.op_type} without a constant weight")
        if product.function not in _FUNCTIONS or product.added is not None:
            raise Unscalable(f"its input comes from {node.op_type}, of which {product.hidden}")
        if product.hidden and not product.function:
            raise Unscalable(f"its input comes from {node.op_type}")
        # The two columns of a matrix: its second axis is its last.
        matrix = product.takes_bias or self._rank(node.outputs[0]) == 2
        if product.convolves == self.last and (product.convolves or not matrix):
            raise Unscalable(f"its input comes from {node.op_type} with its axes in another order")
        if product.bias is not None:
            self.shifts.append((product.bias, -1))
        return _part(*self.operands[node, 1], reads=False)

    def _norm(self, gains: Gains, norm: Norm) -> ScaledConstant:
        node, second = gains.node, gains.axis == 1
        if second == self.last:
            raise Unscalable(f"its input comes from {node.op_type} over other axes")
        rank = self._rank(node.inputs[0]) or 0
        if not second and read.integer(node, "axis", -1) not in (-1, rank - 1):
            raise Unscalable(f"its input comes from {node.op_type} over several axes")
        if gains.shift is not None:
            self.shifts.append((gains.shift, -1))
        if not self.norms:
            if not norm.fixed or read.integer(node, "training_mode", 0):
                raise Unscalable(f"its input comes from {node.op_type}, not from a weight")
            self.shifts.append((node.inputs[norm.fixed[0]], -1))  # type: ignore[arg-type]
            return self._up(node.inputs[0])
        view = self.views.get(gains.value)  # type: ignore[arg-type]
        if view is None or len(view.shape) != 1:
            raise Unscalable(f"the factors of {node.op_type} are not constant")
        sizes = self.shapes.get(node.inputs[0]) if norm.grouped else (0, view.size)  # type: ignore[arg-type]
        if sizes is None or sizes[1] != view.size:
            raise Unscalable(f"{node.op_type} has one factor for each of its groups")
        return ScaledConstant(_own(view), Channels(0, view.size))

    def _sum(self, node: ir.Node) -> ScaledConstant:
        constant = [value for value in node.inputs if value in self.views]
        if len(constant) != 1:
            raise Unscalable("its input is the sum of two branches")
        self.shifts.append((constant[0], self._axis(node.outputs[0])))  # type: ignore[arg-type]
        return self._up(next(value for value in node.inputs if value is not constant[0]))

    def _axis(self, value: ir.Value) -> int:
        """The axis of the channels, counted from the end."""
        rank = self._rank(value)
        if not self.last and rank is None:
            raise Unscalable(f"the rank of {value.name!r} is not known")
        return -1 if self.last else 1 - (rank or 0)

    def _rank(self, value: ir.Value | None) -> int | None:
        shape = None if value is None else self.shapes.get(value)
        return None if shape is None else len(shape)

    def _scaling(self, node: ir.Node, row: Arithmetic) -> ScaledConstant:
        """Past factors that stay, or to those that take the inverse factors, of Mul or Div."""
        varying = [value for value in node.inputs if value not in self.views]
        for value in node.inputs:
            view = None if value is None else self.views.get(value)
            if view is not None and self.norms and not row.inverse and not self.flat:
                axis = self._axis(node.outputs[0]) + len(view.shape)
                if view.size == self.width > 1 and axis >= 0 and view.shape[axis] == self.width:
                    return ScaledConstant(_own(view), Channels(axis, self.width))
        if row.inverse and node.inputs[0] in self.views:
            raise Unscalable("its input is a reciprocal")
        candidates = [node.inputs[0]] if row.inverse else varying
        reason = Unscalable("its input is a constant")
        for value in candidates:  # of two branches, whichever has a source
            state = self.last, self.flat, list(self.shifts), list(self.ceilings)
            try:
                return self._up(value)
            except Unscalable as failure:
                reason = failure
                self.last, self.flat, self.shifts, self.ceilings = state
        raise reason

    def _keeps_factors(self, node: ir.Node) -> bool:
        """Whether f(s x) = s f(x) channel by channel; keeps track of where the channels lie."""
        row, how = operators.of(node, Elementwise), operators.moves(node)
        if how == "copies" or (row is not None and row.factors and not row.places):
            return True
        if row is not None and row.factors:
            return not self.last and "extrapolation_value" not in node.attributes
        if operators.of(node, Limit) is not None:
            ends = bounds(node)
            if ends is None or ends[0] != 0:
                return False
            if (high := ends[1]) < _NO_LIMIT:
                self.ceilings.append((node, high, self._axis(node.outputs[0]), self.flat))
            return True
        if how == "pads":
            filled = read.text(node, "mode", "constant") == "constant"
            return not filled or filling(node) == 0
        followed = how in ("flattens", "permutes", "reshapes", "squeezes")
        return (followed or operators.of(node, Reduction) is not None) and self._moved(node)

    def _moved(self, node: ir.Node) -> bool:
        """Whether the channels can be followed past an operator that moves or removes axes."""
        dims = None if node.inputs[0] is None else self.shapes.get(node.inputs[0])
        if operators.moves(node) == "permutes":
            order = read.integers(node, "perm")
            place = None if order is None else list(order)[-1 if self.last else 1]
            self.last = order is not None and place == len(order) - 1
            return self.last or place == 1
        if operators.moves(node) == "squeezes" or operators.of(node, Reduction) is not None:
            return dims is not None and self._reduced(node, len(dims))
        if operators.moves(node) == "flattens":
            flat = self.last and read.integer(node, "axis", 1) == 1
        else:
            target = read.integer_list(node.inputs[1])
            if target is None or not self.last:
                return False
            if dims and dims[-1] == target[-1]:
                return True
            columns = [dim for dim in (dims or ())[1:] if dim is not None]
            inner = math.prod(columns) if dims and len(columns) == len(dims) - 1 else None
            flat = len(target) == 2 and (target[0] == 0 or inner == target[1])
        self.last, self.flat = self.last and not flat, self.flat or flat
        return flat

    def _reduced(self, node: ir.Node, rank: int) -> bool:
        axes = read.axes(node)
        if axes is None:
            return False
        gone = {axis % rank for axis in axes}
        stays = not operators.moves(node) and read.integer(node, "keepdims", 1) == 1
        if stays:
            return (rank - 1 if self.last else 1) not in gone
        if self.last and rank - 1 not in gone:
            return True
        self.last = False
        return gone == set(range(2, rank))

    def _shifts(self, count: int) -> Iterator[ScaledConstant]:
        """The constants that are added on the way, those of nothing but zeros left out."""
        for value, axis in self.shifts:
            view = self.views.get(value)
            if view is None:
                raise Unscalable(f"{value.name!r}, which is added before it, is not a constant")
            if not view.array().any():
                continue
            place = axis + len(view.shape)
            if place < 0 or view.shape[place] % count:
                raise Unscalable(f"{value.name!r}, which is added before it, spans channels")
            yield ScaledConstant(_own(view), Channels(place, count))


def filling(node: ir.Node) -> float | None:
    """The filling of Pad: an attribute once, an input since opset 11; None where it is computed."""
    if "value" in node.attributes:
        return read.number(node, "value", 0.0)
    value = read.input(node, 2)
    return 0.0 if value is None else read.scalar(value)
