"""The operators whose constant weights read channels, and what they read."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.channels.atoms import Labels
from onnxshrink.channels.groups import Removed
from onnxshrink.channels.labels import FLOATS, Walk
from onnxshrink.graph import operators, read
from onnxshrink.graph.operators import Norm, Product, Recurrent
from onnxshrink.kernels.patches import Window, sample, spread
from onnxshrink.kernels.refit import Array
from onnxshrink.kernels.rows import Rows

_log = logging.getLogger(__name__)

#: More features than this are left alone: their moments would take gigabytes.
MOST_FEATURES = 4608
_ROWS = 256  # of one item of a batch
_MOST_ROWS = 4096  # of one input

Floats = npt.NDArray[np.floating]
#: From the values that are read, and a seed, what a weight is multiplied with: [places, features].
Reads = Callable[[Sequence[Floats], int], np.ndarray]
Index = tuple[int | slice, ...]


@dataclass(frozen=True, eq=False)
class Consumer:
    """One matrix that reads channels: a constant weight, or a part of one.

    Attributes:
        node: The node.
        values: What it reads.
        weight: Its constant.
        weight_axis: The axis of the constant along which it sums over channels.
        labels: Labels of the channels.
        bias: A constant that shifts the output and is used nowhere else, if any.
        sign: What a shift of the sums is in the bias: -1 where it is subtracted, as a
            normalisation's mean is.
        reads: See there.
        at: The part of the constant.
        bias_at: The part of the bias.
        extensible: Whether the node can be given a bias.
    """

    node: ir.Node
    values: tuple[ir.Value, ...]
    weight: ir.Value
    weight_axis: int
    labels: Labels
    bias: ir.Value | None
    sign: float
    reads: Reads
    at: Index = ()
    bias_at: Index = ()
    extensible: bool = False

    @property
    def name(self) -> str:
        """The same in every copy of a model."""
        return f"{self.weight.name} {self.at}"

    @property
    def channels(self) -> int:
        """How many channels one output sums over."""
        return len(self.labels)

    @property
    def features(self) -> int:
        """Channels times the kernel's size."""
        shape = self._view(np.broadcast_to(np.False_, self._shape)).shape
        return int(np.prod(shape[1:]))

    @property
    def shifts(self) -> bool:
        """Whether its outputs can be shifted."""
        return self.bias is not None or self.extensible

    def matrix(self) -> Array:
        """The weight as [outputs, features]."""
        tensor = read.constant(self.weight)
        assert tensor is not None
        view = self._view(np.asarray(tensor.numpy(), np.float64))
        return view.reshape(len(view), -1)

    def put(self, array: np.ndarray, matrix: Array) -> None:
        """Write a matrix, [outputs, features], into an array of the constant's shape."""
        view = self._view(array)
        view[...] = matrix.reshape(view.shape)

    def columns(self, matrix: Array) -> Array:
        """[outputs, features] as [outputs, channels, kernel]."""
        return matrix.reshape(len(matrix), self.channels, -1)

    @property
    def _shape(self) -> tuple[int, ...]:
        tensor = read.constant(self.weight)
        assert tensor is not None
        return read.shape(tensor)

    def _view(self, array: np.ndarray) -> np.ndarray:
        """A constant's part as [outputs, channels, *kernel], in the memory of the constant."""
        part = array[self.at]
        view = np.moveaxis(part, self.weight_axis - array.ndim + part.ndim, 1)
        product = operators.product(self.node, 1)
        if product is not None and product.spreads:  # a convolution with a kernel turned round
            view = np.flip(view, tuple(range(2, view.ndim)))
        return view


def find(walk: Walk) -> Iterator[Consumer]:
    """Every operator of the main graph that can make up for channels, in execution order."""
    return _of(walk, walk.model.ir.graph)


def not_refitted(walk: Walk, removed: Removed) -> dict[str, str]:
    """Weights that read removed channels and that nothing makes up for it in, with the reason."""
    reasons: dict[str, str] = {}
    for graph in walk.model.ir.graph.subgraphs():
        for each in _of(walk, graph):
            if not walk.atoms.kept(each.labels, removed).all():
                where = "in a body of If, Loop or Scan, where nothing is refitted"
                reasons[each.weight.name or ""] = where
    for node in walk.model.ir.graph:
        for product in _products_of(node):
            weight, labels = _read_labels(walk, product)
            if labels is None or walk.atoms.kept(labels, removed).all():
                continue
            try:
                tuple(_consumers(walk, product))
            except ValueError as error:
                reasons.setdefault(weight.name or "", f"not refitted: {error}")
    return reasons


def _read_labels(walk: Walk, product: Product) -> tuple[ir.Value, Labels | None]:
    """A weight, and the labels of the axis that is summed over; None where that is not known."""
    weight = product.node.inputs[product.index]
    assert weight is not None
    axes, tensor = walk.labels.get(weight), read.constant(weight)
    roles = None if tensor is None else product.axes(len(read.shape(tensor)))
    if axes is None or roles is None or not roles.contract or product.groups > 1:
        return weight, None
    return weight, axes[roles.contract[0]]


def _products_of(node: ir.Node) -> list[Product]:
    """What a node multiplies with constant weights."""
    found = (
        operators.product(node, index)
        for index in operators.sides(node)
        if (value := read.input(node, index)) is not None and read.constant(value) is not None
    )
    return [product for product in found if product is not None]


def _of(walk: Walk, nodes: ir.Graph) -> Iterator[Consumer]:
    for node in nodes:
        for product in _products_of(node):
            try:
                yield from tuple(_consumers(walk, product))
            except ValueError as error:
                _log.debug("%s is not refitted: %s", node.name, error)


def _consumers(walk: Walk, product: Product) -> Iterator[Consumer]:
    """What reads channels in one product.

    Raises:
        ValueError: Why nothing makes up for channels that it loses.
    """
    graph = walk.model.ir.graph
    fixed = set(graph.outputs)  # and what callers may override
    if walk.model.ir.ir_version >= 4:
        fixed |= set(graph.inputs)
    if isinstance(product.row, Recurrent):
        found = _recurrent(walk, product, product.row)
    elif product.spreads:
        found = _transposed(walk, product)
    else:
        found = (_convolutions if product.convolves else _matrix)(walk, product)
    for each in found:
        if each.weight in fixed:
            raise ValueError("is an output, or a default that the caller may override")
        if each.features > MOST_FEATURES:
            raise ValueError(f"sums over {each.features} inputs, more than {MOST_FEATURES}")
        if each.channels > 1:
            yield replace(each, bias=None) if each.bias in fixed else each


def _weight(walk: Walk, product: Product) -> tuple[ir.Value, tuple[int, ...], ir.Value]:
    """A constant weight that one labelled node reads alone, its shape, and what it reads.

    Raises:
        ValueError: Why it is no such thing.
    """
    value, x = product.node.inputs[product.index], product.activation
    tensor = read.constant(value)
    if value is None or tensor is None or x is None or tensor.dtype not in FLOATS:
        raise ValueError("is no floating-point constant")
    if value not in walk.labels or read.constant(x) is not None:
        raise ValueError("what it reads is not followed")
    if len(value.uses()) != 1:
        raise ValueError("is used more than once")
    return value, read.shape(tensor), x


def _matrix(walk: Walk, product: Product) -> Iterator[Consumer]:
    weight, shape, x = _weight(walk, product)
    if len(shape) != 2:
        raise ValueError("is no matrix")
    layout = product.layout(shape)
    roles = product.axes(2)
    if not isinstance(layout, Rows) or roles is None or not product.alpha:
        raise ValueError("is no matrix")
    axis = roles.contract[0]
    labels = walk.labels[weight][axis]
    if labels is not None:
        bias, sign = _bias(product, shape[1 - axis])
        yield Consumer(
            product.node, (x,), weight, axis, labels, bias, sign, _rows(shape[axis], layout.axis),
            extensible=_extensible(product, bias),
        )  # fmt: skip


def _convolutions(walk: Walk, product: Product) -> Iterator[Consumer]:
    """One for each group."""
    weight, shape, x = _weight(walk, product)
    labels = walk.labels[x][1] if x in walk.labels else None
    window = product.layout(shape)
    if labels is None or not isinstance(window, Window):
        raise ValueError("what it reads is not followed")
    groups = product.groups
    window = replace(window, groups=1)
    channels, outputs = shape[1], shape[0] // groups
    bias, sign = _bias(product, shape[0])
    for group in range(groups):
        part = slice(group * outputs, (group + 1) * outputs)
        place = slice(group * channels, (group + 1) * channels)
        yield Consumer(
            product.node, (x,), weight, 1, labels[place], bias, sign, _patches(window, place),
            (part,), (part,), _extensible(product, bias),
        )  # fmt: skip


def _transposed(walk: Walk, product: Product) -> Iterator[Consumer]:
    """A transposed convolution is one over an input with zeros between its values."""
    weight, shape, x = _weight(walk, product)
    if product.groups > 1:
        raise ValueError("is a transposed convolution in groups")
    window, labels = product.layout(shape), walk.labels[weight][0]
    if labels is not None and isinstance(window, Window):
        bias, sign = _bias(product, shape[1])
        every = slice(None)
        yield Consumer(
            product.node, (x,), weight, 0, labels, bias, sign,
            _patches(replace(window, flipped=False), every),
            extensible=_extensible(product, bias),
        )  # fmt: skip


def _recurrent(walk: Walk, product: Product, row: Recurrent) -> Iterator[Consumer]:
    """For each direction, what reads the input or the state of the step before."""
    node, index = product.node, product.index
    bias, initial = read.input(node, 3), read.input(node, 5)
    if bias is not None and (read.constant(bias) is None or len(bias.uses()) > 1):
        bias = None
    weight, (directions, height, width), source = _weight(walk, product)
    if not source.name or read.integer(node, "layout", 0):
        raise ValueError("its states cannot be observed")
    labels = walk.labels[weight][2]
    if labels is None:
        return
    size = height // row.gates
    rows, values = height, [source]
    if index == 2:
        if row.resets and not read.integer(node, "linear_before_reset", 0):
            rows = 2 * size  # the candidate reads the state behind the gate, which none sees
        if initial is not None and read.constant(initial) is None:
            values = [source, initial]
    for direction in range(directions):
        start = height * (index - 1)
        back = direction == 1 or read.text(node, "direction", "forward") == "reverse"
        reads = _rows(width) if index == 1 else _states(direction, back, initial)
        yield Consumer(
            node, tuple(values), weight, 2, labels, bias, 1, reads,
            (direction, slice(0, rows)), (direction, slice(start, start + rows)),
        )  # fmt: skip


def _bias(product: Product, outputs: int) -> tuple[ir.Value | None, float]:
    """The vector that shifts what a node makes, if it is its own, and what a shift is in it."""
    output = product.node.outputs[0]
    users = output.uses()
    user = next(iter(users)).node if len(users) == 1 and not product.hidden else None
    candidates: list[ir.Value | None] = []
    sign = product.alpha
    if product.bias is not None:
        candidates, sign = [product.bias], product.alpha / (product.beta or math.inf)
    elif (norm := operators.of(user, Norm)) is not None and norm.fixed and user is not None:
        candidates, sign = [user.inputs[norm.fixed[0]]], -product.alpha
    elif user is not None and _adds_row(product, user):
        candidates = [value for value in user.inputs if value is not output]
    for value in candidates if sign else ():
        tensor = read.constant(value)
        if value is not None and tensor is not None and read.shape(tensor) == (outputs,):
            return (value, sign) if len(value.uses()) == 1 else (None, 1)
    return None, product.alpha / (product.beta or math.inf)


def _adds_row(product: Product, user: ir.Node) -> bool:
    """Whether a node adds to each channel of what a product without a bias makes."""
    return operators.adds(user) and not product.takes_bias and product.out_axis == -1


def _extensible(product: Product, bias: ir.Value | None) -> bool:
    """Whether a node without a bias can be given one."""
    able = product.takes_bias and product.out_axis != -2 and bool(product.beta)
    return able and not product.inside and bias is None and product.bias is None


# ---------------------------------------------------------------------- what is read


def _places(array: Floats) -> int:
    """At how many places to look at an input."""
    return min(_ROWS * len(array), _MOST_ROWS)


def _rows(width: int, axis: int = -1) -> Reads:
    def reads(arrays: Sequence[Floats], seed: int) -> np.ndarray:
        rows = np.moveaxis(arrays[0], axis, -1).reshape(-1, width)
        return rows[spread(len(rows), _places(arrays[0]), seed)]

    return reads


def _patches(window: Window, channels: slice) -> Reads:
    def reads(arrays: Sequence[Floats], seed: int) -> np.ndarray:
        x = arrays[0][:, channels]
        return np.concatenate(list(sample(x, window, _places(x), seed)))[:, 0]

    return reads


def _states(direction: int, back: bool, initial: ir.Value | None) -> Reads:
    """The state before each step; ``Y [T, D, N, H]`` has those behind it."""

    def reads(arrays: Sequence[Floats], seed: int) -> np.ndarray:
        behind = arrays[0][:, direction]
        first = np.zeros_like(behind[:1])
        if len(arrays) > 1:
            first = arrays[1][direction][None]
        elif initial is not None:
            tensor = read.constant(initial)
            assert tensor is not None
            first = np.broadcast_to(tensor.numpy()[direction][None], first.shape)
        before = [behind[1:], first] if back else [first, behind[:-1]]
        rows = np.concatenate(before).reshape(-1, behind.shape[-1])
        return rows[spread(len(rows), _places(behind), seed)]

    return reads
