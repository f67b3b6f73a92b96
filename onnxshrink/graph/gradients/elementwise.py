"""Operators that work element by element: the slope, or one for each operand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from onnxshrink.graph import read
from onnxshrink.graph.gradients.application import Application, Gradients, Rule
from onnxshrink.graph.gradients.terms import Term

_CONTRIB = "com.microsoft"
_SELU = (1.67326319217681884765625, 1.05070102214813232421875)


def _sloped(slope: Callable[[Application], Term]) -> Rule:
    """The rule of a function of single numbers, by its derivative."""
    return lambda op: [op.dy * slope(op)]


def _holds(condition: Term, like: Term) -> Term:
    """1 where a condition holds, else 0."""
    return condition.cast(like.dtype)


def _clip(op: Application) -> Gradients:
    """What is cut off depends on the ends."""
    x, ends = op.x, ((op.operand(1), "Less"), (op.operand(2), "Greater"))
    cut = [None if end is None else op.dy.masked(x.is_(beyond, end)).fit(end)
           for end, beyond in ends]  # fmt: skip
    return [op.dy.masked(x.is_("Equal", op.y)), *cut]


def _leaky(op: Application) -> Gradients:
    return [op.dy.where(op.x.is_("Greater", 0), op.dy * op.number("alpha", 0.01))]


def _elu(op: Application) -> Gradients:
    return [op.dy.where(op.x.is_("Greater", 0), op.dy * (op.y + op.number("alpha", 1.0)))]


def _celu(op: Application) -> Gradients:
    below = (op.x / op.number("alpha", 1.0)).apply("Exp")
    return [op.dy.where(op.x.is_("Greater", 0), op.dy * below)]


def _selu(op: Application) -> Gradients:
    alpha, gamma = op.number("alpha", _SELU[0]), op.number("gamma", _SELU[1])
    return [(op.dy * gamma).where(op.x.is_("Greater", 0), op.dy * (op.y + alpha * gamma))]


def _hard_sigmoid(op: Application) -> Gradients:
    inside = (op.y * (1 - op.y)).is_("Greater", 0)
    return [(op.dy * op.number("alpha", 0.2)).masked(inside)]


def _hard_swish(op: Application) -> Gradients:
    middle = op.dy.where(op.x.is_("GreaterOrEqual", 3), op.dy * (op.x / 3 + 0.5))
    return [middle.masked(op.x.is_("Greater", -3))]


def _thresholded(op: Application) -> Gradients:
    return [op.dy.masked(op.x.is_("Greater", op.number("alpha", 1.0)))]


def _swish(op: Application, alpha: float) -> Term:
    """Of x s(alpha x)."""
    gate = (op.x * alpha).apply("Sigmoid")
    return gate + op.y * alpha * (1 - gate)


def gelu_slope(x: Term, *, approximate: bool) -> Term:
    """The derivative of x P(z < x) for a normal z, or of its approximation by tanh."""
    if approximate:
        root, cube = math.sqrt(2 / math.pi), 0.044715
        gate = (root * (x + cube * x * x * x)).apply("Tanh")
        return 0.5 * (1 + gate) + 0.5 * x * (1 - gate * gate) * root * (1 + 3 * cube * x * x)
    density = (x * x * -0.5).apply("Exp") / math.sqrt(2 * math.pi)
    return 0.5 * (1 + (x / math.sqrt(2)).apply("Erf")) + x * density


def _gelu(op: Application) -> Term:
    return gelu_slope(op.x, approximate=op.text("approximate", "none") == "tanh")


def _with_bias(slope: Callable[[Term], Term]) -> Rule:
    """A function of a sum with a vector, which may be left out."""

    def rule(op: Application) -> Gradients:
        bias = op.operand(1)
        if bias is None:
            return [op.dy * slope(op.x)]
        inner = op.dy * slope(op.x + bias)
        return [inner, inner.fit(bias)]

    return rule


# --------------------------------------------------------------------------- several operands


def _add(op: Application) -> Gradients:
    return [op.dy.fit(op[0]), op.dy.fit(op[1])]


def _sub(op: Application) -> Gradients:
    return [op.dy.fit(op[0]), (-op.dy).fit(op[1])]


def _mul(op: Application) -> Gradients:
    return [(op.dy * op[1]).fit(op[0]), (op.dy * op[0]).fit(op[1])]


def _div(op: Application) -> Gradients:
    return [(op.dy / op[1]).fit(op[0]), (-op.dy * op.y / op[1]).fit(op[1])]


def _pow(op: Application) -> Gradients:
    base, exponent = op[0], op[1]
    power = exponent.cast(base.dtype)
    slope = op.dy * power * base.apply("Pow", power - 1).shaped(op.y.shape)
    if not exponent.floats:
        return [slope.fit(base)]
    return [slope.fit(base), (op.dy * op.y * base.apply("Log")).fit(power).cast(exponent.dtype)]


def _prelu(op: Application) -> Gradients:
    x, slope = op[0], op[1]
    above = x.is_("Greater", 0)
    return [op.dy.where(above, op.dy * slope), (op.dy * x - (op.dy * x).masked(above)).fit(slope)]


def _where(op: Application) -> Gradients:
    chosen = op.dy.masked(op[0])
    return [None, chosen.fit(op[1]), (op.dy - chosen).fit(op[2])]


def _operands(op: Application) -> list[Term]:
    return [op[index] for index in range(len(op.inputs))]


def _total(op: Application) -> Gradients:
    return [op.dy.fit(x) for x in _operands(op)]


def _mean(op: Application) -> Gradients:
    return [(op.dy / len(op.inputs)).fit(x) for x in _operands(op)]


def _chosen(op: Application) -> Gradients:
    """The largest or smallest: those that are equal share the gradient."""
    chosen = [_holds(x.is_("Equal", op.y), op.y) for x in _operands(op)]
    share = op.dy / sum(chosen[1:], chosen[0])
    return [(share * each).fit(x) for each, x in zip(chosen, _operands(op), strict=True)]


def _dropout(op: Application) -> Gradients:
    training = op.operand(2)
    if training is not None and read.scalar(training.value) != 0:
        raise read.Unknown("it may draw random numbers")
    return [op.dy]


_SLOPES: Mapping[str, Callable[[Application], Term]] = {
    "Abs": lambda op: op.x.apply("Sign"),
    "Acos": lambda op: -1 / (1 - op.x * op.x).apply("Sqrt"),
    "Acosh": lambda op: 1 / (op.x * op.x - 1).apply("Sqrt"),
    "Asin": lambda op: 1 / (1 - op.x * op.x).apply("Sqrt"),
    "Asinh": lambda op: 1 / (1 + op.x * op.x).apply("Sqrt"),
    "Atan": lambda op: 1 / (1 + op.x * op.x),
    "Atanh": lambda op: 1 / (1 - op.x * op.x),
    "Cos": lambda op: -op.x.apply("Sin"),
    "Cosh": lambda op: op.x.apply("Sinh"),
    "Erf": lambda op: (2 / math.sqrt(math.pi)) * (-op.x * op.x).apply("Exp"),
    "Exp": lambda op: op.y,
    "Gelu": _gelu,
    "Log": lambda op: 1 / op.x,
    "Neg": lambda op: op.y.number(-1),
    "Reciprocal": lambda op: -op.y * op.y,
    "Relu": lambda op: _holds(op.x.is_("Greater", 0), op.x),
    "Sigmoid": lambda op: op.y * (1 - op.y),
    "Sin": lambda op: op.x.apply("Cos"),
    "Sinh": lambda op: op.x.apply("Cosh"),
    "Softplus": lambda op: op.x.apply("Sigmoid"),
    "Softsign": lambda op: 1 / ((1 + op.x.apply("Abs")) * (1 + op.x.apply("Abs"))),
    "Sqrt": lambda op: 0.5 / op.y,
    "Swish": lambda op: _swish(op, op.number("alpha", 1.0)),
    "Tan": lambda op: 1 + op.y * op.y,
    "Tanh": lambda op: 1 - op.y * op.y,
}

RULES: Mapping[tuple[str, str], Rule] = {
    **{("", name): _sloped(slope) for name, slope in _SLOPES.items()},
    ("", "Add"): _add,
    ("", "Celu"): _celu,
    ("", "Clip"): _clip,
    ("", "Div"): _div,
    ("", "Dropout"): _dropout,
    ("", "Elu"): _elu,
    ("", "HardSigmoid"): _hard_sigmoid,
    ("", "HardSwish"): _hard_swish,
    ("", "LeakyRelu"): _leaky,
    ("", "Max"): _chosen,
    ("", "Mean"): _mean,
    ("", "Min"): _chosen,
    ("", "Mul"): _mul,
    ("", "PRelu"): _prelu,
    ("", "Pow"): _pow,
    ("", "Selu"): _selu,
    ("", "Sub"): _sub,
    ("", "Sum"): _total,
    ("", "ThresholdedRelu"): _thresholded,
    ("", "Where"): _where,
    (_CONTRIB, "BiasGelu"): _with_bias(lambda x: gelu_slope(x, approximate=False)),
    (_CONTRIB, "FastGelu"): _with_bias(lambda x: gelu_slope(x, approximate=True)),
    (_CONTRIB, "Gelu"): _sloped(_gelu),
    (_CONTRIB, "QuickGelu"): _sloped(lambda op: _swish(op, op.number("alpha", 1.702))),
}
