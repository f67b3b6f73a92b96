"""Constants move out of nodes and subgraphs into the main graph's initializers.

There they can be stored outside the model file. Values in functions stay: a function sees nothing
of the graph that calls it.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from onnxshrink.graph import read, surgery
from onnxshrink.graph.file.model import Model


def hoist_constants(model: Model, at_least: int) -> int:
    """Turn large Constant nodes and subgraph initializers into initializers of the main graph.

    Args:
        model: Changed in place.
        at_least: Bytes; smaller constants stay where they are.

    Returns:
        How many were moved.
    """
    main, moved = model.ir.graph, 0
    # Branches are scopes of their own, in which a name may mean different things.
    uses = Counter(v.name for scope in model.scopes for node in scope for v in node.outputs)
    uses.update(name for scope in [main, *main.subgraphs()] for name in scope.initializers)
    for scope in [main, *main.subgraphs()]:
        for node in [node for node in scope if read.is_constant(node)]:
            output, tensor = node.outputs[0], read.constant(node.outputs[0])
            if tensor is None or output.is_graph_output():
                continue
            if tensor.nbytes >= at_least:
                _move(model, output, tensor, uses)
                moved += 1
        if scope is main:
            continue
        for value in list(scope.initializers.values()):
            stored = value.const_value
            free = not value.is_graph_output() and not value.is_graph_input()
            if stored is not None and stored.nbytes >= at_least and free:
                _move(model, value, stored, uses)
                moved += 1
    if moved and model.ir.ir_version < 4:
        separate_inputs(model)
    return moved


def _move(
    model: Model, old: ir.Value, tensor: ir.TensorProtocol, uses: Counter[str | None]
) -> None:
    name = old.name
    if not name or uses[name] > 1:
        name = model.unused_name(name or "constant")
    model.touch(name)
    # A tensor takes the name of the initializer that holds it; other clones of the model share this
    # one, and must not see it change.
    shape = ir.Shape(tensor.shape.numpy())
    named = ir.LazyTensor(lambda: tensor, tensor.dtype, shape, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=named)
    surgery.redirect(model, old, value)
    surgery.forget(model, old)
    model.ir.graph.register_initializer(value)


def separate_inputs(model: Model) -> None:
    """Raise IR 3 to 4, the first in which an initializer need not be an input.

    From IR 4 on, one that is an input may be overridden by the caller: it must not be one any more.
    """
    graph = model.ir.graph
    for value in [v for v in graph.inputs if v.name in graph.initializers]:
        graph.inputs.remove(value)
        model.touch(value.name)
    model.ir.ir_version = 4
