"""Rounding with error feedback: each weight makes up for the errors of those rounded before it.

For inputs with second moment H a row of errors e costs ``e H e^T``. With ``H = R R^T``, R upper
triangular, this is the sum over columns j of ``(sum_i<=j e_i R_ij)^2``, so a column rounded to
nearest *after* the earlier errors have been added to it leaves only its own rounding. This is
GPTQ (Frantar et al., 2210.17323; OBQ, 2208.11580), which is Babai's nearest plane algorithm
(2507.18553), without ever inverting H.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.moments import damped_diagonal, loss

Floats = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
#: Rounds the values of one column, [rows], to what can be stored; also told the column's number.
Grid = Callable[[Floats, int], Floats]

_BLOCK = 64  # columns whose errors are fed back one by one; the rest goes through one product
DAMPINGS = (0.01, 0.05, 0.2, 0.8)
_TRIED_ROWS = 48


@dataclass(frozen=True)
class Factor:
    """A second moment, ready for rounding.

    Attributes:
        order: The columns, those that matter most first.
        upper: R, [width, width], of the columns in that order.
        noise: What unit noise in a column costs once later columns make up for it: ``R_jj ** 2``,
            in the columns' own order.
    """

    order: npt.NDArray[np.int64]
    upper: Floats
    noise: Floats64


def factor(moment: npt.NDArray[np.floating], damping: float = 0.01) -> Factor:
    """Factor a second moment.

    Args:
        moment: H, [width, width], symmetric and positive semidefinite.
        damping: Share of the mean of H's diagonal to add to the diagonal: directions that few
            inputs showed must not count as free. Inputs that are always zero then cost little.

    Raises:
        ValueError: H is not finite, or not positive semidefinite.
    """
    from scipy.linalg import LinAlgError, cholesky

    diagonal, width = damped_diagonal(moment, damping), len(moment)
    order = np.argsort(-diagonal, kind="stable")
    backwards = order[::-1]
    # One copy, laid out as LAPACK has matrices, so that it is factored in place: of a wide layer
    # each takes as much as the whole model.
    turned = np.empty((width, width), np.float64, order="F")
    for start in range(0, width, _BLOCK):
        columns = backwards[start : start + _BLOCK]
        turned[:, start : start + _BLOCK] = moment[np.ix_(backwards, columns)]
    np.fill_diagonal(turned, diagonal[backwards])
    try:
        lower = cholesky(turned, lower=True, check_finite=False, overwrite_a=True)
    except LinAlgError as error:
        raise ValueError("the second moment is not positive definite; damp it more") from error
    upper = lower[::-1, ::-1]
    noise = np.empty(width)
    noise[order] = np.square(upper.diagonal())
    return Factor(order, np.ascontiguousarray(upper, np.float32), noise)


def quantize(weights: npt.NDArray[np.floating], known: Factor, grid: Grid) -> Floats:
    """Round a matrix to a grid.

    Args:
        weights: [rows, width].
        known: The factored second moment of what the rows are multiplied with.
        grid: How one column is rounded.

    Returns:
        The rounded weights. A row whose damped error ends above that of rounding to nearest (a
        grid with ends can do that) is rounded to nearest instead. Zeros are rounded as they are:
        what was pruned stays so.
    """
    columns = np.ascontiguousarray(np.asarray(weights, np.float32).T[known.order])
    width, upper = len(columns), known.upper
    rounded, error = np.empty_like(columns), np.empty_like(columns)
    total = np.zeros(columns.shape[1])
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        fed = upper[:start, start:stop].T @ error[:start]
        for j in range(start, stop):
            owed = fed[j - start]
            if j > start:
                owed += upper[start:j, j] @ error[start:j]
            owed /= upper[j, j]
            wanted = np.where(columns[j] == 0, columns[j], columns[j] + owed)
            rounded[j] = grid(wanted, int(known.order[j]))
            np.subtract(columns[j], rounded[j], out=error[j])
            total += np.square((error[j] + owed) * upper[j, j], dtype=np.float64)
    nearest = np.empty_like(columns)
    for j in range(width):
        nearest[j] = grid(columns[j], int(known.order[j]))
    plain = np.square(upper.T @ (columns - nearest), dtype=np.float64).sum(0)
    rounded[:, plain < total] = nearest[:, plain < total]
    result = np.empty_like(columns)
    result[known.order] = rounded
    return np.ascontiguousarray(result.T)


def choose_damping(
    weights: npt.NDArray[np.floating],
    seen: npt.NDArray[np.floating],
    unseen: npt.NDArray[np.floating],
    grid_of_rows: Callable[[npt.NDArray[np.int64]], Grid],
    candidates: Sequence[float] = DAMPINGS,
) -> float:
    """The damping whose rounding, fitted to some inputs, is best on others.

    Args:
        weights: [rows, width].
        seen: Second moment of the inputs to fit to.
        unseen: Second moment of the inputs that judge.
        grid_of_rows: The grid of some of the rows; a sample of them decides.
        candidates: What to try.
    """
    rows = np.unique(np.linspace(0, len(weights) - 1, _TRIED_ROWS).astype(np.int64))
    some, grid = np.asarray(weights, np.float32)[rows], grid_of_rows(rows)

    def error(damping: float) -> float:
        return loss(some - quantize(some, factor(seen, damping), grid), unseen)

    return min(candidates, key=error)


def uniform(step: float) -> Grid:
    """The grid of all multiples of a step."""
    width = np.float32(step)

    def grid(values: Floats, column: int) -> Floats:
        rounded: Any = np.rint(values / width)
        rounded *= width
        return rounded  # type: ignore[no-any-return]

    return grid


def affine(scale: Floats, zero: Floats, lowest: int, highest: int) -> Grid:
    """The grid of ``(code - zero) * scale`` for codes in a range.

    Args:
        scale: [rows, width], every column its own.
        zero: Zero points in the same shape.
        lowest: Smallest code.
        highest: Largest code.
    """
    scales, zeros = np.ascontiguousarray(scale.T), np.ascontiguousarray(zero.T)

    def grid(values: Floats, column: int) -> Floats:
        codes: Any = np.rint(values / scales[column]) + zeros[column]
        np.clip(codes, lowest, highest, out=codes)
        return (codes - zeros[column]) * scales[column]  # type: ignore[no-any-return]

    return grid
