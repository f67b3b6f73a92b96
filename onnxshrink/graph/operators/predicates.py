"""What a node does, in one word."""

from __future__ import annotations

from typing import Literal

import onnx
import onnx_ir as ir

from onnxshrink.graph.operators.one_by_one import (
    Arithmetic,
    Choice,
    Movement,
    Repetition,
)
from onnxshrink.graph.operators.rows import (
    Control,
    DynamicQuantizer,
    Limit,
    Lookup,
    QuantizedRow,
)
from onnxshrink.graph.operators.table import of

#: Operators that pick: the input with the numbers, and the one with the table.
_PICKS: dict[str, tuple[tuple[int, int], ...]] = {
    "Gather": ((1, 0),),
    "GatherElements": ((1, 0),),
    "GatherND": ((1, 0),),
    "GatherBlockQuantized": ((1, 0),),
    "EmbedLayerNormalization": ((0, 2), (1, 4)),
}
_SEVERAL_AXES = {"GatherND"}  # an index has a coordinate for each


def moves(node: ir.Node | onnx.NodeProto | None) -> str:
    """How a node moves numbers; empty where it does anything else."""
    row = of(node, Movement)
    return "" if row is None else row.how


def looks_up(node: ir.Node | None) -> bool:
    """Whether a node picks rows of its first input by their numbers, and does nothing else."""
    row = of(node, Lookup)
    return row is not None and row.weights.get(0) == 1


def multiplies(node: ir.Node | None) -> bool:
    """Whether a node multiplies number by number."""
    row = of(node, Arithmetic)
    return row is not None and row.scales and not row.inverse


def adds(node: ir.Node) -> bool:
    """Whether a node adds number to number."""
    row = of(node, Arithmetic)
    return row is not None and not row.scales and not row.inverse


def branches(node: ir.Node | onnx.NodeProto) -> bool:
    """Whether a node runs one of the graphs inside it, once."""
    control = of(node, Control)
    return control is not None and not control.repeats


def dequantizes(node: ir.Node | None) -> bool:
    """Whether a node makes the numbers that codes stand for, each in its place."""
    row = of(node, QuantizedRow)
    if node is None or row is None:
        return False
    return row.codes == (0,) and not row.floats and picks(node, 1) is None


def quantizes(node: ir.Node | None) -> bool:
    """Whether a node makes codes of floating-point numbers."""
    row = of(node, QuantizedRow)
    return (row is not None and row.floats) or of(node, DynamicQuantizer) is not None


def unpacks(node: ir.Node) -> bool:
    """Whether a node rebuilds numbers from what is smaller: codes, narrow types, a table."""
    return dequantizes(node) or looks_up(node) or moves(node) == "converts"


def picks(node: ir.Node, index: int) -> tuple[int, bool] | None:
    """The table that an input's numbers pick from; None where they pick nothing.

    Returns:
        The number of the table's input, and whether one index may be along any of its first axes.
    """
    tables = dict(_PICKS.get(node.op_type, ()))
    return (tables[index], node.op_type in _SEVERAL_AXES) if index in tables else None


def carries(node: ir.Node) -> Literal["", "values", "columns"]:
    """Whether an output holds values of an input: moved, converted, masked or offset.

    Returns:
        ``columns`` where slices of the last axis stay what they are, too.
    """
    movement, sum_ = of(node, Movement), of(node, Arithmetic)
    if sum_ is not None:
        return "" if sum_.scales and sum_.inverse else "columns"
    if of(node, Limit) is not None or (movement and movement.how in ("copies", "converts")):
        return "columns"
    moved = movement is not None or of(node, Choice) is not None
    return "values" if moved or of(node, Repetition) is not None else ""
