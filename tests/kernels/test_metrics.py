import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from onnxshrink.kernels import metrics

FINITE = st.floats(-1e3, 1e3, width=32).map(lambda v: v if abs(v) > 1e-3 else 0.0)
ANY_ARRAY = arrays(np.float32, array_shapes(max_dims=3, max_side=5), elements=FINITE)
PAIRS = array_shapes(max_dims=3, max_side=5).flatmap(
    lambda shape: st.tuples(
        arrays(np.float32, shape, elements=FINITE), arrays(np.float32, shape, elements=FINITE)
    )
)


def test_figures_of_a_pair_computed_by_hand():
    reference, other = np.array([3.0, -4.0, 0.0]), np.array([3.0, -4.0, 1.0])
    assert metrics.relative_error(reference, other) == pytest.approx(1 / 5)
    assert metrics.sqnr_db(reference, other) == pytest.approx(10 * math.log10(25))
    assert metrics.cosine(reference, other) == pytest.approx(25 / (5 * math.sqrt(26)))
    assert metrics.max_abs(reference, other) == 1
    assert metrics.max_rel(reference, other) == 0  # the one difference is where the reference is 0
    assert metrics.max_rel([2.0, 10.0], [3.0, 11.0]) == pytest.approx(0.5)


@given(ANY_ARRAY)
def test_an_array_agrees_with_itself(x):
    assert metrics.relative_error(x, x) == metrics.max_abs(x, x) == metrics.max_rel(x, x) == 0
    assert metrics.sqnr_db(x, x) == math.inf
    assert metrics.cosine(x, x) == metrics.top1_agreement(x, x) == 1
    assert metrics.kl(x, x) == 0


@given(PAIRS)
def test_figures_equal_numpy(pair):
    x, y = (z.astype(np.float64) for z in pair)
    if not x.any():
        assert metrics.relative_error(x, y) == (math.inf if y.any() else 0)
        return
    expected = np.linalg.norm(y - x) / np.linalg.norm(x)
    assert metrics.relative_error(x, y) == pytest.approx(expected)
    assert metrics.max_abs(x, y) == np.abs(x - y).max()
    if expected:
        assert metrics.sqnr_db(x, y) == pytest.approx(-20 * math.log10(expected))
    if y.any():
        cosine = x.ravel() @ y.ravel() / np.linalg.norm(x) / np.linalg.norm(y)
        assert metrics.cosine(x, y) == pytest.approx(cosine)
    squares = (x**2).sum() + (y**2).sum()
    assert metrics.likeness(x, y) == pytest.approx(2 * (x * y).sum() / squares, abs=1e-12)


@given(ANY_ARRAY, st.floats(1.5, 100))
def test_cosine_is_blind_to_scale_and_relative_error_is_not(x, scale):
    other = x.astype(np.float64) * scale
    assert metrics.cosine(x, other) == pytest.approx(1)
    assert metrics.relative_error(x, other) == pytest.approx(scale - 1 if x.any() else 0)
    likeness = 2 * scale / (1 + scale**2) if x.any() else 1
    assert metrics.likeness(x, other) == pytest.approx(likeness)


@given(PAIRS, st.floats(0.01, 100))
def test_relative_error_does_not_depend_on_units(pair, unit):
    x, y = (z.astype(np.float64) for z in pair)
    assert metrics.relative_error(x * unit, y * unit) == pytest.approx(
        metrics.relative_error(x, y), rel=1e-6
    )


@given(PAIRS)
def test_divergence_is_zero_or_more_and_blind_to_shifted_logits(pair):
    x, y = pair
    assert metrics.kl(x, y) >= 0
    logits = -1 - np.abs(x)  # not probabilities, whatever x is
    assert metrics.kl(logits, logits - np.float32(4)) == pytest.approx(0, abs=1e-3)


def test_divergence_of_probabilities_and_of_logits():
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert metrics.kl(p, q) == pytest.approx(expected)
    assert metrics.kl(np.log(p) + 7, np.log(q) - 3) == pytest.approx(expected)
    assert metrics.kl([1.0, 0.0], [0.0, 1.0]) == pytest.approx(-math.log(1e-12), rel=1e-6)
    assert metrics.kl([0.0, -np.inf], [0.0, -np.inf]) == 0


def test_top1_agreement_counts_rows_and_forgives_ties():
    reference = np.array([[1.0, 5.0, 5.0], [3.0, 2.0, 1.0], [0.0, 0.0, 9.0]])
    other = np.array([[0.0, 1.0, 2.0], [3.0, 2.0, 1.0], [1.0, 0.0, 0.0]])
    assert metrics.top1_agreement(reference, other) == pytest.approx(2 / 3)
    assert metrics.top1_agreement(other, reference) == pytest.approx(1 / 3)
    assert metrics.top1_agreement([[1.0, 2.0]], [[np.nan, 2.0]]) == 0


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_narrow_floats(dtype):
    x = np.array([1, 2, 4], dtype)
    y = np.array([1, 2, 3.5], dtype)
    assert metrics.relative_error(x, y) == pytest.approx(0.5 / math.sqrt(21))
    assert metrics.max_abs(x, y.astype(np.float32)) == 0.5


@pytest.mark.parametrize(
    ("reference", "other"),
    [
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9])),
        (np.array([1, 2, 3, 4], ml_dtypes.int4), np.array([1, 2, 3, 5], ml_dtypes.int4)),
        (np.array([True, True, False, False]), np.array([True, True, False, True])),
        (np.array(["a", "b", "c", "d"]), np.array(["a", "b", "c", "e"])),
        (np.array(["a", "b", "c", "d"], object), np.array(["a", "b", "c", "e"], object)),
    ],
)
def test_labels_give_the_fraction_that_is_unequal(reference, other):
    assert metrics.relative_error(reference, other) == 0.25
    assert metrics.top1_agreement(reference, other) == 0.75


def test_zero_reference():
    assert metrics.relative_error([0.0, 0.0], [0.0, 0.0]) == 0
    assert metrics.relative_error([0.0, 0.0], [0.0, 1e-9]) == math.inf
    assert metrics.sqnr_db([0.0], [1.0]) == -math.inf
    assert metrics.cosine([0.0], [1.0]) == 0


def test_nan_and_infinity_count_as_equal_only_where_both_have_them():
    x = np.array([np.nan, np.inf, -np.inf, 3.0])
    y = np.array([np.nan, np.inf, -np.inf, 4.0])
    assert metrics.relative_error(x, y) == pytest.approx(1 / 3)
    assert metrics.max_abs(x, y) == 1
    assert metrics.relative_error(x, x) == 0
    assert metrics.kl(x, y) >= 0
    for spoiled in ([np.inf, np.inf, -np.inf, 3.0], [np.nan, np.inf, np.inf, 3.0]):
        assert metrics.relative_error(x, spoiled) == math.inf
        assert metrics.sqnr_db(x, spoiled) == -math.inf
        assert metrics.cosine(x, spoiled) == 0
        assert metrics.max_abs(x, spoiled) == math.inf


def test_shapes_that_differ_are_an_infinite_error():
    assert metrics.relative_error(np.ones((2, 3)), np.ones((3, 2))) == math.inf
    assert metrics.max_abs(np.ones(3), np.ones(())) == math.inf
    assert metrics.top1_agreement(np.ones((2, 3)), np.ones((3, 2))) == 0


def test_the_first_shapes_that_differ_are_told():
    agreement = metrics.Agreement()
    for columns in (2, 3, 4):
        agreement.add(np.ones((1, 2)), np.ones((1, columns)))
    assert agreement.result("y").reshaped == "(1, 2) -> (1, 3)"
    agreement = metrics.Agreement()
    agreement.add(np.ones(3), np.zeros(3))
    assert agreement.result("y").reshaped == ""


def test_scalars_and_empty_arrays():
    assert metrics.relative_error(np.float32(2), np.float32(3)) == 0.5
    empty = np.zeros((0, 4), np.float32)
    assert metrics.relative_error(empty, empty) == metrics.max_abs(empty, empty) == 0
    assert metrics.cosine(empty, empty) == metrics.top1_agreement(empty, empty) == 1
    assert metrics.relative_error(np.zeros(0, np.int64), np.zeros(0, np.int64)) == 0


def test_values_whose_squares_overflow_do_not_look_right():
    assert metrics.relative_error([1e200], [-1e200]) == math.inf
    assert metrics.relative_error([1e200], [1e200]) == 0


@given(st.lists(PAIRS.filter(lambda p: p[0].ndim == 2), min_size=1, max_size=4))
def test_feeds_add_up_to_the_figures_of_all_values_together(pairs):
    result = metrics.compare_outputs(["y"], [[x] for x, _ in pairs], [[y] for _, y in pairs])[0]
    x, y = (np.concatenate([p[i].ravel() for p in pairs]).astype(np.float64) for i in (0, 1))
    assert result.name == "y"
    assert result.elements == x.size
    assert result.relative_error == pytest.approx(metrics.relative_error(x, y))
    assert result.max_abs == np.abs(x - y).max()
    assert result.outside == np.count_nonzero(x != y)
    rows = [len(x) for x, _ in pairs if x.shape[1] > 1]
    if rows:
        agreeing = [len(x) * metrics.top1_agreement(x, y) for x, y in pairs if x.shape[1] > 1]
        assert result.top1 == pytest.approx(sum(agreeing) / sum(rows))
    else:
        assert result.top1 is result.kl is None


def test_tolerances_count_values_as_numpy_does():
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000)
    y = x + rng.normal(scale=0.1, size=1000)
    result = metrics.compare_outputs(["y"], [[x]], [[y]], atol=0.05, rtol=0.1)[0]
    assert result.outside == np.count_nonzero(~np.isclose(y, x, atol=0.05, rtol=0.1))
    assert 0 < result.outside < 1000


def test_json_has_no_infinity():
    figures = metrics.compare_outputs(["y"], [[np.ones(2)]], [[np.ones(2)]])[0].to_dict()
    assert figures["sqnr_db"] is None
    assert figures["relative_error"] == 0.0


def test_models_with_different_numbers_of_outputs_or_runs_are_a_bug_of_the_caller():
    with pytest.raises(ValueError, match="zip"):
        metrics.compare_outputs(["y"], [[np.ones(2)]], [])
