"""One pass over a graph in execution order that labels every axis of every value with atoms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxshrink.channels.atoms import Atoms, Labels
from onnxshrink.channels.facts import Facts, Pair, Runs
from onnxshrink.graph import operators, read
from onnxshrink.graph.file.model import Model

if TYPE_CHECKING:
    from onnxshrink.channels.removal import Cut

#: Labels of one axis; None where its length varies from run to run, and so nothing can go.
Axis = Labels | None

#: What makes a constant's copy its own: vectors that an exporter shared between nodes that have
#: nothing to do with each other are labelled apart, use by use.
Slot = ir.Value | tuple[ir.Value, ir.Node, int]

Rewrite = Callable[["Cut"], None]
Rule = Callable[["Walk", ir.Node], None]

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


class Barrier(Exception):
    """A rule cannot say how a node carries channels; all of its inputs and outputs stay whole."""


@dataclass
class Operand:
    """One input of a node as rules see it.

    Attributes:
        axes: Labels of its axes.
        zero: For each axis, whether all values at a removed index are zero when the weights that
            make them are.
    """

    axes: list[Axis]
    zero: list[bool]

    @property
    def rank(self) -> int:
        """How many axes it has."""
        return len(self.axes)

    def length(self, axis: int) -> int | None:
        """The length of an axis; None when it varies."""
        labels = self.axes[axis]
        return None if labels is None else len(labels)


@dataclass(frozen=True)
class Digit:
    """A part of an axis of varying length, as ``[batch * heads]`` has two.

    Attributes:
        labels: Labels of the part; None for the one whose length varies.
        size: Its length in the two runs.
        zero: See ``Operand``.
    """

    labels: Axis
    size: Pair
    zero: bool = False


@dataclass
class Walk:
    """The labels of a graph.

    Attributes:
        labels: Labels by value, or by use for vectors.
        zero: See ``Operand``.
        digits: Parts of axes of varying length, the slowest first, where some of them may lose
            indices: by the value, and the axis.
        rewrites: What to change in a node besides its weights, when channels go; in order.
        barriers: Nodes around which everything stays whole, and why.
        handled: Nodes that the rule of an earlier one has labelled already.
        grouped: Grouped convolutions whose channels are products of a group and a place in it.
        balance: Grouped convolutions whose channels go one by one, as many from every group.
        not_zero: Axes of what loops carry that are not zero where channels go, though they begin
            so: by the body's input, and the axis.
        newly_not_zero: The same, found on this walk.
        opaque: Values of unknown shape; nothing that they are made of changes.
        balanced: The parts of axes that must lose equally many channels.
        streams: Axes that norms run along.
        gated: Norms and the channels of their input that removal makes zero, though the weights
            alone would not.
        narrowed: Weights whose second axis shrinks with the groups of their input.
    """

    model: Model
    facts: Facts
    atoms: Atoms = field(default_factory=Atoms)
    labels: dict[Slot, list[Axis]] = field(default_factory=dict)
    zero: dict[Slot, list[bool]] = field(default_factory=dict)
    digits: dict[tuple[ir.Value, int], Sequence[Digit]] = field(default_factory=dict)
    rewrites: list[tuple[ir.Node, Rewrite]] = field(default_factory=list)
    barriers: dict[str, str] = field(default_factory=dict)
    handled: set[ir.Node] = field(default_factory=set)
    grouped: list[tuple[ir.Node, Labels, Labels]] = field(default_factory=list)
    balance: set[ir.Node] = field(default_factory=set)
    not_zero: set[tuple[ir.Value, int]] = field(default_factory=set)
    newly_not_zero: set[tuple[ir.Value, int]] = field(default_factory=set)
    opaque: set[ir.Value] = field(default_factory=set)
    balanced: list[list[Labels]] = field(default_factory=list)
    streams: list[Labels] = field(default_factory=list)
    gated: list[tuple[ir.Node, Labels]] = field(default_factory=list)
    narrowed: dict[ir.Value, Labels] = field(default_factory=dict)
    _used: set[tuple[ir.Node, int]] = field(default_factory=set)
    _carried: set[tuple[ir.Node, int, int]] = field(default_factory=set)
    _rules: Mapping[tuple[str, str], Rule] = field(default_factory=dict)

    # -------------------------------------------------------------------- inputs

    def operand(self, node: ir.Node, index: int) -> Operand:
        """Labels of an input of a node.

        Raises:
            Barrier: It is missing, or its shape is not known.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            raise Barrier(f"its input {index} is missing")
        self._used.add((node, index))
        slot = self.slot(value, node, index)
        if slot not in self.labels and read.constant(value) is not None:
            self._label_constant(slot, value)
        if slot not in self.labels:
            raise Barrier(f"the shape of {value.name!r} is not known")
        return Operand(list(self.labels[slot]), list(self.zero[slot]))

    def has(self, node: ir.Node, index: int) -> bool:
        """Whether a node has an input at this place."""
        return index < len(node.inputs) and node.inputs[index] is not None

    def slot(self, value: ir.Value, node: ir.Node, index: int) -> Slot:
        """What labels are kept under for one use of a value."""
        tensor = read.constant(value)
        return (
            (value, node, index) if tensor is not None and len(read.shape(tensor)) == 1 else value
        )

    def _label_constant(self, slot: Slot, value: ir.Value) -> None:
        tensor = read.constant(value)
        assert tensor is not None
        axes: list[Axis] = []
        for length in read.shape(tensor):
            axes.append(self.atoms.fresh(length, "an axis of length 1" if length == 1 else ""))
        self.labels[slot] = axes
        self.zero[slot] = [True] * len(axes)
        if value.is_graph_output():
            self._freeze_all(axes, f"graph output {value.name!r}")
        if value in self.model.ir.graph.inputs and self.model.ir.ir_version >= 4:
            self._freeze_all(axes, f"graph input {value.name!r}, which callers may override")

    def constant(self, node: ir.Node, index: int) -> np.ndarray | None:
        """A parameter of a node, if it is known to be the same in every run."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return self.facts.constant(value)

    def sizes(self, value: ir.Value | None) -> tuple[Pair, ...]:
        """Length of every axis in the two runs.

        Raises:
            Barrier: Not known.
        """
        found = None if value is None else self.facts.sizes(value)
        if found is None:
            raise Barrier(f"the shape of {value.name if value else ''!r} is not known")
        return found

    # ------------------------------------------------------------------- outputs

    def put(
        self, node: ir.Node, axes: Sequence[Axis], zero: Sequence[bool] = (), output: int = 0
    ) -> None:
        """Label an output of a node.

        Raises:
            Barrier: The labels do not fit the output's shape.
        """
        if output < len(node.outputs):
            self.label(node.outputs[output], axes, zero, node)

    def label(
        self, value: ir.Value, axes: Sequence[Axis], zero: Sequence[bool], node: ir.Node
    ) -> None:
        """Label what a node makes, or what one of its bodies gets.

        Raises:
            Barrier: The labels do not fit the value's shape.
        """
        sizes = self.facts.sizes(value)
        if sizes is not None:
            fits = len(sizes) == len(axes) and all(
                a is None or (len(a), len(a)) == size for a, size in zip(axes, sizes, strict=True)
            )
            if not fits:
                raise Barrier(f"the shape of {value.name!r} is not what its inputs imply")
        for labels in axes:
            if labels is not None and len(labels) == 1:
                self.atoms.freeze(labels, f"{describe(node)}: an axis of length 1")
        self.labels[value] = list(axes)
        self.zero[value] = list(zero) or [False] * len(axes)
        if value in self.model.ir.graph.outputs:
            self._freeze_all(axes, f"graph output {value.name!r}")

    def hold(self, value: ir.Value, reason: str) -> None:
        """Label a value that no channel reaches."""
        sizes = self.facts.sizes(value)
        if sizes is None:
            self.opaque.add(value)
        else:
            axes = self.fresh(sizes, reason)
            self.labels[value], self.zero[value] = axes, [False] * len(axes)

    def carry(self, node: ir.Node, index: int, axis: int) -> Sequence[Digit]:
        """The digits of an axis of an input, which stay whole unless a rule asks for them."""
        self._carried.add((node, index, axis))
        value = node.inputs[index]
        return () if value is None else self.digits.get((value, axis), ())

    def put_digits(self, node: ir.Node, axis: int, digits: Sequence[Digit]) -> None:
        """Say what an axis of varying length of a node's first output is made of."""
        value = node.outputs[0]
        if digits and value.is_graph_output():
            self._freeze_all([d.labels for d in digits], f"graph output {value.name!r}")
        elif digits:
            self.digits[value, axis] = digits

    def _keep_digits(self, node: ir.Node) -> None:
        """Keep digits that no rule carried on."""
        for index, value in enumerate(node.inputs):
            for axis in range(len(self.labels.get(value, ())) if value is not None else 0):
                if value is not None and (node, index, axis) not in self._carried:
                    found = self.digits.get((value, axis), ())
                    reason = f"{describe(node)}: merged with an axis of varying length"
                    self._freeze_all([digit.labels for digit in found], reason)

    def on_cut(self, node: ir.Node, rewrite: Rewrite) -> None:
        """Have a node changed when channels are removed."""
        self.rewrites.append((node, rewrite))

    def fresh(self, sizes: Iterable[Pair], reason: str = "") -> list[Axis]:
        """New labels for axes of these lengths; free ones, unless a reason freezes them."""
        axes: list[Axis] = []
        for a, b in sizes:
            held = reason or ("an axis of length 1" if a == 1 else "")
            axes.append(self.atoms.fresh(a, held) if a == b else None)
        return axes

    # ------------------------------------------------------------------- joining

    def join(self, a: Axis, b: Axis, node: ir.Node) -> Axis:
        """Tie two axes index by index; an axis of varying length freezes the other.

        Raises:
            Barrier: Their lengths differ.
        """
        if a is None or b is None:
            for axis in (a, b):
                self.freeze(axis, f"{describe(node)}: an axis of varying length")
            return None
        if len(a) != len(b):
            raise Barrier(f"axes of lengths {len(a)} and {len(b)} meet")
        self.atoms.join(a, b)
        return a

    def freeze(self, axis: Axis, reason: str) -> None:
        """Keep every index of an axis."""
        if axis is not None and len(axis):
            self.atoms.freeze(axis, reason)

    def keep(self, node: ir.Node, axes: Iterable[Axis], why: str) -> None:
        """Keep every index of some axes, for a reason that a node gives."""
        for axis in axes:
            self.freeze(axis, f"{describe(node)}: {why}")

    def kept(self, node: ir.Node, sizes: Iterable[Pair], why: str) -> list[Axis]:
        """New labels of axes that stay, for a reason that a node gives."""
        return self.fresh(sizes, f"{describe(node)}: {why}")

    def freeze_spatial(self, node: ir.Node, x: Operand) -> None:
        """Keep all axes of an image but the batch and the channels.

        Raises:
            Barrier: There are no others.
        """
        if x.rank < 3:
            raise Barrier("an input without spatial axes")
        self.keep(node, x.axes[2:], "a spatial axis")

    def _freeze_all(self, axes: Sequence[Axis], reason: str) -> None:
        for axis in axes:
            self.freeze(axis, reason)

    def broadcast(
        self, operands: Sequence[Operand], node: ir.Node, *, product: bool = False
    ) -> Operand:
        """Join operands aligned to the right; axes of length 1 are repeated.

        Args:
            operands: The operands.
            node: For messages.
            product: Whether one zero makes the result zero; otherwise all must be.
        """
        rank = max((o.rank for o in operands), default=0)
        axes: list[Axis] = []
        zero: list[bool] = []
        for axis in range(-rank, 0):
            present = [o for o in operands if o.rank >= -axis]
            wide = [o for o in present if o.length(axis) != 1]
            joined = present[0].axes[axis] if not wide else wide[0].axes[axis]
            for other in wide[1:]:
                joined = self.join(joined, other.axes[axis], node)
            axes.append(joined)
            zeros = [o.zero[axis] for o in wide]
            zero.append(any(zeros) if product else len(wide) == len(operands) and all(zeros))
        return Operand(axes, zero)

    # ----------------------------------------------------------------- the driver

    def run(self, rules: Mapping[tuple[str, str], Rule]) -> None:
        """Label the whole main graph."""
        self._rules, graph = rules, self.model.ir.graph
        for value in graph.inputs:
            if value.name in graph.initializers:
                continue
            self.hold(value, f"graph input {value.name!r}")
        self.enter(graph)
        self._freeze_parameters()

    def enter(self, graph: ir.Graph) -> None:
        """Label what a graph makes of what it gets."""
        for node in graph:
            if not read.is_constant(node) and node not in self.handled:
                self._visit(node)

    def _visit(self, node: ir.Node) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        rule = self._rules.get((domain, node.op_type))
        try:
            measures = operators.of(node, operators.ShapeOf) is not None
            if not measures and all(self._is_number(value) for value in node.outputs):
                self.hold_outputs(node, "computed from shapes")
            elif rule is None:
                raise Barrier("no rule for this operator")
            else:
                rule(self, node)
                known = self.labels.keys() | self.opaque
                missing = [v for v in node.outputs if v.name and v not in known and v.uses()]
                if missing:
                    raise Barrier(f"no rule for its output {missing[0].name!r}")
        except (Barrier, read.Unknown) as barrier:
            self._carried = {each for each in self._carried if each[0] is not node}
            self._block(node, str(barrier))
        self._keep_digits(node)

    def _is_number(self, value: ir.Value) -> bool:
        """Whether a value is an integer computed from shapes and constants: a parameter."""
        integer = self.facts.values(value) is not None or (
            value.dtype is not None and value.dtype not in FLOATS
        )
        node = value.producer()  # codes of activations are integers, too, and no parameters
        return self.facts.computed(value) and integer and not operators.quantizes(node)

    def hold_outputs(self, node: ir.Node, reason: str) -> None:
        """Label what a node makes as what no channel reaches."""
        for value in node.outputs:
            self.hold(value, reason)

    def _block(self, node: ir.Node, why: str) -> None:
        reason = f"{describe(node)}: {why}"
        self.barriers[describe(node)] = why
        self._keep_inputs(node, reason)
        for value in node.outputs:
            self._freeze_all(self.labels.get(value, ()), reason)
            if value not in self.labels:
                self.hold(value, reason)

    def _keep_inputs(self, node: ir.Node, reason: str) -> None:
        """Freeze what a node reads, and what its bodies do."""
        for index, value in enumerate(node.inputs):
            if value is not None and (read.constant(value) is not None or value in self.labels):
                self._freeze_all(self.operand(node, index).axes, reason)
        for body in read.bodies(node):
            for value in body.outputs:
                self._freeze_all(self.labels.get(value, ()), reason)
            for each in body:
                self._keep_inputs(each, reason)

    def _freeze_parameters(self) -> None:
        """Values of which some use is not a matter of channels stay whole."""
        for node in self.model.ir.graph.all_nodes():
            for index, value in enumerate(node.inputs):
                if value is not None and (node, index) not in self._used:
                    axes = self.labels.get(self.slot(value, node, index), ())
                    self._freeze_all(axes, f"{describe(node)}: a parameter")


def describe(node: ir.Node) -> str:
    """A node for people: its operator, and its name or what it makes."""
    name = node.name or next((v.name for v in node.outputs if v.name), "")
    return f"{node.op_type} {name!r}"


def analyse(model: Model, facts: Facts) -> Walk:
    """Label every axis of every value of a model's main graph.

    Args:
        model: The model, which is only read.
        facts: Sizes and constants of its values.
    """
    from onnxshrink.channels.rules import RULES

    balance: set[ir.Node] = set()
    not_zero: set[tuple[ir.Value, int]] = set()
    while True:
        walk = Walk(model, facts, balance=balance, not_zero=not_zero)
        walk.run(RULES)
        tied = {node for node, *digits in walk.grouped if _are_tied(walk, digits)}
        if tied <= balance and walk.newly_not_zero <= not_zero:
            return walk
        balance, not_zero = balance | tied, not_zero | walk.newly_not_zero


def labelled(model: Model, runs: Runs) -> Walk:
    """The labels of a model, or of a copy, of which two runs showed the shapes."""
    return analyse(model, Facts(model, runs))


def _are_tied(walk: Walk, digits: Sequence[Labels]) -> bool:
    """Whether groups or places are joined among themselves, so that few could go."""
    free = np.concatenate([each[~walk.atoms.is_frozen(each)] for each in digits])
    return len(np.unique(walk.atoms.find(free))) < sum(map(len, digits))
