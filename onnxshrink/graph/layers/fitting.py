"""Layers whose outputs can be brought closer to those of another model, and what they are made of.

A layer is a product with constants and the vector added to it, or a norm's
gains and shifts. It is found by the name of its output, which passes keep; what the product's
weight is rebuilt from, if anything, says its :class:`Chain`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import operators, read
from onnxshrink.graph.analysis.operands import constants, fixed_values
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.operators import Convolution, Gains, Matrices, Product, QuantizedRow
from onnxshrink.graph.read import constant
from onnxshrink.graph.weights.dependence import Dependence, Origin, RunModel
from onnxshrink.graph.weights.views import FLOATS
from onnxshrink.kernels import leastsquares
from onnxshrink.kernels.leastsquares import Affine, Linear, Seen
from onnxshrink.kernels.pairs import ChannelPairs, PairNeed, Regression

Array = npt.NDArray[np.float64]
N = TypeVar("N", np.float64, np.int64)
Role = Literal["weights", "scales", "tables", "factors", "gains"]

#: Wider layers are left alone: their sums would take gigabytes.
MOST_INPUTS = 4608


@dataclass(frozen=True)
class Fittable:
    """Numbers of a layer that can be fitted together.

    Attributes:
        role: What they are.
        origins: Their constants.
    """

    role: Role
    origins: tuple[Origin, ...]

    @property
    def separable(self) -> bool:
        """Whether every output has numbers of its own."""
        count = len(self.origins[0].numbers)
        alone = self.role in ("weights", "scales")
        return alone and bool(self.origins[0].linear.owners(count).any())

    def some(self, outputs: npt.NDArray[np.int64]) -> Fittable:
        """The part in some outputs of each group only."""
        (origin,) = self.origins
        return Fittable(self.role, (replace(origin, linear=origin.linear.some(outputs)),))

    def fit(
        self, held: Affine, seen: Seen, damping: float, *, shift: bool
    ) -> tuple[tuple[Array, ...], Affine]:
        """The numbers of each constant that suit these samples best, and the layer they make."""
        (origin,) = self.origins
        numbers, made = leastsquares.solve(
            origin.linear, origin.numbers, held, seen, damping, shift=shift
        )
        return (numbers,), made

    def matrix(self, numbers: Sequence[Array]) -> Array:
        """The layer's matrix with these numbers."""
        return self.origins[0].linear.expand(numbers[0])


@dataclass(frozen=True)
class Factors(Fittable):
    """Two matrices whose product is the layer's, the second applied first.

    Attributes:
        rank: Of the product.
    """

    rank: int = 1

    def fit(
        self, held: Affine, seen: Seen, damping: float, *, shift: bool
    ) -> tuple[tuple[Array, ...], Affine]:
        """By reduced-rank regression, both at once."""
        left, right, made = leastsquares.reduced_rank(held, self.rank, seen, damping, shift=shift)
        sides = zip(self.origins, (left, right), strict=True)
        return tuple(_placed(origin.linear, side[None]) for origin, side in sides), made

    def matrix(self, numbers: Sequence[Array]) -> Array:
        """The product."""
        left, right = (o.linear.expand(n) for o, n in zip(self.origins, numbers, strict=True))
        return left @ right


def _placed(linear: Linear, matrix: Array) -> Array:
    """The numbers of a matrix whose every element is one of them."""
    numbers = np.empty(matrix.size)
    numbers[linear.index.ravel()] = (matrix / linear.coefficient).ravel()
    return numbers


@dataclass(frozen=True)
class Layer:
    """See the module.

    Attributes:
        name: The weight's.
        node: The operator.
        need: Which values to observe.
        held: What it computes now.
        parts: What of it can be fitted.
        bias: The vector that is added to its outputs, where that can be changed.
        gain: Whether ``need`` observes the layer's own output instead of its input: the matrix is
            then what the gains are multiplied with.
    """

    name: str
    node: ir.Node
    need: PairNeed
    held: Affine
    parts: tuple[Fittable, ...]
    bias: Origin | None = None
    gain: bool = False

    def shifts(self, made: Affine) -> Array:
        """The bias that a fitted layer has."""
        assert self.bias is not None
        old = self.bias.numbers
        scale = self.bias.linear.coefficient
        if self.gain:
            return made.matrix[:, 0, 0] * old + made.shift[:, 0]
        return made.shift.ravel() / scale.ravel()


@dataclass(frozen=True)
class Outline:
    """Where a layer is, before anything is read.

    Attributes:
        name: The weight's name.
        node: The operator.
        index: Which of its inputs is the weight, or the gains.
        output: Name of the output.
        depth: Layers that come before it on the longest way.
        bias: The vector that is added, constant or not.
        first: The operator of the other factor, where a weight was split in two.
        known: Whether the original model has a value of the output's name.
    """

    name: str
    node: ir.Node
    index: int
    output: str
    depth: int
    bias: ir.Value | None = None
    first: ir.Node | None = None
    known: bool = True

    @property
    def op_type(self) -> str:
        """Its operator's type."""
        return self.node.op_type

    @property
    def names(self) -> tuple[str, ...]:
        """What patterns may name it by."""
        return self.op_type, self.name, self.node.name or ""

    @property
    def product(self) -> Product | None:
        """How it multiplies with its weight; None for a norm."""
        return operators.product(self.node, self.index)

    @property
    def hidden(self) -> str:
        """Why a product's sums cannot be compared with the original's; empty when they can."""
        return "" if self.product is None else self.product.hidden

    @property
    def norm(self) -> Gains | None:
        """Its gains; None for a product."""
        return None if self.product else operators.gains(self.node)


def outlines(model: Model, original: Model) -> Iterator[Outline]:
    """Every layer, in the order in which they run."""
    named = {v.name for node in original.nodes for v in node.outputs if v.name}
    fixed = fixed_values(model, {value for value, _ in constants(model)})
    depth: dict[ir.Value, int] = {}

    def visit(graph: ir.Graph) -> Iterator[Outline]:
        for node in graph:
            before = max((depth.get(v, 0) for v in node.inputs if v is not None), default=0)
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                    inner = list(visit(attribute.as_graph()))
                    seen = (outline.depth + 1 for outline in inner if not outline.hidden)
                    before = max([before, *seen])
                    yield from inner
            found = [*_norm_outline(node, fixed, before), *_outlines(node, fixed, named, before)]
            for outline in found:
                yield replace(outline, known=outline.output in named)
            counts = any(not outline.hidden for outline in found)
            for value in node.outputs:
                depth[value] = before + counts

    yield from visit(model.ir.graph)


def _norm_outline(node: ir.Node, fixed: set[ir.Value], depth: int) -> Iterator[Outline]:
    gains = operators.gains(node)
    if gains is None:
        return
    index, output, bias = gains.index, node.outputs[0], gains.shift
    if gains.either:  # a norm in small operators ends with it
        constant_sides = [value in fixed for value in node.inputs]
        if sum(constant_sides) != 1:
            return
        index = constant_sides.index(True)
        output, bias = _added(output, fixed) or (output, None)
    value = read.input(node, index)
    name = "" if value is None else value.name or ""
    yield Outline(name, node, index, output.name or "", depth, bias)


def _outlines(
    node: ir.Node, fixed: set[ir.Value], named: set[str], depth: int
) -> Iterator[Outline]:
    """A product for each of its weights: recurrent layers have two."""
    for index in operators.sides(node):
        product, weight = operators.product(node, index), read.input(node, index)
        if product is None or weight not in fixed or product.activation in fixed:
            continue
        assert weight is not None
        output, bias = node.outputs[0], product.bias
        if product.bias is None and not product.hidden and _last_axis(product):
            output, bias = _added(output, fixed) or (output, None)
        maker = None if product.activation is None else product.activation.producer()
        first = None
        if maker is not None and index == 1 and _is_factor(maker, named):
            first = maker if maker.inputs[1] in fixed and maker.inputs[0] not in fixed else None
        name, made = weight.name or "", output.name or ""
        yield Outline(name, node, index, made, depth, bias, first)


def _last_axis(product: Product) -> bool:
    """Whether the channels of the outputs lie on their last axis."""
    try:
        return product.out_axis == -1
    except ValueError:
        return False


def _added(output: ir.Value, fixed: set[ir.Value]) -> tuple[ir.Value, ir.Value] | None:
    """What becomes of a value that only an addition reads, and the constant that is added."""
    users = list(output.uses())
    if len(users) != 1 or output.is_graph_output():
        return None
    user = users[0].node
    if not operators.adds(user):
        return None
    others = [value for value in user.inputs if value is not output]
    if len(others) != 1 or others[0] is None or others[0] not in fixed:
        return None
    return user.outputs[0], others[0]


def _is_factor(node: ir.Node, named: set[str]) -> bool:
    """Whether a product is new in the model, and only another one reads it."""
    output, product = node.outputs[0], operators.product(node, 1)
    return (
        product is not None
        and isinstance(product.row, Matrices | Convolution)
        and not (product.spreads or product.hidden or product.transposes_activation)
        and len(node.inputs) == 2
        and output.name not in named
        and len(output.uses()) == 1
        and not output.is_graph_output()
    )


class LayerReader:
    """Reads layers out of a model.

    Args:
        model: The model.
        run: Runs small models; see :class:`Chain`.
    """

    def __init__(self, model: Model, run: RunModel):
        self._model, self._run = model, run

    def layer(self, outline: Outline) -> Layer:
        """What a layer is made of.

        Raises:
            ValueError: Why it cannot be fitted.
        """
        if outline.norm is not None:
            return self._norm(outline, outline.norm)
        return self._split(outline) or self._product(outline)

    # ------------------------------------------------------------------------- products

    def _product(self, outline: Outline) -> Layer:
        node, index = outline.node, outline.index
        product = outline.product
        if product is None or product.hidden:
            raise ValueError("is no product" if product is None else product.hidden)
        chain, shape = self._chain(node, index)
        view = _View(product, shape)
        origins = [_laid_out(o.shared(), view) for o in chain.origins(node) if _finite(o)]
        if _integer_bias(node):
            origins = []  # its units are those of the scales
        parts = tuple(Fittable(_role(origin), (origin,)) for origin in origins)
        matrix = view.matrix(chain.array)
        return self._with_bias(outline, view, matrix, parts)

    def _with_bias(
        self, outline: Outline, view: _View, matrix: Array, parts: tuple[Fittable, ...]
    ) -> Layer:
        groups, outputs, width = matrix.shape
        if not np.isfinite(matrix).all():
            raise ValueError("holds NaN or infinity")
        if width > MOST_INPUTS:
            raise ValueError(f"sums over {width} inputs, more than {MOST_INPUTS}")
        shift, bias = self._bias(outline, groups * outputs)
        statistic = Regression(groups, width, outputs, view.layout, view.axis)
        need = PairNeed(outline.output, view.source.name or "", statistic)
        held = Affine(matrix, shift.reshape(groups, outputs))
        return Layer(outline.name, outline.node, need, held, parts, bias)

    def _bias(self, outline: Outline, outputs: int) -> tuple[Array, Origin | None]:
        """What is added to the outputs, and the constant that it is, where that can change."""
        value = outline.bias
        if value is None:
            return np.zeros(outputs), None
        product = outline.product
        if product is None or product.out_axis == -2:
            raise ValueError("what is added to its outputs is not one number for each")
        chain = Dependence(self._model, value, self._run)
        if not chain.constant:
            raise ValueError("what is added to its outputs is not constant")
        scale = product.beta
        values = chain.array * scale
        if values.size not in (1, outputs) or (values.ndim > 1 and values.size != values.shape[-1]):
            raise ValueError("what is added to its outputs is no vector of them")
        origin = self._vector(_user(outline), value)
        if origin is None or values.size != outputs:
            return np.broadcast_to(values.ravel(), outputs), None
        scaled = Linear(origin.linear.coefficient * scale, origin.linear.index)
        return values.ravel(), replace(origin, linear=scaled)

    def _split(self, outline: Outline) -> Layer | None:
        """A layer of two factors that are stored as they are; None where it is not."""
        node, first, product = outline.node, outline.first, outline.product
        other = None if first is None else operators.product(first, 1)
        if first is None or product is None or other is None or product.hidden:
            return None
        if other.convolves != product.convolves or product.spreads or product.transposes_activation:
            return None
        (left, left_shape), (right, right_shape) = (
            self._chain(node, outline.index),
            self._chain(first, 1),
        )
        after, before = _View(product, left_shape), _View(other, right_shape)
        points = all(dim == 1 for dim in left_shape[2:]) and len(left_shape) == len(right_shape)
        if not points or after.groups > 1 or before.groups > 1:
            return None
        if product.convolves and not _moves_by_one(node):
            return None
        origins = [
            _laid_out(origin, view)
            for chain, view, user in ((left, after, node), (right, before, first))
            for origin in chain.origins(user)
        ]
        if [_role(origin) for origin in origins] != ["weights", "weights"]:
            return None
        factors = Factors("factors", tuple(origins), before.outputs)
        matrix = factors.matrix([origin.numbers for origin in origins])
        return self._with_bias(outline, before, matrix, (factors,))

    def _chain(self, node: ir.Node, index: int) -> tuple[Dependence, tuple[int, ...]]:
        value = node.inputs[index]
        assert value is not None
        chain = Dependence(self._model, value, self._run)
        if not chain.constant:
            raise ValueError("its weight may be overridden by the caller, or comes from a function")
        return chain, chain.array.shape

    # ------------------------------------------------------------------------- norms

    def _norm(self, outline: Outline, found: Gains) -> Layer:
        node = outline.node
        if found.over_several_axes:
            raise ValueError("normalises over other axes than the last")
        gains, shifts = self._vector(node, node.inputs[outline.index]), None
        if outline.bias is not None:
            shifts = self._vector(_user(outline), outline.bias)
        if gains is None:
            raise ValueError("its gains are not a constant of its own")
        numbers = gains.numbers
        count = len(numbers)
        if shifts is not None and len(shifts.numbers) != count:
            shifts = None
        inverse = np.divide(1.0, numbers, out=np.zeros(count), where=numbers != 0)
        linear = Linear(inverse.reshape(-1, 1, 1), np.arange(count).reshape(-1, 1, 1))
        held = Affine(np.ones((count, 1, 1)), np.zeros((count, 1)))
        part = Fittable("gains", (Origin(gains.value, gains.tensor, linear, None),))
        need = PairNeed(
            outline.output, outline.output, Regression(count, 1, 1, ChannelPairs(found.axis))
        )
        return Layer(outline.name, node, need, held, (part,), shifts, gain=True)

    def _vector(self, user: ir.Node, value: ir.Value | None) -> Origin | None:
        """The constant that a vector is, stored as it is or in another type."""
        if value is None:
            return None
        chain = Dependence(self._model, value, self._run)
        if not chain.constant or chain.array.size != max(chain.array.shape, default=0):
            return None
        for origin in chain.origins(user):
            linear = origin.linear
            whole = np.array_equal(linear.index.ravel(), np.arange(linear.index.size))
            if whole and (linear.coefficient == 1).all() and _finite(origin):
                return origin
        return None


class _View:
    """A weight where its operator takes it, seen as [groups, outputs, width].

    Raises:
        ValueError: Why it cannot be seen so.
    """

    def __init__(self, product: Product, shape: tuple[int, ...]):
        source = product.activation
        if source is None or len(shape) < 2:
            raise ValueError("is not a matrix or a kernel")
        self._product, self.source = product, source
        self.layout, self.axis = product.layout(shape), product.out_axis
        self.groups, self.outputs, _ = product.grouped(np.broadcast_to(np.zeros(()), shape)).shape

    def matrix(self, array: Array) -> Array:
        """The weight with the factor of its operator."""
        made: Array = self._product.alpha * self.turned(array)
        return made

    def turned(self, array: npt.NDArray[N]) -> npt.NDArray[N]:
        """An array of the weight's shape."""
        return self._product.grouped(array)


def _user(outline: Outline) -> ir.Node:
    """The operator that adds a layer's bias: its own, or the one behind it."""
    assert outline.bias is not None
    if outline.bias in outline.node.inputs:
        return outline.node
    return next(iter(outline.bias.uses())).node


def _laid_out(origin: Origin, view: _View) -> Origin:
    linear = origin.linear
    turned = Linear(view.matrix(linear.coefficient), view.turned(linear.index))
    return replace(origin, linear=turned)


def _role(origin: Origin) -> Role:
    used = origin.linear.index.ravel()[np.flatnonzero(origin.linear.coefficient)]
    if np.bincount(used).max(initial=0) <= 1:
        return "weights"
    return "tables" if origin.table is not None or operators.looks_up(origin.reader) else "scales"


def _finite(origin: Origin) -> bool:
    return bool(np.isfinite(origin.numbers).all())


def _integer_bias(node: ir.Node) -> bool:
    """Whether a bias is stored in integers, whose unit is the product of the scales."""
    bias = read.input(node, 2)
    maker = None if bias is None else bias.producer()
    if maker is None or operators.of(maker, QuantizedRow) is None:
        return False
    tensor = constant(maker.inputs[0])
    return tensor is not None and tensor.dtype not in FLOATS


def _moves_by_one(node: ir.Node) -> bool:
    """Whether a convolution has one output for every place of its input."""
    strides, pads = node.attributes.get("strides"), node.attributes.get("pads")
    return (strides is None or set(strides.as_ints()) == {1}) and (
        pads is None or not any(pads.as_ints())
    )
