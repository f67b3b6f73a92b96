"""Factors that balance ranges, and how well ranges are used."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxshrink.kernels import equalize

ranges = arrays.arrays(np.float64, 7, elements=st.floats(1e-6, 1e6))


@given(ranges, ranges)
def test_both_sides_meet_in_the_middle(made: np.ndarray, read: np.ndarray) -> None:
    factors = equalize.balance(made, read)
    np.testing.assert_allclose(made / factors, read * factors, rtol=1e-9)
    np.testing.assert_allclose(made / factors, np.sqrt(made * read), rtol=1e-9)
    np.testing.assert_array_equal(equalize.balance(read * factors, read * factors), 1)


def test_dead_and_infinite_channels_stay() -> None:
    made = np.array([0, 1, np.inf, 4, np.nan])
    read = np.array([1, 0, 1, 1, 1.0])
    np.testing.assert_array_equal(equalize.balance(made, read), [1, 1, 1, 2, 1])


def test_factors_are_cut() -> None:
    factors = equalize.balance(np.array([1e300, 1e-300]), np.array([1e-300, 1e300]))
    np.testing.assert_array_equal(factors, [2.0**24, 2.0**-24])


def test_precision_is_the_mean_share_of_the_range() -> None:
    assert equalize.precision(np.array([1, 2, 4.0])) == (1 / 4 + 2 / 4 + 1) / 3
    assert equalize.precision(np.zeros(3)) == equalize.precision(np.zeros(0)) == 1
    np.testing.assert_array_equal(equalize.largest(np.array([[-3, 2], [0, 0.0]])), [3, 0])
    assert equalize.largest(np.array([[1, np.nan]]))[0] == np.inf
