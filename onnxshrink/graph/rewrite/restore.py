"""Put back what onnx-graphsurgeon loses, and find what an edit did.

graphsurgeon writes the model twice: once as it is, once edited. Where both agree the user changed
nothing, and the original text stands, with everything that graphsurgeon cannot represent: doc
strings, metadata, overloads, types that it does not know. Where they differ the edit stands, with
what belongs to the same node, graph or function put back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxshrink.graph.file import round_trip

# Attributes that graphsurgeon drops with no more than a warning.
_DROPPED = {
    onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS,
    onnx.AttributeProto.TENSORS, onnx.AttributeProto.GRAPHS,
    onnx.AttributeProto.TYPE_PROTO, onnx.AttributeProto.TYPE_PROTOS,
}  # fmt: skip
_NODE_FIELDS = ("doc_string", "overload", "metadata_props", "device_configurations")
_FUNCTION_FIELDS = ("doc_string", "overload", "metadata_props", "value_info")
_MODEL_FIELDS = (
    "doc_string", "domain", "model_version", "producer_name", "producer_version",
    "metadata_props", "configuration",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One thing that the user's function did.

    Attributes:
        what: Name of the node or initializer.
        kind: Its operator, or ``initializer``, ``input``, ``output``, ``function``, ``shape`` (that
            is recorded of a value); ``graph`` and ``model`` for what is said of all of it.
        note: ``added``, ``removed`` or ``changed``.
        before: Its bytes before; 0 when it is new.
        after: Its bytes after; 0 when it is gone.
    """

    what: str
    kind: str
    note: str
    before: int = 0
    after: int = 0


class Edits:
    """Finds what an edit did, and puts back what graphsurgeon alone did.

    Args:
        original: The model as it was, without the contents of the main graph's initializers.
        plain: What graphsurgeon writes of it.
        result: What graphsurgeon writes of the edited graph; changed in place.
        prints: Fingerprints of the main graph's initializers.
    """

    def __init__(
        self,
        original: onnx.ModelProto,
        plain: onnx.ModelProto,
        result: onnx.ModelProto,
        prints: Mapping[str, tuple[Any, ...]],
    ):
        self.original, self.plain, self.result = original, plain, result
        self.differences: list[Difference] = []
        self.touched: set[str] = set()
        self._reshaped: set[str] = set()
        self._prints = prints

    def restore(self, unread: Mapping[str, onnx.TensorProto]) -> None:
        """Put everything back; ``unread`` holds the original's initializers by name."""
        original, plain, result = self.original, self.plain, self.result
        for exported in (plain, result):
            _lift(exported.graph, original.graph, set())
        self._return_initializers(unread)
        self._graph(result.graph, plain.graph, original.graph, self._prints)
        self._initializers_as_inputs()
        self._functions()
        _put_back(result, original, _MODEL_FIELDS, replace=True)
        for field in ("ir_version", "opset_import"):
            now, untouched = getattr(result, field), getattr(plain, field)
            if now == untouched:
                _put_back(result, original, (field,), replace=True)
            else:
                self.differences.append(Difference(field, "model", "changed"))
        self._forget_stale_shapes()

    def _return_initializers(self, unread: Mapping[str, onnx.TensorProto]) -> None:
        """Those that graphsurgeon does not write: used by no node, or by subgraphs only."""
        graph = self.result.graph
        used_before, used = _names_used(self.original.graph), _names_used(graph)
        defined = _names_defined(graph)
        for tensor in self.original.graph.initializer:
            name = tensor.name
            if name not in defined and (name in used or name not in used_before):
                graph.initializer.append(unread[name])

    def _graph(
        self,
        new: onnx.GraphProto,
        plain: onnx.GraphProto,
        old: onnx.GraphProto,
        prints: Mapping[str, tuple[Any, ...]],
    ) -> None:
        """One graph of the result, with those inside it."""
        for side in ("input", "output"):
            stored = {tensor.name for tensor in old.initializer} if side == "input" else set()
            self._ports(side, getattr(new, side), getattr(plain, side), getattr(old, side), stored)
        self._initializers(new, old, prints)
        self._nodes(new.node, plain.node, old.node)
        _put_back(new, old, ("metadata_props",))
        if new.name == plain.name:
            _put_back(new, old, ("name",), replace=True)
        if new.doc_string == plain.doc_string:
            _put_back(new, old, ("doc_string",), replace=True)
        known = _names_defined(new)
        for note in old.quantization_annotation:
            if {note.tensor_name, *(p.value for p in note.quant_parameter_tensor_names)} <= known:
                new.quantization_annotation.append(note)
        infos = {value.name: _text(value) for value in plain.value_info}
        reshaped = {v.name for v in new.value_info if infos.get(v.name, _text(v)) != _text(v)}
        for name in sorted(reshaped):
            self._differs(name, "shape", 1, 1)
        self._reshaped |= reshaped

    def _ports(
        self,
        side: str,
        new: Iterable[onnx.ValueInfoProto],
        plain: Iterable[onnx.ValueInfoProto],
        old: Iterable[onnx.ValueInfoProto],
        stored: set[str],
    ) -> None:
        """Inputs or outputs of a graph; ``stored`` names inputs that have an initializer."""
        before = {value.name: value for value in old if value.name not in stored}
        exported = {value.name: _text(value) for value in plain}
        gone = dict(before)
        for value in new:
            known = gone.pop(value.name, None)
            if known is None:
                self._differs(value.name, side, 0, value.ByteSize())
            elif exported.get(value.name) == _text(value):
                value.CopyFrom(known)
            else:
                self._differs(value.name, side, known.ByteSize(), value.ByteSize())
        for name, value in gone.items():
            self._differs(name, side, value.ByteSize(), 0)

    def _initializers(
        self, new: onnx.GraphProto, old: onnx.GraphProto, prints: Mapping[str, tuple[Any, ...]]
    ) -> None:
        gone = {tensor.name: tensor for tensor in old.initializer}
        order = {name: index for index, name in enumerate(gone)}
        new.initializer.sort(key=lambda tensor: order.get(tensor.name, len(order)))
        for tensor in new.initializer:
            known, size = gone.pop(tensor.name, None), _nbytes(tensor)
            if known is None:
                self._differs(tensor.name, "initializer", 0, size)
            elif prints[tensor.name] != fingerprint(tensor):
                self._differs(tensor.name, "initializer", _nbytes(known), size)
            else:
                _put_back(tensor, known, ("doc_string", "metadata_props"), replace=True)
        for name, tensor in gone.items():
            self._differs(name, "initializer", _nbytes(tensor), 0)
        kept = {sparse.values.name for sparse in new.sparse_initializer} | {
            tensor.name for tensor in new.initializer
        }
        for sparse in old.sparse_initializer:
            if sparse.values.name not in kept:
                self._differs(sparse.values.name, "sparse initializer", sparse.ByteSize(), 0)

    def _nodes(
        self,
        new: Collection[onnx.NodeProto],
        plain: Iterable[onnx.NodeProto],
        old: Iterable[onnx.NodeProto],
    ) -> None:
        exported = {round_trip.key(node): node for node in plain}
        gone = {round_trip.key(node): node for node in old}
        kept = [name for node in new if (name := round_trip.key(node)) in gone]
        if kept != [name for name in gone if name in set(kept)]:
            self.differences.append(Difference("order of nodes", "graph", "changed"))
        for node in new:
            name = round_trip.key(node)
            known = gone.pop(name, None)
            if known is None:
                self._differs(node.name or name, node.op_type, 0, node.ByteSize(), name)
            elif _text(node) == _text(exported[name]):
                node.CopyFrom(known)
            else:
                self._node(node, exported[name], known)
        for name, node in gone.items():
            self._differs(node.name or name, node.op_type, node.ByteSize(), 0, name)

    def _node(self, new: onnx.NodeProto, plain: onnx.NodeProto, old: onnx.NodeProto) -> None:
        """A node that differs, itself or in its subgraphs."""
        name = round_trip.key(new)
        before, exported = dict(round_trip.subgraphs(old)), dict(round_trip.subgraphs(plain))
        if _own_text(new) != _own_text(plain):
            label = old.name or name
            self._differs(label, new.op_type, old.ByteSize(), new.ByteSize(), name)
        if (new.op_type, new.domain) != (old.op_type, old.domain):
            return
        _put_back(new, old, _NODE_FIELDS)
        present = {attribute.name for attribute in new.attribute}
        hidden = [a for a in old.attribute if a.name not in present and is_dropped(a)]
        new.attribute.extend(hidden)
        for attribute, graph in round_trip.subgraphs(new):
            if attribute in before and attribute in exported:
                twin = before[attribute]
                prints = {tensor.name: fingerprint(tensor) for tensor in twin.initializer}
                self._graph(graph, exported[attribute], twin, prints)

    def _functions(self) -> None:
        """Functions go by domain and name; of overloads, by their text and then their order."""
        left = list(zip(self.plain.functions, self.original.functions, strict=True))
        for new in self.result.functions:
            same = [
                pair for pair in left if (pair[1].domain, pair[1].name) == (new.domain, new.name)
            ]
            same.sort(key=lambda pair: _text(pair[0]) != _text(new))
            if not same:
                self._differs(new.name, "function", 0, new.ByteSize(), "")
                continue
            plain, old = same[0]
            left.remove(same[0])
            if _text(new) == _text(plain):
                new.CopyFrom(old)
                continue
            _put_back(new, old, _FUNCTION_FIELDS)
            found = len(self.differences)
            self._nodes(new.node, plain.node, old.node)
            if found == len(self.differences):
                self._differs(new.name, "function", old.ByteSize(), new.ByteSize(), "")
        for _, old in left:
            self._differs(old.name, "function", old.ByteSize(), 0, "")

    def _initializers_as_inputs(self) -> None:
        """Defaults that the caller may override; in IR version 3, every initializer."""
        graph, old = self.result.graph, self.original.graph
        present = {value.name for value in graph.input}
        missing = {
            tensor.name: tensor for tensor in graph.initializer if tensor.name not in present
        }
        inputs = list(graph.input)
        for index, value in enumerate(old.input):
            if missing.pop(value.name, None) is not None:
                inputs.insert(min(index, len(inputs)), value)
        if self.original.ir_version < 4:
            inputs += [
                onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
                for name, tensor in missing.items()
            ]
        inputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
        del graph.input[:]
        graph.input.extend(inputs)

    def _forget_stale_shapes(self) -> None:
        """Shapes recorded behind an edit may be wrong; ones that the user set are kept."""
        for nodes in [self.result.graph.node, *(f.node for f in self.result.functions)]:
            for node in nodes:
                if self.touched & _names_read(node):
                    self.touched |= set(filter(None, _names_made(node)))
        graph = self.result.graph
        kept = [
            v for v in graph.value_info if v.name in self._reshaped or v.name not in self.touched
        ]
        kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        del graph.value_info[:]
        graph.value_info.extend(kept)

    def _differs(
        self, what: str, kind: str, before: int, after: int, touched: str | None = None
    ) -> None:
        note = "changed" if before and after else "added" if after else "removed"
        self.differences.append(Difference(what, kind, note, before, after))
        self.touched.add(what if touched is None else touched)
        self.touched.discard("")


def _lift(
    new: onnx.GraphProto, old: onnx.GraphProto, outer: set[str]
) -> dict[str, onnx.TensorProto]:
    """Undo the copies of outer weights that graphsurgeon puts into every subgraph.

    Args:
        new: A graph that graphsurgeon wrote; changed in place.
        old: The same graph as it was.
        outer: Names of the initializers of the graphs around it.

    Returns:
        The weights that belong further out, by name.
    """
    own = {tensor.name for tensor in old.initializer}
    present = {tensor.name for tensor in new.initializer}
    before = {round_trip.key(node): node for node in old.node}
    upward: dict[str, onnx.TensorProto] = {}
    for node in new.node:
        twin = before.get(round_trip.key(node), onnx.NodeProto())
        twins = dict(round_trip.subgraphs(twin))
        for name, graph in round_trip.subgraphs(node):
            inner = _lift(graph, twins.get(name, onnx.GraphProto()), outer | own | present)
            for weight, tensor in inner.items():
                if weight in own and weight not in present:
                    new.initializer.append(tensor)
                    present.add(weight)
                elif weight not in present:
                    upward[weight] = tensor
    foreign = [tensor for tensor in new.initializer if tensor.name in outer]
    for tensor in foreign:
        upward[tensor.name] = onnx.TensorProto.FromString(tensor.SerializeToString())
        new.initializer.remove(tensor)
    return upward


def _put_back(new: Any, old: Any, fields: Iterable[str], *, replace: bool = False) -> None:
    """Copy fields of a message that are empty in the new one, or all of them."""
    for name in fields:
        if name not in old.DESCRIPTOR.fields_by_name:  # of a later version of onnx
            continue
        value = getattr(old, name)
        repeated = hasattr(value, "extend")
        if repeated and (replace or not getattr(new, name)):
            values = list(value)
            new.ClearField(name)
            getattr(new, name).extend(values)
        elif not repeated and (replace or not getattr(new, name)):
            new.ClearField(name)
            if old.HasField(name):
                setattr(new, name, value)


def _text(message: Any) -> bytes:
    text: bytes = message.SerializeToString(deterministic=True)
    return text


def _own_text(node: onnx.NodeProto) -> bytes:
    """A node without its subgraphs."""
    own = onnx.NodeProto()
    own.CopyFrom(node)
    for attribute in own.attribute:
        attribute.ClearField("g")
    return _text(own)


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Values that a node reads, those of its subgraphs included."""
    inside = (_names_used(graph) for _, graph in round_trip.subgraphs(node))
    return set(node.input).union(*inside)


def _names_made(node: onnx.NodeProto) -> set[str]:
    inside = (_names_made(inner) for _, graph in round_trip.subgraphs(node) for inner in graph.node)
    return set(node.output).union(*inside)


def _names_defined(graph: onnx.GraphProto) -> set[str]:
    """Values that a graph itself makes or holds."""
    return (
        {name for node in graph.node for name in node.output}
        | {tensor.name for tensor in graph.initializer}
        | {sparse.values.name for sparse in graph.sparse_initializer}
        | {value.name for value in graph.input}
    )


def _names_used(graph: onnx.GraphProto) -> set[str]:
    """Values that the nodes or outputs of a graph read."""
    return {value.name for value in graph.output}.union(*map(_names_read, graph.node))


def fingerprint(tensor: onnx.TensorProto) -> tuple[Any, ...]:
    """What tells whether two tensors hold the same, however they are written."""
    if tensor.data_type == onnx.TensorProto.STRING:
        data = b"\0".join(tensor.string_data)
    elif tensor.HasField("raw_data"):
        data = tensor.raw_data
    else:
        data = onnx.numpy_helper.to_array(tensor).tobytes()
    return tensor.data_type, tuple(tensor.dims), hashlib.sha256(data).digest()


def _nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes that a tensor's shape and type ask for; of text, what it takes."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    return (int(np.prod(tensor.dims)) * ir.DataType(tensor.data_type).bitwidth + 7) // 8


def is_dropped(attribute: onnx.AttributeProto) -> bool:
    """Whether graphsurgeon drops an attribute, or fails on it: an empty list, or raw bytes."""
    if attribute.type in _DROPPED:
        return True
    if attribute.ref_attr_name:
        return False
    if attribute.type == onnx.AttributeProto.STRING:
        return not _is_text(attribute.s)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return not attribute.strings or not all(map(_is_text, attribute.strings))
    if attribute.type == onnx.AttributeProto.INTS:
        return not attribute.ints
    return attribute.type == onnx.AttributeProto.FLOATS and not attribute.floats


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
