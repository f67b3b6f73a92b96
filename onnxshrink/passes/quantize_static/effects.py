"""What rounding a product's weight does beside its noise: shifted means, sums that overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxshrink.kernels.observers import Extremes, Need, SecondMoment, SomeRows

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.forms.integer_kernels import IntegerCandidate
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.affine import Quantized
    from onnxshrink.kernels.ranges import Grid

_LARGEST_BIAS = 2.0**30
_FINEST_BIAS = 2.0**20


def means(candidate: IntegerCandidate) -> Need | None:
    """The mean of each channel of what a product with a bias multiplies; None for others."""
    way = candidate.way
    if candidate.weight is None or way is None or not way.takes_bias:
        return None
    return Need(candidate.inputs[0].name or "", Extremes(1))


def some_rows(candidate: IntegerCandidate) -> Need | None:
    """A few rows that a weight is multiplied with; None where sums are never of 16 bits."""
    from onnxshrink.graph.weights import second_moments

    if candidate.weight is None or candidate.operands != (0,):
        return None
    for need in second_moments.needs(candidate.weight):
        name = candidate.inputs[0].name
        if name in need.values and isinstance(need.statistic, SecondMoment):
            return Need(name, SomeRows(need.statistic.layout))
    return None


def shift(candidate: IntegerCandidate, stored: Quantized, mean: np.ndarray) -> np.ndarray:
    """By how much rounding its weight moves the mean of each output of a product.

    Taken from the bias, it leaves errors without a mean (1906.04721, section 4.2). Paddings count
    as if they were values.

    Args:
        candidate: A Conv or Gemm.
        stored: Codes of its weight.
        mean: Of each channel of its input.
    """
    import numpy as np

    from onnxshrink.kernels import affine

    view = candidate.weight
    assert view is not None
    way = candidate.way
    assert way is not None
    error = affine.dequantize(stored).astype(np.float64) - view.array()
    if not way.convolves:
        axes = next(use.axes for use in view.uses if use.node is candidate.node)
        moved: np.ndarray = np.tensordot(error, mean, (axes.contract, (0,)))
        return moved
    taps = error.reshape(*error.shape[:2], -1).sum(2)
    groups = mean.size // taps.shape[1]
    by_group = taps.reshape(groups, -1, taps.shape[1])
    moved = np.einsum("goc,gc->go", by_group, mean.reshape(groups, -1))
    return moved.reshape(-1)


def widened(view: WeightView, stored: Quantized, bias: np.ndarray, scale: float) -> Quantized:
    """Codes with scales such that a bias counted in products of scales fits 32 bits.

    Args:
        view: The weight.
        stored: Its codes.
        bias: What is added, one number for each channel.
        scale: Of the activation.
    """
    import numpy as np

    from onnxshrink.kernels import affine

    axes = tuple(axis for axis, size in enumerate(stored.scale.shape) if size == 1)
    size = np.abs(bias) / scale
    if stored.scale.size == 1:
        size = size.max(keepdims=True)
    size = size.reshape(stored.scale.shape)
    # A channel of zeros may have any scale: one with which its bias keeps its digits.
    empty = np.abs(view.array()).max(axes, keepdims=True) == 0
    least = size / np.where(empty, _FINEST_BIAS, _LARGEST_BIAS)
    wanted = np.where(empty, least, np.maximum(stored.scale, least))
    return affine.rescaled(view.array(), stored, wanted)


def saturation(candidate: IntegerCandidate, stored: Quantized, rows: np.ndarray, on: Grid) -> float:
    """What a CPU without VNNI would get wrong of a product's outputs, relative to their size (L2).

    It is 0 for types whose products are not added up in 16 bits, and for depthwise convolutions,
    which have a kernel of their own.

    Args:
        candidate: The product.
        stored: Its weight.
        rows: Some of what it is multiplied with, [rows, groups, inputs].
        on: The grid of these.
    """
    import numpy as np

    from onnxshrink.kernels import affine
    from onnxshrink.kernels.saturation import lost

    view = candidate.weight
    assert view is not None
    single = rows.shape[1] > 1 and view.shape[1] == 1
    if stored.dtype != "int8" or on.dtype not in ("int8", "uint8") or single or not rows.size:
        return 0.0
    groups, width = rows.shape[1:]
    codes = on.codes(rows).astype(np.int16) + (128 if on.dtype == "int8" else 0)
    values = on.values(on.codes(rows))
    matrices = [view.to_matrix(array) for array in (
        stored.codes, affine.dequantize(stored), np.broadcast_to(stored.scale, stored.codes.shape),
    )]  # fmt: skip
    order = np.arange(width)
    way = candidate.way
    if way is not None and way.convolves and len(view.shape) > 2:  # channels lie next to each other
        order = order.reshape(view.shape[1], -1).T.reshape(-1)
    damage = power = 0.0
    for group in range(groups):
        own = [m.reshape(groups, -1, width)[group][:, order] for m in matrices]
        weights, exact, scale = own
        missing = lost(codes[:, group][:, order].astype(np.uint8), weights) * scale[:, 0]
        there = values[:, group][:, order]
        damage += float(np.square(missing * on.scale).sum())
        power += float(np.square(there @ exact.T).sum())
    return (damage / power) ** 0.5 if power else 0.0
