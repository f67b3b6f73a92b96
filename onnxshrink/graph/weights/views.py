"""Weights and their uses: one constant, wherever it lives and however it is reached.

``find(model)`` yields a :class:`WeightView` for every floating-point constant that an operator of
the table below multiplies with, looks up, or adds. To teach every pass a new operator, add one
row to ``OPERATORS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.model import Model

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


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


@dataclass(frozen=True)
class Use:
    """One operator that uses a weight.

    Attributes:
        node: The operator.
        index: Which of its inputs the weight is.
        axes: Roles of the axes as the weight is *stored*, whatever Transpose lies between.
        activation: The value that the weight is multiplied with, or the indices of a lookup.
        direct: Whether nothing lies between the weight and the operator.
    """

    node: ir.Node
    index: int
    axes: Axes
    activation: ir.Value | None
    direct: bool

    @property
    def op_type(self) -> str:
        """The operator's type, for instance ``MatMul``."""
        return self.node.op_type


# The stored axis of each axis of a value on its way to an operator; None where it was inserted.
Order = tuple[int | None, ...]
Rule = Callable[[ir.Node, int, int], Axes | None]


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.INT:
        return default
    return attribute.as_int()


def _ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.INTS:
        return None
    return tuple(attribute.as_ints())


def _split(rank: int, contract: Sequence[int], groups: int = 1) -> Axes:
    inner = tuple(axis % rank for axis in contract)
    return Axes(tuple(a for a in range(rank) if a not in inner), inner, groups)


def _matmul(node: ir.Node, index: int, rank: int) -> Axes | None:
    left = index == 0
    transposed = _int(node, "transA" if left else "transB", 0)  # FusedMatMul has them too
    inner = -1 if left != bool(transposed) else -2
    return _split(rank, [inner]) if rank > 1 else _split(rank, [0])


def _conv(node: ir.Node, index: int, rank: int) -> Axes | None:
    return _split(rank, range(1, rank))


def _conv_transpose(node: ir.Node, index: int, rank: int) -> Axes | None:
    return _split(rank, [0, *range(2, rank)], _int(node, "group", 1))


def _recurrent(node: ir.Node, index: int, rank: int) -> Axes | None:
    return _split(rank, [2]) if rank == 3 else None


def _lookup(node: ir.Node, index: int, rank: int) -> Axes | None:
    axis = _int(node, "axis", 0) % rank
    return _split(rank, [a for a in range(rank) if a != axis])


def _einsum(node: ir.Node, index: int, rank: int) -> Axes | None:
    attribute = node.attributes.get("equation")
    equation = "" if attribute is None or attribute.is_ref() else str(attribute.value)
    left, _, right = equation.replace(" ", "").partition("->")
    term = (left.split(",") + [""] * 2)[index]
    if not right or len(term) != rank or "." in term or len(set(term)) != rank:
        return None
    return _split(rank, [axis for axis, letter in enumerate(term) if letter not in right])


def _elementwise(node: ir.Node, index: int, rank: int) -> Axes | None:
    return _split(rank, [rank - 1]) if rank > 1 else None


# (domain, operator) -> {input index: (role of its axes, index of the activation or None)}
OPERATORS: dict[tuple[str, str], dict[int, tuple[Rule, int | None]]] = {
    ("", "MatMul"): {0: (_matmul, 1), 1: (_matmul, 0)},
    ("", "Gemm"): {0: (_matmul, 1), 1: (_matmul, 0)},
    ("", "Conv"): {1: (_conv, 0)},
    ("", "ConvTranspose"): {1: (_conv_transpose, 0)},
    ("", "Gather"): {0: (_lookup, 1)},
    ("", "LSTM"): {1: (_recurrent, 0), 2: (_recurrent, None)},
    ("", "GRU"): {1: (_recurrent, 0), 2: (_recurrent, None)},
    ("", "RNN"): {1: (_recurrent, 0), 2: (_recurrent, None)},
    ("", "Einsum"): {0: (_einsum, 1), 1: (_einsum, 0)},
    ("", "Add"): {0: (_elementwise, None), 1: (_elementwise, None)},
    ("", "Sub"): {0: (_elementwise, None), 1: (_elementwise, None)},
    ("", "Mul"): {0: (_elementwise, None), 1: (_elementwise, None)},
    ("com.microsoft", "FusedMatMul"): {0: (_matmul, 1), 1: (_matmul, 0)},
    ("com.microsoft", "FusedGemm"): {0: (_matmul, 1), 1: (_matmul, 0)},
    ("com.microsoft", "FusedConv"): {1: (_conv, 0)},
    ("com.microsoft", "Attention"): {1: (_matmul, 0)},
    ("com.microsoft", "EmbedLayerNormalization"): {i: (_lookup, None) for i in (2, 3, 4)},
}

#: Operators that mark a constant as quantized already.
QUANTIZED = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul",
    "GatherBlockQuantized", "MatMulBnb4", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits",
    "QAttention", "QGemm", "QLinearConv", "QLinearMatMul", "QMoE",
}  # fmt: skip
_INTEGERS = {
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2,
    ir.DataType.UINT2, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2FNUZ,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class WeightView:
    """One constant and all its uses.

    Attributes:
        value: The constant's value in the graph.
        scope: The graph or function that it lives in.
        tensor: Its contents, possibly still on disk.
        uses: The operators of the table that use it, through Transpose, Identity or Cast.
        others: Operators outside the table that use it as well.
        locked: Why its values or its type must not change; empty when they may.
    """

    value: ir.Value
    scope: ir.Graph | ir.Function
    tensor: ir.TensorProtocol
    uses: tuple[Use, ...]
    others: tuple[str, ...]
    locked: str = ""

    @property
    def why_not(self) -> str:
        """Why a weight pass must leave it alone; empty when it may be changed."""
        if self.locked or self.uses:
            return self.locked
        return f"not a weight of a known operator ({', '.join(sorted(set(self.others)))})"

    @property
    def name(self) -> str:
        """The name of the constant's value."""
        return self.value.name or ""

    @property
    def op_type(self) -> str:
        """The type of the operator that decides the roles of the axes."""
        return self.main.op_type if self.uses else (self.others or ("",))[0]

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of the operators that use it."""
        return tuple(use.node.name or "" for use in self.uses)

    @property
    def types(self) -> set[str]:
        """Types of the operators that use it, as patterns name them."""
        return {use.op_type for use in self.uses} or {self.op_type}

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it goes by: its own, and those of the nodes that use it."""
        return (self.name, *self.node_names)

    @property
    def main(self) -> Use:
        """The use that decides: a product before a lookup before an addition."""
        order = list(OPERATORS)
        return min(self.uses, key=lambda use: order.index((use.node.domain, use.op_type)))

    @property
    def axes(self) -> Axes:
        """Roles of the axes of the stored tensor, by the main use."""
        return self.main.axes

    @property
    def activation(self) -> ir.Value | None:
        """The value to observe for statistics of this weight's inputs."""
        return self.main.activation

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored tensor."""
        return tuple(int(dim) for dim in self.tensor.shape)  # type: ignore[arg-type]

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.tensor.nbytes

    @property
    def dtype(self) -> ir.DataType:
        """Stored type."""
        return self.tensor.dtype

    @property
    def is_node(self) -> bool:
        """Whether it is the output of a Constant node rather than an initializer."""
        return self.value.producer() is not None

    def array(self) -> npt.NDArray[np.floating]:
        """The stored values; call :meth:`release` when done with them."""
        return self.tensor.numpy()

    def release(self) -> None:
        """Let go of the file behind the values."""
        tensors.release(self.tensor)

    @cached_property
    def _canonical(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shape with ConvTranspose's groups apart; the order of axes that puts outputs first."""
        shape, axes = self.shape, self.axes
        if axes.groups == 1:
            return shape, axes.out + axes.contract
        split = (axes.groups, shape[0] // axes.groups, *shape[1:])
        return split, (0, 2, 1, *range(3, len(split)))

    @property
    def matrix(self) -> npt.NDArray[np.floating]:
        """The weights as [outputs, inputs]: one row holds all that makes one output channel.

        Batched MatMul, LSTM directions and gates count as outputs.
        """
        return self.to_matrix(self.array())

    def to_matrix(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array of the stored shape, laid out as :attr:`matrix`."""
        shape, order = self._canonical
        moved: npt.NDArray[Any] = stored.reshape(shape).transpose(order)
        return moved.reshape(self._rows, -1)

    @property
    def _rows(self) -> int:
        axes = self.axes
        return axes.groups * math.prod(self.shape[axis] for axis in axes.out)

    def from_matrix(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Undo :attr:`matrix`: the stored layout of a [outputs, inputs] array."""
        shape, order = self._canonical
        moved = matrix.reshape([shape[axis] for axis in order])
        stored: npt.NDArray[Any] = moved.transpose(np.argsort(order)).reshape(self.shape)
        return stored


def find(model: Model) -> Iterator[WeightView]:
    """Every floating-point weight of the model, and every one that is quantized already.

    The largest first, so that a progress bar is honest and a budget is met early.
    """
    found: list[WeightView] = []
    for scope in model.scopes:
        constants = list(scope.initializers.values()) if isinstance(scope, ir.Graph) else []
        constants += [node.outputs[0] for node in scope if node.op_type == "Constant"]
        for value in constants:
            tensor = constant(value)
            if tensor is not None and math.prod(tensor.shape) > 0:  # type: ignore[arg-type]
                view = _view(model, value, scope, tensor)
                if view is not None:
                    found.append(view)
    yield from sorted(found, key=lambda view: -view.nbytes)


def constant(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node; None for what is computed or given."""
    node = value.producer()
    if node is None:
        return value.const_value
    if node.op_type != "Constant" or node.domain:  # ConstantOfShape has a 'value' too
        return None
    attribute = node.attributes.get("value")
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
        return None
    return attribute.as_tensor()


def _view(
    model: Model, value: ir.Value, scope: ir.Graph | ir.Function, tensor: ir.TensorProtocol
) -> WeightView | None:
    if tensor.dtype in FLOATS:
        tracer = _Tracer(model, len(tensor.shape))
        tracer.follow(value, tuple(range(tracer.rank)), direct=True)
        uses, others = tuple(tracer.uses), tuple(tracer.others)
        if not uses and not others and not tracer.rebuilds:
            return None
        return WeightView(value, scope, tensor, uses, others, tracer.obstacle(value))
    if tensor.dtype in _INTEGERS and (how := _quantized_by(value)):
        return WeightView(value, scope, tensor, (), (how,), f"already quantized ({how})")
    return None


class _Tracer:
    """Collects the operators that one constant reaches."""

    def __init__(self, model: Model, rank: int):
        self.model = model
        self.rank = rank
        self.uses: list[Use] = []
        self.others: list[str] = []
        self.escapes = False
        self.rebuilds = False

    def follow(self, value: ir.Value, order: Order, *, direct: bool) -> None:
        """Visit what uses ``value``, whose axis i is the stored axis ``order[i]``."""
        self.escapes |= value.is_graph_output()
        for node, index in value.uses():
            called = self.model.ir.functions.get(node.op_identifier())
            if called is not None and index < len(called.inputs):
                self.follow(called.inputs[index], order, direct=False)
            elif (moved := _rearranged(node, index, order)) is not None:
                for output in node.outputs:
                    self.follow(output, moved, direct=False)
            elif _rebuilds(node, index):
                self.rebuilds = True
            elif (use := self._use(node, index, order, direct)) is not None:
                self.uses.append(use)
            else:
                self.others.append(node.op_type)

    def _use(self, node: ir.Node, index: int, order: Order, direct: bool) -> Use | None:
        row = OPERATORS.get((node.domain, node.op_type), {}).get(index)
        if row is None or not order:
            return None
        rule, other = row
        axes = rule(node, index, len(order))
        if axes is None:
            return None
        contract = tuple(stored for axis in axes.contract if (stored := order[axis]) is not None)
        out = tuple(stored for axis in axes.out if (stored := order[axis]) is not None)
        # What Squeeze took away has size 1 and counts as an output.
        out += tuple(axis for axis in range(self.rank) if axis not in {*out, *contract})
        activation = node.inputs[other] if other is not None and other < len(node.inputs) else None
        return Use(node, index, Axes(out, contract, axes.groups), activation, direct)

    def obstacle(self, value: ir.Value) -> str:
        """Why the constant must stay as it is; empty when it need not.

        A constant that only quantized operators use is theirs: a scale, or a bias in their units.
        """
        if self.escapes:
            return "is an output of a graph: its values must stay"
        if value.is_graph_input() and self.model.ir.ir_version >= 4:
            return "is a default that the caller may override, unless 'clean --fix-defaults' ran"
        if self.rebuilds:
            return "is a scale, zero point or table of a compressed weight"
        if quantized := set(self.others) & QUANTIZED:
            return f"belongs to a quantized operator ({', '.join(sorted(quantized))})"
        if len({use.axes.groups for use in self.uses}) > 1:
            return "its uses disagree about channel groups"
        return ""


def _rebuilds(node: ir.Node, index: int) -> bool:
    """Whether a node rebuilds a weight from integer codes: by Mul or Sub, or by a table."""
    if node.op_type in ("Mul", "Sub"):
        return any(map(_from_codes, node.inputs))
    if node.op_type != "Gather" or index:
        return False
    ends = [node.outputs[0]]  # rows of scales, for rows of codes that another lookup picks
    ends += [use.node.outputs[0] for use in ends[0].uses() if use.node.op_type == "Cast"]
    scaled = (use.node for end in ends for use in end.uses() if use.node.op_type == "Mul")
    return _from_codes(node.inputs[1]) or any(
        map(_from_codes, (v for n in scaled for v in n.inputs))
    )


def _from_codes(value: ir.Value | None, depth: int = 8) -> bool:
    """Whether a value is integer codes on their way to becoming a weight."""
    if value is None or depth == 0:
        return False
    tensor, node = constant(value), value.producer()
    if tensor is not None or node is None:
        return tensor is not None and tensor.dtype in _INTEGERS
    if node.op_type == "Gather":  # of rows of codes, or of a table by codes
        rows = node.inputs[0]
        rows = rows if rows is not None and constant(rows) is not None else None
        return _from_codes(rows) or _from_codes(node.inputs[1], depth - 1)
    moves = node.op_type in ("Add", "Cast", "CumSum", "Reshape", "Slice", "Sub", "Transpose")
    return moves and _from_codes(node.inputs[0], depth - 1)


def _rearranged(node: ir.Node, index: int, order: Order) -> Order | None:
    """The order of axes behind a node that only moves or copies values; None for other nodes."""
    if node.op_type == "Concat":
        return order if all(map(_is_constant, node.inputs)) else None
    if node.op_type == "Identity" or (node.op_type in ("Slice", "Split", "Pad") and index == 0):
        return order
    if node.op_type == "Cast":
        return order if _int(node, "to", 1) in FLOATS else None
    if node.op_type == "Transpose":
        perm = _ints(node, "perm") or tuple(range(len(order)))[::-1]
        return tuple(order[a] for a in perm) if sorted(perm) == list(range(len(order))) else None
    if node.op_type in ("Unsqueeze", "Squeeze") and index == 0:
        axes = _axes(node)
        if axes is None:
            return None
        if node.op_type == "Squeeze":
            gone = {axis % len(order) for axis in axes}
            return tuple(name for axis, name in enumerate(order) if axis not in gone)
        rank, kept = len(order) + len(axes), iter(order)
        new = {axis % rank for axis in axes}
        return tuple(None if axis in new else next(kept) for axis in range(rank))
    return None


def _is_constant(value: ir.Value | None, depth: int = 8) -> bool:
    """Whether a value is a constant, or a rearrangement of constants."""
    if value is None or value.const_value is not None:
        return True
    node = value.producer()
    if node is None or depth == 0:
        return False
    if node.op_type == "Constant":
        return True
    moves = _rearranged(node, 0, (None,) * 8) is not None
    return moves and all(_is_constant(v, depth - 1) for v in node.inputs)


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """The axes of Squeeze or Unsqueeze: an attribute before opset 13, an input since."""
    if (axes := _ints(node, "axes")) is not None:
        return axes
    source = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = None if source is None else constant(source)
    return None if tensor is None else tuple(tensor.numpy().reshape(-1).tolist())


def _quantized_by(value: ir.Value) -> str:
    """The operator that shows an integer constant to be a quantized weight, or nothing."""
    for node, index in value.uses():
        if node.op_type in QUANTIZED:
            return node.op_type
        # Codes of a group of rows are moved to where its table begins.
        after = node.outputs[0].uses() if node.op_type == "Add" else [(node, index)]
        if any(later.op_type == "Gather" and place == 1 for later, place in after):
            return "lookup table"
        if node.op_type in ("Cast", "Transpose", "Gather", "Reshape", "Identity"):
            types = {use.node.op_type for use in node.outputs[0].uses()}
            if node.op_type == "Cast" and types & {"Mul", "Sub"}:
                return "Cast, Mul"
            if how := _quantized_by(node.outputs[0]):
                return how
    return ""
