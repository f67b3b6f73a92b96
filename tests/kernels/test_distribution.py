"""The statistics of a weight against numpy."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxshrink.kernels import distribution

FLOATS = hnp.arrays(
    np.float32, st.integers(1, 300), elements=st.floats(-1e6, 1e6, width=32).map(lambda v: v + 0.0)
)


@given(FLOATS)
def test_describe(values):
    found = distribution.describe(values)
    wide = values.astype(np.float64)
    assert (found.minimum, found.maximum) == (wide.min(), wide.max())
    assert found.mean == pytest.approx(wide.mean(), rel=1e-12, abs=1e-9)
    assert found.std == pytest.approx(wide.std(), rel=1e-12, abs=1e-9)
    assert found.zeros == (values == 0).mean()
    assert found.unique == np.unique(values).size


def test_chunks_are_merged_exactly():
    """Values far from zero, over three chunks: a sum of squares would lose every digit."""
    values = np.random.default_rng(0).standard_normal(2_500_000) + 1e9
    found = distribution.describe(values)
    assert found.mean == pytest.approx(values.mean(), rel=1e-14)
    assert found.std == pytest.approx(values.std(), rel=1e-9)


def test_not_finite():
    found = distribution.describe(np.array([np.nan, np.inf, 1, 3], np.float32))
    assert (found.minimum, found.maximum, found.mean, found.std) == (1, 3, 2, 1)
    assert found.not_finite == 2
    blank = distribution.describe(np.array([np.nan], np.float32))
    assert np.isnan(blank.mean)
    assert distribution.describe(np.zeros(0, np.float32)).unique == 0


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16, ml_dtypes.bfloat16])
def test_unique_of_short_types(dtype):
    values = (np.arange(1000) % 77).astype(dtype)
    assert distribution.count_unique(values) == 77
    assert distribution.describe(values, 5).zeros == 13 / 1000


def test_unique_is_exact_up_to_the_cap():
    values = np.tile(np.arange(65536, dtype=np.float32), 5)
    np.random.default_rng(0).shuffle(values)
    assert distribution.count_unique(values) == 65536
    assert distribution.count_unique(np.append(values, np.float32(-1))) == 65537
    assert distribution.count_unique(np.arange(65540, dtype=np.float32)) == 65537
    assert distribution.count_unique(np.arange(10**6, dtype=np.float64)) == 65537


def test_entropy():
    assert distribution.entropy(np.arange(-128, 128).astype(np.int8)) == 8
    assert distribution.entropy(np.zeros(10, np.int8)) == 0
    assert distribution.entropy(np.array([1, 1, 2, 3], np.uint16)) == 1.5


def test_histogram():
    found = distribution.histogram(np.array([0, 0, 0, 0, 1, 4, np.nan]), bins=4, width=10)
    assert [(low, high, count) for low, high, count, _ in found] == [
        (0, 1, 4), (1, 2, 1), (2, 3, 0), (3, 4, 1),
    ]  # fmt: skip
    assert [bar for *_, bar in found] == ["█" * 10, "██▌", "", "██▌"]
    assert distribution.histogram(np.array([np.nan])) == []
