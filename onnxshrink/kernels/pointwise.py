"""Functions of single numbers that models apply between their products, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
#: From the inputs, None where one is left out, and the attributes.
Function = Callable[[Sequence[Any], Mapping[str, Any]], Floats]


def _sigmoid(x: Floats) -> Floats:
    from scipy.special import expit

    found: Floats = expit(x)
    return found


def _erf(x: Floats) -> Floats:
    from scipy.special import erf

    found: Floats = erf(x)
    return found


def _clip(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Floats:
    low, high = (*inputs[1:], None, None)[:2]
    low = attributes.get("min", -np.inf) if low is None else low
    high = attributes.get("max", np.inf) if high is None else high
    found: Floats = np.minimum(np.maximum(inputs[0], low), high)
    return found


def _hard_sigmoid(x: Floats, alpha: float, beta: float) -> Floats:
    found: Floats = np.clip(alpha * x + beta, 0, 1)
    return found


def _gelu(x: Floats, approximate: str) -> Floats:
    if approximate == "tanh":
        half: Floats = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    else:
        half = _erf(x / np.sqrt(2))
    return x / 2 * (1 + half)


def _elu(x: Floats, alpha: float) -> Floats:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


FUNCTIONS: dict[str, Function] = {
    "Abs": lambda x, a: np.abs(x[0]),
    "Add": lambda x, a: x[0] + x[1],
    "Clip": _clip,
    "Div": lambda x, a: x[0] / x[1],
    "Elu": lambda x, a: _elu(x[0], a.get("alpha", 1.0)),
    "Erf": lambda x, a: _erf(x[0]),
    "Gelu": lambda x, a: _gelu(x[0], a.get("approximate", "none")),
    "HardSigmoid": lambda x, a: _hard_sigmoid(x[0], a.get("alpha", 0.2), a.get("beta", 0.5)),
    "HardSwish": lambda x, a: x[0] * _hard_sigmoid(x[0], 1 / 6, 0.5),
    "Identity": lambda x, a: x[0],
    "LeakyRelu": lambda x, a: np.where(x[0] < 0, a.get("alpha", 0.01) * x[0], x[0]),
    "Mul": lambda x, a: x[0] * x[1],
    "Neg": lambda x, a: -x[0],
    "Relu": lambda x, a: np.maximum(x[0], 0),
    "Sigmoid": lambda x, a: _sigmoid(x[0]),
    "Softplus": lambda x, a: np.logaddexp(x[0], 0),
    "Sub": lambda x, a: x[0] - x[1],
    "Tanh": lambda x, a: np.tanh(x[0]),
}
