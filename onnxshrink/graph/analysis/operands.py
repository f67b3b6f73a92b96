"""Constants grouped by the operand that they make: a weight with all that it is stored as.

A quantized weight lies in the file as codes, scales and zero points, and nodes rebuild it. Here
these count as one operand of the operator that finally uses it, under the name that the float
weight had: a constant belongs to the first operator on its way that also takes something else
than constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxshrink.graph import operators, read
from onnxshrink.graph.analysis import macs
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.operators import QuantizedRow, Random, of, row
from onnxshrink.graph.weights.views import FLOATS

#: How an operand may be moved into its place.
_MOVES = ("permutes", "copies", "squeezes", "unsqueezes")
_NO_WEIGHTS = {ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING, ir.DataType.UNDEFINED}


@dataclass(frozen=True)
class Constant(read.HasTensor):
    """One constant and how it reaches its operator.

    Attributes:
        value: Its value in the graph.
        tensor: Its contents, possibly still on disk.
        path: Types of the operators that rebuild the operand from it, pure moves left out.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    path: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        if self.tensor.dtype == ir.DataType.STRING:
            return sum(len(text) for text in self.tensor.numpy().reshape(-1))
        return self.tensor.nbytes


@dataclass(frozen=True)
class ConstantOperand:
    """A constant operand of one operator.

    Attributes:
        value: The operand, or what only Transpose and the like move into its place.
        node: The operator that uses it; None when it is unused or an output.
        index: Which of the node's inputs it is.
        nodes: Every operator that uses it.
        parts: The constants that it is made of, the largest first.
        where: What to say when there is no operator.
    """

    value: ir.Value
    node: ir.Node | None
    index: int
    nodes: tuple[ir.Node, ...]
    parts: tuple[Constant, ...]
    where: str = ""

    @property
    def name(self) -> str:
        """The name under which people know it."""
        return self.value.name or ""

    @property
    def op_type(self) -> str:
        """The operator's type, with its domain unless that is the default one."""
        return self.where if self.node is None else label(self.node)

    @property
    def main(self) -> Constant:
        """The part that holds the values or the codes."""
        return self.parts[0]

    @property
    def nbytes(self) -> int:
        """Stored bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    @property
    def is_weight(self) -> bool:
        """Whether it is a parameter of the model, rather than a shape, a scale or an index."""
        tensor = self.main.tensor
        if not self.main.shape or tensor.dtype in _NO_WEIGHTS or self.main.size == 0:
            return False
        if (row := of(self.node, QuantizedRow)) is not None:
            return self.index in row.codes
        if self.node is not None and _looks_up_scales(self.node):
            return False
        return tensor.dtype in FLOATS or tensor.dtype.bitwidth <= 16


def label(node: ir.Node) -> str:
    """A node's type, with its domain unless that is the default one."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _looks_up_scales(node: ir.Node) -> bool:
    """Whether a Gather picks the scales of rows of codes that another Gather picks."""
    if not operators.looks_up(node):
        return False
    users = [user for user, _ in node.outputs[0].uses()]
    ends = [node.outputs[0]]
    ends += [user.outputs[0] for user in users if operators.moves(user) == "converts"]
    products = [user for end in ends for user, _ in end.uses() if operators.multiplies(user)]
    others = [value for product in products for value in product.inputs if value not in ends]
    return any(_looks_up_codes(value) for value in others)


def _looks_up_codes(value: ir.Value | None) -> bool:
    """Whether a value is Cast(Gather(codes, indices))."""
    cast = None if value is None else value.producer()
    converts = operators.moves(cast) == "converts"
    picked = cast.inputs[0] if cast is not None and converts else None
    gather = None if picked is None else picked.producer()
    codes = gather.inputs[0] if gather is not None and operators.looks_up(gather) else None
    return codes is not None and codes.dtype is not None and codes.dtype not in FLOATS


def constants(model: Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Every constant of a model: initializers, and the outputs of Constant nodes."""
    for scope in model.scopes:
        yield from constants_of(scope)


def constants_of(
    scope: ir.Graph | ir.Function,
) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Every constant of one graph or function."""
    if isinstance(scope, ir.Graph):
        for value in scope.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
    for node in scope:
        attribute = node.attributes.get("value") if read.is_constant(node) else None
        if attribute is not None and not attribute.is_ref():
            yield node.outputs[0], attribute.as_tensor()


def find(model: Model) -> list[ConstantOperand]:
    """Every constant operand of a model, the largest first; each constant belongs to one."""
    found = list(constants(model))
    fixed = fixed_values(model, {value for value, _ in found})
    members: dict[ir.Value, list[Constant]] = {}
    reached: dict[ir.Value, list[_Reach]] = {}
    for value, tensor in found:
        ends = _follow(model, value, fixed)
        best = min(ends, key=_rank, default=_Reach(value, None, 0, (), "(unused)"))
        members.setdefault(best.operand, []).append(Constant(value, tensor, best.path))
        if best.operand not in reached or _rank(best) < _rank(reached[best.operand][0]):
            reached[best.operand] = [best, *ends]
    operands = []
    for value, parts in members.items():
        best = reached[value][0]
        nodes = dict.fromkeys(end.node for end in reached[value] if end.node is not None)
        ordered = tuple(sorted(parts, key=lambda part: -part.nbytes))
        operands.append(
            ConstantOperand(value, best.node, best.index, tuple(nodes), ordered, best.where)
        )
    return sorted(operands, key=lambda operand: -operand.nbytes)


@dataclass(frozen=True)
class _Reach:
    """One end of a constant's way."""

    operand: ir.Value
    node: ir.Node | None
    index: int
    path: tuple[str, ...]
    where: str = ""


def _rank(reach: _Reach) -> int:
    """Products before lookups and additions, before anything else."""
    if reach.node is None:
        return 3
    key = (reach.node.domain, reach.node.op_type)
    found = row(reach.node)
    return 0 if key in macs.RULES else 1 if found is not None and found.takes(reach.index) else 2


def fixed_values(model: Model, stored: set[ir.Value]) -> set[ir.Value]:
    """Values that are the same at every run: constants, and what is computed from nothing else."""
    fixed = set(stored)
    for node in model.nodes:
        if (
            len(node.inputs)
            and all(value is None or value in fixed for value in node.inputs)
            and of(node, Random) is None
            and node.op_identifier() not in model.ir.functions
            and not any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values())
        ):
            fixed.update(node.outputs)
    return fixed


def _follow(model: Model, value: ir.Value, fixed: set[ir.Value]) -> list[_Reach]:
    """The operators that a constant reaches through what is computed from constants alone."""
    ends: list[_Reach] = []
    pending: list[tuple[ir.Value, ir.Value, tuple[str, ...]]] = [(value, value, ())]
    seen = {value}
    while pending:
        at, operand, path = pending.pop(0)
        if at.is_graph_output():
            ends.append(_Reach(operand, None, 0, path, "(output)"))
        for node, index in at.uses():
            function = model.ir.functions.get(node.op_identifier())
            if function is not None:
                following = [(function.inputs[index], operand, path)]
            elif node.outputs and node.outputs[0] in fixed:
                moved = operators.moves(node) in _MOVES
                following = [
                    (v, operand if moved else v, path if moved else (*path, node.op_type))
                    for v in node.outputs
                ]
            else:
                ends.append(_Reach(operand, node, index, path))
                continue
            pending += [step for step in following if step[0] not in seen]
            seen.update(step[0] for step in following)
    return ends
