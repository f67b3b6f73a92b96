"""Statistics added up feed by feed equal those of everything at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxshrink.kernels.observers import (
    Extremes,
    Histogram,
    HistogramSums,
    Lookups,
    Rows,
    SecondMoment,
)
from onnxshrink.kernels.patches import Window, sample, spread

finite = st.floats(-1e6, 1e6, width=32)
batches = st.lists(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=30), elements=finite),
    min_size=1, max_size=6,
)  # fmt: skip


def histogram(parts: list[np.ndarray], bins: int = 4096) -> HistogramSums:
    statistic = Histogram(bins)
    sums = statistic.start()
    for number, part in enumerate(parts):
        sums.add(statistic, part, number)
    return sums


def test_extremes_of_channels_and_of_the_tensor() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((2, 5, 7)).astype(np.float32) for _ in range(3)]
    whole = np.stack(parts).astype(np.float64)
    statistic = Extremes(axis=1)
    sums = statistic.start()
    for number, part in enumerate(parts):
        sums.add(statistic, part, number)
    axes = (0, 1, 3)
    np.testing.assert_array_equal(sums.low, whole.min(axes))
    np.testing.assert_array_equal(sums.high, whole.max(axes))
    np.testing.assert_allclose(sums.mean, whole.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(sums.rms, np.sqrt((whole**2).mean(axes)), rtol=1e-12)
    low, high = sums.average_range
    np.testing.assert_allclose(low, whole.min((1, 3)).mean(0))
    np.testing.assert_allclose(high, whole.max((1, 3)).mean(0))
    with pytest.raises(ValueError, match="3 channels, but 5 before"):
        sums.add(statistic, np.zeros((1, 3)), 3)
    single = Extremes()
    tensor = single.start()
    tensor.add(single, np.array([np.nan, 2.0, -np.inf, -1.0]), 0)
    assert (tensor.low[0], tensor.high[0], tensor.spoiled) == (-1, 2, 2)


@given(batches)
@settings(max_examples=80)
def test_histogram_does_not_depend_on_the_order(parts: list[np.ndarray]) -> None:
    forwards, backwards = histogram(parts, 64), histogram(parts[::-1], 64)
    assert forwards.counts.sum() == sum(part.size for part in parts)
    assert forwards.counts.size <= 64
    values = np.concatenate([part.ravel() for part in parts]).astype(np.float64)
    expected = np.histogram(values, forwards.edges)[0]
    np.testing.assert_array_equal(forwards.counts, expected)
    # The bins' width may depend on which part came first, the counts within it not.
    while forwards.exponent < backwards.exponent:
        forwards._widen()
    while backwards.exponent < forwards.exponent:
        backwards._widen()
    np.testing.assert_array_equal(np.trim_zeros(forwards.counts), np.trim_zeros(backwards.counts))


def test_percentile_within_a_bin_of_numpy() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal(20000) * scale for scale in (0.1, 1, 3)]
    sums, values = histogram(parts), np.concatenate(parts)
    width = 2.0**sums.exponent
    for share in (0.5, 0.9, 0.99, 1.0):
        expected = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
        np.testing.assert_allclose(sums.percentile(share), expected, atol=2 * width)
    assert sums.percentile(1.0) == (values.min(), values.max())


def test_thresholds_cut_a_long_tail() -> None:
    rng = np.random.default_rng(2)
    sums = histogram([np.concatenate([rng.standard_normal(100000), [80.0]])], 2048)
    assert 3 < sums.entropy() < 20
    best = sums.least_squares(8)
    values = np.concatenate([rng.standard_normal(100000), [80.0]])

    def error(reach: float) -> float:
        codes = np.clip(np.rint(values / (reach / 8)), -8, 8)
        return float(np.square(codes * reach / 8 - values).sum())

    assert error(best) < 1.1 * min(error(reach) for reach in np.linspace(1, 80, 400))


@pytest.mark.parametrize("value", [0.0, 1e-30, -7.25, 3e30])
def test_constant_values(value: float) -> None:
    sums = histogram([np.full(5, value, np.float32)] * 2)
    assert sums.counts.sum() == 10
    low, high = sums.percentile(0.99)
    assert low == high == np.float32(value)
    assert np.isfinite(sums.entropy())
    assert histogram([np.array([np.nan, np.inf])]).percentile(0.9) == (0.0, 0.0)


def test_second_moment_of_rows_and_of_halves() -> None:
    rng = np.random.default_rng(3)
    parts = [rng.standard_normal((4, 9, 6)).astype(np.float32) for _ in range(5)]
    statistic = SecondMoment(6)
    sums = statistic.start()
    for number, part in enumerate(parts):
        sums.add(statistic, part, number)
    rows = np.concatenate([part.reshape(-1, 6) for part in parts]).astype(np.float64)
    np.testing.assert_allclose(sums.mean()[0], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)
    odd = np.concatenate([part.reshape(-1, 6) for part in parts[1::2]]).astype(np.float64)
    np.testing.assert_allclose(sums.mean(1)[0], odd.T @ odd / len(odd), rtol=1e-5, atol=1e-6)


def test_second_moment_along_another_axis_and_of_batched_matrices() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    statistic = SecondMoment(5, Rows(axis=-2))
    sums = statistic.start()
    sums.add(statistic, x, 0)
    rows = x.transpose(0, 1, 3, 2).reshape(-1, 5)
    np.testing.assert_allclose(sums.sums[0, 0], rows.T @ rows, rtol=1e-5, atol=1e-5)
    batched = SecondMoment(4, Rows(batch=(3,)))
    sums = batched.start()
    sums.add(batched, x, 0)
    for matrix in range(3):
        rows = x[:, matrix].reshape(-1, 4)
        np.testing.assert_allclose(sums.sums[0, matrix], rows.T @ rows, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="an activation of shape"):
        sums.add(batched, x[:, :2], 0)


def test_spoiled_rows_are_left_out() -> None:
    x = np.ones((4, 3), np.float32)
    x[1, 2] = np.nan
    statistic = SecondMoment(3)
    sums = statistic.start()
    sums.add(statistic, x, 0)
    assert (sums.spoiled, sums.rows[0]) == (1, 3)
    np.testing.assert_array_equal(sums.sums[0, 0], np.full((3, 3), 3))


WINDOWS = [
    Window((3,), (1,), (1,), (0, 0)),
    Window((3, 2), (2, 1), (1, 2), (1, 0, 2, 1), groups=2),
    Window((3, 3), (2, 2), (1, 1), (0,) * 4, auto_pad="SAME_UPPER"),
    Window((2, 3), (2, 2), (1, 1), (0,) * 4, auto_pad="SAME_LOWER"),
    Window((2, 2), (1, 1), (2, 2), (0,) * 4, auto_pad="VALID"),
    Window((2, 2, 2), (1, 1, 2), (1, 1, 1), (1,) * 6),
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_patches_make_the_convolution_of_onnxruntime(window: Window) -> None:
    from onnx import TensorProto, helper

    from onnxshrink.runtime.session import open_session

    rng = np.random.default_rng(5)
    rank = len(window.kernel)
    x = rng.standard_normal((2, 4, *range(7, 7 + rank))).astype(np.float32)
    w = rng.standard_normal((6, 4 // window.groups, *window.kernel)).astype(np.float32)
    given = {"pads": window.pads} if window.auto_pad == "NOTSET" else {"auto_pad": window.auto_pad}
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=window.strides, dilations=window.dilations,
        group=window.groups, **given,
    )  # fmt: skip
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xwy"]
    graph = helper.make_graph([node], "g", infos[:2], infos[2:])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    expected = np.moveaxis(open_session(model).run(None, {"x": x, "w": w})[0], 1, -1)
    patches = np.concatenate(list(sample(x, window, 10**6, 0)))
    kernel = w.reshape(window.groups, -1, patches.shape[-1])
    found = np.einsum("pgk,gnk->pgn", patches, kernel).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_second_moment_of_a_convolution_samples_places() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((3, 4, 64, 64)).astype(np.float32)
    window = Window((3, 3), (1, 1), (1, 1), (1,) * 4)
    statistic = SecondMoment(36, window)
    sums = statistic.start()
    sums.add(statistic, x, 0)
    assert sums.rows[0] == 1024
    assert np.diagonal(sums.mean()[0]).mean() == pytest.approx(1, rel=0.1)


def test_spread_takes_each_place_once() -> None:
    for total, most, seed in ((10, 20, 0), (100, 7, 3), (8193, 8192, 1)):
        places = spread(total, most, seed)
        assert len(np.unique(places)) == min(total, most)
        assert places.min() >= 0
        assert places.max() < total


def test_lookups_are_counted() -> None:
    statistic = Lookups(5)
    sums = statistic.start()
    sums.add(statistic, np.array([[0, 1], [1, -1]]), 0)
    sums.add(statistic, np.array(3), 1)
    np.testing.assert_array_equal(sums.counts, [1, 2, 0, 1, 1])
