"""Run a user's onnx-graphsurgeon function on a model: there and back.

What graphsurgeon loses on the way is put back by ``restore``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir

from onnxshrink.errors import ShrinkError, UnsupportedModel
from onnxshrink.functions import user_code
from onnxshrink.graph.file import round_trip
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite.restore import Difference, Edits, fingerprint, is_dropped

Edit = Callable[[gs.Graph], Any]

# Beside numpy's own numbers. graphsurgeon 0.6 writes float8_e4m3fnuz as float8_e4m3fn, and 4-bit
# types one to a byte; strings it cannot write.
_WRITABLE = {"bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e5m2fnuz"}


def edit(model: Model, function: Edit, name: str) -> list[Difference]:
    """Let a function edit the model as an onnx-graphsurgeon graph.

    Args:
        model: The model, changed in place; its weights are read into memory.
        function: Takes a ``gs.Graph`` and returns one, the same or another.
        name: What to call the function in messages.

    Returns:
        What it did; empty when it changed nothing, and then the model is as it was.

    Raises:
        ShrinkError: The function raised, or returned no graph.
        UnsupportedModel: graphsurgeon cannot read the model, or not write what was made of it.
    """
    proto = model.to_proto()
    prints = {tensor.name: fingerprint(tensor) for tensor in proto.graph.initializer}
    original = onnx.ModelProto()
    original.CopyFrom(proto)
    for tensor in original.graph.initializer:  # the names and types are enough to compare with
        for payload in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
            tensor.ClearField(payload)
    bare = onnx.ModelProto()
    bare.CopyFrom(original)
    with contextlib.redirect_stdout(sys.stderr):  # graphsurgeon and users print what they do
        plain = _written(_read(bare))
        edited = _called(function, _read(proto), name)
        _refuse_unwritable(edited, name)
        result = _written(edited)
    unread = {tensor.name: tensor for tensor in proto.graph.initializer}
    edits = Edits(original, plain, result, prints)
    edits.restore(unread)
    if edits.differences:
        _adopt(model, result, prints)
        model.touch(*edits.touched)
    return edits.differences


def _read(proto: onnx.ModelProto) -> gs.Graph:
    """The model as graphsurgeon sees it; ``proto`` is the graph's from now on."""
    for graph in round_trip.graphs(proto):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if not value.type.HasField("tensor_type"):
                value.ClearField("type")  # sequences of maps, optionals
    for nodes in round_trip.node_lists(proto):
        for node in nodes:
            for attribute in [a for a in node.attribute if is_dropped(a)]:
                node.attribute.remove(attribute)
    try:
        return gs.import_onnx(proto)
    except Exception as error:  # it has no errors of its own for most of what it cannot read
        raise UnsupportedModel(f"onnx-graphsurgeon cannot read this model: {error}") from error


def _called(function: Edit, graph: gs.Graph, name: str) -> gs.Graph:
    with user_code(name):
        edited = function(graph)
    if not isinstance(edited, gs.Graph):
        raise ShrinkError(
            f"{name} returned {type(edited).__name__}, not an onnx_graphsurgeon.Graph; "
            "end it with 'return graph'"
        )
    return edited


def _refuse_unwritable(graph: gs.Graph, name: str) -> None:
    """Refuse constants that graphsurgeon would write wrongly; unread ones pass untouched."""
    for constant in _constants(graph):
        values = constant._values  # .values would read them
        if isinstance(values, np.ndarray):
            dtype = values.dtype
            if dtype.kind not in "biufc" and dtype.name not in _WRITABLE:
                kind = "text" if dtype.kind in "OSU" else dtype.name
                raise UnsupportedModel(
                    f"{name} read or made the values of {constant.name!r}, and onnx-graphsurgeon "
                    f"cannot write {kind}; leave that tensor unread"
                )


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    scopes = [graph, *graph.functions]
    while scopes:
        scope = scopes.pop()
        for node in scope.nodes:
            held = [*node.inputs, *node.outputs, *node.attrs.values()]
            yield from (value for value in held if isinstance(value, gs.Constant))
            scopes += [value for value in held if isinstance(value, gs.Graph)]


def _written(graph: gs.Graph) -> onnx.ModelProto:
    try:
        proto: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    except Exception as error:  # as in _read
        raise UnsupportedModel(f"onnx-graphsurgeon cannot write the model: {error}") from error
    return proto


def _adopt(model: Model, result: onnx.ModelProto, prints: Mapping[str, tuple[Any, ...]]) -> None:
    """Make the result the model's graph; weights that did not change stay where they were."""
    same = [t.name for t in result.graph.initializer if prints.get(t.name) == fingerprint(t)]

    def change(before: ir.Model) -> ir.Model:
        after = ir.from_proto(round_trip.readable(result))
        for name in same:
            after.graph.initializers[name].const_value = before.graph.initializers[name].const_value
        return after

    model.rewrite(change)
