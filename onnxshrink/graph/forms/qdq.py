"""Where QuantizeLinear and DequantizeLinear go, so that integer kernels can take their place.

ONNX Runtime turns ``DequantizeLinear -> operator -> QuantizeLinear`` into one integer operator.
So what enters and leaves such an operator is a *quantized value*: it has one pair of nodes, which
all its users share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxshrink.graph import operators, read, surgery
from onnxshrink.graph.analysis.pointwise import bounds
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import codes
from onnxshrink.graph.forms.integer_kernels import IntegerCandidate
from onnxshrink.graph.surgery import Recorder, Scope
from onnxshrink.kernels.ranges import LIMITS, Grid

Value: TypeAlias = ir.Value
Node: TypeAlias = ir.Node
_AS_THEY_ARE = "whole", "part"


@dataclass
class Placement:
    """Which nodes compute with integers, and which values are quantized for that.

    Attributes:
        sites: The nodes, by node.
        values: The quantized values; keys only, in order.
        folded: Values that a Relu or Clip alone uses, and that node: the range of codes ends where
            it would cut, so that it is not needed.
    """

    sites: dict[ir.Node, IntegerCandidate] = field(default_factory=dict)
    values: dict[ir.Value, None] = field(default_factory=dict)
    folded: dict[ir.Value, ir.Node] = field(default_factory=dict)
    _roots: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def root(self, value: ir.Value) -> ir.Value:
        """The value whose grid this one shares."""
        while value in self._roots:
            value = self._roots[value]
        return value

    def sealed(self, value: ir.Value) -> bool:
        """Whether nothing but integer kernels uses a value."""
        return not value.is_graph_output() and all(
            node in self.sites and index in self.sites[node].operands
            for node, index in value.uses()
        )

    def made_here(self, value: ir.Value) -> bool:
        """Whether an integer kernel gives a quantized value, so that all its users see codes."""
        node = value.producer()
        if node is not None and node in self.folded.values():
            before = node.inputs[0]
            node = None if before is None else before.producer()
        site = None if node is None else self.sites.get(node)
        return site is not None and (site.needs_codes or self.sealed(value))

    def neighbours(self, value: ir.Value) -> list[IntegerCandidate]:
        """The nodes that need a value to be quantized: those that use it, and the one before it."""
        root = self.root(value)
        return [
            site
            for site in self.sites.values()
            if any(
                v in self.values and self.root(v) is root
                for v in (*site.inputs, *(self.result(o) for o in site.node.outputs))
            )
        ]

    def result(self, value: ir.Value) -> ir.Value:
        """A node's output, or that of the Relu or Clip behind it whose cut its codes take over."""
        return self.folded[value].outputs[0] if value in self.folded else value


def place(
    asked: Iterable[IntegerCandidate], riders: Iterable[IntegerCandidate] = (), *, fold: bool = True
) -> Placement:
    """Find the values to quantize.

    Args:
        asked: Nodes to compute with integers.
        riders: Others that may be, where that rounds nothing that is not rounded anyway: nodes
            between quantized values, and those that only move numbers.
        fold: Whether the ranges of codes may end where a Relu or Clip cuts. Those of grids that
            have 0 in the middle cannot.
    """
    placement = Placement()
    for site in asked:
        _take(placement, site, fold)
    waiting = [site for site in riders if not site.constants and site.node not in placement.sites]
    growing = True
    while growing:
        growing = False
        for site in reversed(waiting):
            if site.node not in placement.sites and _may_ride(placement, site, fold):
                _take(placement, site, fold)
                growing = True
    for site in placement.sites.values():  # what is quantized anyway leaves MatMul as codes
        for output in site.node.outputs:
            cut = _cut(site, output, fold)
            if cut is not None and cut.outputs[0] in placement.values:
                placement.folded[output] = cut
    _share(placement)
    return placement


def _take(placement: Placement, site: IntegerCandidate, fold: bool) -> None:
    placement.sites[site.node] = site
    placement.values.update(dict.fromkeys(site.inputs))
    if not site.needs_codes:
        return
    for output in _used(site):
        cut = _cut(site, output, fold)
        if cut is not None:
            placement.folded[output] = cut
        placement.values[placement.result(output)] = None


def _used(site: IntegerCandidate) -> list[ir.Value]:
    return [value for value in site.node.outputs if value.uses() or value.is_graph_output()]


def _cut(site: IntegerCandidate, value: ir.Value, fold: bool) -> ir.Node | None:
    """The Relu or Clip that alone uses a value, and that its codes can take over."""
    uses = list(value.uses())
    if not fold or site.kind in _AS_THEY_ARE or len(uses) != 1 or value.is_graph_output():
        return None
    node, index = uses[0]
    if index or node.graph is not site.node.graph:
        return None
    ends = bounds(node)
    return node if ends is not None and ends[0] <= 0 <= ends[1] else None


def _may_ride(placement: Placement, site: IntegerCandidate, fold: bool) -> bool:
    cuts = [(value, _cut(site, value, fold)) for value in _used(site)]
    results = [value if cut is None else cut.outputs[0] for value, cut in cuts]
    if not results or any(value not in placement.values for value in results):
        return False
    if site.kind != "whole" and any(value not in placement.values for value in site.inputs):
        return False
    if site.kind in _AS_THEY_ARE and all(placement.made_here(value) for value in site.inputs):
        return True
    # Users that compute with floats would see what is rounded one more time.
    return all(placement.sealed(value) for value in results)


def _share(placement: Placement) -> None:
    """Let values that hold the same numbers have one grid."""
    for site in placement.sites.values():
        if site.kind in _AS_THEY_ARE:
            for output in _used(site):
                _unite(placement, output, site.inputs[0])
        elif operators.moves(site.node) == "joins":
            # Rounded on the grid of the whole at once, the parts are not rounded again.
            joined = placement.result(site.node.outputs[0])
            for value in site.inputs:
                alone = len(value.uses()) == 1 and not value.is_graph_output()
                if alone and placement.root(value) is value:
                    _unite(placement, value, joined)


def _unite(placement: Placement, value: ir.Value, with_: ir.Value) -> None:
    value, root = placement.root(value), placement.root(with_)
    if value is not root:
        placement._roots[value] = root


@dataclass
class Emitter:
    """Puts the nodes of a placement into a model.

    Attributes:
        nbytes: Bytes that the new nodes and constants take, about.
        pairs: Quantize and dequantize nodes put in.
    """

    model: Model
    nbytes: int = 0
    pairs: int = 0
    _constants: dict[tuple[str, bytes, object], ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Inner graphs see the names of the main one, so that equal constants are stored once.
        self._recorder = Recorder(self.model, self.model.ir.graph, as_nodes=False)

    def emit(self, placement: Placement, grids: Mapping[ir.Value, Grid]) -> None:
        """Quantize every value of a placement.

        Args:
            placement: Where.
            grids: The grid of each root.
        """
        renamed: dict[ir.Value, ir.Value] = {}
        for value, node in placement.folded.items():
            cut = node.outputs[0]
            if cut in placement.values:
                renamed[cut] = value
        made_here = {value: placement.made_here(value) for value in placement.values}
        for value in [v for site in placement.sites.values() for v in _around(site, placement)]:
            if value in made_here:
                whole = made_here.pop(value)
                if grid_of(value) is not None:
                    continue  # it has its pair, whose scales were meant for it
                if value in renamed and not whole:
                    del renamed[value]  # a MatMul that gives floats keeps its Relu
                on = grids[placement.root(value)]
                if value in renamed:
                    self._drop_cut(value, renamed[value])
                    value = renamed[value]
                self._quantize(value, on, placement, whole)

    def _drop_cut(self, cut: ir.Value, before: ir.Value) -> None:
        """Take a Relu or Clip out; the value before it takes the name of the one behind."""
        node = cut.producer()
        assert node is not None
        surgery.replace_node(self.model, node, [before])

    def _quantize(self, value: ir.Value, on: Grid, placement: Placement, whole: bool) -> None:
        """One pair for the scope of a value, one more for each inner scope that uses it.

        With ``whole`` all users see codes, also those that compute with floats.
        """
        users = [
            (node, index)
            for node, index in value.uses()
            if whole or (node in placement.sites and index in placement.sites[node].operands)
        ]
        producer = value.producer()
        home = producer.graph if producer is not None else value.graph
        scopes: dict[Scope | None, list[tuple[ir.Node, int]]] = {}
        for node, index in users:
            scopes.setdefault(node.graph if not whole else home, []).append((node, index))
        if whole and value.is_graph_output():
            scopes.setdefault(home, [])
        for scope, own in scopes.items():
            reader, result = self._pair(value, on)
            if scope is home and producer is not None:
                self._recorder.put_after(producer)
            else:
                self._recorder.put_first(scope)
            for node, index in own:
                surgery.set_input(self.model, node, index, result)
        if whole and value.is_graph_output():
            surgery.put_behind(self.model, value, reader, result, f"{value.name}.f")

    def _pair(self, value: ir.Value, on: Grid) -> tuple[ir.Node, ir.Value]:
        """The node that reads a value, and what the node behind it makes."""
        scale = self._constant(np.array(on.scale, np.float32))
        zero = self._constant(np.array(on.zero, on.dtype))
        made = self._recorder.node("QuantizeLinear", [value, scale, zero], "q")
        result = self._recorder.node("DequantizeLinear", [made, scale, zero], "x")
        result.type, result.shape = value.type, value.shape
        self.pairs += 1
        self.nbytes += 130
        reader = made.producer()
        assert reader is not None
        return reader, result

    def _constant(self, array: np.ndarray) -> ir.Value:
        """An initializer of the main graph; equal ones are shared."""
        key = str(array.dtype), array.tobytes(), array.shape
        if key not in self._constants:
            self._constants[key] = self._recorder.constant(array, "k")
            self.nbytes += array.nbytes + 30
        return self._constants[key]

    def store(
        self, node: ir.Node, index: int, numbers: np.ndarray, scale: np.ndarray, zero: np.ndarray
    ) -> None:
        """Give one input of a node the constant that these codes stand for.

        Args:
            node: The node.
            index: Which input; what it was is taken out of the file when nothing else uses it.
            numbers: Integers.
            scale: One, or one for each element of the first axis.
            zero: Zero points, of the codes' type and the scale's shape.
        """
        inputs = [self._constant(numbers), self._constant(scale), self._constant(zero)]
        attributes: dict[str, Any] = {"axis": 0} if scale.ndim else {}
        rebuilt = self._recorder.node("DequantizeLinear", inputs, "w", **attributes)
        self._recorder.put_before(node)
        self.nbytes += 70
        old = read.input(node, index)
        surgery.set_input(self.model, node, index, rebuilt)
        if old is not None:
            codes.forget(self.model, [old])


def grid_of(value: ir.Value) -> Grid | None:
    """The grid that a value has in the model already, so that it needs no other; None for none.

    It comes from DequantizeLinear behind QuantizeLinear, or nothing but QuantizeLinear reads it.
    """
    maker = value.producer()
    if maker is not None and not maker.domain and operators.dequantizes(maker):
        before = None if maker.inputs[0] is None else maker.inputs[0].producer()
        paired = before is not None and _quantizes(before)
        return _grid(before) if paired and before and codes.same_grid(before, maker) else None
    readers = dict.fromkeys(node for node, _ in value.uses())
    if value.is_graph_output() or not all(map(_quantizes, readers)):
        return None
    found = {_grid(node) for node in readers}
    return found.pop() if len(found) == 1 else None


def _quantizes(node: ir.Node) -> bool:
    row = operators.of(node, operators.QuantizedRow)
    return row is not None and row.floats and not node.domain


def _grid(node: ir.Node) -> Grid | None:
    """The one scale and zero point of a QuantizeLinear of float32; None for others."""
    scale, zero = read.array(read.input(node, 1)), read.array(read.input(node, 2))
    if scale is None or scale.size != 1 or scale.dtype != np.float32:
        return None
    kind: Any = "uint8" if zero is None else zero.dtype.name
    if kind not in LIMITS or (zero is None and read.input(node, 2) is not None):
        return None
    return Grid(float(scale.item()), 0 if zero is None else int(zero.item()), kind)


def _around(site: IntegerCandidate, placement: Placement) -> list[ir.Value]:
    return [*site.inputs, *(placement.result(output) for output in site.node.outputs)]
