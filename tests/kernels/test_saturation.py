"""Pair sums of 16 bits, against integer arithmetic spelled out."""

import integer_kernels
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxshrink.kernels import saturation


def spelled_out(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """VPMADDUBSW, then VPADDD, one number at a time."""
    out = np.zeros((len(rows), len(weights)), np.int64)
    for i, row in enumerate(rows.tolist()):
        for j, weight in enumerate(weights.tolist()):
            for k in range(0, len(row), 2):
                pair = row[k] * weight[k]
                if k + 1 < len(row):
                    pair += row[k + 1] * weight[k + 1]
                out[i, j] += min(max(pair, -(2**15)), 2**15 - 1)
    return out


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
def test_as_spelled_out(seed: int, width: int, rows: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.choice([0, 1, 128, 200, 255], (rows, width)).astype(np.uint8)
    w = rng.choice([-128, -127, -64, 0, 63, 64, 127], (outputs, width)).astype(np.int8)
    expected = spelled_out(x, w)
    np.testing.assert_array_equal(saturation.products(x, w), expected)
    exact = x.astype(np.int64) @ w.T.astype(np.int64)
    np.testing.assert_array_equal(saturation.lost(x, w), exact - expected)
    harmed = (exact != expected).any(0)
    assert not (harmed & ~saturation.can_saturate(w)).any()


def test_can_saturate_is_exact() -> None:
    """Some input of bytes does it, or none."""
    weights = np.array([[64, 64], [64, 65], [-64, -64], [-65, -64], [127, -127], [127, 1]], np.int8)
    x = np.array([[255, 255], [255, 0], [0, 255]], np.uint8)
    exact = x.astype(np.int64) @ weights.T.astype(np.int64)
    overflow = ((exact > 2**15 - 1) | (exact < -(2**15))).any(0)
    assert saturation.can_saturate(weights).tolist() == overflow.tolist()
    assert overflow.tolist() == [False, True, False, True, False, False]


def test_seven_bits_never_saturate() -> None:
    weights = np.full((3, 8), 63, np.int8)
    weights[1] = -63
    rows = np.full((2, 8), 255, np.uint8)
    assert not saturation.can_saturate(weights).any()
    assert not saturation.lost(rows, weights).any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 5))
def test_the_finest_codes_that_never_saturate(seed: int, width: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((outputs, width)) * rng.choice([0, 0.1, 1, 10], (outputs, width))
    least = saturation.least_scale(weights)
    scale = np.maximum(least, np.abs(weights).max(1) / 127)
    scale[scale == 0] = 1
    nearest = np.rint(weights / scale[:, None]).astype(np.int8)
    codes = saturation.tamed(nearest)
    assert not saturation.can_saturate(codes).any()
    assert np.abs(codes.astype(int) - nearest).max() <= 1
    fits = ~saturation.can_saturate(nearest)
    np.testing.assert_array_equal(codes[fits], nearest[fits])


def test_a_large_weight_beside_small_ones_keeps_eight_bits() -> None:
    weights = np.array([[1.0, 0.0, -0.5, 0.5], [1.0, 1.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]])
    np.testing.assert_allclose(saturation.least_scale(weights) * 128, [1, 2, 1])


def test_this_cpu_is_one_of_two_kinds() -> None:
    """Without VNNI it computes what is spelled out here, with it exactly; ONNX Runtime is asked."""
    rng = np.random.default_rng(0)
    for width in (2, 7, 64, 65):
        x = rng.integers(0, 256, (5, width)).astype(np.uint8)
        w = rng.integers(-128, 128, (16, width)).astype(np.int8)
        x[0], w[0] = 255, 127
        exact = x.astype(np.int64) @ w.T.astype(np.int64)
        here = saturation.products(x, w) if integer_kernels.saturates() else exact
        np.testing.assert_array_equal(integer_kernels.products(x, w), here)
        assert (saturation.products(x, w) != exact).any()


def test_pairs_below_zero_are_tamed_like_those_above() -> None:
    codes = np.array([[65, 65, 3], [-65, -65, 3], [60, -127, 3]], np.int8)
    found = saturation.tamed(codes)
    assert not saturation.can_saturate(found).any()
    np.testing.assert_array_equal(found, [[63, 65, 3], [-63, -65, 3], [60, -127, 3]])
