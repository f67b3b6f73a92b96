"""The numbers of a model that can be tuned while it keeps its form and size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import operators, read
from onnxshrink.graph.analysis import operands
from onnxshrink.graph.analysis.operands import Constant, ConstantOperand
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.operators import Arithmetic, Convolution, Matrices, Norm, QuantizedRow
from onnxshrink.graph.weights.views import FLOATS

Kind = Literal["scales", "tables", "gains", "biases", "weights"]
KINDS: tuple[Kind, ...] = ("scales", "tables", "gains", "biases", "weights")


@dataclass(frozen=True, eq=False)
class Parameter:
    """One constant.

    Attributes:
        value: The constant.
        tensor: Its contents, possibly still on disk.
        kind: ``scales`` of codes, ``tables`` of codebooks, ``gains`` of norms and other products
            with a number for each channel, ``biases`` (in integers, too), ``weights`` that are
            floating-point.
        owner: The name of the operand that it is part of, which people know.
        node: The operator that uses it.
        fixed: Why it must stay as it is; empty where it may change.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    kind: Kind
    owner: str
    node: ir.Node
    fixed: str = ""

    @property
    def name(self) -> str:
        """Its own name."""
        return self.value.name or ""

    @property
    def names(self) -> tuple[str, ...]:
        """What patterns may name it by."""
        return self.node.op_type, self.owner, self.name, self.node.name or ""

    @property
    def differentiated(self) -> str:
        """The value that its gradient is asked of: what floats it becomes, where it only does."""
        users = [node for node, _ in self.value.uses()]
        becomes = len(users) == 1 and (operators.moves(users[0]) == "converts" or self.rounded)
        return (users[0].outputs[0].name or "") if becomes else self.name

    @property
    def rounded(self) -> bool:
        """Whether it is stored in integers."""
        return self.tensor.dtype not in FLOATS

    def numbers(self) -> npt.NDArray[np.float64]:
        """A copy of its contents; the file is let go of."""
        found = np.array(self.tensor.numpy(), np.float64)
        tensors.release(self.tensor)
        return found


def find(model: Model) -> Iterator[Parameter]:
    """Every constant of the main graph that is a number to tune, the largest first."""
    for operand in operands.find(model):
        for part in operand.parts:
            kind = _kind(operand, part)
            if kind is not None and operand.node is not None:
                yield Parameter(
                    part.value, part.tensor, kind, operand.name, operand.node,
                    _fixed(model, operand, part),
                )  # fmt: skip


def _kind(operand: ConstantOperand, part: Constant) -> Kind | None:
    """What a constant is; None where it is nothing to tune."""
    node, index = operand.node, operand.index
    if node is None or not part.size:
        return None
    if part.tensor.dtype not in FLOATS:
        return "biases" if _is_integer_bias(operand, part) else None
    if operand.main.tensor.dtype not in FLOATS:
        if part.path[:1] == ("Sub",):  # a zero point
            return None
        return "tables" if part.path[:1] == ("Gather",) else "scales"
    if part is not operand.main:
        return None
    row = operators.row(node)
    if isinstance(row, QuantizedRow):
        return "scales" if _scales(node, row, index) else None
    if isinstance(row, Norm):
        return "gains" if index == row.gain else "biases" if index == row.shift else None
    if isinstance(row, Matrices | Convolution) and index == row.bias:
        return "biases"
    if isinstance(row, Arithmetic) and _is_vector(part):
        return "gains" if row.scales else "biases"
    if row is not None and row.takes(index) and part.size > 1:
        return "weights" if operand.is_weight else "scales"  # scales of rows, looked up like these
    return None


def _scales(node: ir.Node, row: QuantizedRow, index: int) -> bool:
    """Whether they stand behind codes that are constant: others are those of activations."""
    return index - 1 in row.codes and read.constant(read.input(node, index - 1)) is not None


def _is_vector(part: Constant) -> bool:
    return part.size > 1 and part.size == max(part.shape)


def _fixed(model: Model, operand: ConstantOperand, part: Constant) -> str:
    node = operand.node
    maker = part.value.producer()
    home = part.value.graph if maker is None else maker.graph
    if home is not model.ir.graph or (node is not None and node.graph is not model.ir.graph):
        return "is used in the body of an If, a Loop or a function, where no gradient reaches it"
    if part.value.is_graph_input() and model.ir.ir_version >= 4:
        return "may be overridden by the caller"
    if not bool(np.isfinite(np.asarray(part.tensor.numpy(), np.float64)).all()):
        return "holds NaN or infinity"
    if node is not None and operators.of(node, QuantizedRow) is not None:
        return f"ONNX Runtime computes {node.op_type} right only while its scales are constant"
    if node is not None and part.tensor.dtype in FLOATS and _has_integer_bias(node):
        return "is the unit of a bias that is stored in integers"
    return ""


def _is_integer_bias(operand: ConstantOperand, part: Constant) -> bool:
    """Whether it holds the codes of a product's bias, which one DequantizeLinear makes floats."""
    row = None if operand.node is None else operators.row(operand.node)
    added = isinstance(row, Matrices | Convolution) and operand.index == row.bias
    wide = part.tensor.dtype == ir.DataType.INT32
    return added and wide and part is operand.main and part.path == ("DequantizeLinear",)


def _has_integer_bias(node: ir.Node) -> bool:
    """Whether the bias of a product is codes, whose unit is the product of the scales."""
    row = operators.row(node)
    bias = (
        read.input(node, row.bias) if isinstance(row, Matrices | Convolution) and row.bias else None
    )
    maker = None if bias is None else bias.producer()
    codes = operators.of(maker, QuantizedRow)
    tensor = None if maker is None or codes is None else read.constant(read.input(maker, 0))
    return tensor is not None and tensor.dtype not in FLOATS
