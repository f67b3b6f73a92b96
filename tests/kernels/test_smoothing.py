"""Factors between activations and weights, and the error that chooses them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxshrink.kernels import smooth

ranges = arrays.arrays(np.float64, 6, elements=st.floats(0.01, 100))


@given(ranges, ranges, st.floats(0, 1))
def test_factors_are_the_papers(x: np.ndarray, w: np.ndarray, share: float) -> None:
    found = smooth.factors(x, w, share)
    floor = np.maximum(w, 1e-4 * w.max()), np.maximum(x, 1e-4 * x.max())
    np.testing.assert_allclose(found, floor[1] ** share / floor[0] ** (1 - share), rtol=1e-9)


def test_at_the_ends_one_side_becomes_even() -> None:
    x, w = np.array([1, 10, 100.0]), np.array([3, 1, 2.0])
    np.testing.assert_allclose(x / smooth.factors(x, w, 1), 1)
    np.testing.assert_allclose(w * smooth.factors(x, w, 0), 1)


def test_small_channels_get_no_huge_factor() -> None:
    found = smooth.factors(np.array([0, 1.0]), np.array([1.0, 0]), 0.5)
    np.testing.assert_allclose(found, [np.sqrt(1e-4), np.sqrt(1e4)])


def test_nothing_to_go_by_means_no_factors() -> None:
    for x, w in ((0.0, 1.0), (1.0, 0.0), (np.inf, 1.0), (1.0, np.inf)):
        np.testing.assert_array_equal(smooth.factors(np.full(3, x), np.full(3, w), 0.5), 1)


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, 6)) * np.array([1, 1, 1, 1, 1, 60])
    return x, rng.standard_normal((5, 6))


def product(x: np.ndarray, w: np.ndarray) -> smooth.ReadingWeight:
    return smooth.ReadingWeight(w[None], (x.T @ x / len(x))[None], np.arange(6).reshape(1, 1, 6))


def test_the_error_is_that_of_rounded_weights_on_the_rows() -> None:
    x, w = problem()
    s = np.random.default_rng(1).uniform(0.1, 3, 6)
    scale = np.abs(w * s).max(1, keepdims=True) / 127
    rounded = np.rint(w * s / scale) * scale
    exact = np.square(x @ w.T - (x / s) @ rounded.T).sum(1).mean()
    np.testing.assert_allclose(product(x, w).error(s, 0), exact, rtol=1e-9)
    more = product(x, w).error(s, 0.3)
    np.testing.assert_allclose(more - exact, 0.3**2 / 12 * np.square(w * s).sum(), rtol=1e-9)


def test_the_best_share_is_the_best_of_all_by_real_rounding() -> None:
    x, w = problem()
    low, high, weight = x.min(0), x.max(0), np.abs(w).max(0)

    def measured(s: np.ndarray) -> float:
        """Both sides rounded as dynamic quantization does."""
        step = ((high / s).max() - (low / s).min()) / 255
        scale = np.abs(w * s).max(1, keepdims=True) / 127
        y = np.rint(x / s / step) * step @ (np.rint(w * s / scale) * scale).T
        return float(np.square(y - x @ w.T).sum())

    share, values = smooth.best(low, high, weight, [product(x, w)])
    assert share is not None
    every = {s: measured(smooth.factors(np.abs(x).max(0), weight, s)) for s in smooth.SHARES}
    assert every[share] <= 1.1 * min(every.values())
    assert measured(values) < 0.25 * measured(np.ones(6))


def test_even_channels_need_no_factors() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (400, 6))
    x[0], x[1] = -1, 1
    weight = np.ones((5, 6))
    share, values = smooth.best(x.min(0), x.max(0), weight.max(0), [product(x, weight)])
    assert share is None
    np.testing.assert_array_equal(values, 1)
