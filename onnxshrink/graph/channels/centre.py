"""LayerNorm without a mean: what its input is written with is centred once, for good.

LayerNorm subtracts the mean over the channels, so nothing changes when everything that is added to
its input has mean zero already. Then it only divides by the root mean square, as RMSNorm does, and
channels of zeros can be left out of that exactly. (SliceGPT, 2401.15024, section 3.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxshrink.graph.channels.consumers import store
from onnxshrink.graph.channels.facts import stored
from onnxshrink.graph.channels.walk import FLOATS, Walk, attribute, integer

_MOVES = {"Cast", "Concat", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Reshape",
          "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}  # fmt: skip


@dataclass
class _Stream:
    """What the inputs of some norms are made of.

    Attributes:
        norms: The norms that read it.
        values: Values that must have mean zero.
        nodes: Nodes that pass them on.
        writers: Constants to centre, each with the axis to do it along, and its uses.
    """

    norms: list[ir.Node] = field(default_factory=list)
    values: set[ir.Value] = field(default_factory=set)
    nodes: set[ir.Node] = field(default_factory=set)
    writers: dict[ir.Value, int] = field(default_factory=dict)
    uses: set[tuple[ir.Node, int]] = field(default_factory=set)
    sound: bool = True

    def write(self, value: ir.Value | None, axis: int, node: ir.Node, index: int) -> None:
        """Note a constant that is to have mean zero along an axis."""
        tensor = None if value is None else stored(value)
        if (
            value is None
            or tensor is None
            or tensor.dtype not in FLOATS
            or self.writers.setdefault(value, axis) != axis
        ):
            self.sound = False
        else:
            self.uses.add((node, index))

    def closed(self) -> bool:
        """Whether nothing else reads the values, or uses the constants."""
        readers = self.nodes | set(self.norms)
        reads = [u.node for v in self.values for u in v.uses() if u.node.op_type != "Shape"]
        return (
            self.sound
            and readers.issuperset(reads)
            and not any(v.is_graph_output() for v in (*self.values, *self.writers))
            and all((u.node, u.idx) in self.uses for v in self.writers for u in v.uses())
            and not any(v.is_graph_input() for v in self.writers)
        )


def centre(walk: Walk) -> list[ir.Value]:
    """Rewrite every LayerNormalization whose input can be centred.

    The model computes the same as before; its labels are no longer up to date.

    Returns:
        The constants that were centred.
    """
    streams: list[_Stream] = []
    for node in walk.model.ir.graph:
        if node.op_type == "LayerNormalization" and not node.domain and node.inputs[0] is not None:
            stream = _Stream([node])
            last = integer(node, "axis", -1)
            rank = len(walk.labels.get(node.inputs[0], ()))
            stream.sound = last in (-1, rank - 1) and not any(v.uses() for v in node.outputs[1:])
            _trace(walk, stream, node.inputs[0], rank - 1)
            streams.append(stream)
    changed: list[ir.Value] = []
    for stream in _merged(streams):
        if not stream.closed():
            continue
        for value, axis in stream.writers.items():
            tensor = stored(value)
            assert tensor is not None
            array = np.asarray(tensor.numpy(), np.float64)
            store(walk, value, array - array.mean(axis, keepdims=True))
            changed.append(value)
        for norm in stream.norms:
            _without_mean(walk, norm)
    return changed


def _trace(walk: Walk, stream: _Stream, value: ir.Value, axis: int) -> None:
    """Follow an axis back to the constants that write it."""
    if value in stream.values or not stream.sound:
        return
    node = value.producer()
    labels = walk.labels.get(value, ())
    if node is None or axis >= len(labels) or labels[axis] is None or node.domain:
        stream.sound = False
        return
    stream.values.add(value)
    op, inputs = node.op_type, node.inputs
    if op == "MatMul" and axis == len(labels) - 1:
        stream.write(inputs[1], 1, node, 1)
        tensor = None if inputs[1] is None else stored(inputs[1])
        stream.sound = stream.sound and tensor is not None and len(tensor.shape) == 2
    elif op == "Gemm" and axis == 1:
        stream.write(inputs[1], 0 if integer(node, "transB", 0) else 1, node, 1)
        if walk.has(node, 2):
            _operand(walk, stream, node, 2, 1, 2)
    elif op == "Conv" and axis == 1 and integer(node, "group", 1) == 1:
        stream.write(inputs[1], 0, node, 1)
        if walk.has(node, 2):
            stream.write(inputs[2], 0, node, 2)
    elif op in ("Add", "Sub", "Sum"):
        stream.nodes.add(node)
        for index in range(len(inputs)):
            _operand(walk, stream, node, index, axis, len(labels))
    elif op in _MOVES:
        stream.nodes.add(node)
        for index in range(len(inputs) if op == "Concat" else 1):
            _moved(walk, stream, node, index, value, axis)
    else:
        stream.sound = False


def _operand(walk: Walk, stream: _Stream, node: ir.Node, index: int, axis: int, rank: int) -> None:
    """Follow one term of a sum, aligned to the right; it must have all channels."""
    value = node.inputs[index]
    if value is None:
        return
    axes = walk.labels.get(walk.slot(value, node, index), ())
    own = axis - (rank - len(axes))
    labels = axes[own] if own >= 0 and len(axes) else None
    if labels is None or len(labels) == 1:
        stream.sound = False
    elif stored(value) is not None:
        stream.write(value, own, node, index)
    else:
        _trace(walk, stream, value, own)


def _moved(
    walk: Walk, stream: _Stream, node: ir.Node, index: int, output: ir.Value, axis: int
) -> None:
    """Follow an axis through a node that moves values, by its labels."""
    value = node.inputs[index]
    wanted = walk.labels[output][axis]
    axes: Sequence[object] = () if value is None else walk.labels.get(value, ())
    assert wanted is not None
    roots = walk.atoms.find(wanted)
    same = [
        own
        for own, labels in enumerate(axes)
        if isinstance(labels, np.ndarray) and np.array_equal(walk.atoms.find(labels), roots)
    ]
    if value is None or len(same) != 1 or len(wanted) < 2:
        stream.sound = False
    elif stored(value) is not None:
        stream.write(value, same[0], node, index)
    else:
        _trace(walk, stream, value, same[0])


def _merged(streams: list[_Stream]) -> list[_Stream]:
    """Streams that share a value or a constant stand or fall together."""
    merged: list[_Stream] = []
    for stream in streams:
        for other in [
            m
            for m in merged
            if m.values & stream.values or m.writers.keys() & stream.writers.keys()
        ]:
            merged.remove(other)
            agree = all(stream.writers.get(v, a) == a for v, a in other.writers.items())
            stream = _Stream(
                stream.norms + other.norms, stream.values | other.values,
                stream.nodes | other.nodes, stream.writers | other.writers,
                stream.uses | other.uses, stream.sound and other.sound and agree,
            )  # fmt: skip
        merged.append(stream)
    return merged


def _without_mean(walk: Walk, norm: ir.Node) -> None:
    """``x / sqrt(mean(x^2) + epsilon) * scale + bias``, in the form that ONNX Runtime fuses."""
    model, graph = walk.model, norm.graph
    assert graph is not None
    x, output = norm.inputs[0], norm.outputs[0]
    assert x is not None
    kind = walk.facts.dtype(output) or np.dtype(np.float32)
    made: list[ir.Node] = []

    def constant(array: np.ndarray) -> ir.Value:
        node = add("Constant", [])
        tensor = model.store(array, node.name or "")
        made[-1].attributes["value"] = ir.AttrTensor("value", tensor)
        return node

    def add(op: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        given = ir.convenience.convert_attributes(attributes)  # type: ignore[arg-type]
        node = ir.Node("", op, inputs, given, name="")
        node.outputs[0].name = model.unused_name(f"{output.name}.{op.lower()}")
        model.touch(node.outputs[0].name)
        made.append(node)
        return node.outputs[0]

    squares = add("Pow", [x, constant(np.array(2, kind))])
    if model.opset >= 18:
        mean = add("ReduceMean", [squares, constant(np.array([-1]))], keepdims=1)
    else:
        mean = add("ReduceMean", [squares], axes=[-1], keepdims=1)
    epsilon = constant(np.array(attribute(norm, "epsilon", 1e-5), kind))
    result = add("Div", [x, add("Sqrt", [add("Add", [mean, epsilon])])])
    for index, op in ((1, "Mul"), (2, "Add")):
        operand = norm.inputs[index] if index < len(norm.inputs) else None
        if operand is not None:
            result = add(op, [result, operand])
    graph.insert_before(norm, made)
    model.touch(output.name)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    result.type, result.shape, name = output.type, output.shape, output.name
    graph.remove(norm, safe=True)
    result.name = name
