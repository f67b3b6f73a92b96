"""How far each input's answers are off, where other figures are about all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxshrink.kernels.probabilities import is_discrete


def input_errors(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, whole: bool = False
) -> list[list[float]]:
    """The relative L2 error of every row of every answer.

    One whose reference is smaller than usual is held against the usual size: it is no worse an
    answer for that.

    Args:
        pairs: Answers of the reference and of the other, one pair for each feed.
        whole: Whether an answer is one row: its first axis is not the batch.

    Returns:
        For each feed the errors of its rows; of labels the share that is unequal. An answer of
        another shape, or with NaN or infinity where the reference has none, is infinitely wrong.
    """
    sums = [_sums(np.asarray(x), np.asarray(y), whole) for x, y in pairs]
    signals = np.concatenate([np.zeros(0), *(signal for _, signal in sums)])
    usual = float(signals.mean()) if signals.size else 0.0
    found = []
    for error, signal in sums:
        size = np.maximum(signal, usual)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(error > 0, error / size, 0.0)
        found.append([float(value) for value in np.sqrt(relative)])
    return found


def _sums(x: np.ndarray, y: np.ndarray, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Squares of errors and of signals, by row."""
    if x.shape != y.shape:
        return np.full(1, np.inf), np.zeros(1)
    rows = 1 if whole or not x.ndim or not x.size else len(x)
    if is_discrete(x):  # so that the root is the share
        unequal = (x != y).reshape(rows, -1)
        return unequal.mean(axis=1) ** 2 if x.size else np.zeros(rows), np.ones(rows)
    a, b = (z.astype(np.float64).reshape(rows, -1) for z in (x, y))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    difference = np.where(finite, np.where(finite, a, 0.0) - np.where(finite, b, 0.0), 0.0)
    error = np.where(same | finite, np.square(difference), np.inf).sum(axis=1)
    return error, np.square(np.where(finite, a, 0.0)).sum(axis=1)
