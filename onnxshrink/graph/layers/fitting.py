"""Layers whose outputs can be brought closer to those of another model, and what they are made of.

A layer is a product with constants (MatMul, Gemm, Conv) and the vector added to it, or a norm's
gains and shifts. It is found by the name of its output, which passes keep; what the product's
weight is rebuilt from, if anything, says its :class:`Chain`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph.analysis.operands import constants, fixed_values
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.weights import second_moments
from onnxshrink.graph.weights.dependence import Chain, Origin, Run
from onnxshrink.graph.weights.views import FLOATS, OPERATORS, constant
from onnxshrink.kernels import leastsquares
from onnxshrink.kernels.leastsquares import Affine, Linear, Seen
from onnxshrink.kernels.pairs import Channels, PairNeed, Regression

Array = npt.NDArray[np.float64]
N = TypeVar("N", np.float64, np.int64)
Kind = Literal["weights", "scales", "tables", "factors", "gains"]

_PRODUCTS = ("MatMul", "Gemm", "Conv")
#: Operators that multiply each channel with a gain and add a shift: the axis of the channels, and
#: which inputs these are.
_NORMS: dict[tuple[str, str], tuple[int, int, int]] = {
    ("", "LayerNormalization"): (-1, 1, 2),
    ("", "RMSNormalization"): (-1, 1, 2),
    ("", "BatchNormalization"): (1, 1, 2),
    ("", "InstanceNormalization"): (1, 1, 2),
    ("", "GroupNormalization"): (1, 1, 2),
    ("", "Mul"): (-1, 1, 2),
    ("com.microsoft", "SkipLayerNormalization"): (-1, 2, 3),
    ("com.microsoft", "DynamicQuantizeMatMul"): (-1, 2, 4),
}
#: Wider layers are left alone: their sums would take gigabytes.
MOST_INPUTS = 4608


@dataclass(frozen=True)
class Part:
    """Numbers of a layer that can be fitted together.

    Attributes:
        kind: What they are.
        origins: Their constants.
    """

    kind: Kind
    origins: tuple[Origin, ...]

    @property
    def separable(self) -> bool:
        """Whether every output has numbers of its own."""
        count = len(self.origins[0].numbers)
        alone = self.kind in ("weights", "scales")
        return alone and bool(self.origins[0].linear.owners(count).any())

    def some(self, outputs: npt.NDArray[np.int64]) -> Part:
        """The part in some outputs of each group only."""
        (origin,) = self.origins
        return Part(self.kind, (replace(origin, linear=origin.linear.some(outputs)),))

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
class Factors(Part):
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
    parts: tuple[Part, ...]
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
    def norm(self) -> bool:
        """Whether it is a norm, and no product."""
        return (self.node.domain, self.node.op_type) in _NORMS


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
                    before = max([before, *(outline.depth + 1 for outline in inner)])
                    yield from inner
            outline = _norm_outline(node, fixed, before) or _outline(node, fixed, named, before)
            if outline is not None:
                yield replace(outline, known=outline.output in named)
            for value in node.outputs:
                depth[value] = before + (outline is not None)

    yield from visit(model.ir.graph)


def _norm_outline(node: ir.Node, fixed: set[ir.Value], depth: int) -> Outline | None:
    if (node.domain, node.op_type) not in _NORMS:
        return None
    _, gain, shift = _NORMS[node.domain, node.op_type]
    output, bias = node.outputs[0], _input(node, shift)
    if node.op_type == "Mul":  # a norm in small operators ends with it
        constant_sides = [value in fixed for value in node.inputs]
        if sum(constant_sides) != 1:
            return None
        gain = constant_sides.index(True)
        output, bias = _added(output, fixed) or (output, None)
    value = _input(node, gain)
    name = "" if value is None else value.name or ""
    return Outline(name, node, gain, output.name or "", depth, bias)


def _outline(node: ir.Node, fixed: set[ir.Value], named: set[str], depth: int) -> Outline | None:
    if node.domain or node.op_type not in _PRODUCTS or len(node.inputs) < 2:
        return None
    sides = [value in fixed for value in node.inputs[:2]]
    if sides[0] == sides[1] or (node.op_type == "Conv" and sides[0]):
        return None
    index = sides.index(True)
    weight, output, bias = node.inputs[index], node.outputs[0], _input(node, 2)
    assert weight is not None
    if node.op_type == "MatMul" and index == 1:
        output, bias = _added(output, fixed) or (output, None)
    other = node.inputs[1 - index]
    maker = None if other is None else other.producer()
    first = None
    if maker is not None and _is_factor(maker, named) and maker.inputs[1] in fixed:
        first = maker if index == 1 and maker.inputs[0] not in fixed else None
    return Outline(weight.name or "", node, index, output.name or "", depth, bias, first)


def _added(output: ir.Value, fixed: set[ir.Value]) -> tuple[ir.Value, ir.Value] | None:
    """What becomes of a value that only an addition reads, and the constant that is added."""
    users = list(output.uses())
    if len(users) != 1 or output.is_graph_output() or users[0].node.op_type != "Add":
        return None
    user = users[0].node
    others = [value for value in user.inputs if value is not output]
    if len(others) != 1 or others[0] is None or others[0] not in fixed:
        return None
    return user.outputs[0], others[0]


def _is_factor(node: ir.Node, named: set[str]) -> bool:
    """Whether a product is new in the model, and only another one reads it."""
    output = node.outputs[0]
    return (
        not node.domain
        and node.op_type in ("MatMul", "Conv")
        and len(node.inputs) == 2
        and output.name not in named
        and len(output.uses()) == 1
        and not output.is_graph_output()
    )


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


class Reader:
    """Reads layers out of a model.

    Args:
        model: The model.
        run: Runs small models; see :class:`Chain`.
    """

    def __init__(self, model: Model, run: Run):
        self._model, self._run = model, run

    def layer(self, outline: Outline) -> Layer:
        """What a layer is made of.

        Raises:
            ValueError: Why it cannot be fitted.
        """
        if outline.norm:
            return self._norm(outline)
        return self._split(outline) or self._product(outline)

    # ------------------------------------------------------------------------- products

    def _product(self, outline: Outline) -> Layer:
        node, index = outline.node, outline.index
        chain, shape = self._chain(node, index)
        view = _View(node, index, shape)
        origins = [_laid_out(o.shared(), view) for o in chain.origins(node) if _finite(o)]
        if _integer_bias(node):
            origins = []  # its units are those of the scales
        parts = tuple(Part(_kind(origin), (origin,)) for origin in origins)
        matrix = view.matrix(chain.array)
        return self._with_bias(outline, view, matrix, parts)

    def _with_bias(
        self, outline: Outline, view: _View, matrix: Array, parts: tuple[Part, ...]
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
        if outline.index == 0:
            raise ValueError("what is added to its outputs is not one number for each")
        chain = Chain(self._model, value, self._run)
        if not chain.constant:
            raise ValueError("what is added to its outputs is not constant")
        scale = _float(outline.node, "beta", 1.0) if outline.op_type == "Gemm" else 1.0
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
        node, first = outline.node, outline.first
        if first is None or (first.op_type == "Conv") != (node.op_type == "Conv"):
            return None
        (left, left_shape), (right, right_shape) = (
            self._chain(node, outline.index),
            self._chain(first, 1),
        )
        after, before = _View(node, outline.index, left_shape), _View(first, 1, right_shape)
        plain = all(dim == 1 for dim in left_shape[2:]) and len(left_shape) == len(right_shape)
        if not plain or after.groups > 1 or before.groups > 1:
            return None
        if node.op_type == "Conv" and not _moves_by_one(node):
            return None
        origins = [
            _laid_out(origin, view)
            for chain, view, user in ((left, after, node), (right, before, first))
            for origin in chain.origins(user)
        ]
        if [_kind(origin) for origin in origins] != ["weights", "weights"]:
            return None
        factors = Factors("factors", tuple(origins), right_shape[0 if len(right_shape) > 2 else 1])
        matrix = factors.matrix([origin.numbers for origin in origins])
        return self._with_bias(outline, before, matrix, (factors,))

    def _chain(self, node: ir.Node, index: int) -> tuple[Chain, tuple[int, ...]]:
        value = node.inputs[index]
        assert value is not None
        chain = Chain(self._model, value, self._run)
        if not chain.constant:
            raise ValueError("its weight may be overridden by the caller, or comes from a function")
        return chain, chain.array.shape

    # ------------------------------------------------------------------------- norms

    def _norm(self, outline: Outline) -> Layer:
        node = outline.node
        axis = _NORMS[node.domain, node.op_type][0]
        if axis == -1 and _int(node, "axis", -1) != -1:
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
        part = Part("gains", (Origin(gains.value, gains.tensor, linear, ""),))
        need = PairNeed(outline.output, outline.output, Regression(count, 1, 1, Channels(axis)))
        return Layer(outline.name, node, need, held, (part,), shifts, gain=True)

    def _vector(self, user: ir.Node, value: ir.Value | None) -> Origin | None:
        """The constant that a vector is, stored as it is or in another type."""
        if value is None:
            return None
        chain = Chain(self._model, value, self._run)
        if not chain.constant or chain.array.size != max(chain.array.shape, default=0):
            return None
        for origin in chain.origins(user):
            linear = origin.linear
            plain = np.array_equal(linear.index.ravel(), np.arange(linear.index.size))
            if plain and (linear.coefficient == 1).all() and _finite(origin):
                return origin
        return None


class _View:
    """A weight where its operator takes it, seen as [groups, outputs, width]."""

    def __init__(self, node: ir.Node, index: int, shape: tuple[int, ...]):
        rule, _ = OPERATORS["", node.op_type][index]
        axes = rule(node, index, len(shape)) if len(shape) > 1 else None
        source = node.inputs[1 - index]
        layout = second_moments.layout_of(node, index, shape[:-2], shape[2:])
        if axes is None or source is None or layout is None:
            raise ValueError("is not a matrix or a kernel")
        self.source, self.layout = source, layout
        self._order = axes.out + axes.contract
        convolution = node.op_type == "Conv"
        self.groups = _int(node, "group", 1) if convolution else math.prod(shape[:-2])
        self._width = math.prod(shape[axis] for axis in axes.contract)
        self.axis = 1 if convolution else -1 if index else -2
        self._alpha = _float(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0

    def matrix(self, array: Array) -> Array:
        """The weight with Gemm's factor."""
        made: Array = self._alpha * self.turned(array)
        return made

    def turned(self, array: npt.NDArray[N]) -> npt.NDArray[N]:
        """An array of the weight's shape."""
        turned: npt.NDArray[N] = array.transpose(self._order)
        return turned.reshape(self.groups, -1, self._width)


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


def _kind(origin: Origin) -> Kind:
    used = origin.linear.index.ravel()[np.flatnonzero(origin.linear.coefficient)]
    if np.bincount(used).max(initial=0) <= 1:
        return "weights"
    return "tables" if origin.table is not None or origin.op_type == "Gather" else "scales"


def _finite(origin: Origin) -> bool:
    return bool(np.isfinite(origin.numbers).all())


def _integer_bias(node: ir.Node) -> bool:
    """Whether a bias is stored in integers, whose unit is the product of the scales."""
    bias = _input(node, 2)
    maker = None if bias is None else bias.producer()
    if maker is None or maker.op_type != "DequantizeLinear":
        return False
    codes = maker.inputs[0]
    tensor = None if codes is None else constant(codes)
    return tensor is not None and tensor.dtype not in FLOATS


def _moves_by_one(node: ir.Node) -> bool:
    """Whether a convolution has one output for every place of its input."""
    strides, pads = node.attributes.get("strides"), node.attributes.get("pads")
    return (strides is None or set(strides.as_ints()) == {1}) and (
        pads is None or not any(pads.as_ints())
    )


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def _float(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_float()
