"""What becomes of a value, number by number, before anything else is done with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import operators, read
from onnxshrink.graph.read import constant
from onnxshrink.kernels.pointwise import FUNCTIONS
from onnxshrink.kernels.ranges import Behind

_MOST_NODES = 12


def behind(value: ir.Value) -> Behind | None:
    """The results of what is computed of each number of a value alone.

    Functions of one number are followed as far as they go, sums and products of several such
    results included: ``x * sigmoid(x)`` is one. Where the value is used in another way too, it is
    a result itself.

    Args:
        value: The value.

    Returns:
        A function from numbers to the results; None where the value is the only one.
    """
    inside: list[ir.Node] = []
    known = {value}
    pending = [node for node, _ in value.uses()]
    while pending and len(inside) < _MOST_NODES:
        node = pending.pop(0)
        if node in inside or not _follows(node, known, value):
            continue
        inside.append(node)
        known.add(node.outputs[0])
        pending += [user for user, _ in node.outputs[0].uses()]
    results = [v for v in _in_order(value, inside) if _leaves(v, inside)]
    if results == [value] or not results:
        return None
    steps = [(node, [_scalar(v) for v in node.inputs], _attributes(node)) for node in inside]

    def run(numbers: npt.NDArray[np.float64]) -> Sequence[npt.NDArray[np.float64]]:
        found: dict[ir.Value | None, Any] = {value: numbers}
        with np.errstate(all="ignore"):
            for node, constants, attributes in steps:
                pairs = zip(node.inputs, constants, strict=True)
                inputs = [found.get(v, c) for v, c in pairs]
                found[node.outputs[0]] = FUNCTIONS[node.op_type](inputs, attributes)
        return [found[result] for result in results]

    return run


def bounds(node: ir.Node) -> tuple[float, float] | None:
    """The range that a Relu or a Clip leaves; None for other nodes, and where it is computed."""
    if node.domain or len(node.outputs) != 1:
        return None
    function, row = operators.of(node, operators.Elementwise), operators.of(node, operators.Limit)
    if function is not None and function.positive:
        return 0.0, np.inf
    if row is None or row.ends is None:
        return None
    found = []
    for index, name, default in zip(row.ends, ("min", "max"), (-np.inf, np.inf), strict=True):
        given = node.inputs[index] if index < len(node.inputs) else None
        end = read.scalar(given) if given is not None else _attributes(node).get(name, default)
        if end is None:
            return None
        found.append(float(end))
    return found[0], found[1]


def _follows(node: ir.Node, known: set[ir.Value], value: ir.Value) -> bool:
    start = value.producer()
    return (
        not node.domain
        and node.op_type in FUNCTIONS
        and len(node.outputs) == 1
        and (start is None or node.graph is start.graph)
        and not any(attribute.is_ref() for attribute in node.attributes.values())
        and all(v is None or v in known or _scalar(v) is not None for v in node.inputs)
    )


def _in_order(value: ir.Value, inside: Sequence[ir.Node]) -> list[ir.Value]:
    return [value, *(node.outputs[0] for node in inside)]


def _leaves(value: ir.Value, inside: Sequence[ir.Node]) -> bool:
    return value.is_graph_output() or any(node not in inside for node, _ in value.uses())


def _scalar(value: ir.Value | None) -> float | None:
    """A constant of one number."""
    tensor = None if value is None else constant(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    number = float(np.asarray(tensor.numpy()).reshape(-1)[0])
    return number if np.isfinite(number) else None


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}
