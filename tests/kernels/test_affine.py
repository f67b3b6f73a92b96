"""Affine quantization against the definition, and against a plain loop."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxshrink.kernels import affine
from onnxshrink.kernels.affine import RANGES, Quantized, dequantize, quantize

DTYPES = [dtype for dtype in RANGES if not affine.is_float(dtype)]
# A code is at most 255, and is computed in float32: the error of its last place is 255 * 2**-24.
SLACK = 255 * 2.0**-23

floats = st.one_of(
    st.floats(-1, 1, width=32),
    st.floats(-(2.0**126), 2.0**126, width=32),
    st.floats(-(2.0**-120), 2.0**-120, width=32, allow_subnormal=True),
    st.just(0.0),
)
arrays = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9), elements=floats
)


def draw_axes(data: st.DataObject, weights: npt.NDArray[np.float32]) -> tuple[int, ...]:
    chosen = data.draw(st.sets(st.integers(0, weights.ndim - 1)))
    return tuple(sorted(chosen))


def errors_in_steps(weights: npt.NDArray[np.float32], stored: Quantized) -> npt.NDArray[np.float64]:
    """(dequantized - weight) / scale, in float64 from the definition."""
    zero = 0.0 if stored.zero_point is None else stored.zero_point.astype(np.float64)
    scale = stored.scale.astype(np.float64)
    return stored.codes.astype(np.float64) - zero - weights.astype(np.float64) / scale


@given(arrays, st.data())
def test_rtn_is_off_by_at_most_half_a_step(
    weights: npt.NDArray[np.float32], data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    options = {"symmetric": data.draw(st.booleans()), "short_scale": data.draw(st.booleans())}
    stored = quantize(weights, dtype, draw_axes(data, weights), **options)
    assert np.abs(errors_in_steps(weights, stored)).max() <= 0.5 + SLACK


@given(arrays, st.data())
def test_codes_scales_and_zero_points_are_what_the_type_can_hold(
    weights: npt.NDArray[np.float32], data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    symmetric = data.draw(st.booleans())
    axes = draw_axes(data, weights)
    stored = quantize(
        weights, dtype, axes, symmetric=symmetric,
        clip=data.draw(st.sampled_from(["minmax", "mse"])),
        rounding=data.draw(st.sampled_from(["rtn", "balanced"])),
    )  # fmt: skip
    first, last = RANGES[dtype]
    kind = np.uint8 if dtype.startswith("u") else np.int8
    assert stored.codes.dtype == kind
    assert stored.codes.shape == weights.shape
    assert stored.codes.min() >= first
    assert stored.codes.max() <= last
    shape = tuple(1 if axis in axes else dim for axis, dim in enumerate(weights.shape))
    assert stored.scale.shape == shape
    assert stored.scale.dtype == np.float32
    assert (stored.scale >= np.finfo(np.float32).tiny).all()
    assert np.isfinite(stored.scale).all()
    if stored.zero_point is None:
        assert symmetric
        assert not dtype.startswith("u")
    else:
        assert stored.zero_point.dtype == kind
        assert stored.zero_point.shape == shape
        assert stored.zero_point.min() >= first
        assert stored.zero_point.max() <= last
        if symmetric:
            assert (stored.zero_point == (first + last + 1) // 2).all()


@given(arrays, st.data())
def test_zero_stays_zero(weights: npt.NDArray[np.float32], data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    stored = quantize(
        weights, dtype, draw_axes(data, weights), symmetric=data.draw(st.booleans()),
        clip=data.draw(st.sampled_from(["minmax", "mse"])),
    )  # fmt: skip
    assert (dequantize(stored)[weights == 0] == 0).all()


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 200)), elements=floats),
    st.sampled_from(DTYPES),
)
def test_balanced_groups_add_up_to_nothing(
    weights: npt.NDArray[np.float32], dtype: affine.Dtype
) -> None:
    """Holds for symmetric minmax, where no weight is outside the range of the codes.

    Otherwise a code at the end of the range cannot be turned outwards, and may be missing.
    """
    stored = quantize(weights, dtype, (1,), rounding="balanced")
    errors = errors_in_steps(weights, stored)
    assert np.abs(errors).max() <= 1 + SLACK
    assert np.abs(errors.sum(1)).max() <= 0.5 + weights.shape[1] * SLACK


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 99)), elements=floats),
    st.data(),
)
def test_balanced_never_adds_more_than_a_step_elsewhere(
    weights: npt.NDArray[np.float32], data: st.DataObject
) -> None:
    """Asymmetric or clipped: within the range a weight is off by at most a step."""
    stored = quantize(
        weights, data.draw(st.sampled_from(DTYPES)), (1,), symmetric=False, rounding="balanced",
        clip=data.draw(st.sampled_from(["minmax", "mse"])),
    )  # fmt: skip
    first, last = RANGES[stored.dtype]
    assert stored.zero_point is not None
    exact = weights.astype(np.float64) / stored.scale + stored.zero_point
    inside = (exact >= first) & (exact <= last)
    assert np.abs(errors_in_steps(weights, stored))[inside].max(initial=0) <= 1 + SLACK
    outside = np.where(exact < first, first, last)[~inside]
    near = np.abs(exact[~inside] - outside) <= 0.5  # rounded like those inside
    assert (stored.codes[~inside][~near] == outside[~near]).all()


@given(arrays, st.data())
def test_mse_clipping_is_never_worse(weights: npt.NDArray[np.float32], data: st.DataObject) -> None:
    dtype, symmetric = data.draw(st.sampled_from(DTYPES)), data.draw(st.booleans())
    axes = draw_axes(data, weights)
    error = {}
    for clip in ("minmax", "mse"):
        stored = quantize(weights, dtype, axes, symmetric=symmetric, clip=clip)
        steps = errors_in_steps(weights, stored) * stored.scale.astype(np.float64)
        error[clip] = np.square(steps).sum(axes, keepdims=True)
    # The search itself computes in float32.
    assert (
        error["mse"]
        <= error["minmax"] * (1 + 1e-4)
        + np.square(stored.scale * SLACK, dtype=np.float64) * weights.size
    ).all()


def test_mse_clipping_finds_an_outlier() -> None:
    weights = np.random.default_rng(0).normal(size=(1, 4096)).astype(np.float32)
    weights[0, 0] = 8.0
    errors = {
        clip: np.square(dequantize(quantize(weights, "int4", (1,), clip=clip)) - weights).sum()
        for clip in ("minmax", "mse")
    }
    assert errors["mse"] < 0.5 * errors["minmax"]


@pytest.mark.parametrize("outlier", [1.6, 3.0])
def test_a_clipped_outlier_is_not_balanced_by_the_others(outlier: float) -> None:
    weights = np.random.default_rng(0).uniform(-1, 1, (1, 4096)).astype(np.float32)
    weights[0, 0] = outlier
    stored = quantize(weights, "int4", (1,), clip="mse", rounding="balanced")
    errors = errors_in_steps(weights, stored)
    assert np.abs(errors[0, 0]) > 4
    assert np.abs(errors[0, 1:].sum()) <= 1  # half a step, and the codes at the end of the range


def test_the_search_does_not_take_a_scale_too_small_to_use() -> None:
    weights = np.array([[1.6e-37, -0.9e-37, 0.3e-37]], np.float32)
    stored = quantize(weights, "int4", (1,), clip="mse")
    assert stored.codes.any()
    assert (stored.scale < 1e-37).all()


# ----------------------------------------------------------------- against a plain loop


def plain(
    weights: npt.NDArray[np.float32], dtype: affine.Dtype, axes: tuple[int, ...], symmetric: bool
) -> npt.NDArray[np.float32]:
    """Rounding to nearest, one group at a time, by the book."""
    first, last = RANGES[dtype]
    result = np.empty_like(weights)
    free = [range(1) if axis in axes else range(dim) for axis, dim in enumerate(weights.shape)]
    for place in itertools.product(*free):
        where = tuple(slice(None) if axis in axes else at for axis, at in enumerate(place))
        group = weights[where]
        low, high = min(float(group.min()), 0.0), max(float(group.max()), 0.0)
        if symmetric:
            zero = (first + last + 1) // 2
            scale = max(-low, high) / (last - zero)
        else:
            scale = (high - low) / (last - first)
            zero = 0
        scale = scale or 1.0
        if not symmetric:
            zero = int(np.clip(round(first - low / scale), first, last))
        codes = np.clip(np.rint(group / np.float64(scale)) + zero, first, last)
        result[where] = (codes - zero) * scale
    return result


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((7,), (0,)),
        ((7,), ()),
        ((16, 24), (0, 1)),
        ((16, 24), (0,)),
        ((16, 24), (1,)),
        ((16, 24), (-1,)),
        ((8, 3, 5, 5), (1, 2, 3)),
        ((4, 6, 3), (0, 2)),
        ((16, 3, 8), (2,)),  # blocks of 8 along the last axis
        ((3, 8, 16), (1,)),  # and along the first
    ],
)
def test_against_a_loop(
    shape: tuple[int, ...], axes: tuple[int, ...], dtype: affine.Dtype, symmetric: bool
) -> None:
    weights = np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)
    stored = quantize(weights, dtype, axes, symmetric=symmetric)
    expected = plain(weights, dtype, tuple(axis % len(shape) for axis in axes), symmetric)
    np.testing.assert_allclose(dequantize(stored), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (1, 2), ()])
@pytest.mark.parametrize("rounding", ["rtn", "balanced"])
@pytest.mark.parametrize("clip", ["minmax", "mse"])
def test_chunks_change_nothing(
    axes: tuple[int, ...],
    rounding: affine.Rounding,
    clip: affine.Clip,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = np.random.default_rng(1).normal(size=(13, 17, 11)).astype(np.float32)
    options = {"symmetric": False, "rounding": rounding, "clip": clip}
    whole = quantize(weights, "uint4", axes, **options)  # type: ignore[arg-type]
    for size in (1, 300, 1000):
        monkeypatch.setattr(affine, "_CHUNK", size)
        parts = quantize(weights, "uint4", axes, **options)  # type: ignore[arg-type]
        np.testing.assert_array_equal(parts.codes, whole.codes)
        np.testing.assert_array_equal(parts.scale, whole.scale)
        assert parts.zero_point is not None
        assert whole.zero_point is not None
        np.testing.assert_array_equal(parts.zero_point, whole.zero_point)
        assert affine.sqnr_db(weights, whole) == pytest.approx(
            10 * np.log10(np.square(weights).sum() / np.square(dequantize(whole) - weights).sum()),
            rel=1e-5,
        )


# ------------------------------------------------------------------------------- extremes


@given(arrays, st.sampled_from(DTYPES), st.booleans())
@settings(max_examples=200)
def test_short_scales_are_exact_in_float16_and_cover_the_range(
    weights: npt.NDArray[np.float32], dtype: affine.Dtype, symmetric: bool
) -> None:
    axes = tuple(range(1, weights.ndim))
    exact = quantize(weights, dtype, axes, symmetric=symmetric)
    short = quantize(weights, dtype, axes, symmetric=symmetric, short_scale=True)
    held = (exact.scale >= 2.0**-18) & (exact.scale <= 65504)
    np.testing.assert_array_equal(short.scale[~held], exact.scale[~held])
    narrow = short.scale[held].astype(np.float16)
    np.testing.assert_array_equal(narrow.astype(np.float32), short.scale[held])
    assert (short.scale[held] >= exact.scale[held]).all()
    # 11 bits where float16 is normal, 6 where it is not.
    width = np.where(exact.scale[held] >= 2.0**-14, 2.0**-10, 2.0**-6)
    assert (short.scale[held] <= exact.scale[held] * (1 + width)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", ["minmax", "mse"])
@pytest.mark.parametrize("rounding", ["rtn", "balanced"])
@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0, 0.0],
        [1.5],
        [-1.5],
        [1e38, -1e38, 1e37],
        [1.7e38, -1.7e38],
        [1.7e38, 0.0, 1.0],
        [1e-45, -1e-45],
        [1e-40, 5e-39],
        [1.1754944e-38, -1e-38],
        [5.0, 5.0, 5.0],
        [-5.0, -4.0, -4.5],
        [1e-30, 1e30],
    ],
)
def test_extreme_values(
    values: list[float],
    clip: affine.Clip,
    rounding: affine.Rounding,
    symmetric: bool,
    dtype: affine.Dtype,
) -> None:
    weights = np.array([values], np.float32)
    stored = quantize(weights, dtype, (1,), symmetric=symmetric, clip=clip, rounding=rounding)
    result = dequantize(stored).astype(np.float64)
    assert np.isfinite(result).all()
    reach = np.abs(weights.astype(np.float64)).max()
    first, last = RANGES[dtype]
    steps = (last - first) if not symmetric else (last - first) // 2
    if clip == "minmax":  # a clipped maximum may be off by more
        bound = reach * (2 if not symmetric else 1) / steps
        assert np.abs(result - weights).max() <= max(bound * (1 + 1e-5), 1e-35)


def test_a_group_of_zeros_beside_another() -> None:
    weights = np.array([[0, 0, 0], [1, -2, 3]], np.float32)
    stored = quantize(weights, "int8", (1,))
    np.testing.assert_array_equal(stored.scale[:, 0], np.array([1, 3 / 127], np.float32))
    np.testing.assert_array_equal(stored.codes, [[0, 0, 0], [42, -85, 127]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_weights_that_are_not_finite(bad: float, kind: type) -> None:
    weights = np.ones((3, 4), kind)
    weights[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(weights, "int8", (1,))


def test_doubles_beyond_float32() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(np.array([1e300, 1.0]), "int8", (0,))


def test_weights_whose_rounding_may_overflow() -> None:
    with pytest.raises(ValueError, match="overflow"):
        quantize(np.array([3.4028235e38, 0], np.float32), "int8", (0,))


def test_nothing_to_quantize() -> None:
    with pytest.raises(ValueError, match="no weights"):
        quantize(np.zeros((0, 3), np.float32), "int8", (0,))


def test_one_number() -> None:
    stored = quantize(np.array(2.5, np.float32), "int8", ())
    assert stored.codes.shape == ()
    assert dequantize(stored) == np.float32(2.5)


def test_other_float_types() -> None:
    import ml_dtypes

    weights = np.random.default_rng(0).normal(size=(4, 8)).astype(ml_dtypes.bfloat16)
    for kind in (ml_dtypes.bfloat16, np.float16, np.float64):
        stored = quantize(weights.astype(kind), "int8", (1,))
        same = quantize(weights.astype(kind).astype(np.float32), "int8", (1,))
        np.testing.assert_array_equal(stored.codes, same.codes)
        np.testing.assert_array_equal(stored.scale, same.scale)


@pytest.mark.parametrize(("dtype", "expected"), [("int8", 60 + 12), ("uint4", 30 + 12 + 3)])
def test_stored_bytes(dtype: affine.Dtype, expected: int) -> None:
    assert quantize(np.ones((3, 20), np.float32), dtype, (1,)).nbytes == expected


def test_sqnr_without_noise() -> None:
    exact = np.array([[127.0, -127.0, 1.0]], np.float32)
    assert affine.sqnr_db(exact, quantize(exact, "int8", (1,))) == np.inf


def test_other_ways_to_write_the_same_codes() -> None:
    weights = np.random.default_rng(4).standard_normal((6, 5)).astype(np.float32)
    for symmetric in (True, False):
        stored = affine.quantize(weights, "int8", (0, 1), symmetric=symmetric)
        values = affine.dequantize(stored)
        apart = affine.widened(stored, (1,))
        assert apart.scale.shape == (6, 1)
        np.testing.assert_array_equal(affine.dequantize(apart), values)
        moved = affine.unsigned(stored)
        assert moved.codes.dtype == np.uint8
        np.testing.assert_array_equal(affine.dequantize(moved), values)
