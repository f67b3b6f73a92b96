"""Whether a model is a graph at all: checked as it is read, before anything trusts it.

This is not ``onnx.checker``, which knows every operator and is asked before a pass runs. It is
what the rest of this package takes for granted: text is text, attributes have a type, every name
is made once and before it is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import onnx
from google.protobuf.message import Message

from onnxshrink.errors import ModelError
from onnxshrink.graph.file import round_trip

_MOST_NODES = 10**6  # of functions: ONNX Runtime inlines them all

_HOLDERS = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    onnx.AttributeProto.TYPE_PROTO: "tp",
}


def check(model: onnx.ModelProto, where: str) -> None:
    """Check a model's texts, attributes and names.

    Args:
        model: What was read.
        where: The file, for messages.

    Raises:
        ModelError: Says what is wrong, and with which node or value.
    """
    _check_text(model, where)
    _check_graph(model.graph, frozenset(), where)
    for function in model.functions:
        inside = f"{where}: function {function.name!r}"
        _check_nodes(function.node, function.input, function.output, frozenset(), inside)
    if (count := _inlined(model)) > _MOST_NODES:
        raise ModelError(f"{where}: its functions are {count:.3g} nodes when they are inlined")


def _inlined(model: onnx.ModelProto) -> int:
    """How many nodes a runtime sees; functions that call each other twice double it every time."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    if not functions:
        return 0
    sizes: dict[tuple[str, str, str], int] = {}

    def size(nodes: Iterable[onnx.NodeProto], above: tuple[tuple[str, str, str], ...]) -> int:
        total = 0
        for node in nodes:
            name = (node.domain, node.op_type, node.overload)
            for _, graph in round_trip.subgraphs(node):
                total += size(graph.node, above)
            if name not in functions or name in above:  # one that calls itself is refused later
                total += 1
                continue
            if name not in sizes:
                sizes[name] = size(functions[name].node, (*above, name))
            total += sizes[name]
        return total

    return size(model.graph.node, ())


def _check_text(message: Message, where: str) -> None:
    for field, value in message.ListFields():
        values = (
            value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        )
        if field.type == field.TYPE_STRING:
            # protobuf hands text over as bytes where it is not UTF-8.
            if broken := next((text for text in values if isinstance(text, bytes)), None):
                raise ModelError(f"{where}: the {field.name} {broken!r} is not text: damaged?")
        elif field.type == field.TYPE_MESSAGE:
            for inner in values:
                _check_text(inner, where)


def _check_graph(graph: onnx.GraphProto, outer: frozenset[str], where: str) -> None:
    stored = [tensor.name for tensor in graph.initializer]
    stored += [sparse.values.name for sparse in graph.sparse_initializer]
    if twice := _repeated(stored):
        raise ModelError(f"{where}: initializer {twice[0]!r} is there twice")
    if "" in stored:
        raise ModelError(f"{where}: an initializer has no name")
    inputs = [value.name for value in graph.input]
    given = [*inputs, *(name for name in stored if name not in set(inputs))]
    _check_nodes(graph.node, given, [value.name for value in graph.output], outer, where)


def _check_nodes(
    nodes: Sequence[onnx.NodeProto],
    given: Iterable[str],
    results: Iterable[str],
    outer: frozenset[str],
    where: str,
) -> None:
    """Check that names are made once, and before they are used."""
    made = [*given, *(name for node in nodes for name in node.output if name)]
    if twice := _repeated(made):
        raise ModelError(f"{where}: value {twice[0]!r} is made twice")
    later = set(made)
    known = set(given)
    for node in nodes:
        for text in (node.domain, node.op_type):  # they stand in messages as they are
            if not text.isprintable():
                raise ModelError(f"{where}: node {node.name!r}: {text!r} names no operator")
        what = f"{where}: node {node.op_type} {node.name!r}"
        for name in filter(None, node.input):
            if name in known or (name in outer and name not in later):
                continue
            if name in later:
                raise ModelError(f"{what} uses {name!r} before it is made: a cycle")
            raise ModelError(f"{what} uses {name!r}, which nothing makes")
        for attribute in node.attribute:
            _check_attribute(attribute, outer | known, what)
        known.update(node.output)
    if missing := [name for name in results if name not in later]:
        raise ModelError(f"{where}: nothing in its graph makes the output {missing[0]!r}")


def _check_attribute(attribute: onnx.AttributeProto, known: frozenset[str], what: str) -> None:
    kind = attribute.type
    if attribute.ref_attr_name:
        return
    holder = _HOLDERS.get(kind)
    if kind == onnx.AttributeProto.UNDEFINED or (holder and not attribute.HasField(holder)):
        raise ModelError(f"{what}: attribute {attribute.name!r} has no value")
    graphs = [attribute.g] if kind == onnx.AttributeProto.GRAPH else attribute.graphs
    for graph in graphs:
        _check_graph(graph, known, f"{what}, {attribute.name!r}")


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
