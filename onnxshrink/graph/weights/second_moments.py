"""Which second moment of which value a weight is rounded against, and how its matrix is grouped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxshrink.graph.operators import Recurrent
from onnxshrink.graph.weights.views import Use, WeightView
from onnxshrink.kernels import adaround, obs
from onnxshrink.kernels.moments import InputMoments
from onnxshrink.kernels.observers import Lookups, Need, SecondMoment, Statistic

#: How codes are fitted to the inputs; see :func:`fitted`.
Fit = Literal["gptq", "adaround"]


def needs(view: WeightView) -> tuple[Need, ...]:
    """The second moments of all that a weight is multiplied with, of like products together.

    Empty where a product is not one of plain rows: such a weight has to be rounded without, and
    :func:`why_not` says why.
    """
    return _found(view)[0]


def why_not(view: WeightView) -> str:
    """Why what a weight is multiplied with cannot be added up; empty when it can."""
    return _found(view)[1]


def unknown(view: WeightView) -> str:
    """Why the second moments of a weight's inputs are not known after a run that asked for them."""
    return why_not(view) or "its inputs were not observed"


def _found(view: WeightView) -> tuple[tuple[Need, ...], str]:
    """What is needed, and why nothing is."""
    if not view.uses or view.main.is_one_by_one:
        return (), "it is not summed over"
    found, reason = [], "its rows are looked up"
    for use in view.uses:
        if use.is_lookup:
            continue
        try:
            found.append(_need(view, use))
        except ValueError as error:
            reason = f"{use.op_type}: {error}"
    widths = {(n.statistic.width, n.statistic.layout.groups) for n in found}  # type: ignore[union-attr]
    if len(widths) > 1:
        return (), "its products sum over different numbers of inputs"
    return tuple(_together(found)), "" if found else reason


def _together(needs: Iterable[Need]) -> Iterator[Need]:
    """Needs of the same kind as one, since one sum is all that a weight is rounded against.

    An unrolled loop multiplies a weight once a step: sums of their own would take the weight's
    width squared for each step.
    """
    kinds: dict[Statistic, dict[str, None]] = {}
    for need in needs:
        kinds.setdefault(need.statistic, {})[need.value] = None
    for statistic, names in kinds.items():
        first, *others = names
        yield Need(first, statistic, tuple(others))


def of(statistics: Mapping[Need, Any], view: WeightView) -> InputMoments | None:
    """E[x x^T] of a weight's inputs; None where it cannot be observed, or no feed reached it."""
    wanted = needs(view)
    if not wanted or any(need not in statistics for need in wanted):
        return None
    sums = [statistics[need] for need in wanted]
    return InputMoments(sums) if all(one.rows.sum() for one in sums) else None


def importance(statistics: Mapping[Need, Any], view: WeightView) -> npt.NDArray[np.float32] | None:
    """E[x^2] of the input of each weight, in the stored shape; None where it is unknown."""
    known = of(statistics, view)
    if known is None:
        return None
    squares = np.diagonal(known.mean(), axis1=1, axis2=2).astype(np.float32)
    rows = view.matrix.shape[0] // known.groups
    return view.from_matrix(np.repeat(squares, rows, axis=0))


def output_error(
    statistics: Mapping[Need, Any], view: WeightView, other: npt.NDArray[np.floating]
) -> float | None:
    """Relative error of what a weight gives with other values, in the stored shape.

    None where its inputs are unknown.
    """
    known = of(statistics, view)
    return None if known is None else known.output_error(view.matrix, view.to_matrix(other))


def lookups(view: WeightView) -> Need | None:
    """How often each row of a table is looked up; None for other weights."""
    use = view.main
    if not use.is_lookup or len(view.uses) > 1 or use.axes.out != (0,):
        return None
    value = use.activation
    return None if value is None or not value.name else Need(value.name, Lookups(view.shape[0]))


def looked_up(
    statistics: Mapping[Need, Any], view: WeightView, half: int | None = None
) -> npt.NDArray[np.int64] | None:
    """How often each row of a table was looked up; None where that was not collected.

    Args:
        statistics: What was collected.
        view: The table.
        half: 0 or 1 for the feeds with even or odd numbers only.
    """
    need = lookups(view)
    if need is None or need not in statistics:
        return None
    halves: npt.NDArray[np.int64] = statistics[need].halves
    counts: npt.NDArray[np.int64] = halves.sum(0) if half is None else halves[half]
    return counts


def fitted(
    statistics: Mapping[Need, Any],
    view: WeightView,
    scale: npt.NDArray[np.float32],
    zero: npt.NDArray[np.float32],
    codes: tuple[int, int],
    method: Fit = "gptq",
    matrix: npt.NDArray[np.floating] | None = None,
) -> npt.NDArray[np.float32] | None:
    """A weight's codes on an affine grid, chosen for what the weight is multiplied with.

    Args:
        statistics: What was collected.
        view: The weight.
        scale: Scales, in the stored shape.
        zero: Zero points, in the stored shape.
        codes: Smallest and largest code.
        method: ``gptq`` rounds with error feedback; ``adaround`` rounds all up or down together.
        matrix: What to round instead of the weight's own matrix.

    Returns:
        Codes as floats in the stored shape; None where no second moment was collected.
    """
    known = of(statistics, view)
    if known is None:
        return None
    full = (view.matrix if matrix is None else matrix).astype(np.float32)
    scales, zeros = (view.to_matrix(one).reshape(full.shape) for one in (scale, zero))

    def grid(rows: npt.NDArray[np.int64]) -> obs.Grid:
        return obs.affine(scales[rows], zeros[rows], *codes)

    if method == "gptq":
        rounded: npt.NDArray[np.float32] = np.rint(_fed_back(known, full, grid) / scales) + zeros
        return view.from_matrix(rounded)
    h = known.damped(_damping(known, full, grid))
    weights, by_group, zero_by_group = (known.fold(one) for one in (full, scales, zeros))
    found = [
        adaround.quantize(part, moment, s, z, *codes)
        for part, moment, s, z in zip(weights, h, by_group, zero_by_group, strict=True)
    ]
    return view.from_matrix(np.concatenate(found))


def with_feedback(
    statistics: Mapping[Need, Any],
    view: WeightView,
    grid: Callable[[npt.NDArray[np.int64]], obs.Grid],
) -> npt.NDArray[np.float32] | None:
    """A weight's matrix rounded with error feedback (GPTQ) to what can be stored.

    Args:
        statistics: What was collected.
        view: The weight.
        grid: How columns of some of the matrix's rows are rounded.

    Returns:
        The rounded matrix; None where no second moment was collected.
    """
    known = of(statistics, view)
    return None if known is None else _fed_back(known, view.matrix.astype(np.float32), grid)


def _fed_back(
    known: InputMoments,
    matrix: npt.NDArray[np.float32],
    grid: Callable[[npt.NDArray[np.int64]], obs.Grid],
) -> npt.NDArray[np.float32]:
    damping = _damping(known, matrix, grid)
    numbers = np.arange(len(matrix)).reshape(known.groups, -1)
    rounded = [
        obs.quantize(part, obs.factor(h, damping), grid(rows))
        for part, h, rows in zip(known.fold(matrix), known.narrow(), numbers, strict=True)
    ]
    return np.concatenate(rounded).reshape(matrix.shape)


def _damping(
    known: InputMoments,
    matrix: npt.NDArray[np.float32],
    grid: Callable[[npt.NDArray[np.int64]], obs.Grid],
) -> float:
    """The damping that is best on the feeds that the roundings were not fitted to."""
    first = known.fold(matrix)[0]
    return obs.choose_damping(first, known.narrow(0)[0], known.narrow(1)[0], grid)


def _need(view: WeightView, use: Use) -> Need:
    """What one product is multiplied with.

    Raises:
        ValueError: Why that cannot be told.
    """
    product = use.product
    if product is None:
        raise ValueError("is no product")
    shape = view.shape
    if product.convolves:
        shape = (1, 1, *(shape[axis] for axis in use.axes.contract[1:]))
    elif not use.direct and len(shape) > 2 and not isinstance(product.row, Recurrent):
        raise ValueError("its weight is moved on the way to it")
    width = int(np.prod([view.shape[axis] for axis in use.axes.contract]))
    value = product.activation
    if value is None or not value.name:
        raise ValueError("what it is multiplied with has no name")
    return Need(value.name, SecondMoment(width, product.layout(shape)))
