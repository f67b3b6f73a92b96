"""Sums over the values of two models, against numpy on all values at once."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from onnxshrink.kernels.pairs import ChannelPairs, Regression, RegressionSums
from onnxshrink.kernels.patches import Window
from onnxshrink.kernels.rows import Rows


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def collected(statistic: Regression, *pairs: tuple[np.ndarray, np.ndarray]) -> RegressionSums:
    found = statistic.start()
    for feed, (x, y) in enumerate(pairs):
        found.add(statistic, x, y, feed)
    return found


def check(sums: RegressionSums, half: int, x: np.ndarray, y: np.ndarray) -> None:
    """x [groups, rows, width], y [groups, rows, outputs]."""
    full = np.concatenate([x, np.ones((*x.shape[:2], 1))], 2).astype(np.float64)
    seen = sums.halves[half]
    np.testing.assert_allclose(seen.xx, full.transpose(0, 2, 1) @ full, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen.xy, y.transpose(0, 2, 1) @ full, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen.yy, (y.astype(np.float64) ** 2).sum(1), rtol=1e-5)
    assert seen.samples == x.shape[1]


def test_rows_of_a_product_on_either_side() -> None:
    x, y = normal(2, 5, 6), normal(2, 5, 3, seed=1)
    rows = x.reshape(1, -1, 6), y.reshape(1, -1, 3)
    check(collected(Regression(1, 6, 3, Rows()), (x, y)), 0, *rows)
    turned = x.swapaxes(1, 2), y.swapaxes(1, 2)
    check(collected(Regression(1, 6, 3, Rows(-2), axis=-2), turned), 0, *rows)


def test_products_of_several_matrices() -> None:
    x, y = normal(3, 4, 5, 6), normal(3, 4, 5, 2, seed=1)
    sums = collected(Regression(4, 6, 2, Rows(batch=(4,))), (x, y))
    check(sums, 0, x.swapaxes(0, 1).reshape(4, -1, 6), y.swapaxes(0, 1).reshape(4, -1, 2))


def test_some_outputs_of_the_other_model() -> None:
    x, y, picked = normal(2, 5, 6), normal(2, 5, 7, seed=1), (0, 3, 6)
    rows = x.reshape(1, -1, 6), y[..., picked].reshape(1, -1, 3)
    check(collected(Regression(1, 6, 3, Rows(), picked=picked), (x, y)), 0, *rows)
    images, others = normal(2, 3, 4, 4), normal(2, 7, 4, 4, seed=1)
    sums = collected(Regression(3, 1, 1, ChannelPairs(1), picked=picked), (images, others))
    flat = (v.transpose(1, 0, 2, 3).reshape(3, -1, 1) for v in (images, others[:, picked]))
    check(sums, 0, *flat)


@pytest.mark.parametrize("groups", [1, 2])
def test_windows_of_a_convolution(groups: int) -> None:
    x, y = normal(2, 4, 7, 6), normal(2, 6, 3, 6, seed=1)
    window = Window((3, 1), (2, 1), (1, 1), (0, 0, 0, 0), groups)
    sums = collected(Regression(groups, 12 // groups, 6 // groups, window, axis=1), (x, y))
    seen = sliding_window_view(x, (3, 1), (2, 3))[:, :, ::2]  # [n, c, h, w, 3, 1]
    rows = seen.transpose(0, 2, 3, 1, 4, 5).reshape(-1, groups, 12 // groups).swapaxes(0, 1)
    wanted = y.transpose(0, 2, 3, 1).reshape(-1, groups, 6 // groups).swapaxes(0, 1)
    check(sums, 0, rows, wanted)


def test_places_are_the_same_where_there_are_too_many() -> None:
    x = normal(1, 2, 200, 200)
    y = np.concatenate([x * 2, x - 1], 1)
    window = Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
    sums = collected(Regression(1, 2, 4, window, axis=1), (x, y), (x, y))
    for seen in sums.halves:
        assert seen.samples == 1024
        np.testing.assert_allclose(seen.xy[:, :2, :2], 2 * seen.xx[:, :2, :2], rtol=1e-5)


@pytest.mark.parametrize("axis", [1, -1])
def test_channels(axis: int) -> None:
    x, y = normal(4, 3, 5), normal(4, 3, 5, seed=1)
    sums = collected(Regression(x.shape[axis], 1, 1, ChannelPairs(axis)), (x, y))
    a, b = (np.moveaxis(v, axis, 0).reshape(v.shape[axis], -1, 1) for v in (x, y))
    check(sums, 0, a, b)


def test_halves_and_rows_that_are_not_finite() -> None:
    x, y = normal(6, 4), normal(6, 2, seed=1)
    spoiled = y.copy()
    spoiled[2, 1], spoiled[4, 0] = np.nan, np.inf
    sums = collected(Regression(1, 4, 2, Rows()), (x, y), (x, spoiled), (x[:0], y[:0]))
    check(sums, 0, x[None], y[None])
    check(sums, 1, x[None][:, [0, 1, 3, 5]], y[None][:, [0, 1, 3, 5]])
    assert sums.spoiled == 2


@pytest.mark.parametrize(
    ("statistic", "x", "y"),
    [
        (Regression(1, 4, 2, Rows()), (6, 4), (6, 3)),
        (Regression(1, 4, 2, Rows()), (6, 5), (6, 2)),
        (Regression(1, 4, 2, Rows()), (6, 4), (5, 2)),
        (Regression(3, 1, 1, ChannelPairs(-1)), (6, 3), (6, 4)),
        (Regression(3, 1, 1, ChannelPairs(-1)), (6, 4), (6, 4)),
        (Regression(1, 2, 3, Window((1,), (1,), (1,), (0, 0)), axis=1), (1, 2, 9), (1, 3, 8)),
    ],
)
def test_values_that_do_not_fit(
    statistic: Regression, x: tuple[int, ...], y: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        collected(statistic, (normal(*x), normal(*y)))
