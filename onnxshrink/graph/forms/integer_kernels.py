"""Nodes that ONNX Runtime's CPU provider computes with integers, given quantized operands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from onnxshrink.graph import operators, read, weights
from onnxshrink.graph.analysis import shapes
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import codes
from onnxshrink.graph.operators import Arithmetic, Matrices
from onnxshrink.graph.weights.views import WeightView

#: ``product``: multiplies with a weight; ``whole`` and ``part``: hands on numbers as they are, all
#: of them or some; ``function``: computes with a scale of its own for what comes out.
KernelKind = Literal["product", "whole", "part", "function"]

# Found by running one-node models with ONNX Runtime 1.32 and reading what it made of them.
KERNELS: dict[str, KernelKind] = {
    "Conv": "product",
    "Gemm": "product",
    "MatMul": "product",
    "DepthToSpace": "whole",
    "Expand": "whole",
    "Flatten": "whole",
    "MaxPool": "whole",  # but for the range, which it leaves nearly as it is
    "Reshape": "whole",
    "Squeeze": "whole",
    "Tile": "whole",
    "Transpose": "whole",
    "Unsqueeze": "whole",
    "Gather": "part",
    "ReduceMax": "part",
    "ReduceMin": "part",
    "Resize": "part",
    "Slice": "part",
    "Split": "part",
    "Add": "function",
    "AveragePool": "function",
    "Concat": "function",
    "GlobalAveragePool": "function",
    "LeakyRelu": "function",
    "Mul": "function",
    "Sigmoid": "function",
    "Softmax": "function",
}
_BYTES = {ir.DataType.INT8, ir.DataType.UINT8}


@dataclass(frozen=True, eq=False)
class IntegerCandidate:
    """A node that may be computed with integers.

    Attributes:
        node: The node.
        kind: What it does to scales.
        operands: Numbers of the inputs that are activations.
        weight: The constant that a product multiplies with, if any.
        constants: Numbers of the inputs of a function that are constants.
        bias: The constant that it adds, if any.
        why_not: Why it cannot be; empty when it can.
        aliases: Other names that it goes by.
        types: Types that it goes by, for patterns; its own if none are given.
    """

    node: ir.Node
    kind: KernelKind
    operands: tuple[int, ...]
    weight: WeightView | None = None
    constants: tuple[int, ...] = ()
    bias: ir.TensorProtocol | None = None
    why_not: str = ""
    aliases: tuple[str, ...] = ()
    types: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.types.add(self.node.op_type)

    @property
    def op_type(self) -> str:
        """The operator's type."""
        return self.node.op_type

    @property
    def name(self) -> str:
        """What to call it: exporters that leave nodes without a name still name their outputs."""
        return self.node.name or self.node.outputs[0].name or ""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it goes by: its own, its outputs', its weight's, and its aliases."""
        outputs = tuple(value.name or "" for value in self.node.outputs)
        weight = (self.weight.name,) if self.weight else ()
        return (self.node.name or "", *outputs, *weight, *self.aliases)

    @property
    def way(self) -> operators.Product | None:
        """How it multiplies with its weight; None for others."""
        return operators.product(self.node, 1 - self.operands[0]) if self.weight else None

    @property
    def size(self) -> int:
        """Elements of its weight, 0 without one."""
        return self.weight.size if self.weight else 0

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The activations that it takes."""
        taken = (self.node.inputs[i] for i in self.operands)
        return tuple(dict.fromkeys(value for value in taken if value is not None))

    @property
    def needs_codes(self) -> bool:
        """Whether its integer kernel gives codes; those of MatMul and Gemm can give floats too."""
        return operators.of(self.node, Matrices) is None


def kernel(node: ir.Node) -> KernelKind | None:
    """What an integer kernel does to scales; None where there is no kernel for a node."""
    return None if node.domain else KERNELS.get(node.op_type)


def wants_codes(node: ir.Node, index: int) -> bool:
    """Whether an input of a product is a weight whose codes an integer kernel may take.

    Where both operands are rebuilt from codes in front of it, one takes them already.
    """
    if kernel(node) != "product" or index not in operators.sides(node):
        return False
    return not _is_integer(node)


def _is_integer(node: ir.Node) -> bool:
    """Whether a product reads an activation and a weight of which the file holds 8-bit codes."""
    makers = [None if value is None else value.producer() for value in node.inputs[:2]]
    sources = [maker.inputs[0] for maker in makers if maker and operators.dequantizes(maker)]
    fixed = [tensor for tensor in map(read.constant, sources) if tensor is not None]
    return len(sources) == 2 and any(tensor.dtype in _BYTES for tensor in fixed)


def find(model: Model) -> list[IntegerCandidate]:
    """Every node of the table above that works on float32, in the order of the graph."""
    walk = shapes.walk(model)
    floats = {v for v, kind in walk.elements.items() if kind == ir.DataType.FLOAT.value}
    views = {view.value: view for view in weights.find(model)}
    found = []
    for node in model.nodes:
        kind = kernel(node)
        if kind is None:
            continue
        site = _product(node, views) if kind == "product" else _other(node, kind)
        if site is not None and (site.weight or all(value in floats for value in site.inputs)):
            found.append(site)
    return found


def _other(node: ir.Node, kind: KernelKind) -> IntegerCandidate | None:
    several = operators.of(node, Arithmetic) is not None or operators.moves(node) == "joins"
    every = range(len(node.inputs) if several else 1)
    taken = [node.inputs[index] for index in every]
    fixed = [read.constant(value) for value in taken]
    if None in taken or None not in fixed or read.obstacle(node):
        return None  # left out, constant folding's business, or what it does is not known
    if any(tensor is not None and tensor.dtype != ir.DataType.FLOAT for tensor in fixed):
        return None
    if kind == "part" and read.text(node, "mode", "nearest") != "nearest":
        return None
    if kind == "whole" and len(node.outputs) > 1:
        return None
    constants = tuple(i for i, tensor in zip(every, fixed, strict=True) if tensor is not None)
    return IntegerCandidate(
        node, kind, tuple(i for i in every if i not in constants), constants=constants
    )


def _product(node: ir.Node, views: Mapping[ir.Value, WeightView]) -> IntegerCandidate | None:
    first, second = node.inputs[0], node.inputs[1]
    if first is None or second is None:
        return None
    constants = [read.constant(first), read.constant(second)]
    if None not in constants:
        return None  # constant folding's business
    if constants == [None, None] and _is_integer(node):
        return IntegerCandidate(node, "product", (0, 1), why_not="computes with integers already")
    if constants == [None, None]:
        row = operators.of(node, Matrices)
        where = "an input" if second.is_graph_input() else "computed"
        why = "" if row is not None and row.bias is None else f"its weight is {where}"
        return IntegerCandidate(node, "product", (0, 1), why_not=why)
    at = 0 if constants[0] is not None else 1
    view = views.get((first, second)[at])
    if view is None:
        return None  # integers
    bias, why = _bias(node)
    why = why or read.obstacle(node) or _obstacle(node, view, at)
    return IntegerCandidate(node, "product", (1 - at,), view, bias=bias, why_not=why)


def _bias(node: ir.Node) -> tuple[ir.TensorProtocol | None, str]:
    """The bias of a product, and why it cannot become integers."""
    value = read.input(node, 2)
    if value is None:
        return None, ""
    tensor = read.constant(value)
    if value.is_graph_input():
        return None, "its bias is an input"
    if tensor is None and (widened := codes.floats(value)) is not None:
        tensor = ir.Tensor(widened, name=value.name)
    if tensor is None:
        return None, "its bias is computed"
    if tensor.dtype != ir.DataType.FLOAT:
        return None, _computes_in(tensor.dtype)
    if max(tensor.shape.numpy(), default=1) != tensor.size:
        return None, "its bias is not a vector"
    return tensor, ""


def _obstacle(node: ir.Node, view: WeightView, at: int) -> str:
    """Why a product with this weight has no integer kernel, or none that pays."""
    if view.why_not:
        return view.why_not
    if view.dtype != ir.DataType.FLOAT:
        return _computes_in(view.dtype)
    if any(not use.direct for use in view.uses):
        return "its weight is rearranged before it is used"
    others = {use.op_type for use in view.uses if kernel(use.node) != "product"}
    if others or view.others:
        return f"its weight is used by {', '.join(sorted({*others, *view.others}))} too"
    way = operators.product(node, at)
    if way is not None and way.takes_bias and not way.convolves:
        if at == 0:
            return "its weight is on the left"
        if way.transposes_activation or way.alpha != 1:
            return "ONNX Runtime has no integer kernel for transA or alpha"
        if way.bias is not None and way.beta != 1:
            return "ONNX Runtime has no integer kernel for beta"
    return ""


def _computes_in(dtype: ir.DataType) -> str:
    name = "float64" if dtype == ir.DataType.DOUBLE else dtype.name.lower()
    return f"computes in {name}"
