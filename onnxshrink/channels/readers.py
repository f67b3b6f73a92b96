"""The operators whose constant weights read channels, and what they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.channels.atoms import Labels
from onnxshrink.channels.facts import dims, stored
from onnxshrink.channels.groups import Removed
from onnxshrink.channels.labels import FLOATS, Walk, attribute, integer
from onnxshrink.kernels.patches import Window, sample, spread
from onnxshrink.kernels.refit import Array

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
        sign: -1 where it is subtracted, as a normalisation's mean is.
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
    sign: int
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
        tensor = stored(self.weight)
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
        tensor = stored(self.weight)
        assert tensor is not None
        return dims(tensor)

    def _view(self, array: np.ndarray) -> np.ndarray:
        """A constant's part as [outputs, channels, *kernel], in the memory of the constant."""
        part = array[self.at]
        view = np.moveaxis(part, self.weight_axis - array.ndim + part.ndim, 1)
        if self.node.op_type == "ConvTranspose":  # a convolution with a kernel turned round
            view = np.flip(view, tuple(range(2, view.ndim)))
        return view


def find(walk: Walk) -> Iterator[Consumer]:
    """Every operator of the main graph that can make up for channels, in execution order."""
    return _of(walk, walk.model.ir.graph)


def in_bodies(walk: Walk, removed: Removed) -> list[str]:
    """Weights of bodies that read removed channels; what they read is not observed."""
    inner = (each for graph in walk.model.ir.graph.subgraphs() for each in _of(walk, graph))
    read = [each for each in inner if not walk.atoms.kept(each.labels, removed).all()]
    return list(dict.fromkeys(each.weight.name or "" for each in read))


def _of(walk: Walk, nodes: ir.Graph) -> Iterator[Consumer]:
    graph = walk.model.ir.graph
    fixed = set(graph.outputs)  # and what callers may override
    if walk.model.ir.ir_version >= 4:
        fixed |= set(graph.inputs)
    for node in nodes:
        kind = None if node.domain else _KINDS.get(node.op_type)
        for each in () if kind is None else kind(walk, node):
            if each.weight not in fixed and each.channels > 1 and each.features <= MOST_FEATURES:
                yield replace(each, bias=None) if each.bias in fixed else each


def _weight(walk: Walk, node: ir.Node, index: int = 1) -> tuple[ir.Value, tuple[int, ...]] | None:
    """A constant weight that one labelled node reads alone, and its shape."""
    value = node.inputs[index]
    tensor = None if value is None else stored(value)
    x = node.inputs[0]
    if value is None or tensor is None or tensor.dtype not in FLOATS or x is None:
        return None
    usable = value in walk.labels and len(value.uses()) == 1 and stored(x) is None
    return (value, dims(tensor)) if usable else None


def _products(walk: Walk, node: ir.Node) -> Iterator[Consumer]:
    found, x = _weight(walk, node), node.inputs[0]
    if found is None or x is None or len(found[1]) != 2:
        return
    weight, shape = found
    axis = 0
    if node.op_type == "Gemm":
        if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
            return
        if integer(node, "transA", 0):
            return
        axis = integer(node, "transB", 0)
    labels = walk.labels[weight][axis]
    if labels is not None:
        bias, sign = _bias(node, shape[1 - axis])
        yield Consumer(
            node, (x,), weight, axis, labels, bias, sign, _rows(shape[axis]),
            extensible=_extensible(node, bias),
        )  # fmt: skip


def _convolutions(walk: Walk, node: ir.Node) -> Iterator[Consumer]:
    """One for each group."""
    found, x = _weight(walk, node), node.inputs[0]
    labels = None if x is None or x not in walk.labels else walk.labels[x][1]
    if found is None or x is None or labels is None:
        return
    weight, shape = found
    groups = integer(node, "group", 1)
    channels, outputs = shape[1], shape[0] // groups
    bias, sign = _bias(node, shape[0])
    window = _window(node, shape[2:])
    for group in range(groups):
        part = slice(group * outputs, (group + 1) * outputs)
        place = slice(group * channels, (group + 1) * channels)
        yield Consumer(
            node, (x,), weight, 1, labels[place], bias, sign, _patches(window, place),
            (part,), (part,), _extensible(node, bias),
        )  # fmt: skip


def _transposed(walk: Walk, node: ir.Node) -> Iterator[Consumer]:
    """A transposed convolution is one over an input with zeros between its values."""
    found, x = _weight(walk, node), node.inputs[0]
    if found is None or x is None or integer(node, "group", 1) > 1:
        return
    weight, shape = found
    window, labels = _window(node, shape[2:]), walk.labels[weight][0]
    rank = len(window.kernel)
    more = tuple(attribute(node, "output_padding", [0] * rank))
    around = [(k - 1) * d for k, d in zip(window.kernel, window.dilations, strict=True)] * 2
    pads = tuple(a - b + c for a, b, c in zip(around, window.pads, (0,) * rank + more, strict=True))
    plain = window.auto_pad == "NOTSET" and "output_shape" not in node.attributes
    if plain and min(pads, default=0) >= 0 and labels is not None:
        bias, sign = _bias(node, shape[1])
        ones = (1,) * rank
        spaced = Window(window.kernel, ones, window.dilations, pads)
        yield Consumer(
            node, (x,), weight, 0, labels, bias, sign, _spaced(spaced, window.strides),
            extensible=_extensible(node, bias),
        )  # fmt: skip


def _recurrent(walk: Walk, node: ir.Node) -> Iterator[Consumer]:
    """For each direction, what reads the input and what reads the state of the step before."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[node.op_type]
    x, bias = node.inputs[0], node.inputs[3] if len(node.inputs) > 3 else None
    tensor = None if bias is None else stored(bias)
    if bias is not None and (tensor is None or len(bias.uses()) > 1):
        bias = None
    initial = node.inputs[5] if len(node.inputs) > 5 else None
    states = node.outputs[0]
    for index, source in ((1, x), (2, states)):
        found = _weight(walk, node, index)
        if found is None or source is None or not source.name or integer(node, "layout", 0):
            continue
        weight, (directions, height, width) = found
        labels = walk.labels[weight][2]
        if labels is None:
            continue
        size = height // gates
        rows, values = height, [source]
        if index == 2:
            if node.op_type == "GRU" and not integer(node, "linear_before_reset", 0):
                rows = 2 * size  # the candidate reads the state behind the gate, which none sees
            if initial is not None and stored(initial) is None:
                values = [source, initial]
        for direction in range(directions):
            start = height * (index - 1)
            back = direction == 1 or attribute(node, "direction", "forward") == "reverse"
            reads = _rows(width) if index == 1 else _states(direction, back, initial)
            yield Consumer(
                node, tuple(values), weight, 2, labels, bias, 1, reads,
                (direction, slice(0, rows)), (direction, slice(start, start + rows)),
            )  # fmt: skip


_KINDS: dict[str, Callable[[Walk, ir.Node], Iterator[Consumer]]] = {
    "Conv": _convolutions,
    "ConvTranspose": _transposed,
    "GRU": _recurrent,
    "Gemm": _products,
    "LSTM": _recurrent,
    "MatMul": _products,
    "RNN": _recurrent,
}


def _bias(node: ir.Node, outputs: int) -> tuple[ir.Value | None, int]:
    """The vector that shifts what a node makes, if it is its own, and its sign."""
    users = node.outputs[0].uses()
    user = next(iter(users)).node if len(users) == 1 else None
    candidates: list[ir.Value | None] = list(node.inputs[2:3])
    sign = 1
    if not any(candidates) and user is not None:
        if user.op_type == "BatchNormalization":
            candidates, sign = [user.inputs[3]], -1
        elif user.op_type == "Add" and node.op_type == "MatMul":
            candidates = [value for value in user.inputs if value is not node.outputs[0]]
    for value in candidates:
        tensor = None if value is None else stored(value)
        if value is not None and tensor is not None and dims(tensor) == (outputs,):
            return (value, sign) if len(value.uses()) == 1 else (None, 1)
    return None, 1


def _extensible(node: ir.Node, bias: ir.Value | None) -> bool:
    """Whether a node without a bias can be given one."""
    return bias is None and node.op_type != "MatMul" and not any(node.inputs[2:3])


# ---------------------------------------------------------------------- what is read


def _window(node: ir.Node, kernel: tuple[int, ...]) -> Window:
    ones = [1] * len(kernel)
    return Window(
        kernel, tuple(attribute(node, "strides", ones)),
        tuple(attribute(node, "dilations", ones)),
        tuple(attribute(node, "pads", [0, 0] * len(kernel))),
        auto_pad=attribute(node, "auto_pad", "NOTSET"),
    )  # fmt: skip


def _places(array: Floats) -> int:
    """At how many places to look at an input."""
    return min(_ROWS * len(array), _MOST_ROWS)


def _rows(width: int) -> Reads:
    def reads(arrays: Sequence[Floats], seed: int) -> np.ndarray:
        rows = arrays[0].reshape(-1, width)
        return rows[spread(len(rows), _places(arrays[0]), seed)]

    return reads


def _patches(window: Window, channels: slice) -> Reads:
    def reads(arrays: Sequence[Floats], seed: int) -> np.ndarray:
        x = arrays[0][:, channels]
        return np.concatenate(list(sample(x, window, _places(x), seed)))[:, 0]

    return reads


def _spaced(window: Window, strides: tuple[int, ...]) -> Reads:
    def reads(arrays: Sequence[Floats], seed: int) -> np.ndarray:
        x = arrays[0]
        sizes = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], strides, strict=True)]
        wide = np.zeros((*x.shape[:2], *sizes), x.dtype)
        every = slice(None)
        places = (every, every, *(slice(None, None, step) for step in strides))
        wide[places] = x
        return np.concatenate(list(sample(wide, window, _places(x), seed)))[:, 0]

    return reads


def _states(direction: int, back: bool, initial: ir.Value | None) -> Reads:
    """The state before each step; ``Y [T, D, N, H]`` has those behind it."""

    def reads(arrays: Sequence[Floats], seed: int) -> np.ndarray:
        behind = arrays[0][:, direction]
        first = np.zeros_like(behind[:1])
        if len(arrays) > 1:
            first = arrays[1][direction][None]
        elif initial is not None:
            tensor = stored(initial)
            assert tensor is not None
            first = np.broadcast_to(tensor.numpy()[direction][None], first.shape)
        before = [behind[1:], first] if back else [first, behind[:-1]]
        rows = np.concatenate(before).reshape(-1, behind.shape[-1])
        return rows[spread(len(rows), _places(behind), seed)]

    return reads
