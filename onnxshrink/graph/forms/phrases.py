"""How the nodes of a model take stored weights, in words that profiles of runtimes use.

``Gather of DequantizeLinear<int8, blocks>`` looks up rows of a table whose int8 codes have scales
in blocks; operators that are not ONNX's own are named by themselves, as
``com.microsoft.MatMulNBits<4 bits>``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from onnxshrink.graph import operators, read
from onnxshrink.graph.analysis import operands

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxshrink.graph.file.model import Model

#: What models have without us, too: it tells nothing.
_PLAIN = frozenset({"", "float", "int64", "bool", "string"})
_ZERO_POINT = 2


def find(model: Model) -> frozenset[str]:
    """The ways in which nodes take what is stored, but for plain floats and integers."""
    stored = {value for value, _ in operands.constants(model)}
    fixed = operands.fixed_values(model, stored)
    found: set[str] = set()
    for node in model.nodes:
        if fixed.isdisjoint(node.outputs):
            words = {_described(value, fixed) for value in node.inputs} - _PLAIN
            found |= {f"{operands.label(node)} of {word}" for word in words}
            if node.domain:
                found.add(_named(node))
    return frozenset(found)


def _named(node: ir.Node) -> str:
    bits = node.attributes.get("bits")
    told = "" if bits is None or bits.is_ref() else f"<{bits.as_int()} bits>"
    return f"{operands.label(node)}{told}"


def _described(value: ir.Value | None, fixed: Collection[ir.Value]) -> str:
    """What a value is rebuilt from; empty where it is computed from what is given."""
    tensor, node = read.constant(value), None if value is None else value.producer()
    if value is None or tensor is not None:
        return "" if tensor is None else _type(tensor)
    if node is None or not (value in fixed or operators.dequantizes(node)):
        return ""
    codes = _first(node) if value in fixed else read.constant(read.input(node, _ZERO_POINT))
    told = [] if codes is None else [_type(codes)]
    block = node.attributes.get("block_size")
    if block is not None and not block.is_ref() and block.as_int():
        told.append("blocks")
    return f"{operands.label(node)}<{', '.join(told)}>"


def _first(node: ir.Node) -> ir.TensorProtocol | None:
    """The constant at the beginning of a chain that rebuilds a weight."""
    first: ir.Node | None = node
    while first is not None and first.inputs:
        source = first.inputs[0]
        tensor = read.constant(source)
        if tensor is not None or source is None:
            return tensor
        first = source.producer()
    return None


def _type(tensor: ir.TensorProtocol) -> str:
    return tensor.dtype.name.lower()
