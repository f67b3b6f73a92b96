"""What an operand is computed from, where that is constants alone, and how it depends on each.

A compressed weight is rebuilt by nodes: codes and scales, a table and its indices, halves joined.
Whatever these nodes are, the weight is linear in its scales and its tables, and each element
depends on one of their numbers at most. Which one, and how strongly, is found by computing the
weight with other numbers instead: zeros, ones, and the digits of their positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxshrink.graph import operators
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.read import constant
from onnxshrink.graph.weights.views import FLOATS
from onnxshrink.kernels.leastsquares import Linear

#: Digits of positions stay below this, so that the shortest float types keep them apart.
_DIGIT = 64
_MOST_SHARED = 256  # distinct values of what is treated as a codebook
_ROUNDING = 1e-2  # of the shortest float types
_IN, _OUT = "chain.in", "chain.out"
_INITIALIZERS_ALONE = 4  # the IR version since which an initializer need not be an input

#: Runs a model on every feed; its one output for each.
RunModel = Callable[[onnx.ModelProto, Sequence[Mapping[str, np.ndarray]]], list[np.ndarray]]


@dataclass(frozen=True)
class Origin:
    """A constant that an operand depends on.

    Attributes:
        value: The constant.
        tensor: Its contents.
        linear: How the operand's elements, in the operand's shape, are made of its numbers.
        reader: The first operator on the way, apart from casts; None where there is none.
        table: The numbers, where the constant holds a few of them again and again.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    linear: Linear
    reader: ir.Node | None
    table: npt.NDArray[np.float64] | None = None

    @property
    def numbers(self) -> npt.NDArray[np.float64]:
        """The constant's numbers in one row; those that it shares once."""
        if self.table is not None:
            return self.table
        return _read(self.tensor).astype(np.float64).ravel()

    def rounded(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Numbers as the constant's type holds them."""
        with np.errstate(over="ignore"):
            kept: npt.NDArray[np.float64] = numbers.astype(self.tensor.dtype.numpy())
        return kept.astype(np.float64)

    def stored(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The constant's contents with these numbers."""
        if self.table is not None:
            numbers = numbers[np.searchsorted(self.table, _read(self.tensor).astype(np.float64))]
        return numbers.reshape(tuple(self.tensor.shape.numpy()))

    def shared(self) -> Origin:
        """The same, with equal numbers taken for one where there are few, as in a codebook."""
        values = self.numbers
        table, index = np.unique(values, return_inverse=True)
        if not 1 < len(table) <= min(_MOST_SHARED, len(values) // 4):
            return self
        linear = Linear(self.linear.coefficient, index.reshape(-1)[self.linear.index])
        return replace(self, linear=linear, table=table)


class Dependence:
    """The nodes and constants that one operand is computed from.

    Args:
        model: The model.
        value: The operand.
        run: Runs a small model on some feeds.

    Attributes:
        constant: Whether it depends on constants alone.
    """

    def __init__(self, model: Model, value: ir.Value, run: RunModel):
        self._model, self._value, self._run = model, value, run
        self._nodes: dict[ir.Node, None] = {}
        self._constants: dict[ir.Value, ir.TensorProtocol] = {}
        self.constant = self._collect(value)

    def _collect(self, value: ir.Value) -> bool:
        node, tensor = value.producer(), constant(value)
        if tensor is not None:
            self._constants[value] = tensor
            return not value.is_graph_input() or self._model.ir.ir_version < 4
        if node is None or node.op_identifier() in self._model.ir.functions:
            return False
        if any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            return False
        fixed = all(self._collect(v) for v in node.inputs if v is not None)
        self._nodes[node] = None  # behind those that it needs
        return fixed and len(node.inputs) > 0

    def _proto(self, free: ir.Value | None) -> onnx.ModelProto:
        """A model of the chain alone, in and out as float32; one constant may be its input."""
        named = {v.name or "": tensor for v, tensor in self._constants.items() if v is not free}
        nodes = [ir.to_proto(node) for node in self._nodes]
        inputs = []
        if free is not None:
            shape = list(self._constants[free].shape.numpy())
            inputs = [onnx.helper.make_tensor_value_info(_IN, onnx.TensorProto.FLOAT, shape)]
            kind = self._constants[free].dtype.value
            nodes.insert(0, onnx.helper.make_node("Cast", [_IN], [free.name or ""], to=kind))
        last = onnx.helper.make_node("Cast", [self._value.name or ""], [_OUT], to=1)
        output = onnx.helper.make_tensor_value_info(_OUT, onnx.TensorProto.FLOAT, None)
        graph = onnx.helper.make_graph([*nodes, last], "chain", inputs, [output])
        for name, tensor in named.items():
            stored = ir.to_proto(ir.Tensor(_read(tensor), dtype=tensor.dtype, name=name))
            graph.initializer.append(stored)
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in self._model.ir.opset_imports.items()]
        version = max(self._model.ir.ir_version, _INITIALIZERS_ALONE)
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=version)

    @cached_property
    def array(self) -> npt.NDArray[np.float64]:
        """The operand's values."""
        if not self._nodes:
            return _read(self._constants[self._value]).astype(np.float64)
        (result,) = self._run(self._proto(None), [{}])
        return result.astype(np.float64)

    def origins(self, user: ir.Node) -> Iterator[Origin]:
        """The floating-point constants that the operand is linear in and that make nothing else.

        Args:
            user: The operator of the operand.
        """
        for value, tensor in self._constants.items():
            if tensor.dtype not in FLOATS or not self._only_for(value, user):
                continue
            if not math.prod(tensor.shape.numpy()):
                continue
            linear = self._linear(value, tensor)
            if linear is not None:
                yield Origin(value, tensor, linear, self._first(value))

    def _only_for(self, value: ir.Value, user: ir.Node) -> bool:
        """Whether a value is used on the way to the operand only, and the operand by one node."""
        if value.is_graph_output():
            return False
        for node, _ in value.uses():
            if node is user:
                if value is not self._value:
                    return False
            elif node not in self._nodes or not self._only_for(node.outputs[0], user):
                return False
        return True

    def _first(self, value: ir.Value) -> ir.Node | None:
        for node, _ in value.uses():
            converts = operators.moves(node) == "converts"
            return self._first(node.outputs[0]) if converts else node
        return None

    def _linear(self, value: ir.Value, tensor: ir.TensorProtocol) -> Linear | None:
        """None where the operand is not linear in a constant, or shifted by it (a zero point)."""
        shape = tuple(tensor.shape.numpy())
        count = math.prod(shape)
        if not self._nodes:
            return Linear(np.ones(shape), np.arange(count).reshape(shape))
        places = np.arange(count)
        digits = [places]
        while digits[-1].max(initial=0) >= _DIGIT:
            digits[-1:] = [digits[-1] % _DIGIT, digits[-1] // _DIGIT]
        probe = (places % 7 - 3.0) / 4
        given = [np.zeros(count), np.ones(count), probe, *digits]
        feeds = [{_IN: numbers.astype(np.float32).reshape(shape)} for numbers in given]
        made = (array.astype(np.float64) for array in self._run(self._proto(value), feeds))
        if next(made).any():
            return None
        coefficient, probed = next(made), next(made)
        index = np.zeros(coefficient.shape, np.int64)
        for place, digit in enumerate(made):
            alive = coefficient != 0
            found = np.divide(digit, coefficient, out=np.zeros(digit.shape), where=alive)
            index += _DIGIT**place * np.rint(found).astype(np.int64)
        linear = Linear(coefficient, index.clip(0, count - 1))
        # What is not linear (a product of a constant with itself) shows here.
        return linear if np.allclose(linear.expand(probe), probed, rtol=_ROUNDING) else None


def _read(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
    """A copy of a tensor's contents, its file let go of."""
    array = np.array(tensor.numpy())
    tensors.release(tensor)
    return array
