"""Models that draw random numbers: copies that draw the same ones can be compared."""

from __future__ import annotations

import zlib

import onnx_ir as ir

from onnxshrink.graph import operators, read
from onnxshrink.graph.file.model import Model

_SEEDS = 2**20  # a float holds them exactly


def is_random(model: Model) -> bool:
    """Whether a model draws numbers that differ from run to run."""
    return any(map(_draws, model.nodes))


def seeded(model: Model) -> Model:
    """A copy whose every draw has a seed, which follows from its name: so has that of other copies.

    It is for comparing answers only; what is written keeps its draws as they are.
    """
    copy = model.clone()
    for node in copy.nodes:
        if _draws(node):
            seed = zlib.crc32((node.outputs[0].name or node.op_type).encode()) % _SEEDS
            random = operators.of(node, operators.Random) is not None  # else a Dropout
            node.attributes["seed"] = (
                ir.AttrFloat32("seed", float(seed)) if random else ir.AttrInt64("seed", seed)
            )
            copy.touch_node(node)
    return copy


def _draws(node: ir.Node) -> bool:
    """Whether a node draws numbers without a seed of its own."""
    if node.domain or "seed" in node.attributes:
        return False
    row = operators.of(node, operators.Elementwise)
    trains = row is not None and row.trains is not None and read.input(node, row.trains)
    return operators.of(node, operators.Random) is not None or bool(trains)
