"""Weights that the graph computes from constants are computed once, where the file does not grow.

Exporters leave such sums in the graph: the norm of a weight and its product with a gain (every
vocoder), a weight that is turned or reshaped, the fake quantization of one. No pass sees a weight
there. What decides is bytes alone: a value is stored where it takes no more than the constants
that go for it. So QuantizeLinear of a float weight becomes codes, and what unpacks codes stays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from onnxshrink.graph import operators, surgery
from onnxshrink.graph.analysis import shapes
from onnxshrink.graph.analysis.shape_rules import static
from onnxshrink.graph.file import tensors
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.read import constant

logger = logging.getLogger(__name__)

#: A smaller constant is no weight.
_WEIGHT_BYTES = 1024
#: What these make of narrow types is larger: a compressed weight in its full form.
#: What makes another weight of a weight; all other movements are seen through by its views.
_ANEW = ("", "reshapes", "flattens")
_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def fold_weights(model: Model, *, moved: bool = True) -> int:
    """Store what is computed from weights alone, where it takes no more bytes than they do.

    Args:
        model: Changed in place.
        moved: Also weights that are only transposed, cut or cast: passes see through that, and
            know them by the names that they have now.

    Returns:
        How many values are stored now.
    """
    if not any(_starts_from_weights(model, node) for node in model.nodes):
        return 0
    folder = _Folder(model, shapes.walk(model), moved)
    for scope in list(model.scopes):
        if scope.opset_imports.get("", model.opset) == model.opset:
            for node in list(scope):
                folder.visit(node)
    for source in list(folder.sources()):
        folder.fold_behind(source)
    return folder.folded


@dataclass(frozen=True)
class _Cone:
    """All that a value is computed from: nodes in the order in which they run, and constants."""

    nodes: tuple[ir.Node, ...] = ()
    sources: tuple[ir.Value, ...] = ()


class _Folder:
    """The values that depend on constants alone, each with what it is computed from."""

    def __init__(self, model: Model, found: shapes.Walked, moved: bool):
        self.model, self.found, self.moved = model, found, moved
        self.cones: dict[ir.Value, _Cone] = {}  # of what is not stored
        self.folded = 0

    def visit(self, node: ir.Node) -> None:
        """Note what a node computes from constants, and store it where that costs nothing."""
        inputs = [value for value in node.inputs if value is not None]
        known = all(v in self.cones or _stored(self.model, v) is not None for v in inputs)
        if not inputs or not known or not _is_plain(node):
            return
        cone = _joined([self.cones.get(v, _Cone((), (v,))) for v in inputs], node)
        self.cones.update(dict.fromkeys(node.outputs, cone))
        if len(node.outputs) == 1 and self._needs(node.outputs[0]) >= _WEIGHT_BYTES:
            self._fold(node.outputs, cone)

    def sources(self) -> list[ir.Value]:
        """The weights that some value which is not stored is computed from."""
        found = {source: None for cone in self.cones.values() for source in cone.sources}
        return [value for value in found if _nbytes(self.model, value) >= _WEIGHT_BYTES]

    def fold_behind(self, source: ir.Value) -> None:
        """Store all that is computed from one weight, for instance its slices, or nothing."""
        behind = {v: cone for v, cone in self.cones.items() if source in cone.sources}
        ends = [
            value for value in behind
            if value.is_graph_output()
            or any(output not in behind for node, _ in value.uses() for output in node.outputs)
        ]  # fmt: skip
        if ends:
            self._fold(ends, _joined([behind[value] for value in ends]))

    def _fold(self, values: Sequence[ir.Value], cone: _Cone) -> None:
        """Store values in place of the constants that only they are computed from."""
        freed = sum(
            _nbytes(self.model, source) for source in cone.sources
            if all(node in cone.nodes for node, _ in source.uses())
        )  # fmt: skip
        seen = not self.moved and all(operators.moves(node) not in _ANEW for node in cone.nodes)
        if seen or any(value.is_graph_output() for value in values):
            return
        if sum(map(self._needs, values)) > freed:
            return
        arrays = self._computed(values, cone)
        for value, array in zip(values, arrays, strict=False):
            self._store(value, array)
        if arrays:
            self._sweep(cone)

    def _computed(self, values: Sequence[ir.Value], cone: _Cone) -> list[np.ndarray]:
        """The values as ONNX's reference computes them; none where it cannot."""
        feeds = {source.name or "": _array(source) for source in cone.sources}
        graph = onnx.GraphProto(name="weights", node=map(ir.to_proto, cone.nodes))
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in feeds)
        graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in values)
        opset = [onnx.helper.make_opsetid("", self.model.opset)]
        try:
            alone = onnx.helper.make_model(graph, opset_imports=opset)
            with np.errstate(all="ignore"):
                made = onnx.reference.ReferenceEvaluator(alone).run(None, feeds)
        except Exception as error:  # the reference raises every kind of error for odd types
            # Not lost: the nodes stay, and passes say that the weight is computed.
            logger.debug("%s is not computed: %s", [value.name for value in values], error)
            return []
        arrays = [array for array in made if isinstance(array, np.ndarray)]
        whole = len(arrays) == len(values) and all(map(self._fits, values, arrays))
        return arrays if whole else []

    def _fits(self, value: ir.Value, array: np.ndarray) -> bool:
        """Whether the reference made what the graph says that it would."""
        kind = ir.DataType(self.found.elements[value])
        return array.shape == static(self.found.shapes[value]) and array.dtype == kind.numpy()

    def _needs(self, value: ir.Value) -> float:
        """Bytes that a computed value would take; infinite where its shape is not known."""
        sizes, kind = static(self.found.shapes.get(value)), self.found.elements.get(value, 0)
        if sizes is None or kind in (0, ir.DataType.STRING):
            return math.inf
        return math.prod(sizes) * ir.DataType(kind).bitwidth / 8

    def _store(self, value: ir.Value, array: np.ndarray) -> None:
        """Put a constant in place of a computed value, under its name."""
        model, node, name = self.model, value.producer(), value.name or ""
        assert node is not None
        assert node.graph is not None
        kind = ir.DataType(self.found.elements[value])
        tensor = model.store(ir.Tensor(np.asarray(array, order="C"), dtype=kind), name)
        model.touch(name)
        model.touch_node(node)
        if isinstance(node.graph, ir.Graph) and model.ir.ir_version >= 4:
            made = ir.Value(
                name=name, type=ir.TensorType(kind), shape=ir.Shape(array.shape), const_value=tensor
            )
            node.graph.register_initializer(made)
        else:
            constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name="")
            node.graph.insert_before(node, constant)
            made = constant.outputs[0]
            made.name = name
        value.replace_all_uses_with(made)
        del self.cones[value]
        self.folded += 1

    def _sweep(self, cone: _Cone) -> None:
        """Take out what nothing uses any more."""
        for node in reversed(cone.nodes):
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                assert node.graph is not None
                self.model.touch_node(node)
                node.graph.remove(node, safe=True)
                for value in node.outputs:
                    self.cones.pop(value, None)
        for source in cone.sources:
            surgery.forget(self.model, source)


def _joined(cones: Iterable[_Cone], node: ir.Node | None = None) -> _Cone:
    """One cone of several, and of a node that uses them."""
    cones = tuple(cones)
    nodes = dict.fromkeys(node for cone in cones for node in cone.nodes)
    sources = dict.fromkeys(source for cone in cones for source in cone.sources)
    return _Cone((*nodes, *([] if node is None else [node])), tuple(sources))


def _stored(model: Model, value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant that no caller can override."""
    if value is None or (value.is_graph_input() and model.ir.ir_version >= 4):
        return None
    return constant(value)


def _nbytes(model: Model, value: ir.Value | None) -> int:
    """Bytes of a stored constant; none of texts, and of what is not stored."""
    tensor = _stored(model, value)
    return 0 if tensor is None or tensor.dtype == ir.DataType.STRING else tensor.nbytes


def _is_plain(node: ir.Node) -> bool:
    """Whether a node computes the same whenever it runs: a standard operator without bodies."""
    return (
        not node.domain
        and operators.of(node, operators.Random) is None
        and not any(
            attribute.is_ref() or attribute.type in _BODIES
            for attribute in node.attributes.values()
        )
    )


def _starts_from_weights(model: Model, node: ir.Node) -> bool:
    """Whether a node does something to weights alone, and not just unpack them."""
    inputs = [value for value in node.inputs if value is not None]
    if any(_stored(model, value) is None for value in inputs) or not _is_plain(node):
        return False
    large = [value for value in inputs if _nbytes(model, value) >= _WEIGHT_BYTES]
    if operators.unpacks(node):
        return any(_bits(value) >= 32 for value in large)
    return bool(large)


def _bits(value: ir.Value) -> int:
    tensor = constant(value)
    return 0 if tensor is None else tensor.dtype.bitwidth


def _array(source: ir.Value) -> np.ndarray:
    """A copy of a constant's values, so that the file behind them can close."""
    tensor = constant(source)
    assert tensor is not None
    values = np.array(tensor.numpy())
    tensors.release(tensor)
    return values
