"""Operators that make one number of all along some axes, or of all before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxshrink.graph import read
from onnxshrink.graph.gradients.application import Application, Gradients, Rule
from onnxshrink.graph.gradients.terms import Term

#: Of x, the result y and its gradient, with the axes kept that were reduced, the gradient of x.
Formula = Callable[[Term, Term, Term], Term]


def _reduction(formula: Formula) -> Rule:
    def rule(op: Application) -> Gradients:
        return [formula(op.x, _kept(op, op.y), _kept(op, op.dy)).expand(op.x)]

    return rule


def _kept(op: Application, term: Term) -> Term:
    """A result with the axes kept that were reduced."""
    axes = read.integers(op.node, "axes") or op.operand(1)
    none = axes is None or (isinstance(axes, Term) and axes.shape == (0,))
    if op.integer("keepdims", 1) or (none and op.integer("noop_with_empty_axes", 0)):
        return term
    return term if axes is None or none else term.unsqueeze(axes)  # a number suits any shape


def _places(op: Application) -> list[int]:
    return [*range(2, op.x.rank)]


def _largest(x: Term, y: Term, g: Term) -> Term:
    """The gradient goes to the largest; equal ones share it."""
    chosen = x.is_("Equal", y).cast(x.dtype)
    return chosen * (g / chosen.fit(y))


def _mean(x: Term, y: Term, g: Term) -> Term:
    return g / (x.count / y.count).cast(g.dtype)


def _length(x: Term, y: Term, g: Term) -> Term:
    """Of nothing but zeros it is left at 0, where it has no slope."""
    return g * (x / y).where(y.is_("Greater", 0))


def _global_mean(op: Application) -> Gradients:
    return [_mean(op.x, op.y, op.dy).expand(op.x)]


def _global_max(op: Application) -> Gradients:
    return [_largest(op.x, op.y, op.dy)]


def _cumsum(op: Application) -> Gradients:
    attributes = {"exclusive": op.integer("exclusive", 0), "reverse": 1 - op.integer("reverse", 0)}
    return [op.dy.apply("CumSum", op[1], **attributes)]


def _top(op: Application) -> Gradients:
    """The chosen ones get theirs, all others nothing."""
    where = op.outputs[1]
    if where is None:
        where = op.again(op.x, dtypes=[None, ir.DataType.INT64])[1]
    return [op.x.zeros().apply("ScatterElements", where, op.dy, axis=op.axis(-1))]


_FORMULAS: Mapping[str, Formula] = {
    "ReduceL1": lambda x, y, g: g * x.apply("Sign"),
    "ReduceL2": _length,
    "ReduceLogSum": lambda x, y, g: g * (-y).apply("Exp"),
    "ReduceLogSumExp": lambda x, y, g: g * (x - y).apply("Exp"),
    "ReduceMax": _largest,
    "ReduceMean": _mean,
    "ReduceMin": _largest,
    "ReduceProd": lambda x, y, g: g * y / x,
    "ReduceSum": lambda x, y, g: g,
    "ReduceSumSquare": lambda x, y, g: g * x * 2,
}

RULES: Mapping[tuple[str, str], Rule] = {
    **{("", name): _reduction(formula) for name, formula in _FORMULAS.items()},
    ("", "CumSum"): _cumsum,
    ("", "GlobalAveragePool"): _global_mean,
    ("", "GlobalMaxPool"): _global_max,
    ("", "TopK"): _top,
}
