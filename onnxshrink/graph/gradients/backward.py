"""Reverse-mode differentiation: the gradients of a graph's outputs, as nodes of the graph.

Gradients flow from the outputs backwards through every operator that lies between them and what
is asked for; what reaches a value on several ways is added up. An operator through which nothing
flows is a stop; other ways around it go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxshrink.errors import DataError
from onnxshrink.graph import operators, read
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.gradients.application import Application
from onnxshrink.graph.gradients.definitions import spelled_out
from onnxshrink.graph.gradients.rules import RULES, why_not
from onnxshrink.graph.gradients.terms import Tape, Term
from onnxshrink.graph.operators import QuantizedRow
from onnxshrink.graph.surgery import Scope


@dataclass(frozen=True)
class Stop:
    """An operator that gradients do not pass.

    Attributes:
        node: What people know it by.
        op_type: The operator.
        reason: Why, as in ``has no rule for gradients``.
        behind: Values that were asked for and act through it: their gradients are not whole.
    """

    node: str
    op_type: str
    reason: str
    behind: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.node} ({self.op_type}) {self.reason}"


@dataclass(frozen=True)
class Derivative:
    """A model that also computes gradients.

    Attributes:
        model: It takes the inputs of the original and the seeds, and gives the outputs that were
            differentiated and the gradients.
        seeds: By output the input that takes the gradient there, of the output's shape.
        gradients: By value the output that gives its gradient; those that none reaches are missing.
        stops: Where gradients did not get through.
    """

    model: Model
    seeds: Mapping[str, str]
    gradients: Mapping[str, str]
    stops: tuple[Stop, ...]


def differentiate(model: Model, outputs: Sequence[str], wanted: Collection[str]) -> Derivative:
    """Differentiate values of a model with respect to others (vector-Jacobian products).

    Args:
        model: The model; it is left as it is. All sizes may be open.
        outputs: Values of its main graph, as a rule outputs, whose gradients are given.
        wanted: Values of its main graph whose gradients are asked for: inputs, weights, or what
            nodes make.

    Raises:
        DataError: It has no such value.
        UnsupportedModel: Its operator set cannot be raised, or a function not be inlined.
    """
    tape = Tape.over(spelled_out(model))
    known = tape.values
    if missing := [name for name in (*outputs, *wanted) if name not in known]:
        raise DataError(f"{model.label}: has no value {missing[0]!r} to differentiate")
    ends = [known[name] for name in outputs]
    seeds = {end: tape.input(f"{name}.seed", end) for name, end in zip(outputs, ends, strict=True)}
    made, stops = backward(tape, tape.scope, seeds, {known[name] for name in wanted})
    gradients = {}
    for name in wanted:
        if (gradient := made.get(known[name])) is not None:
            gradients[name] = tape.named(gradient, f"{name}.gradient")
    return Derivative(
        tape.model([*seeds.values()], [*map(tape.of, ends), *gradients.values()]),
        {end.name or "": seed.name for end, seed in seeds.items()},
        {name: gradient.name for name, gradient in gradients.items()},
        tuple(stops),
    )


def backward(
    tape: Tape, scope: Scope, seeds: Mapping[ir.Value, Term], wanted: Collection[ir.Value]
) -> tuple[dict[ir.Value, Term], list[Stop]]:
    """Record the gradients of values of a graph.

    Args:
        tape: Where to.
        scope: The graph.
        seeds: Gradients that values have to begin with.
        wanted: The values whose gradients are asked for.

    Returns:
        The gradients of those that any reaches, and where they were stopped.
    """
    depends = _depending(scope, wanted)
    reached: defaultdict[ir.Value, list[Term]] = defaultdict(list)
    for value, seed in seeds.items():
        reached[value].append(seed)
    stops = []
    for node in reversed(list(scope)):
        if not any(value in reached for value in node.outputs if value in depends):
            continue
        if not any(value in depends for value in _operands(node)):
            continue  # what it makes is asked for itself
        gradients = [_total(value, reached) for value in node.outputs]
        try:
            rule = RULES.get((node.domain, node.op_type))
            if rule is None:
                raise read.Unknown(why_not(node))
            op = Application.of(node, tape)
            made = rule(op.reached(gradients))
        except read.Unknown as reason:
            stops.append(Stop(_name(node), node.op_type, str(reason), _behind(node, wanted)))
            continue
        for operand, gradient in zip(op.inputs, made, strict=False):
            if operand is not None and operand.value in depends and gradient is not None:
                reached[operand.value].append(gradient.shaped(operand.shape))
    totals = {value: _total(value, reached) for value in wanted}
    return {value: total for value, total in totals.items() if total is not None}, stops


def _behind(node: ir.Node, wanted: Collection[ir.Value]) -> frozenset[str]:
    """Names of the values among these that a node depends on."""
    seen: set[ir.Value] = set()
    left = [*_operands(node)]
    while left:
        value = left.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        maker = value.producer()
        if maker is not None:
            left += _operands(maker)
    return frozenset(value.name or "" for value in seen.intersection(wanted))


def _name(node: ir.Node) -> str:
    return node.name or next((value.name for value in node.outputs if value.name), "")


def _total(value: ir.Value, reached: Mapping[ir.Value, list[Term]]) -> Term | None:
    """All that reaches a value."""
    terms = reached.get(value)
    if not terms:
        return None
    first, *others = terms
    return first.apply("Sum", *others) if others else first


def _depending(scope: Scope, wanted: Collection[ir.Value]) -> set[ir.Value]:
    """The values that change a little where any of these does: no integers, but codes."""
    found = set(wanted)
    for node in scope:
        draws = operators.of(node, operators.Random)
        if draws is not None and draws.like:
            continue
        if any(value in found for value in _operands(node)):
            codes = operators.of(node, QuantizedRow)
            rounds = codes is not None and codes.floats
            found.update(value for value in node.outputs if rounds or _is_float(value))
    return found


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _operands(node: ir.Node) -> Iterator[ir.Value | None]:
    """What a node reads, in its bodies too."""
    yield from node.inputs
    for body in read.bodies(node):
        for inner in body.all_nodes():
            yield from inner.inputs
