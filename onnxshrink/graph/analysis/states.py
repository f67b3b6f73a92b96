"""Inputs that a model hands on to its next run: caches that grow, and states that are replaced.

They are found by what the graph does with them, whatever their names: an output is the next value
of an input if all between them only appends, moves or replaces places, or is an operator that
keeps a state. Names decide only where the graph does not say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from onnxshrink.graph import operators, read

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxshrink.graph.file.model import Model

_BRANCHES = ("then_branch", "else_branch")
_FARTHEST = 256
#: What exporters add to the name of a state to tell the next one from the last.
_NEXT = re.compile(r"_(out|output|next|new|n|1)$|(?<=[a-z])N$|^(new|next|out|present|past)[_.]")
_CACHE = re.compile(r"^(past_key_values|past|present_key_values|present|cache|kv_cache)[_.]")


@dataclass(frozen=True)
class State:
    """An input, and the output that is its next value.

    Attributes:
        input: The name of the input.
        output: The name of the output.
        grows: The axis along which each run appends to it; None: it is replaced.
    """

    input: str
    output: str
    grows: int | None = None


def states(model: Model) -> tuple[State, ...]:
    """The states of a model, in the order of its outputs."""
    inputs = {value.name or "": value for value in model.inputs}
    outputs = {value.name or "": value for value in model.ir.graph.outputs}
    found: dict[str, tuple[str, int | None]] = {}
    free = dict(inputs)

    def take(name: str, source: str, axis: int | None) -> None:
        found[name] = source, axis
        del free[source]

    handed_on = {name: [*_behind(output)] for name, output in outputs.items()}
    for name, ways in handed_on.items():
        for way in ways:
            source = way.source.name or ""
            if way.kept and source in free and fits(way.source, outputs[name]):
                take(name, source, way.axis)
                break
    decodes = any(
        _growing(inputs[source], outputs[name], axis) is not None
        for name, (source, axis) in found.items()
    )
    for name in [name for name in outputs if name not in found and name not in inputs]:
        moved = {way.source.name for way in handed_on[name]}
        for source in list(free):
            alike = _stem(source) == _stem(name)
            alike |= decodes and (source in moved or _cached(source, name))
            if alike and fits(inputs[source], outputs[name]):
                take(name, source, None)
                break
    return tuple(
        State(source, name, _growing(inputs[source], outputs[name], axis))
        for name in outputs
        if name in found
        for source, axis in [found[name]]
    )


def fits(source: ir.Value, output: ir.Value) -> bool:
    """Whether an output could be an input: neither type nor rank nor a known length differs."""
    if source.type != output.type:
        return False
    if source.shape is None or output.shape is None:
        return True
    if len(source.shape) != len(output.shape):
        return False
    pairs = zip(source.shape, output.shape, strict=True)
    return all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) or 0 in (a, b) for a, b in pairs
    )


def _stem(name: str) -> str:
    """A name without what tells the next state from the last: ``hidden_out`` is ``hidden``."""
    return _NEXT.sub("", _NEXT.sub("", name))


def _cached(source: str, output: str) -> bool:
    """Whether ``past_key_values.0.key`` and ``present.0.key`` are two names of one cache."""
    a, b = _CACHE.sub("", source), _CACHE.sub("", output)
    return a == b and a != source and b != output


def _growing(source: ir.Value, output: ir.Value, axis: int | None) -> int | None:
    """The axis along which a state grows, if the graph appends to it at all."""
    if axis is None or source.shape is None or output.shape is None:
        return axis
    rank = len(source.shape)
    pairs = list(zip(source.shape, output.shape, strict=True))
    if any(isinstance(length, int) for length in pairs[axis % rank]):
        return None  # a window: what is new pushes out what is old
    return axis % rank


class _Way(NamedTuple):
    """How a value goes on from a graph input: what is appended to, and whether it is a state."""

    source: ir.Value
    axis: int | None = None
    kept: bool = False


def _behind(value: ir.Value) -> Iterator[_Way]:
    """The graph inputs that a value goes on from."""
    ahead = [_Way(value)]
    seen: set[int] = set()
    while ahead and len(seen) < _FARTHEST:
        way = ahead.pop(0)
        if id(way.source) in seen:
            continue
        seen.add(id(way.source))
        node = way.source.producer()
        if node is None:
            yield way
            continue
        place = next(i for i, output in enumerate(node.outputs) if output is way.source)
        memory, axis, kept, parts = operators.memory(node), way.axis, way.kept, node.inputs[:1]
        if place in memory.inputs:
            axis, kept = axis if memory.axis is None else memory.axis, True
            parts = (read.input(node, memory.inputs[place]),)
        elif operators.branches(node):
            branches = (node.attributes[name].as_graph() for name in _BRANCHES)
            parts = tuple(branch.outputs[place] for branch in branches)
        elif operators.moves(node) == "joins":  # what is new comes last
            axis, kept = read.integer(node, "axis", 0), True
        elif operators.of(node, operators.Choice) is not None:
            kept, parts = True, node.inputs[1:]
        elif operators.of(node, operators.Scatter) is not None:
            kept = True
        elif not operators.moves(node):
            continue
        ahead += [_Way(part, axis, kept) for part in parts if part is not None]
