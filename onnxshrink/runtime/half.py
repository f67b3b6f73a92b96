"""Whole models in float16, by the converter that ONNX Runtime ships."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from onnxshrink.errors import UnsupportedModel

if TYPE_CHECKING:
    import onnx

_FLOAT, _FLOAT16 = 1, 10  # ONNX's numbers of the types
#: Their scales are float32 in most kernels, and nothing beside the codes.
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
#: How the converter begins the names that it makes; it does not look whether they are taken.
_MADE = ("graph_input_cast", "graph_output_cast")


def to_float16(
    model: onnx.ModelProto, made: Collection[str] = (), types: Collection[str] = (),
    keep_io: bool = True,
) -> onnx.ModelProto:  # fmt: skip
    """Compute in float16.

    Operators that have no float16 version get Casts around them.

    Args:
        model: A whole model with its weights; it is changed.
        made: Values whose nodes stay in float32.
        types: Operators that stay in float32.
        keep_io: Whether inputs and outputs keep their types, rather than become float16, too.

    Raises:
        UnsupportedModel: The converter fails on the model.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    _make_room(model)
    blocked = [*DEFAULT_OP_BLOCK_LIST, *_QUANTIZERS, *types]
    wanted = set(made)
    kept = [node for node in _nodes(model.graph) if not wanted.isdisjoint(node.output)]
    taken = {node.name for node in _nodes(model.graph)}
    for number, node in enumerate(kept):  # the converter takes names of nodes
        if not node.name:
            node.name = next(n for n in _numbered(f"float32_{number}") if n not in taken)
            taken.add(node.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for every clipped tensor; the outputs are compared
        try:
            converted: onnx.ModelProto = convert_float_to_float16(
                model, keep_io_types=keep_io, op_block_list=blocked,
                node_block_list=[node.name for node in kept],
            )  # fmt: skip
        except Exception as error:  # it raises whatever its dictionaries and protobuf raise
            raise UnsupportedModel(
                f"ONNX Runtime's float16 converter fails on this model: {error}"
            ) from error
    _join(converted.graph, taken)
    return converted


def _join(graph: onnx.GraphProto, known: Collection[str]) -> None:
    """Let nodes that stay in float32 hand on their values as they are, without a turn in float16.

    Args:
        graph: As the converter made it, with Casts around every such node.
        known: Names of nodes that are not the converter's.
    """
    from onnxshrink.graph import operators

    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _join(attribute.g, known)
    casts = {
        node.output[0]: node
        for node in graph.node
        if operators.moves(node) == "converts" and node.name and node.name not in known
    }
    given = {value.name for value in graph.output}
    direct = {
        name: casts[node.input[0]].input[0]
        for name, node in casts.items()
        if node.input[0] in casts and name not in given
        and (node.attribute[0].i, casts[node.input[0]].attribute[0].i) == (_FLOAT, _FLOAT16)
    }  # fmt: skip
    for node in _nodes(graph):
        for index, name in enumerate(node.input):
            node.input[index] = direct.get(name, name)
    for name in direct:
        graph.node.remove(casts.pop(name))
    read = {name for node in _nodes(graph) for name in node.input}
    for name in casts.keys() - given - read:
        graph.node.remove(casts[name])


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of bodies included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _numbered(stem: str) -> Iterator[str]:
    while True:
        yield stem
        stem += "_"


def _make_room(model: onnx.ModelProto) -> None:
    """Rename what was made by an earlier conversion, whose names the converter makes again."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        if node.name.startswith(_MADE):
            node.name += ".before"
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name.startswith(_MADE) and name not in kept:
                    names[index] = f"{name}.before"
