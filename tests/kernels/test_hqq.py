"""Half-quadratic fitting of scales: for the bulk of the weights, never for the worse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxshrink.kernels import affine, hqq


def norm(weights: np.ndarray, stored: affine.Quantized) -> np.ndarray:
    error = np.abs(weights - affine.dequantize(stored)).astype(np.float64)
    return (error**0.7).sum(1)


@given(st.integers(0, 2**31), st.sampled_from(["int4", "uint4", "int8"]), st.booleans())
@settings(max_examples=40)
def test_no_group_gets_worse(seed: int, dtype: affine.Dtype, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    weights = (rng.standard_t(2, (12, 40)) * rng.uniform(1e-3, 10)).astype(np.float32)
    first = affine.quantize(weights, dtype, (1,), symmetric=symmetric)
    found = hqq.refit(weights, first, (1,), short=False)
    assert (norm(weights, found) <= norm(weights, first) * (1 + 1e-4)).all()
    assert found.codes.dtype == first.codes.dtype
    assert found.codes.min() >= affine.RANGES[dtype][0]
    assert found.codes.max() <= affine.RANGES[dtype][1]
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()


def test_outliers_no_longer_set_the_scale() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((8, 256)).astype(np.float32)
    weights[:, 17] = 12
    first = affine.quantize(weights, "int4", (1,))
    found = hqq.refit(weights, first, (1,), short=False)
    bulk = np.delete(np.arange(256), 17)
    before, after = (
        np.abs(weights - affine.dequantize(one))[:, bulk].mean() for one in (first, found)
    )
    assert after < 0.85 * before
    assert (found.scale < first.scale).all()


def test_scales_fit_float16_when_asked() -> None:
    weights = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    first = affine.quantize(weights, "int4", (1,), short_scale=True)
    found = hqq.refit(weights, first, (1,), short=True)
    np.testing.assert_array_equal(found.scale, found.scale.astype(np.float16))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_groups_without_spread(value: float) -> None:
    weights = np.full((2, 16), value, np.float32)
    found = hqq.refit(weights, affine.quantize(weights, "int4", (1,)), (1,), short=False)
    np.testing.assert_allclose(affine.dequantize(found), weights, rtol=1e-6)
