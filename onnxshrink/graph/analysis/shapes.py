"""Shapes of every value, found by walking the graph once without its weights.

Each node's outputs are inferred by the rules that ONNX ships, or by the few below for the
operators of ONNX Runtime; small constants are computed on the way, so that a Reshape whose target
is computed from a Shape is followed. The walk enters branches, loop bodies and functions. Tensors
stay on disk, and the graph is not edited.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxshrink.errors import DataError, ModelError
from onnxshrink.graph import operators, read
from onnxshrink.graph.analysis.folding import affordable
from onnxshrink.graph.analysis.shape_rules import (
    LIKE,
    RULES,
    Shape,
    common,
    filled,
    further,
    shape_of,
    static,
    tensor_type,
)
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.model import Model

logger = logging.getLogger(__name__)

Frame = tuple[ir.Node, ...]

_KNOWN_ELEMENTS = 1024  # larger constants are weights, not shapes
_MOST_VISITS = 10**6
_NOT_BATCH = re.compile("seq|len|time|frame|step|token|height|width", re.IGNORECASE)
_OTHER_ATTRIBUTES = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS,
                     ir.AttributeType.TYPE_PROTO, ir.AttributeType.TYPE_PROTOS}  # fmt: skip
_BRANCHES = ("then_branch", "else_branch")


@dataclass(frozen=True)
class Call:
    """One node as it runs: a node in a function appears once for every call of the function.

    Attributes:
        node: The node.
        attributes: Plain values, references of functions resolved.
        inputs: Shape of each input; None where it is unknown or the input is left out.
        outputs: Shape of each output.
    """

    node: ir.Node
    attributes: Mapping[str, Any]
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]


@dataclass(frozen=True)
class Walked:
    """What a walk over a model found.

    Attributes:
        calls: Every node that runs, in order.
        shapes: Shape of every value that was reached.
        elements: ONNX's number of the type of each value's elements, 0 where it is unknown.
        known: Small constants, and what is computed from them and from shapes alone.
        notes: What was assumed, for people.
    """

    calls: tuple[Call, ...]
    shapes: Mapping[ir.Value, Shape]
    elements: Mapping[ir.Value, int]
    known: Mapping[ir.Value, np.ndarray]
    notes: tuple[str, ...]


def walk(
    model: Model, shapes: Mapping[str, Sequence[int]] | None = None,
    seen: Mapping[ir.Value, np.ndarray] | None = None, *, open_batch: bool = False,
) -> Walked:  # fmt: skip
    """Infer shapes through the whole model.

    Args:
        model: The model, which is only read.
        shapes: Shapes of some inputs; a symbol that they fix is fixed everywhere. A symbolic first
            axis that they leave open is taken as 1, a batch; other symbols stay unknown.
        seen: What values were in a run, not to be inferred. Both branches of every If are visited.
        open_batch: Whether a symbolic first axis stays unknown, too.

    Raises:
        DataError: ``shapes`` do not fit the model's inputs.
        ModelError: Functions or loops are nested beyond what any real model needs.
    """
    sizes, notes = ({}, []) if seen or open_batch else _sizes(model, shapes or {})
    walker = _Walker(model, sizes, seen or {})
    for value in model.inputs:
        if value in walker.seen:
            walker.take_seen(value)
            continue
        walker.types[value] = walker.declared(value)
        if shapes and (value.name or "") in shapes:
            elem = walker.types[value].tensor_type.elem_type
            walker.types[value] = tensor_type(elem, tuple(shapes[value.name or ""]))
    walker.scope(model.ir.graph, ())
    walker.notes[:0] = notes
    return Walked(
        tuple(walker.calls.values()),
        {value: shape_of(kind) for value, kind in walker.types.items()},
        {value: kind.tensor_type.elem_type for value, kind in walker.types.items()},
        walker.known,
        tuple(dict.fromkeys(walker.notes)),
    )


# ------------------------------------------------------------------------ input sizes


def _sizes(model: Model, shapes: Mapping[str, Sequence[int]]) -> tuple[dict[str, int], list[str]]:
    """The size of every symbol that is fixed or taken as 1, and a note on the latter."""
    inputs = {value.name or "": value for value in model.inputs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            near = get_close_matches(name, inputs, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"its inputs: {', '.join(inputs)}"
            raise DataError(f"shapes: the model has no input {name!r}; {hint}")
        declared = inputs[name].shape
        fits = declared is None or (
            len(declared) == len(shape)
            and all(
                sizes.setdefault(dim.value, size) == size
                if isinstance(dim, ir.SymbolicDim) and dim.value
                else not isinstance(dim, int) or dim == size
                for dim, size in zip(declared, shape, strict=True)
            )
        )
        if not fits or any(size < 0 for size in shape):
            raise DataError(f"shapes: {name!r} takes {declared}, not {list(shape)}")
    batches = []
    for name, value in inputs.items():
        first = value.shape[0] if value.shape is not None and len(value.shape) else 1
        if name in shapes or isinstance(first, int) or (first.value or "") in sizes:
            continue
        if first.value is None or not _NOT_BATCH.search(first.value):
            batches.append(f"{first.value or '?'} of {name}")
            sizes[first.value or f"?{name}"] = 1
    return sizes, [f"taken as 1: {', '.join(batches)}"] if batches else []


# ------------------------------------------------------------------------------- walk


class _Walker:
    """The state of one walk."""

    def __init__(self, model: Model, sizes: Mapping[str, int], seen: Mapping[ir.Value, np.ndarray]):
        self.model, self.sizes, self.seen = model, sizes, seen
        self.types: dict[ir.Value, onnx.TypeProto] = {}
        self.known: dict[ir.Value, np.ndarray] = {}
        self.calls: dict[tuple[Frame, ir.Node], Call] = {}
        self.notes: list[str] = []
        self._visits = 0

    def declared(self, value: ir.Value) -> onnx.TypeProto:
        """The type that the file states, with the sizes of symbols put in."""
        if not isinstance(value.type, ir.TensorType):
            return onnx.TypeProto() if value.type is None else ir.serde.serialize_type(value.type)
        shape: Shape = None
        if value.shape is not None:
            shape = tuple(
                dim if isinstance(dim, int) else self.sizes.get(dim.value or "")
                for dim in value.shape
            )
            if shape and shape[0] is None and value.shape[0].value is None:  # type: ignore[union-attr]
                shape = (self.sizes.get(f"?{value.name}"), *shape[1:])
        return tensor_type(value.dtype.value if value.dtype else 0, shape)

    def scope(self, scope: ir.Graph | ir.Function, frame: Frame) -> None:
        """Visit the nodes of a graph or function whose inputs have their types."""
        if isinstance(scope, ir.Graph):
            for value in scope.initializers.values():
                if value.const_value is not None:
                    self._constant(value, value.const_value)
        for node in scope:
            self._visits += 1
            if self._visits > _MOST_VISITS:
                raise ModelError(f"{self.model.label}: functions or loops are nested too deeply")
            self.visit(node, frame)

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        shape = read.shape(tensor)
        self.types[value] = tensor_type(tensor.dtype.value, shape)
        if math.prod(shape) <= _KNOWN_ELEMENTS and tensor.dtype != ir.DataType.STRING:
            self.known[value] = np.array(tensor.numpy())  # a copy: the file is let go
            tensors.release(tensor)

    def take_seen(self, value: ir.Value) -> None:
        """Take the type of a value, and a small value itself, from a run."""
        array = self.seen[value]
        self.types[value] = tensor_type(ir.DataType.from_numpy(array.dtype).value, array.shape)
        if array.size <= _KNOWN_ELEMENTS and array.dtype.kind in "iub":
            self.known[value] = array

    def visit(self, node: ir.Node, frame: Frame) -> None:
        """Infer one node, and record how it is called."""
        if self.seen and all(v in self.seen for v in node.outputs) and not any(read.bodies(node)):
            for value in node.outputs:
                self.take_seen(value)
            return
        for value in node.outputs:
            self.known.pop(value, None)
        function = self.model.ir.functions.get(node.op_identifier())
        attributes = _attributes(node, frame)
        kinds: Sequence[onnx.TypeProto] = ()
        if function is None:
            kinds = self._operator(node, attributes, frame)
        else:
            kinds = self._function(node, function, frame)
        padded = [*kinds, *[onnx.TypeProto()] * len(node.outputs)]
        shapes = tuple(map(self._shape, node.inputs))
        for place, shape in further(node, shapes, attributes).items():
            padded[place] = tensor_type(self._type(node.inputs[0]).tensor_type.elem_type, shape)
        for value, kind in zip(node.outputs, padded, strict=False):
            self.types[value] = filled(kind, self.declared(value))
        made = tuple(map(self._shape, node.outputs))
        self.calls[frame, node] = Call(node, attributes, shapes, made)
        self._fold(node, attributes)
        for value in self.seen.keys() & set(node.outputs):
            self.take_seen(value)

    def _operator(
        self, node: ir.Node, attributes: Mapping[str, Any], frame: Frame
    ) -> Sequence[onnx.TypeProto]:
        """Types of the outputs of a node that is no call of a function."""
        control = operators.of(node, operators.Control)
        if control is not None and control.slices:
            return self._scan(node, attributes, frame)
        if control is not None:
            return self._loop(node, frame) if control.repeats else self._if(node, frame)
        if read.is_constant(node) and isinstance(attributes.get("value"), ir.TensorProtocol):
            self._constant(node.outputs[0], attributes["value"])
            return (self.types[node.outputs[0]],)
        for graph in read.bodies(node):  # as SequenceMap has: shapes inside stay open
            self.scope(graph, frame)
        return self._infer(node, attributes)

    def _shape(self, value: ir.Value | None) -> Shape:
        return None if value is None else shape_of(self.types.get(value))

    def _type(self, value: ir.Value | None) -> onnx.TypeProto:
        return self.types.get(value, onnx.TypeProto()) if value is not None else onnx.TypeProto()

    # ------------------------------------------------------------------ plain nodes

    def _infer(self, node: ir.Node, attributes: Mapping[str, Any]) -> Sequence[onnx.TypeProto]:
        op_type, domain, inputs = node.op_type, node.domain, list(node.inputs)
        if domain == "com.microsoft" and op_type in RULES and inputs:
            found = RULES[op_type](list(map(self._shape, inputs)), attributes)
            return [tensor_type(self._type(inputs[0]).tensor_type.elem_type, found)]
        if (domain or op_type == "SimplifiedLayerNormalization") and op_type in LIKE:
            op_type, taken = LIKE[op_type]
            domain, inputs = "", inputs[taken]
        version = self.model.ir.opset_imports.get(domain, onnx.defs.onnx_opset_version())
        if not onnx.defs.has(op_type, version, domain):
            return ()
        schema = onnx.defs.get_schema(op_type, version, domain)
        # An operator that is like a standard one may have outputs that this one has not.
        outputs = node.outputs[: schema.max_output]
        proto = _proto(op_type, domain, inputs, outputs, attributes, schema)
        names = dict(zip(proto.input, inputs, strict=True))
        names.pop("", None)
        data = {
            name: onnx.numpy_helper.from_array(self.known[value], name)
            for name, value in names.items()
            if value in self.known
        }
        kinds = {name: self._type(value) for name, value in names.items()}
        opset = [onnx.helper.make_opsetid(domain, version)]
        try:
            inferred = onnx.shape_inference.infer_node_outputs(
                schema, proto, kinds, data, opset_imports=opset, ir_version=self.model.ir.ir_version
            )
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as e:
            # Not lost: the shape stays unknown, and whoever needs it says so.
            logger.debug("%s %r: %s", op_type, node.name, e)
            return ()
        return [inferred.get(name, onnx.TypeProto()) for name in proto.output]

    def _fold(self, node: ir.Node, attributes: Mapping[str, Any]) -> None:
        """Compute the outputs of a node whose inputs are small constants or known shapes."""
        if node.domain or any(True for _ in read.bodies(node)):
            return
        first = node.inputs[0] if node.inputs else None
        asks = operators.of(node, operators.ShapeOf)
        if asks is not None and first is not None:
            shape = self._shape(first)
            if not asks.product and shape is not None:
                shape = shape[attributes.get("start", 0) : attributes.get("end")]
            sizes = static(shape)
            if sizes is not None and math.prod(sizes) < 2**63:  # else no int64 holds it
                result = math.prod(sizes) if asks.product else sizes
                self.known[node.outputs[0]] = np.array(result, np.int64)
            return
        results = [self._shape(value) for value in node.outputs]
        if (
            any(value is not None and value not in self.known for value in node.inputs)
            or any(
                (sizes := static(shape)) is None or math.prod(sizes) > _KNOWN_ELEMENTS
                for shape in results
            )
            or operators.of(node, operators.Random) is not None
            or node.outputs[0] in self.known
        ):
            return
        import onnx.reference

        version = self.model.opset
        if not onnx.defs.has(node.op_type, version, ""):
            return
        given = [None if value is None else self.known[value] for value in node.inputs]
        if not affordable(node.op_type, _integers(attributes.values()), given):
            return
        schema = onnx.defs.get_schema(node.op_type, version, "")
        proto = _proto(node.op_type, "", node.inputs, node.outputs, attributes, schema)
        feeds = {
            name: self.known[value]
            for name, value in zip(proto.input, node.inputs, strict=True)
            if value is not None
        }
        graph = onnx.GraphProto(name="one node", node=[proto])
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in feeds)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in proto.output)
        alone = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
        try:
            with np.errstate(all="ignore"):
                made = onnx.reference.ReferenceEvaluator(alone).run(None, feeds)
        except Exception as error:  # the reference raises every kind of error for odd types
            # Not lost: a shape that depends on this stays unknown, and is reported as such.
            logger.debug("%s %r is not computed: %s", node.op_type, node.name, error)
            return
        for value, array in zip(node.outputs, made, strict=True):
            if isinstance(array, np.ndarray | np.generic):
                self.known[value] = np.asarray(array)

    # ------------------------------------------------------------------ bodies

    def _function(self, node: ir.Node, function: ir.Function, frame: Frame) -> list[onnx.TypeProto]:
        if any(caller.op_identifier() == node.op_identifier() for caller in frame):
            raise ModelError(f"{self.model.label}: function {node.op_type!r} calls itself")
        for value, given in zip(function.inputs, [*node.inputs, *[None] * len(function.inputs)],
                                strict=False):  # fmt: skip
            self._enter(value, self._type(given), given)
        self.scope(function, (*frame, node))
        self.notes.append("the nodes of functions are counted at every call")
        return self._results(function.outputs, node.outputs)

    def _enter(self, value: ir.Value, kind: onnx.TypeProto, given: ir.Value | None = None) -> None:
        """Give an input of a body its type, and its value where that is known."""
        self.types[value] = kind
        self.known.pop(value, None)
        if given is not None and given in self.known:
            self.known[value] = self.known[given]

    def _results(
        self, inner: Iterable[ir.Value], outer: Sequence[ir.Value]
    ) -> list[onnx.TypeProto]:
        values = list(inner)
        for value, result in zip(values, outer, strict=False):
            if value in self.known:
                self.known[result] = self.known[value]
        return [self._type(value) for value in values]

    def _if(self, node: ir.Node, frame: Frame) -> list[onnx.TypeProto]:
        condition = self.known.get(node.inputs[0]) if node.inputs[0] is not None else None
        if condition is not None and condition.size == 1:
            names = _BRANCHES[::-1] if condition.item() else _BRANCHES
            *others, graph = (node.attributes[name].as_graph() for name in names)
            for other in others if self.seen else ():
                self.scope(other, frame)
            self.scope(graph, frame)
            self.notes.append("branches of If that are never taken count nothing")
            return self._results(graph.outputs, node.outputs)
        then, other = (node.attributes[name].as_graph() for name in _BRANCHES)
        self.scope(then, frame)
        self.scope(other, frame)
        self.notes.append("both branches of If are counted, although one of them runs")
        pairs = zip(then.outputs, other.outputs, strict=False)
        return [common(self._type(a), self._type(b)) for a, b in pairs]

    def _loop(self, node: ir.Node, frame: Frame) -> list[onnx.TypeProto]:
        body = node.attributes["body"].as_graph()
        self.notes.append("bodies of Loop and Scan are counted once, however often they run")
        carried = [self._type(value) for value in node.inputs[2:]]
        scalars = [  # some declare them as [1], and get them so
            filled(self.declared(value), tensor_type(elem, ()))
            for value, elem in zip(body.inputs, (onnx.TensorProto.INT64, onnx.TensorProto.BOOL),
                                   strict=False)
        ]  # fmt: skip
        while True:  # agreement only shrinks, so this ends
            for value, kind in zip(body.inputs, [*scalars, *carried], strict=False):
                self._enter(value, kind)
            self.scope(body, frame)
            after = [self._type(value) for value in body.outputs[1 : 1 + len(carried)]]
            agreed = [common(a, b) for a, b in zip(carried, after, strict=False)]
            if agreed == carried:
                break
            carried = agreed
        stacked = [self._stacked(value, 0, None) for value in body.outputs[1 + len(carried) :]]
        return carried + stacked

    def _stacked(self, value: ir.Value, axis: int, length: int | None) -> onnx.TypeProto:
        """The type of a body's output, collected along a new axis."""
        shape, elem = self._shape(value), self._type(value).tensor_type.elem_type
        if shape is None:
            return tensor_type(elem, None)
        axis %= len(shape) + 1
        return tensor_type(elem, (*shape[:axis], length, *shape[axis:]))

    def _scan(
        self, node: ir.Node, attributes: Mapping[str, Any], frame: Frame
    ) -> list[onnx.TypeProto]:
        body = node.attributes["body"].as_graph()
        self.notes.append("bodies of Loop and Scan are counted once, however often they run")
        count = min(attributes.get("num_scan_inputs", 0), len(node.inputs))
        batched = self.model.opset < 9  # Scan-8 has a batch axis in front: left open
        kinds = [self._type(value) for value in node.inputs[: len(node.inputs) - count]]
        states = len(kinds)
        length: int | None = None
        axes = attributes.get("scan_input_axes") or [0] * count
        for value, axis in zip(node.inputs[states:], axes, strict=False):
            shape, elem = self._shape(value), self._type(value).tensor_type.elem_type
            if not shape:
                kinds.append(tensor_type(elem, None))
                continue
            length = shape[axis] if length is None else length
            axis %= len(shape)
            kinds.append(tensor_type(elem, shape[:axis] + shape[axis + 1 :]))
        for value, kind in zip(body.inputs, kinds, strict=False):
            self._enter(value, onnx.TypeProto() if batched else kind)
        self.scope(body, frame)
        if batched:
            return []
        outputs = body.outputs[states:]
        out_axes = attributes.get("scan_output_axes") or [0] * len(outputs)
        stacked = [self._stacked(v, a, length) for v, a in zip(outputs, out_axes, strict=False)]
        return kinds[:states] + stacked


def _integers(values: Iterable[Any]) -> Iterator[int]:
    """The integers among an operator's attributes, and in lists among them."""
    lists = (value if isinstance(value, list | tuple) else (value,) for value in values)
    return (number for each in lists for number in each if isinstance(number, int))


def _attributes(node: ir.Node, frame: Frame) -> dict[str, Any]:
    """Plain values of a node's attributes; those that a function passes on come from its caller."""
    values: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            caller = frame[-1] if frame else None
            passed = _attributes(caller, frame[:-1]) if caller is not None else {}
            if attribute.ref_attr_name in passed:
                values[name] = passed[attribute.ref_attr_name or ""]
        elif attribute.type not in _OTHER_ATTRIBUTES:
            values[name] = attribute.value
    return values


def _proto(
    op_type: str,
    domain: str,
    inputs: Sequence[ir.Value | None],
    outputs: Sequence[ir.Value],
    attributes: Mapping[str, Any],
    schema: onnx.defs.OpSchema,
) -> onnx.NodeProto:
    """A node with numbered names, so that unnamed and repeated values do no harm."""
    numbers: dict[ir.Value, str] = {}
    names = [
        "" if value is None else numbers.setdefault(value, f"i{len(numbers)}") for value in inputs
    ]
    proto = onnx.NodeProto(op_type=op_type, domain=domain, input=names)
    proto.output.extend(f"o{index}" for index in range(len(outputs)))
    for name, value in attributes.items():
        if name in schema.attributes and value not in ([], ()):  # an empty list has no type
            if isinstance(value, ir.TensorProtocol):
                value = ir.serde.serialize_tensor(value)
            proto.attribute.append(onnx.helper.make_attribute(name, value))
    return proto
