"""Models that draw random numbers: copies that draw the same ones can be compared."""

from __future__ import annotations

import itertools
import os
import zlib
from typing import Any

import onnx
import onnx_ir as ir

from onnxshrink.graph import operators, read
from onnxshrink.graph.file import wire
from onnxshrink.graph.file.model import Model

_SEEDS = 2**20  # a float holds them exactly


def is_random(model: Model) -> bool:
    """Whether a model draws numbers that differ from run to run."""
    return any(map(_draws, model.nodes))


def has_state(model: Model) -> bool:
    """Whether a session of a model draws other numbers in its second run: seeds begin with it."""
    return any(map(_draws_ever, model.nodes))


def draws(path: str | os.PathLike[str]) -> bool:
    """Whether a model file draws numbers; of one that cannot be read it is not known."""
    try:
        proto = wire.read(os.fspath(path))
    except (OSError, ValueError):  # whoever loads it says so
        return False
    bodies: list[Any] = [proto.graph, *proto.functions]
    while bodies:
        for node in bodies.pop().node:
            if _may_draw(node):
                return is_random(Model.load(path))
            bodies += [graph for a in node.attribute for graph in (a.g, *a.graphs) if graph.node]
    return False


def seeded(model: Model, *, by_number: bool = False) -> Model:
    """A copy whose every draw has a seed, which follows from its name: so has that of other copies.

    It is for comparing answers only; what is written keeps its draws as they are.

    Args:
        model: Left as it is.
        by_number: Seeds follow from the order of draws, as names may not be the same.
    """
    copy, numbers = model.clone(), itertools.count(1)
    for node in copy.nodes:
        if _draws(node):
            name = str(next(numbers)) if by_number else node.outputs[0].name or node.op_type
            seed = zlib.crc32(name.encode()) % _SEEDS
            random = operators.of(node, operators.Random) is not None  # else a Dropout
            node.attributes["seed"] = (
                ir.AttrFloat32("seed", float(seed)) if random else ir.AttrInt64("seed", seed)
            )
            copy.touch_node(node)
    return copy


def _may_draw(node: onnx.NodeProto) -> bool:
    """Whether a node draws numbers, or does so where it is asked to."""
    row = operators.row(node)
    trains = isinstance(row, operators.Elementwise) and row.trains is not None
    return trains or isinstance(row, operators.Random)


def _draws(node: ir.Node) -> bool:
    """Whether a node draws numbers without a seed of its own."""
    return "seed" not in node.attributes and _draws_ever(node)


def _draws_ever(node: ir.Node) -> bool:
    """Whether a node draws numbers."""
    if node.domain:
        return False
    row = operators.of(node, operators.Elementwise)
    trains = row is not None and row.trains is not None and read.input(node, row.trains)
    return operators.of(node, operators.Random) is not None or bool(trains)
