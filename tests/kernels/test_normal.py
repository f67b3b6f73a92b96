"""Means of normal values behind limits, against numerical integration."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from onnxshrink.kernels.normal import clipped_mean


@pytest.mark.parametrize(
    ("low", "high"), [(0, math.inf), (0, 6), (-math.inf, math.inf), (-1, 1), (-math.inf, 2)]
)
@given(mean=st.floats(-5, 5), deviation=st.floats(0.05, 4))
def test_it_is_the_integral(low: float, high: float, mean: float, deviation: float) -> None:
    def integrand(z: float) -> float:
        away = (z - mean) / deviation
        density = math.exp(-(away**2) / 2) / (deviation * math.sqrt(2 * math.pi))
        return min(max(z, low), high) * density

    points = [p for p in (low, high, mean) if math.isfinite(p)]
    ends = mean - 12 * deviation, mean + 12 * deviation
    exact, _ = quad(integrand, *ends, points=points, limit=200)
    found = clipped_mean(np.array([mean]), np.array([deviation]), low, high)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-7)


def test_constants_are_clipped() -> None:
    mean = np.array([-3.0, 1, 9])
    np.testing.assert_array_equal(clipped_mean(mean, np.zeros(3), 0, 6), [0, 1, 6])
    np.testing.assert_array_equal(mean, [-3, 1, 9])


def test_far_from_a_limit_nothing_is_clipped() -> None:
    far = clipped_mean(np.array([1e6, -1e6]), np.full(2, 1e-9))
    np.testing.assert_allclose(far, [1e6, 0], rtol=1e-12)
