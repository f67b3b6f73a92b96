"""The rule of each operator, and why some have none."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxshrink.graph.gradients import (
    elementwise,
    movement,
    norms,
    pooling,
    products,
    quantized,
    reductions,
)
from onnxshrink.graph.gradients.application import Rule

#: Rules by (domain, operator).
RULES: Mapping[tuple[str, str], Rule] = {
    **elementwise.RULES,
    **movement.RULES,
    **norms.RULES,
    **pooling.RULES,
    **products.RULES,
    **quantized.RULES,
    **reductions.RULES,
}

_STEPS = "is a function of steps, whose slope is 0"
_DRAWS = "draws random numbers"
_BODY = "runs a graph of its own"
_STATES = "takes steps that are too many to write out, or computed otherwise than usual"
_UNMET = "is met in hardly any model, and has no rule"

#: Operators that make floating-point numbers of others and have no rule on purpose, and why.
STOPS: Mapping[str, str] = {
    **dict.fromkeys(["Ceil", "Floor", "Hardmax", "Round", "Sign"], _STEPS),
    **dict.fromkeys(["BitCast", "OneHot", "Unique"], "makes other numbers, in steps"),
    "Bernoulli": _DRAWS,
    **dict.fromkeys(["GRU", "LSTM", "RNN"], _STATES),
    **dict.fromkeys(["If", "Loop", "Scan", "SequenceMap"], _BODY),
    **dict.fromkeys(["EyeLike", "MelWeightMatrix"], "makes numbers that it is not given"),
    **dict.fromkeys(
        ["Col2Im", "CumProd", "DFT", "DeformConv", "Det", "GlobalLpPool", "GridSample", "LRN",
         "LpPool", "MaxRoiPool", "MaxUnpool", "Mod", "OptionalGetElement", "RoiAlign", "STFT",
         "Scatter", "TensorScatter", "Upsample"], _UNMET),
}  # fmt: skip


def why_not(node: ir.Node) -> str:
    """Why no gradient passes an operator that has no rule."""
    known = "" if node.domain else STOPS.get(node.op_type, "")
    return known or "has no rule for gradients"
