from __future__ import annotations

import numpy as np

from onnxshrink.kernels.refit import Moments, refit


def _moments(samples: np.ndarray) -> Moments:
    moments = Moments(samples.shape[1])
    for part in np.array_split(samples, 3):
        moments.add(part)
    return moments


def test_moments_are_sums_of_products():
    x = np.random.default_rng(0).standard_normal((50, 4))
    moments = _moments(x)
    full = np.hstack([x, np.ones((50, 1))])
    np.testing.assert_allclose(moments.sums, full.T @ full, rtol=1e-12)
    np.testing.assert_allclose(moments.variances(), x.var(0), rtol=1e-10)
    np.testing.assert_allclose(moments.mean_squares(), (x**2).mean(0), rtol=1e-12)
    assert moments.count == 50


def test_refit_equals_least_squares():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + rng.standard_normal(6)
    w = rng.standard_normal((3, 6))
    kept = np.array([1, 1, 0, 1, 0, 1], bool)
    fitted, shift = refit(w, _moments(x).sums, kept, damping=1e-12)
    design = np.hstack([x[:, kept], np.ones((400, 1))])
    expected = np.linalg.lstsq(design, x @ w.T, rcond=None)[0]
    np.testing.assert_allclose(fitted[:, kept], expected[:-1].T, rtol=1e-6)
    np.testing.assert_allclose(shift, expected[-1], rtol=1e-6)
    assert not fitted[:, ~kept].any()


def test_a_duplicated_channel_is_made_up_for_exactly():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((100, 3))
    x = np.hstack([x, 2 * x[:, :1] + 3])  # the last is a function of the first
    w = rng.standard_normal((2, 4))
    kept = np.array([1, 1, 1, 0], bool)
    fitted, shift = refit(w, _moments(x).sums, kept, damping=1e-12)
    np.testing.assert_allclose(x @ fitted.T + shift, x @ w.T, rtol=1e-6, atol=1e-6)


def test_strong_damping_leaves_the_weights():
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((50, 4)), rng.standard_normal((2, 4))
    kept = np.array([1, 0, 1, 1], bool)
    fitted, _ = refit(w, _moments(x).sums, kept, damping=1e9, bias=False)
    np.testing.assert_allclose(fitted[:, kept], w[:, kept], atol=1e-6)
