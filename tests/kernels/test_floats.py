"""float8 against ml_dtypes: every code, every tie, and what lies beyond the range."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxshrink.kernels import affine, floats

KINDS = {"float8e4m3fn": ml_dtypes.float8_e4m3fn, "float8e5m2": ml_dtypes.float8_e5m2}
every_kind = pytest.mark.parametrize("dtype", KINDS)


def reference(values: np.ndarray, dtype: str) -> np.ndarray:
    """ml_dtypes rounds to nearest, ties to even, but does not saturate."""
    limit = floats.FORMATS[dtype].largest
    return np.clip(values, -limit, limit).astype(KINDS[dtype]).view(np.uint8)


@every_kind
def test_every_code_is_the_number_that_it_stands_for(dtype) -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = codes.view(KINDS[dtype]).astype(np.float32)
    np.testing.assert_array_equal(floats.decode(codes, dtype), expected)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(floats.encode(expected[finite], dtype), codes[finite])


@every_kind
def test_ties_and_their_neighbours(dtype) -> None:
    every = np.arange(256, dtype=np.uint8).view(KINDS[dtype]).astype(np.float64)
    finite = np.unique(every[np.isfinite(every)])
    ties = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    above, below = (np.nextafter(ties, np.float32(side * np.inf)) for side in (1, -1))
    for values in (ties, above, below, np.float32([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])):
        np.testing.assert_array_equal(floats.encode(values, dtype), reference(values, dtype))


@every_kind
@given(values=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(
    -1e9, 1e9, width=32, allow_subnormal=True)))  # fmt: skip
def test_any_number(dtype, values: np.ndarray) -> None:
    np.testing.assert_array_equal(floats.encode(values, dtype), reference(values, dtype))


def test_shapes_are_kept() -> None:
    assert floats.encode(np.float32(1), "float8e4m3fn").shape == ()
    assert floats.encode(np.zeros((2, 0, 3)), "float8e5m2").shape == (2, 0, 3)


@every_kind
@pytest.mark.parametrize("clip", ["minmax", "mse"])
def test_weights_are_scaled_to_the_whole_range(dtype, clip) -> None:
    weights = np.random.default_rng(0).standard_normal((7, 50)).astype(np.float32)
    weights[3] = 0
    stored = affine.quantize(weights, dtype, (1,), clip=clip, symmetric=False, rounding="balanced")
    assert (stored.dtype, stored.bits, stored.zero_point) == (dtype, 8, None)
    assert stored.nbytes == 350 + 7 * 4
    back = affine.dequantize(stored)
    exact = (weights / stored.scale).clip(-(r := affine.RANGES[dtype][1]), r)
    np.testing.assert_array_equal(
        back, reference(exact, dtype).view(KINDS[dtype]).astype(np.float32) * stored.scale
    )
    assert not back[3].any()
    if clip == "minmax":
        np.testing.assert_allclose(np.abs(back).max(1), np.abs(weights).max(1), rtol=1e-6)
        step = 2.0 ** -floats.FORMATS[dtype].mantissa / 2  # half of the last place
        assert (np.abs(back - weights) <= step * np.abs(weights) + stored.scale * 2.0**-9).all()
