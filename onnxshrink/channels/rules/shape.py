"""Shape and Size, and what is made of numbers alone.

The graph goes on computing with the lengths that it knew.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.labels import Axis, Rule, Walk
from onnxshrink.channels.removal import Cut
from onnxshrink.graph import read


def _shape(walk: Walk, node: ir.Node) -> None:
    x = walk.operand(node, 0)
    walk.hold_outputs(node, "a shape")
    start = read.integer(node, "start", 0) % (x.rank + 1) if x.rank else 0
    end = read.integer(node, "end", x.rank)
    chosen = range(start, min(end + x.rank if end < 0 else end, x.rank))
    parts: list[list[Axis]] = [
        [x.axes[axis], *(digit.labels for digit in walk.carry(node, 0, axis))] for axis in chosen
    ]

    def restore(cut: Cut) -> None:
        known = [[labels for labels in part if labels is not None] for part in parts]
        before = np.array([math.prod(map(len, part)) for part in known], np.int64)
        after = np.array(
            [math.prod(len(each) - cut.removed(each) for each in part) for part in known], np.int64
        )
        if np.array_equal(before, after):
            return
        if node.op_type == "Shape" and all(len(part) == 1 for part in parts):
            cut.add_behind(node, before - after)
            return
        if node.op_type == "Size":
            before, after = before.prod(), after.prod()
        cut.put_behind(node, "Div", [after])
        cut.put_behind(node, "Mul", [before])

    walk.on_cut(node, restore)


def _made(walk: Walk, node: ir.Node) -> None:
    """Ranges, windows, random numbers: no channel reaches them."""
    for index in range(len(node.inputs)):
        if walk.has(node, index):
            walk.keep(node, walk.operand(node, index).axes, "a parameter")
    walk.hold_outputs(node, "made of numbers")


_MADE = (
    "BlackmanWindow", "EyeLike", "HammingWindow", "HannWindow", "MelWeightMatrix", "Multinomial",
    "RandomNormal", "RandomUniform", "Range",
)  # fmt: skip
RULES: dict[tuple[str, str], Rule] = {
    **{("", name): _made for name in _MADE},
    ("", "Shape"): _shape,
    ("", "Size"): _shape,
    ("com.microsoft", "Range"): _made,
}
