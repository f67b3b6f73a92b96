"""Norms, and what turns values into shares of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxshrink.graph.gradients.application import Application, Gradients, Rule
from onnxshrink.graph.gradients.terms import Term
from onnxshrink.graph.read import Unknown


def _standardized(
    x: Term, axes: Sequence[int], epsilon: float, *, centred: bool = True
) -> tuple[Term, Term]:
    """Values brought to mean 0 and size 1, or only to that size; and the factor of each."""
    if centred:
        x = x - x.mean(axes)
    factor = 1 / ((x * x).mean(axes) + epsilon).apply("Sqrt")
    return x * factor, factor


def _through(
    g: Term, unit: Term, factor: Term, axes: Sequence[int], *, centred: bool = True
) -> Term:
    """The gradient before standardizing, from that behind it."""
    flow = g - unit * (g * unit).mean(axes)
    return factor * (flow - g.mean(axes) if centred else flow)


def _layer(op: Application) -> Gradients:
    x, scale, bias = op[0], op[1], op.operand(2)
    axes = range(op.axis(-1), x.rank)
    unit, factor = _standardized(x, axes, op.number("epsilon", 1e-5))
    dx = _through(op.dy * scale, unit, factor, axes)
    return [dx, (op.dy * unit).fit(scale), None if bias is None else op.dy.fit(bias)]


def _rms(op: Application) -> Gradients:
    x, scale = op[0], op[1]
    axes = range(op.axis(-1), x.rank)
    unit, factor = _standardized(x, axes, op.number("epsilon", 1e-5), centred=False)
    dx = _through(op.dy * scale, unit, factor, axes, centred=False)
    return [dx, (op.dy * unit).fit(scale)]


def _along_channels(vector: Term, x: Term) -> Term:
    """A number for each channel, as it stands beside [samples, channels, places]."""
    return vector.unsqueeze(range(1, x.rank - 1)) if x.rank > 2 else vector


def _channel_sums(term: Term) -> Term:
    return term.sum([0, *range(2, term.rank)], keep=False)


def _instance(op: Application) -> Gradients:
    x, axes = op.x, range(2, op.x.rank)
    unit, factor = _standardized(x, axes, op.number("epsilon", 1e-5))
    dx = _through(op.dy * _along_channels(op[1], x), unit, factor, axes)
    return [dx, _channel_sums(op.dy * unit), _channel_sums(op.dy)]


def _batch(op: Application) -> Gradients:
    """With mean and variance as they are given."""
    if op.integer("training_mode", 0):
        raise Unknown("it trains, and takes mean and variance from its batch")
    x, scale, mean, variance = op[0], op[1], op[3], op[4]
    factor = 1 / (variance + op.number("epsilon", 1e-5)).apply("Sqrt")
    centred = x - _along_channels(mean, x)
    shifts, moments = _channel_sums(op.dy), _channel_sums(op.dy * centred)
    dx = op.dy * _along_channels(scale * factor, x)
    spread = -0.5 * scale * moments * factor * factor * factor
    return [dx, moments * factor, shifts, -shifts * scale * factor, spread]


def _softmax(op: Application) -> Gradients:
    axis = op.axis(-1)
    return [op.y * (op.dy - (op.dy * op.y).sum([axis]))]


def _log_softmax(op: Application) -> Gradients:
    return [op.dy - op.y.apply("Exp") * op.dy.sum([op.axis(-1)])]


def _lp(op: Application) -> Gradients:
    axis, x = op.axis(-1), op.x
    if op.integer("p", 2) == 1:
        size = x.apply("Abs").sum([axis])
        return [(op.dy - x.apply("Sign") * (op.dy * op.y).sum([axis])) / size]
    size = (x * x).sum([axis]).apply("Sqrt")
    return [(op.dy - op.y * (op.dy * op.y).sum([axis])) / size]


def _skip(centred: bool) -> Rule:
    """A norm of a sum, which is an output of its own, the last."""

    def rule(op: Application) -> Gradients:
        scale, added = op[2], op.operand(4 if centred else 3)
        addends = [op[0], op[1], *([] if added is None else [added])]
        total = sum(addends[1:], addends[0])
        axes, epsilon = [total.rank - 1], op.number("epsilon", 1e-12 if centred else 1e-5)
        unit, factor = _standardized(total, axes, epsilon, centred=centred)
        g = _through(op.dy * scale, unit, factor, axes, centred=centred)
        if len(op.gradients) > 3 and op.gradients[3] is not None:
            g = g + op.gradients[3]
        shares = [g.fit(each) for each in addends]
        gains = [(op.dy * unit).fit(scale), *([op.dy.fit(scale)] if centred else [])]
        return [*shares[:2], *gains, *shares[2:]]

    return rule


RULES: Mapping[tuple[str, str], Rule] = {
    ("", "BatchNormalization"): _batch,
    ("", "InstanceNormalization"): _instance,
    ("", "LayerNormalization"): _layer,
    ("", "LogSoftmax"): _log_softmax,
    ("", "LpNormalization"): _lp,
    ("", "RMSNormalization"): _rms,
    ("", "SimplifiedLayerNormalization"): _rms,
    ("", "Softmax"): _softmax,
    ("com.microsoft", "SkipLayerNormalization"): _skip(centred=True),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip(centred=False),
}
