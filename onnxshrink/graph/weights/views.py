"""Weights and their uses: one constant, wherever it lives and however it is reached.

``find(model)`` yields a :class:`WeightView` for every floating-point constant that an operator of
the table in ``operators`` multiplies with, looks up, or adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import operators, read
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.operators import (
    Arithmetic,
    Axes,
    Lookup,
    Movement,
    OneByOne,
    Product,
    QuantizedRow,
    Repetition,
    Row,
)
from onnxshrink.graph.read import constant

#: Movements through which codes are followed.
_CODES_FOLLOW = ("converts", "parts", "pads", "permutes", "reshapes")
FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


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

    @property
    def row(self) -> Row:
        """What the operator is."""
        row = operators.row(self.node)
        assert row is not None
        return row

    @property
    def product(self) -> Product | None:
        """How the operator multiplies with the weight; None where it is no product."""
        return operators.product(self.node, self.index)

    @property
    def is_lookup(self) -> bool:
        """Whether rows of the weight are picked by their numbers."""
        return isinstance(self.row, Lookup)

    @property
    def picks_rows(self) -> bool:
        """Whether one input holds the numbers of rows of the weight, which lies as it is stored."""
        return self._picks and self.axes.out == (0,) and self.direct

    @property
    def picks_columns(self) -> bool:
        """Whether one input holds the numbers of rows of what is stored as their columns."""
        return self._picks and self.axes.out == (1,)

    @property
    def _picks(self) -> bool:
        return self.is_lookup and self.activation is not None

    @property
    def is_one_by_one(self) -> bool:
        """Whether its numbers are added, multiplied, chosen or handed on one by one."""
        return isinstance(self.row, OneByOne)


#: The stored axis of each axis of a value on its way to an operator; None where it was inserted.
Order = tuple[int | None, ...]

_INTEGERS = {
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2,
    ir.DataType.UINT2, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2FNUZ,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class WeightView(read.HasTensor):
    """One constant and all its uses.

    Attributes:
        value: The constant's value in the graph.
        scope: The graph or function that it lives in.
        tensor: Its contents, possibly still on disk.
        uses: The operators of the table that use it, through Transpose, Identity or Cast.
        others: Operators outside the table that use it as well.
        locked: Why its values or its type must not change; empty when they may.
        roles: What it is to those outside the table, as far as that is known.
    """

    value: ir.Value
    scope: ir.Graph | ir.Function
    tensor: ir.TensorProtocol
    uses: tuple[Use, ...]
    others: tuple[str, ...]
    locked: str = ""
    roles: tuple[str, ...] = ()

    @property
    def why_not(self) -> str:
        """Why a weight pass must leave it alone; empty when it may be changed."""
        if self.locked or self.uses:
            return self.locked
        if self.roles and all(self.roles):
            return f"is {' and '.join(sorted(set(self.roles)))}"
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
        order = list(operators.TABLE)
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
    def is_vector(self) -> bool:
        """Whether no more than one of its axes is longer than 1, as of a bias or a norm's gains."""
        return self.size == max(self.shape, default=1)

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
        constants += [node.outputs[0] for node in scope if _holds_tensor(node)]
        for value in constants:
            tensor = constant(value)
            if tensor is not None and math.prod(tensor.shape) > 0:  # type: ignore[arg-type]
                view = _view(model, value, scope, tensor)
                if view is not None:
                    found.append(view)
    yield from sorted(found, key=lambda view: -view.nbytes)


def _holds_tensor(node: ir.Node) -> bool:
    """Whether a node is a constant that could be a weight; those in plain numbers are short."""
    return read.is_constant(node) and "value" in node.attributes


def _view(
    model: Model, value: ir.Value, scope: ir.Graph | ir.Function, tensor: ir.TensorProtocol
) -> WeightView | None:
    if tensor.dtype in FLOATS:
        tracer = _Tracer(model, read.shape(tensor))
        tracer.follow(value, tuple(range(tracer.rank)), direct=True)
        uses, others = tuple(tracer.uses), tuple(tracer.others)
        if not uses and not others and not tracer.rebuilds:
            return None
        roles = tuple(tracer.roles)
        return WeightView(value, scope, tensor, uses, others, tracer.obstacle(value), roles)
    if tensor.dtype in _INTEGERS and (how := _quantized_by(value)):
        return WeightView(value, scope, tensor, (), (how,), f"already quantized ({how})")
    return None


class _Tracer:
    """Collects the operators that one constant reaches."""

    def __init__(self, model: Model, shape: tuple[int, ...]):
        self.model = model
        self.shape = shape
        self.rank = len(shape)
        self.uses: list[Use] = []
        self.others: list[str] = []
        self.roles: list[str] = []
        self.quantized: set[str] = set()
        self.escapes = False
        self.rebuilds = False

    def follow(self, value: ir.Value, order: Order, *, direct: bool) -> None:
        """Visit what uses ``value``, whose axis i is the stored axis ``order[i]``."""
        self.escapes |= value.is_graph_output()
        for node, index in value.uses():
            called = self.model.ir.functions.get(node.op_identifier())
            if called is not None and index < len(called.inputs):
                self.follow(called.inputs[index], order, direct=False)
            elif (scanned := _scanned(node, index, order)) is not None:
                self.follow(*scanned, direct=False)
            elif (moved := _rearranged(node, index, order)) is not None:
                for output in node.outputs:
                    self.follow(output, moved, direct=False)
            elif _rebuilds(node, index):
                self.rebuilds = True
            elif (use := self._use(node, index, order, direct)) is not None:
                self.uses.append(use)
            else:
                self.others.append(node.op_type)
                self.roles.append(operators.role(node, index))
                self.quantized |= {node.op_type} if _takes_codes(node) else set()

    def _use(self, node: ir.Node, index: int, order: Order, direct: bool) -> Use | None:
        row = operators.row(node)
        if row is None or not row.takes(index) or not order:
            return None
        if isinstance(row, OneByOne):
            rows = row.rows(self.shape)
            return None if rows is None else Use(node, index, rows, None, direct)
        other = row.weights[index]
        axes = row.axes(node, index, len(order))
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
        if self.quantized:
            return f"belongs to a quantized operator ({', '.join(sorted(self.quantized))})"
        if len({use.axes.groups for use in self.uses}) > 1:
            return "its uses disagree about channel groups"
        return ""


def _scanned(node: ir.Node, index: int, order: Order) -> tuple[ir.Value, Order] | None:
    """What a Scan's body calls a value that is scanned, and the order of its axes there."""
    control = operators.of(node, operators.Control)
    if control is None or not control.slices or not order or read.obstacle(node):
        return None
    body, many = node.attributes["body"].as_graph(), read.integer(node, "num_scan_inputs", 0)
    states = len(node.inputs) - many
    if len(body.inputs) != len(node.inputs) or index < states:
        return None  # operator set 8 has lengths before all others
    axes = read.integers(node, "scan_input_axes") or (0,) * many
    gone = axes[index - states] % len(order)
    return body.inputs[index], order[:gone] + order[gone + 1 :]


def _takes_codes(node: ir.Node) -> bool:
    """Whether an operator marks its constants as quantized already."""
    row = operators.of(node, QuantizedRow)
    return row is not None and not row.floats


def _rebuilds(node: ir.Node, index: int, depth: int = 4) -> bool:
    """Whether a node rebuilds a weight from integer codes: by Mul or Sub, or by a table.

    Or it hands scales or a table on to one that does.
    """
    if isinstance(operators.row(node), Movement | Repetition):
        later = node.outputs[0].uses() if depth else ()
        return any(_rebuilds(user, at, depth - 1) for user, at in later)
    if _rescales(node):
        return any(map(_from_codes, node.inputs))
    if not operators.looks_up(node) or index:
        return False
    scaled = [value for user in _scaled(node.outputs[0]) for value in user.inputs]
    return _from_codes(node.inputs[1]) or any(map(_from_codes, scaled))


def _scaled(value: ir.Value) -> list[ir.Node]:
    """What multiplies a value: of rows of scales, for rows of codes that another lookup picks."""
    users = [user for user, _ in value.uses()]
    ends = [value, *(user.outputs[0] for user in users if operators.moves(user) == "converts")]
    return [user for end in ends for user, _ in end.uses() if operators.multiplies(user)]


def _from_codes(value: ir.Value | None, depth: int = 8) -> bool:
    """Whether a value is integer codes on their way to becoming a weight."""
    if value is None or depth == 0:
        return False
    tensor, node = constant(value), value.producer()
    if tensor is not None or node is None:
        return tensor is not None and tensor.dtype in _INTEGERS
    if operators.looks_up(node):  # of rows of codes, or of a table by codes
        rows = node.inputs[0]
        rows = rows if rows is not None and constant(rows) is not None else None
        return _from_codes(rows) or _from_codes(node.inputs[1], depth - 1)
    row = operators.of(node, Arithmetic)
    shifts = row is not None and not row.scales
    adds_up = operators.of(node, operators.RunningSum) is not None
    follows = shifts or adds_up or operators.moves(node) in _CODES_FOLLOW
    return follows and _from_codes(node.inputs[0], depth - 1)


def _rearranged(node: ir.Node, index: int, order: Order) -> Order | None:
    """The order of axes behind a node that only moves or copies values; None for other nodes."""
    try:
        return _moved(node, index, order)
    except read.Unknown:
        return None


def _moved(node: ir.Node, index: int, order: Order) -> Order | None:
    """The same.

    Raises:
        Unknown: A function takes it from a caller, or it is computed.
    """
    how = operators.moves(node)
    if how == "joins":
        return order if all(map(_is_constant, node.inputs)) else None
    if how == "copies" or (how in ("parts", "pads") and index == 0):
        return order
    if how == "converts":
        return order if read.integer(node, "to", 1) in FLOATS else None
    if how == "permutes":
        perm = read.integers(node, "perm") or tuple(range(len(order)))[::-1]
        return tuple(order[a] for a in perm) if sorted(perm) == list(range(len(order))) else None
    if how not in ("squeezes", "unsqueezes") or index or (axes := read.axes(node)) is None:
        return None
    if how == "squeezes":
        gone = {axis % len(order) for axis in axes}
        return tuple(name for axis, name in enumerate(order) if axis not in gone)
    rank, kept = len(order) + len(axes), iter(order)
    new = {axis % rank for axis in axes}
    return tuple(None if axis in new else next(kept) for axis in range(rank))


def _is_constant(value: ir.Value | None, depth: int = 8) -> bool:
    """Whether a value is a constant, or a rearrangement of constants."""
    if value is None or value.const_value is not None:
        return True
    node = value.producer()
    if node is None or depth == 0:
        return False
    if read.is_constant(node):
        return True
    moves = _rearranged(node, 0, (None,) * 8) is not None
    return moves and all(_is_constant(v, depth - 1) for v in node.inputs)


def _quantized_by(value: ir.Value) -> str:
    """The operator that shows an integer constant to be a quantized weight, or nothing."""
    for node, index in value.uses():
        if _takes_codes(node):
            return node.op_type
        # Codes of a group of rows are moved to where its table begins.
        row, how = operators.of(node, Arithmetic), operators.moves(node)
        adds = row is not None and not row.scales and not row.inverse
        after = node.outputs[0].uses() if adds else [(node, index)]
        if any(operators.looks_up(later) and place == 1 for later, place in after):
            return "lookup table"
        if how == "converts" and any(_rescales(user) for user, _ in node.outputs[0].uses()):
            return "Cast, Mul"
        followed = how in ("converts", "permutes", "reshapes", "copies")
        if (followed or operators.looks_up(node)) and (found := _quantized_by(node.outputs[0])):
            return found
    return ""


def _rescales(node: ir.Node) -> bool:
    """Whether a node takes a zero point from codes, or multiplies them with a scale."""
    row = operators.of(node, Arithmetic)
    return row is not None and bool(row.weights) and (row.scales or row.inverse)
