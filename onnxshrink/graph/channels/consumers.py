"""The operators whose constant weights read channels, and how to make up for removed ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph.channels.atoms import Labels
from onnxshrink.graph.channels.facts import dims, stored
from onnxshrink.graph.channels.groups import Removed
from onnxshrink.graph.channels.walk import FLOATS, Walk, attribute, integer
from onnxshrink.kernels.patches import Window, sample, spread
from onnxshrink.kernels.refit import Array, Moments, refit

#: More features than this are left alone: their moments would take gigabytes.
MOST_FEATURES = 4608
_ROWS = 256  # of one item of a batch
_MOST_ROWS = 4096  # of one input


@dataclass(frozen=True, eq=False)
class Consumer:
    """One Conv, Gemm or MatMul with a constant weight.

    Attributes:
        node: The node.
        x: What it reads.
        weight: Its constant.
        weight_axis: The axis of the constant along which it sums over channels.
        labels: Labels of the channels.
        bias: A constant vector that shifts the output and is used nowhere else, if any.
        sign: -1 where the vector is subtracted, as a normalisation's mean is.
    """

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    weight_axis: int
    labels: Labels
    bias: ir.Value | None
    sign: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        tensor = stored(self.weight)
        assert tensor is not None
        return dims(tensor)

    @property
    def channels(self) -> int:
        """How many channels one output sums over."""
        return self.shape[self.weight_axis]

    @property
    def features(self) -> int:
        """Channels times the kernel's size."""
        return int(np.prod(self.shape)) // self.shape[1 - self.weight_axis]

    def matrix(self) -> Array:
        """The weight as [outputs, features]."""
        tensor = stored(self.weight)
        assert tensor is not None
        array: Array = np.asarray(tensor.numpy(), np.float64)
        turned: Array = array.T if array.ndim == 2 and self.weight_axis == 0 else array
        return turned.reshape(len(turned), -1)

    def put(self, walk: Walk, matrix: Array) -> None:
        """Store another weight, given as [outputs, features]."""
        turned = len(self.shape) == 2 and self.weight_axis == 0
        store(walk, self.weight, (matrix.T if turned else matrix).reshape(self.shape))

    def columns(self, matrix: Array) -> Array:
        """[outputs, features] as [outputs, channels, kernel]."""
        return matrix.reshape(len(matrix), self.channels, -1)

    def rows(self, x: npt.NDArray[np.floating], seed: int) -> np.ndarray:
        """What the weight is multiplied with at some places, as [places, features]."""
        if self.node.op_type != "Conv":
            rows = x.reshape(-1, self.features)
            return rows[spread(len(rows), _places(x), seed)]
        kernel = self.shape[2:]
        ones = [1] * len(kernel)
        window = Window(
            kernel, tuple(attribute(self.node, "strides", ones)),
            tuple(attribute(self.node, "dilations", ones)),
            tuple(attribute(self.node, "pads", [0, 0] * len(kernel))),
            auto_pad=attribute(self.node, "auto_pad", "NOTSET"),
        )  # fmt: skip
        return np.concatenate(list(sample(x, window, _places(x), seed)))[:, 0]


def _places(array: npt.NDArray[np.floating]) -> int:
    """At how many places to look at an input."""
    return min(_ROWS * len(array), _MOST_ROWS)


def find(walk: Walk) -> Iterator[Consumer]:
    """Every operator that can make up for channels, in execution order."""
    graph = walk.model.ir.graph
    fixed = set(graph.outputs)  # and what callers may override
    if walk.model.ir.ir_version >= 4:
        fixed |= set(graph.inputs)
    for node in graph:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain:
            continue
        x, weight = node.inputs[0], node.inputs[1]
        tensor = None if weight is None else stored(weight)
        if x is None or weight is None or tensor is None or tensor.dtype not in FLOATS:
            continue
        if weight in fixed:
            continue
        shape = tuple(dims(tensor))
        if node.op_type == "Conv":
            usable, axis = integer(node, "group", 1) == 1, 1
        elif node.op_type == "Gemm":
            plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
            usable = plain and not integer(node, "transA", 0)
            axis = integer(node, "transB", 0)
        else:
            usable, axis = len(shape) == 2, 0
        axes = walk.labels.get(weight) if usable else None
        labels, outputs = (None, None) if axes is None else (axes[axis], axes[1 - axis])
        if labels is None or outputs is None or stored(x) is not None or len(weight.uses()) > 1:
            continue
        bias, sign = _bias(node, len(outputs))
        bias = None if bias in fixed else bias
        consumer = Consumer(node, x, weight, axis, labels, bias, sign)
        if consumer.features <= MOST_FEATURES:
            yield consumer


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


def compensate(
    walk: Walk, seen: Mapping[Consumer, Moments], removed: Removed, damping: float
) -> list[ir.Value]:
    """Give the weights that read removed channels values that make up for them.

    Must come before the cut.

    Returns:
        The weights and biases that have new values.
    """
    done: list[ir.Value] = []
    for consumer, moments in seen.items():
        kept = walk.atoms.kept(consumer.labels, removed)
        if kept.all() or moments.count < 2:
            continue
        matrix = consumer.matrix()
        features = kept.repeat(consumer.features // consumer.channels)
        fitted, shift = refit(
            matrix, moments.sums, features, damping, bias=consumer.bias is not None
        )
        consumer.put(walk, fitted)
        if consumer.bias is not None:
            old = stored(consumer.bias)
            assert old is not None
            moved = np.asarray(old.numpy(), np.float64) + consumer.sign * shift
            store(walk, consumer.bias, moved)
            done.append(consumer.bias)
        done.append(consumer.weight)
    return done


def store(walk: Walk, value: ir.Value, array: np.ndarray) -> None:
    """Give a constant other values of the same shape and type."""
    tensor = stored(value)
    assert tensor is not None
    kind: Any = tensor.dtype.numpy()
    name = value.name or ""
    new = walk.model.store(ir.Tensor(np.ascontiguousarray(array.astype(kind)), name=name), name)
    node = value.producer()
    if node is not None:
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", new)
    else:
        value.const_value = new
    walk.model.touch(name)
