"""Measuring points in a model file: values become outputs, constants become inputs with a default.

The file is edited as a message, not through :class:`Model`: it is a scratch copy, and every value
keeps its name. What lies in an If, Loop or Scan body is handed out through the operator, level by
level; constants there move to the main graph, whose names its bodies can see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from onnxshrink.graph import operators, read
from onnxshrink.graph.analysis import noise
from onnxshrink.graph.file.model import Model


@dataclass
class Instrumented:
    """What became of the requests.

    Attributes:
        outputs: Watched value -> the output that carries it. From a Loop or Scan it has one more
            leading axis, the iterations; from a branch that was not taken it is empty.
        stacked: How many leading axes of iterations an output has, where it has any.
        inputs: Freed constants: they can be fed, and have their old values when they are not.
        refused: The others, and why.
    """

    outputs: dict[str, str] = field(default_factory=dict)
    stacked: dict[str, int] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Scope:
    """Where something is: the graphs from the main one inwards, and what holds each inner one."""

    graphs: tuple[onnx.GraphProto, ...]
    holders: tuple[tuple[onnx.NodeProto, str], ...] = ()


def instrument(
    model: Model, path: Path, watch: Iterable[str] = (), free: Iterable[str] = ()
) -> Instrumented:
    """Save a model with measuring points, and what it draws with seeds.

    Args:
        model: The model; it is left as it is.
        path: Where to write the copy. Its large tensors go to external data beside it.
        watch: Names of values to make outputs.
        free: Names of floating-point constants to make inputs.

    Returns:
        What can be watched and fed, and what not.
    """
    if noise.is_random(model):
        model = noise.seeded(model)
    model.save(path, "external", durable=False)
    proto = onnx.load(path, load_external_data=False)
    types = {v.name: v.dtype for node in model.nodes for v in node.outputs if v.dtype is not None}
    done = Instrumented()
    made: dict[str, list[_Scope]] = {}
    stored: dict[str, list[_Scope]] = {}
    for place in _places(_Scope((proto.graph,))):
        graph = place.graphs[-1]
        for tensor in graph.initializer:
            stored.setdefault(tensor.name, []).append(place)
        entering = [value.name for value in graph.input] if place.holders else []
        for name in (*entering, *(name for node in graph.node for name in node.output if name)):
            made.setdefault(name, []).append(place)
    proto.ir_version = max(proto.ir_version, 4)  # before, no initializer could be exchanged
    given = {value.name for value in proto.graph.input}
    names = Counter([*made, *stored, *given])
    for name in dict.fromkeys(free):
        places = [*stored.get(name, ()), *_constant_nodes(name, made)]
        if len(places) != 1:
            done.refused[name] = "its name is not unique" if places else "is inside a function"
        else:
            _free(proto.graph, places[0], name, given)
            done.inputs.add(name)
    outputs = {value.name for value in proto.graph.output}
    for name in dict.fromkeys(watch):
        places = made.get(name, [])
        if name in outputs:
            done.outputs[name] = name
        elif len(places) != 1:
            done.refused[name] = "its name is not unique" if places else "is inside a function"
        else:
            kind = types.get(name)
            element = onnx.TensorProto.FLOAT if kind is None else kind.value
            output = _hand_out(places[0], name, element, names)
            proto.graph.output.append(onnx.ValueInfoProto(name=output))
            done.outputs[name] = output
            if loops := sum(not operators.branches(node) for node, _ in places[0].holders):
                done.stacked[output] = loops
    onnx.save(proto, path)
    return done


def _places(place: _Scope) -> Iterator[_Scope]:
    """Every graph of a model, the outer before the inner ones."""
    yield place
    for node in place.graphs[-1].node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                holder = (node, attribute.name)
                yield from _places(_Scope((*place.graphs, attribute.g), (*place.holders, holder)))


def _constant_nodes(name: str, made: dict[str, list[_Scope]]) -> list[_Scope]:
    return [
        place
        for place in made.get(name, ())
        for node in place.graphs[-1].node
        if _holds(node, name)
    ]


def _holds(node: onnx.NodeProto, name: str) -> bool:
    return read.is_constant(node) and name in node.output


def _free(main: onnx.GraphProto, place: _Scope, name: str, given: set[str]) -> None:
    """Turn a constant into an input of the main graph with a default."""
    graph = place.graphs[-1]
    for at, node in enumerate(graph.node):
        if _holds(node, name):
            tensor = onnx.helper.get_node_attr_value(node, "value")
            tensor.name = name
            main.initializer.append(tensor)
            del graph.node[at]
            break
    else:
        at, tensor = next((i, t) for i, t in enumerate(graph.initializer) if t.name == name)
        if graph is not main:
            main.initializer.append(tensor)
            del graph.initializer[at]
    if name not in given:
        info = onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        main.input.append(info)


def _hand_out(place: _Scope, name: str, element: int, names: Counter[str]) -> str:
    """Pass a value outwards through every operator whose body it is in."""
    value = name
    for level in range(len(place.holders) - 1, -1, -1):
        (node, branch), inner = place.holders[level], place.graphs[level + 1]
        if value in {port.name for port in (*inner.input, *inner.output)}:
            copy = _unused(value, names)
            inner.node.append(onnx.helper.make_node("Identity", [value], [copy]))
            value = copy
        if operators.branches(node):
            for attribute in node.attribute:
                out = value
                if attribute.name != branch:
                    out = _nothing(attribute.g, element, names)
                attribute.g.output.append(_info(out, element))
        else:
            inner.output.append(_info(value, element))
            _extend_axes(node)
        value = _unused(name, names)
        node.output.append(value)
    return value


def _info(name: str, element: int) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, element, None)


def _nothing(graph: onnx.GraphProto, element: int, names: Counter[str]) -> str:
    """An empty value for the branch that does not have what the other hands out."""
    name = _unused("nothing", names)
    empty = onnx.TensorProto(data_type=element, dims=[0], name=name)
    graph.node.append(onnx.helper.make_node("Constant", [], [name], value=empty))
    return name


def _extend_axes(node: onnx.NodeProto) -> None:
    """Scan's attributes for each scan output: the new one is stacked along a first axis."""
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.append(0)


def _unused(stem: str, names: Counter[str]) -> str:
    number = 0
    while names[f"{stem}.{number}"]:
        number += 1
    names[f"{stem}.{number}"] += 1
    return f"{stem}.{number}"
