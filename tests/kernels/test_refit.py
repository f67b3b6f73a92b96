from __future__ import annotations

import numpy as np

from onnxshrink.kernels.refit import Moments, explain, refit


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


def test_what_is_missing_is_explained_by_least_squares():
    rng = np.random.default_rng(5)
    x, lack = rng.standard_normal((300, 4)) + 1, rng.standard_normal((300, 2))
    full = np.hstack([x, np.ones((300, 1))])
    change, shift = explain(full.T @ full, full.T @ lack, 1e-12)
    expected = np.linalg.lstsq(full, lack, rcond=None)[0]
    np.testing.assert_allclose(change, expected[:-1].T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(shift, expected[-1], rtol=1e-6, atol=1e-9)
    change, shift = explain(full.T @ full, full.T @ lack, 1e-12, bias=False)
    np.testing.assert_allclose(change, np.linalg.lstsq(x, lack, rcond=None)[0].T, rtol=1e-6)
    assert not shift.any()


def test_groups_are_explained_at_once():
    rng = np.random.default_rng(6)
    full = np.concatenate([rng.standard_normal((3, 50, 4)), np.ones((3, 50, 1))], 2)
    lack = rng.standard_normal((3, 50, 2))
    turned = full.swapaxes(1, 2)
    together = explain(turned @ full, turned @ lack, 0.1)
    for group in range(3):
        alone = explain(full[group].T @ full[group], full[group].T @ lack[group], 0.1)
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one[group], other, rtol=1e-10)
