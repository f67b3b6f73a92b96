"""Tails that rank or pick: what lies behind them cannot be compared, what enters them can.

Two rows whose scores are next to equal swap places, and a box at the limit of a threshold comes or
goes: outputs differ in all their values, or in shape, though nothing is wrong. As long as nothing
behind such an operator multiplies with weights, the outputs follow from the values that enter.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxshrink.graph import operators, read

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Entering:
    """Where to compare instead.

    Attributes:
        values: Names of the values that enter tails, in the order in which they do.
        outputs: Names of the outputs behind them.
    """

    values: tuple[str, ...] = ()
    outputs: frozenset[str] = frozenset()


def entering(model: Model, at: Collection[str] = ()) -> Entering:
    """The values that enter tails, and the outputs behind them.

    Args:
        model: The model.
        at: Names of values to compare at; empty: what the graph says.
    """
    nodes = list(model.ir.graph)
    made = {value.name: value for node in nodes for value in node.outputs}
    if at:
        starts = [value for name in at if (value := made.get(name)) is not None]
        behind = _behind([node for value in starts for node, _ in value.uses()], nodes)
        covered = {id(value) for node in behind for value in node.outputs}
        outputs = {v.name or "" for v in model.ir.graph.outputs if id(v) in covered}
        return Entering(tuple(value.name or "" for value in starts), frozenset(outputs))
    tail: list[ir.Node] = []
    fixed = _fixed(nodes)
    for node in nodes:
        if _ranks(node) and node not in tail:
            behind = _behind([node], nodes)
            if not any(_weighs(each, fixed) for each in behind):
                tail = [each for each in nodes if each in tail or each in behind]
    if not tail:
        return Entering()
    tail = _with_decisions(tail, nodes)
    inside = {id(value) for node in tail for value in node.outputs}
    found: dict[str, None] = {}
    for value in (value for node in tail for value in node.inputs if value is not None):
        computed = id(value) not in inside and value.producer() is not None
        if computed and value.dtype in (*_FLOATS, None) and id(value) not in fixed:
            found[value.name or ""] = None
    outputs = {v.name or "" for v in model.ir.graph.outputs if id(v) in inside}
    return Entering(tuple(found), frozenset(outputs)) if found and outputs else Entering()


def ranks(model: Model) -> bool:
    """Whether a tail of the model ranks or picks."""
    return bool(entering(model).outputs)


def deciding(model: Model) -> frozenset[str]:
    """Names of the constants on which a decision depends that weights work on.

    Where a model rounds durations and then speaks, or picks and then reads, a little noise has no
    effect at all or a large one.
    """
    nodes = list(model.ir.graph)
    fixed = _fixed(nodes)
    found: set[str] = set()
    left = [
        value
        for node in nodes
        if _turns(node) and any(_weighs(each, fixed) for each in _behind([node], nodes))
        for value in node.inputs
    ]
    seen: set[int] = set()
    while left:
        value = left.pop()
        if value is None or id(value) in seen:
            continue
        seen.add(id(value))
        found.add(value.name or "")
        maker = value.producer()
        left += () if maker is None else maker.inputs
    return frozenset(found)


def exposed(model: Model, names: Collection[str]) -> Model:
    """A copy of a model that also returns some of its intermediate values."""
    given = {value.name for value in model.ir.graph.outputs}
    copy = model.clone()
    made = {v.name: v for node in copy.ir.graph for v in node.outputs}
    for name in dict.fromkeys(names):
        if name in made and name not in given:
            copy.ir.graph.outputs.append(made[name])
            copy.touch(name)
    return copy


def _behind(starts: Collection[ir.Node], nodes: Collection[ir.Node]) -> list[ir.Node]:
    """These nodes and all that follow from them, in the order of execution."""
    reached = set(map(id, starts))
    values = {id(value) for node in starts for value in node.outputs}
    for node in nodes:
        if id(node) in reached or any(id(value) in values for value in node.inputs):
            reached.add(id(node))
            values.update(id(value) for value in node.outputs)
    return [node for node in nodes if id(node) in reached]


def _with_decisions(tail: list[ir.Node], nodes: list[ir.Node]) -> list[ir.Node]:
    """A tail, and in front of it what decides for it alone: thresholds, rounding."""
    inside = set(map(id, tail))
    for node in reversed(nodes):
        uses = [user for value in node.outputs for user, _ in value.uses()]
        for_it = uses and all(id(user) in inside for user in uses)
        if _decides(node) and for_it and not any(value.is_graph_output() for value in node.outputs):
            inside.add(id(node))
    return [node for node in nodes if id(node) in inside]


def _ranks(node: ir.Node) -> bool:
    """Whether a small change of numbers may change all places, or how many there are."""
    row = operators.row(node)
    return isinstance(row, operators.Ranking | operators.Selection)


def _turns(node: ir.Node) -> bool:
    """Whether a node ranks, picks or rounds numbers that are computed."""
    rounds = isinstance(operators.row(node), operators.Rounding)
    return (rounds or _ranks(node)) and all(
        value is None or value.dtype in (*_FLOATS, None) for value in node.inputs[:1]
    )


def _decides(node: ir.Node) -> bool:
    """Whether a node makes one of a few values of each number."""
    row = operators.row(node)
    decides = isinstance(row, operators.Relation | operators.Logic | operators.Rounding)
    return decides or operators.moves(node) == "converts"


def _fixed(nodes: Collection[ir.Node]) -> set[int]:
    """Values that follow from constants alone, as weights do that are stored as integers."""
    found: set[int] = set()
    for node in nodes:
        values = [value for value in node.inputs if value is not None]
        found.update(id(value) for value in values if read.constant(value) is not None)
        free = any(read.bodies(node)) or operators.of(node, operators.Random) is not None
        if not free and all(id(value) in found for value in values):
            found.update(id(value) for value in node.outputs)
    return found


def _weighs(node: ir.Node, fixed: set[int]) -> bool:
    """Whether a node multiplies with weights, or may do so inside."""
    if any(read.bodies(node)) or node.domain not in ("", "com.microsoft"):
        return True
    return any(
        operators.product(node, place) is not None and id(value) in fixed
        for place, value in enumerate(node.inputs)
    )
