"""Constants move out of nodes and subgraphs into the main graph's initializers.

There they can be stored outside the model file. Functions see nothing of the graph that calls them:
their constants become inputs that it gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

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


def lift_constants(model: Model, wanted: Callable[[ir.Function, ir.Value], bool]) -> None:
    """Turn constants of functions into inputs, which all callers give from the main graph.

    Args:
        model: Changed in place.
        wanted: Which constants; those of functions that nothing calls stay.
    """
    given: dict[ir.TensorProtocol, ir.Value] = {}
    sources: dict[ir.TensorProtocol, ir.TensorProtocol] = {}
    waiting = True
    while waiting:  # what a function gives to another is a constant of its own at first
        waiting = False
        for function in model.ir.functions.values():
            calls = list(_calls(model, function))
            own = _constants_of(function) if calls else ()
            free = [each for each in own if not each.is_graph_output()]
            for old in [each for each in free if wanted(function, each)]:
                _lift(model, function, old, calls, given, sources)
                waiting = True


def _calls(model: Model, function: ir.Function) -> Iterator[tuple[ir.Graph | ir.Function, ir.Node]]:
    """Every call of a function, and the function or the main graph that it is in."""
    homes: list[ir.Graph | ir.Function] = [model.ir.graph, *model.ir.functions.values()]
    for home in homes:
        for scope in (home, *home.subgraphs()):
            for node in scope:
                if node.op_identifier() == function.identifier():
                    yield home, node


def _constants_of(function: ir.Function) -> Iterator[ir.Value]:
    """The constants in the body of a function, and in bodies inside it."""
    for scope in (function, *function.subgraphs()):
        if isinstance(scope, ir.Graph):
            yield from scope.initializers.values()
        yield from (node.outputs[0] for node in scope if read.is_constant(node))


def _lift(
    model: Model, function: ir.Function, old: ir.Value,
    calls: list[tuple[ir.Graph | ir.Function, ir.Node]],
    given: dict[ir.TensorProtocol, ir.Value], sources: dict[ir.TensorProtocol, ir.TensorProtocol],
) -> None:  # fmt: skip
    tensor = read.constant(old)
    assert tensor is not None
    first = sources.get(tensor, tensor)
    inner = ir.Value(name=model.unused_name(old.name or "constant"), type=old.type, shape=old.shape)
    surgery.redirect(model, old, inner)
    surgery.forget(model, old)
    model.touch(inner.name)
    function.inputs.append(inner)
    for home, call in calls:
        value = None if isinstance(home, ir.Function) else given.get(first)
        if value is None:
            recorder = surgery.Recorder(model, home)
            value = recorder.constant(_shared(tensor), old.name or "constant")
            recorder.put_first()
        if not isinstance(home, ir.Function):
            given[first] = value
        elif (copy := read.constant(value)) is not None:
            sources[copy] = first
        surgery.set_input(model, call, len(function.inputs) - 1, value)


def _move(
    model: Model, old: ir.Value, tensor: ir.TensorProtocol, uses: Counter[str | None]
) -> None:
    name = old.name
    if not name or uses[name] > 1:
        name = model.unused_name(name or "constant")
    model.touch(name)
    shape, named = ir.Shape(tensor.shape.numpy()), _shared(tensor)
    named.name = name
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=named)
    surgery.redirect(model, old, value)
    surgery.forget(model, old)
    model.ir.graph.register_initializer(value)


def _shared(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """The same tensor, with a name of its own.

    A tensor takes the name of the initializer that holds it; other clones of the model share this
    one, and must not see it change.
    """
    return ir.LazyTensor(lambda: tensor, tensor.dtype, ir.Shape(tensor.shape.numpy()))


def separate_inputs(model: Model) -> None:
    """Raise IR 3 to 4, the first in which an initializer need not be an input.

    From IR 4 on, one that is an input may be overridden by the caller: it must not be one any more.
    """
    graph = model.ir.graph
    for value in [v for v in graph.inputs if v.name in graph.initializers]:
        graph.inputs.remove(value)
        model.touch(value.name)
    model.ir.ir_version = 4
