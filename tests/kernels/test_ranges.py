"""Grids for activations: what they hold, and which the methods choose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxshrink.kernels.observers import Histogram, HistogramSums
from onnxshrink.kernels.ranges import LIMITS, Grid, Integer, Sample, grid

KINDS = list(LIMITS)
numbers = st.floats(-1e6, 1e6, width=32)


def seen(values: np.ndarray) -> HistogramSums:
    sums = HistogramSums()
    sums.add(Histogram(), values, 0)
    return sums


@given(low=numbers, high=numbers, kind=st.sampled_from(KINDS), symmetric=st.booleans())
def test_a_grid_covers_its_range_and_holds_zero(
    low: float, high: float, kind: Integer, symmetric: bool
) -> None:
    low, high = min(low, high), max(low, high)
    on = grid(low, high, kind, symmetric=symmetric)
    first, last = LIMITS[kind]
    assert first <= on.zero <= last
    assert on.values(np.array([on.zero]))[0] == 0
    step = on.scale * (0.5 + 1e-3) + 1e-6 * max(abs(low), abs(high))
    assert on.low <= low + step
    assert on.high >= high - step
    if symmetric:
        assert on.zero == (first + last + 1) // 2


@given(st.lists(numbers, min_size=1, max_size=30), st.sampled_from(KINDS))
def test_rounding_is_off_by_half_a_step_at_most(values: list[float], kind: Integer) -> None:
    array = np.array(values, np.float64)
    on = grid(array.min(), array.max(), kind)
    codes = on.codes(array)
    assert codes.dtype == kind
    error = np.abs(on.values(codes) - array)
    assert (error <= on.scale * 1.001 + 1e-6 * np.abs(array).max()).all()
    assert np.abs(on.rounded(array) - on.values(codes)).max() <= on.scale * 1.001


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_zero_has_a_grid(kind: Integer) -> None:
    on = grid(0.0, 0.0, kind)
    assert on.scale == 1
    assert grid(1e-45, 1e-44, kind).scale == 1  # a denormal scale cannot be divided by
    assert np.isfinite(grid(-3e38, 3e38, kind).scale)


def test_codes_are_what_onnxruntime_rounds_to() -> None:
    on = Grid(0.5, 3, "uint8")
    values = np.array([-9.0, -0.75, -0.25, 0.25, 0.75, 1.25, 999.0])
    assert on.codes(values).tolist() == [0, 1, 3, 3, 5, 5, 255]  # ties to even


def test_noise_is_that_of_rounding_the_values() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    sample, on = Sample(seen(values)), grid(-3, 3, "uint8")
    error = on.rounded(values) - values
    expected = 10 * np.log10(values.var() / np.square(error).mean())
    assert sample.sqnr_db(on) == pytest.approx(expected, abs=0.1)


def test_least_squares_is_as_good_as_any_clip() -> None:
    values = np.random.default_rng(1).standard_t(3, 200_000)
    sums = seen(values)
    sample = Sample(sums)
    best = sample.sqnr_db(grid(*sample.least_squares(sums.low, sums.high, "int8"), "int8"))
    tried = [sample.sqnr_db(grid(-r, r, "int8")) for r in np.geomspace(1, float(sums.high), 60)]
    assert best >= max(tried) - 0.1
    assert best > sample.sqnr_db(grid(float(sums.low), float(sums.high), "int8")) + 1


def test_what_a_function_flattens_needs_no_codes() -> None:
    """Behind a hard swish, values below -3 are all zero."""
    values = np.random.default_rng(2).normal(scale=8, size=50_000)
    sums = seen(values)

    def swish(x: np.ndarray) -> list[np.ndarray]:
        return [x * np.clip(x + 3, 0, 6) / 6]

    low, _ = Sample(sums, swish).least_squares(sums.low, sums.high, "uint8")
    assert -4.5 < low < -2
    plain, _ = Sample(sums).least_squares(sums.low, sums.high, "uint8")
    assert plain < -20


def test_zeros_are_zeros() -> None:
    """The many zeros behind a Relu count as exact."""
    values = np.maximum(np.random.default_rng(3).normal(size=50_000), 0)
    sample = Sample(seen(values))
    assert (sample.values == 0).any()
    assert sample.weights[sample.values == 0].sum() >= 0.49
