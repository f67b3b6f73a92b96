"""The one recorder of edits: constants and nodes that are new, and values that take over from old.

Whatever is made, changed or removed here goes into the model's journal, by which saving tells an
edit from damage. The names that people know a graph by stay: what takes the place of a value takes
its name, so the operators that read it stay as they are, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.file.model import Model

Scope = ir.Graph | ir.Function


class Recorder:
    """New constants and nodes, which are put into a graph together.

    Until they are put somewhere the graph is as it was; only their names are taken.

    Args:
        model: The model, whose journal is kept.
        home: Where constants are initializers: the graph of the nodes, or one around it.
        prefix: What the names of new values begin with.
        as_nodes: Whether constants are Constant nodes, put in with the others; left out, they are
            where the home has no initializers (functions) or they would be inputs (IR version 3).

    Attributes:
        nbytes: Bytes of the constants so far.
        nodes: The nodes that are not put anywhere yet.
    """

    def __init__(
        self, model: Model, home: Scope, *, prefix: str = "", as_nodes: bool | None = None
    ):
        self.model, self.nbytes = model, 0
        self.nodes: list[ir.Node] = []
        self._home, self._prefix = home, prefix
        self.as_nodes = not has_initializers(model, home) if as_nodes is None else as_nodes
        self._constants: list[ir.Value] = []

    def constant(self, values: np.ndarray | ir.TensorProtocol, name: str) -> ir.Value:
        """A new constant."""
        name = self.model.unused_name(f"{self._prefix}{name}")
        if isinstance(values, np.ndarray | np.generic):  # a scalar is what numpy makes of no axes
            values = np.asarray(values, order="C")
        tensor = self.model.store(values, name)
        self.nbytes += tensor.nbytes
        if self.as_nodes:
            node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name="")
            self._add(node, name)
            return node.outputs[0]
        self.model.touch(name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )  # fmt: skip
        self._constants.append(value)
        return value

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], name: str, domain: str = "",
        **attributes: Any,
    ) -> ir.Value:  # fmt: skip
        """What a new node makes, which has one output."""
        return self.several(op_type, inputs, [name], domain, **attributes)[0]

    def several(
        self, op_type: str, inputs: Sequence[ir.Value | None], names: Sequence[str],
        domain: str = "", **attributes: Any,
    ) -> Sequence[ir.Value]:  # fmt: skip
        """What a new node makes that has an output for each name."""
        found = ir.convenience.convert_attributes(attributes)
        node = ir.Node(domain, op_type, inputs, found, num_outputs=len(names), name="")
        self._add(node, *(self.model.unused_name(f"{self._prefix}{name}") for name in names))
        return node.outputs

    def _add(self, node: ir.Node, *names: str) -> None:
        for output, name in zip(node.outputs, names, strict=True):
            output.name = name
        self.model.touch(*names)
        self.nodes.append(node)

    # ----------------------------------------------------------------------- places

    def put_before(self, node: ir.Node) -> None:
        """Put what was made just before a node, and have its graph."""
        _graph(node).insert_before(node, self._made())

    def put_after(self, node: ir.Node) -> None:
        """Put what was made just behind a node."""
        _graph(node).insert_after(node, self._made())

    def put_first(self, scope: Scope | None = None) -> None:
        """Put what was made in front of all nodes of a scope; of the home unless one is given."""
        scope = self._home if scope is None else scope
        first = next(iter(scope), None)
        if first is None:
            scope.extend(self._made())
        else:
            self.put_before(first)

    def put_in_place(self, node: ir.Node, results: Sequence[ir.Value | None]) -> None:
        """Put what was made in place of a node; see :func:`replace_node`."""
        self.put_before(node)
        replace_node(self.model, node, results)

    def put_behind(
        self, value: ir.Value, op_type: str, operands: Sequence[ir.Value], name: str
    ) -> ir.Value:
        """Put what was made and one more node behind what a node makes; see :func:`put_behind`.

        Args:
            value: What a node makes, the first input of the new one.
            op_type: The new one's operator.
            operands: Its other inputs.
            name: What the value is called from now on, unless the name is taken.
        """
        maker, node = value.producer(), ir.Node("", op_type, [value, *operands], name="")
        assert maker is not None
        self.nodes.append(node)
        self.put_after(maker)
        put_behind(self.model, value, node, node.outputs[0], name)
        return node.outputs[0]

    def feed(self, nodes: Sequence[ir.Node], index: int, result: ir.Value) -> None:
        """Put what was made before these nodes, and let them read the result as one input.

        Raises:
            ValueError: They are not in one graph.
        """
        graph = nodes[0].graph
        if graph is None or any(node.graph is not graph for node in nodes):
            raise ValueError("the operators that read it are in several graphs")
        self.put_before(next(node for node in graph if node in nodes))
        for node in nodes:
            set_input(self.model, node, index, result)

    def _made(self) -> list[ir.Node]:
        for value in self._constants:
            assert isinstance(self._home, ir.Graph)
            self._home.register_initializer(value)
        nodes, self.nodes, self._constants = self.nodes, [], []
        return nodes


def has_initializers(model: Model, scope: Scope) -> bool:
    """Whether constants of a scope can be initializers that are not inputs."""
    functions = model.ir.functions.values()  # the nodes of one say that they are in its graph
    inside = isinstance(scope, ir.Function) or any(scope is each.graph for each in functions)
    return model.ir.ir_version >= 4 and not inside


def _graph(node: ir.Node) -> Scope:
    assert node.graph is not None
    return node.graph


# ------------------------------------------------------------------------- nodes and values


def set_input(model: Model, node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Let a node read another value; its list of inputs grows where it is too short."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
    model.touch_node(node)


def redirect(model: Model, old: ir.Value, new: ir.Value) -> None:
    """Let all nodes that read a value read another, which keeps its own name."""
    for user, _ in old.uses():
        model.touch_node(user)
    model.touch(old.name)
    old.replace_all_uses_with(new)


def remove(model: Model, node: ir.Node) -> None:
    """Take a node out of its graph.

    Raises:
        ValueError: Something reads what it makes.
    """
    model.touch_node(node)
    _graph(node).remove(node, safe=True)


def replace_node(model: Model, node: ir.Node, results: Sequence[ir.Value | None]) -> None:
    """Put other values in place of a node's outputs, and the node out of the graph.

    Args:
        model: The model, whose journal is kept.
        node: The node.
        results: A value for each of its outputs, new or older, which takes over its users, its
            name and its type; None, or none at the end, for outputs that nobody reads.
    """
    taken = [
        (old, new, old.name)
        for old, new in zip(node.outputs, results, strict=False)
        if new is not None and old.name
    ]
    for old, new, name in taken:
        model.touch(name, new.name)
        maker = new.producer()
        for other in (*(user for user, _ in new.uses()), *([] if maker is None else [maker])):
            model.touch_node(other)  # it knows the value by another name now
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.type = new.type if old.type is None else old.type
        new.shape = new.shape if old.shape is None else old.shape
    remove(model, node)
    for _, new, name in taken:
        new.name = name


def rename(model: Model, value: ir.Value, name: str) -> None:
    """Call a value by another name, which is free."""
    maker = value.producer()
    for node in (*(user for user, _ in value.uses()), *([] if maker is None else [maker])):
        model.touch_node(node)
    model.touch(value.name, name)
    value.name = name


def put_behind(model: Model, value: ir.Value, reader: ir.Node, result: ir.Value, name: str) -> None:
    """Let all that reads a value read what is made of it, which takes its name.

    Args:
        model: The model, whose journal is kept.
        value: What a node makes.
        reader: The node that goes on reading it, as its first input.
        result: What takes its place: the reader's output, or made of that.
        name: What the value is called from now on, unless the name is taken.
    """
    known, maker = value.name or "", value.producer()
    assert maker is not None
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    reader.replace_input_with(0, value)
    result.type, result.shape = value.type, value.shape
    value.name = model.unused_name(name)
    result.name = known
    model.touch(known, value.name)
    model.touch_node(maker)


# -------------------------------------------------------------------------------- constants


def give_constant(
    model: Model, node: ir.Node, index: int, values: np.ndarray, name: str
) -> ir.Value:
    """Give one input of a node a constant of its own, under a name that begins so."""
    recorder = Recorder(model, _graph(node))
    value = recorder.constant(values, name)
    recorder.put_before(node)
    set_input(model, node, index, value)
    return value


def set_constant(
    model: Model, value: ir.Value, values: np.ndarray, notes: Mapping[str, str] | None = None
) -> None:
    """Give a constant other values of its type, under its name.

    What is written at the tensor stays while its shape does; of a tensor of another shape it would
    no longer be true.

    Args:
        model: The model, whose journal is kept.
        value: An initializer, or what a Constant node makes.
        values: Its new values.
        notes: Metadata to add to the tensor.
    """
    old, node, name = read.constant(value), value.producer(), value.name or ""
    assert old is not None
    array = np.asarray(values, old.dtype.numpy(), order="C")
    same = array.shape == tuple(old.shape.numpy())
    tensor: ir.TensorProtocol = ir.Tensor(
        array, dtype=old.dtype, name=old.name if same else name,
        doc_string=old.doc_string if same else None,
        metadata_props={**(old.metadata_props if same else {}), **(notes or {})},
    )  # fmt: skip
    if node is None:
        value.const_value = model.store(tensor, name)
    else:
        node.attributes.clear()  # a Constant has one, which may be another than 'value'
        node.attributes["value"] = ir.AttrTensor("value", tensor)
    if not same and value.shape is not None:
        value.shape = ir.Shape(array.shape)
    model.touch(name)


def forget(model: Model, value: ir.Value) -> None:
    """Take a constant out of the file if nothing uses it any more."""
    if value.uses() or value.is_graph_output():
        return
    node, graph = value.producer(), value.graph
    if node is not None:
        if read.is_constant(node) and node.graph is not None:
            remove(model, node)
    elif isinstance(graph, ir.Graph) and graph.initializers.get(value.name or "") is value:
        model.touch(value.name)
        graph.initializers.pop(value.name or "")
        if value in graph.inputs:
            graph.inputs.remove(value)
