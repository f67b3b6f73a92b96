"""What a constant is to an operator that has no use for it as a weight, for people."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxshrink.graph.operators.one_by_one import (
    Elementwise,
    Movement,
    Norm,
    Repetition,
    Scatter,
)
from onnxshrink.graph.operators.rows import (
    Control,
    Convolution,
    Deformed,
    Matrices,
    Recurrent,
)
from onnxshrink.graph.operators.table import row as row_of

_OF_RECURRENT = {3: "bias", 5: "initial state", 6: "initial state", 7: "peephole"}


def role(node: ir.Node, index: int) -> str:
    """What an input is to a node, as in ``the bias of Conv``; empty where that is not known."""
    row, kind = row_of(node), node.op_type
    known: Mapping[int, str] = {}
    if isinstance(row, Norm):
        known = {row.gain: "gain", **dict.fromkeys(row.fixed, "statistic")}
        known |= {} if row.shift is None else {row.shift: "shift"}
    elif isinstance(row, Elementwise) and row.slope is not None:
        known = {row.slope: "slope"}
    elif isinstance(row, Recurrent):
        known = _OF_RECURRENT
    elif isinstance(row, Matrices | Convolution | Deformed) and row.bias is not None:
        known = {row.bias: "bias"}
    if index in known:
        return f"the {known[index]} of {kind}"
    if isinstance(row, Movement | Repetition | Scatter):
        return f"moved by {kind}, and no weight of a product"
    carries = isinstance(row, Control) and row.repeats
    return f"the initial state of {kind}" if carries else ""
