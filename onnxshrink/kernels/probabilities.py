"""Whether the values of an output are labels, probabilities of classes, or their logarithms."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SLACK = 1e-2  # rows that sum to one within this are probabilities (a softmax in float16 needs it)
_NEGATIVE_SLACK = 1e-6  # probabilities that were computed as a rest
_SMALLEST = 1e-12


def is_discrete(array: np.ndarray) -> bool:
    """Whether values are labels: integers, booleans or strings."""
    # ml_dtypes' narrow integers have no kind of their own, only a name.
    return array.dtype.kind in "biuSUOT" or array.dtype.name.startswith(("int", "uint"))


def are_probabilities(array: np.ndarray, axis: int = -1) -> bool:
    """Whether the rows along an axis, of two classes or more, are probabilities."""
    if array.ndim < 2 or array.shape[axis] < 2 or not array.size or is_discrete(array):
        return False
    rows = array.astype(np.float64)
    near = np.abs(rows.sum(axis=axis) - 1) <= _SLACK
    return bool((rows >= -_NEGATIVE_SLACK).all() and near.all())


def are_logarithms(array: np.ndarray) -> bool:
    """Whether the rows along the last axis are logarithms of probabilities."""
    if array.ndim < 2 or array.shape[-1] < 2 or not array.size or array.max() > _SLACK:
        return False
    return are_probabilities(np.exp(array.astype(np.float64)))


def as_log_probabilities(array: np.ndarray, given: bool | None = None) -> Floats:
    """Logarithms of the rows, [rows, classes]; through softmax where they are not probabilities.

    Args:
        array: The values.
        given: Whether they are probabilities; None asks them.
    """
    rows = array.astype(np.float64).reshape(-1, array.shape[-1])
    if are_probabilities(rows) if given is None else given:
        rows = np.maximum(rows, _SMALLEST)
        result: Floats = np.log(rows / rows.sum(axis=1, keepdims=True))
        return result
    logs: Floats = rows - rows.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    return np.maximum(logs, math.log(_SMALLEST), out=logs)
