from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxshrink.kernels.importance import (
    balanced_counts,
    believed_saving,
    choose_by_loss,
    choose_global,
    choose_local,
    index_power,
    loss_curve,
    units_to_keep,
)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_power_of_an_index_is_the_sum_over_all_other_axes(axis, order):
    weights = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    others = tuple(a for a in range(3) if a != axis)
    expected = (np.abs(weights.astype(np.float64)) ** order).sum(others)
    np.testing.assert_allclose(index_power(weights, axis, order), expected, rtol=1e-12)


def test_factors_scale_what_an_index_reads():
    weights = np.ones((2, 3), np.float32)
    power = index_power(weights, 1, 2, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(power, [2, 8, 18])


@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 20))
def test_kept_units_are_multiples_and_never_none(count, share, granule, minimum):
    kept = units_to_keep(count, share * count, granule, minimum)
    assert 1 <= kept <= count
    assert kept >= min(minimum, count)
    assert kept % min(granule, 4) == 0 or kept == count
    if kept % granule and kept < count:  # multiples of it would have removed much less
        coarse = granule * (kept // granule + 1)
        assert count - coarse < 0.75 * (count - share * count)


def test_nearest_multiple():
    assert units_to_keep(64, 44.8, 8, 1) == 48
    assert units_to_keep(64, 43.9, 8, 1) == 40
    assert units_to_keep(16, 11.2, 4, 1) == 12
    assert units_to_keep(14, 9.8, 4, 1) == 12  # 8 would be too few
    assert units_to_keep(6, 3, 8, 1) == 6
    assert units_to_keep(64, 0.0, 8, 1) == 8
    assert units_to_keep(10, 7.0, 1, 1) == 7


def test_multiples_of_half_a_granule_where_others_miss_the_goal():
    assert units_to_keep(16, 11.2, 8, 1) == 12  # 8 would be half of them, 16 all
    assert units_to_keep(40, 28.0, 8, 1) == 28  # 24 and 32 are as far
    assert units_to_keep(40, 30.0, 8, 1) == 32
    assert units_to_keep(120, 84.0, 8, 1) == 88
    assert units_to_keep(16, 11.2, 16, 1) == 12
    assert units_to_keep(16, 15.9, 8, 1) == 16


def test_local_takes_the_lowest_of_each_group():
    scores = [np.array([3.0, 1, 2, 4]), np.array([0.1, 0.2])]
    first, second = choose_local(scores, [2, 1], [1, 1])
    np.testing.assert_array_equal(first, [1, 2])
    np.testing.assert_array_equal(second, [0])
    assert [len(c) for c in choose_local(scores, [4, 2], [1, 1])] == [0, 0]


def test_global_takes_more_from_flat_scores_and_keeps_something_of_each():
    unequal = np.array([0.01] * 8 + [10.0] * 8)
    equal = np.ones(16)
    first, second = choose_global([unequal, equal], [1.0, 1.0], 0.25, [1, 1])
    np.testing.assert_array_equal(first, np.arange(8))
    assert len(second) == 0
    everything = choose_global([unequal, equal], [1.0, 1.0], 0.95, [1, 1])
    assert all(len(chosen) < 16 for chosen in everything)
    assert [len(c) for c in choose_global([unequal], [1.0], 0.0, [1])] == [0]


def test_balanced_counts_take_as_much_from_every_part():
    # One axis of parts {17} and {9, 8}, another of parts {17, 9} and {8, 18}.
    parts = [np.array([[1, 0, 0, 0], [0, 1, 1, 0]]), np.array([[1, 1, 0, 0], [0, 0, 1, 1]])]
    sizes = [17, 9, 8, 18]
    counts = balanced_counts(sizes, [0.3 * size for size in sizes], parts)
    assert counts[0] == counts[1] + counts[2]
    assert counts[0] + counts[1] == counts[2] + counts[3]
    np.testing.assert_allclose(counts, [0.3 * size for size in sizes], atol=1.0)


def test_balanced_counts_leave_multiples_where_they_can():
    # ShuffleNet: 4 groups of 17, each with channels of 4 groups of the convolution before.
    even = np.full((4, 16), 0.0)
    for part in range(4):
        even[part, 4 * part : 4 * part + 4] = 1
    sizes = [5, 4, 4, 4] * 4
    counts = balanced_counts(sizes, [0.3 * size for size in sizes], [even], 8)
    assert counts.reshape(4, 4).sum(1).tolist() == [5, 5, 5, 5]  # 48 of 68 stay
    # Of two parts of 5, multiples of 8 would leave 4 and 4, those of 4 too few.
    assert balanced_counts([5, 5], [2.0, 2.0], [np.eye(2)], 8).tolist() == [2, 2]
    assert balanced_counts([5, 5], [1.0, 1.0], [np.eye(2)], 8).tolist() == [1, 1]


def test_balanced_counts_leave_one_and_give_up_where_nothing_fits():
    even = [np.array([[1.0, 0.0], [0.0, 1.0]])]
    assert balanced_counts([4, 2], [3.6, 1.8], even).tolist() == [1, 1]
    assert balanced_counts([1, 5], [0.5, 2.5], even).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("guess", "seen", "width", "expected"),
    [
        (0.19, 0.05, 0.2, 0.12),  # as unsure of one as of the other: half way
        (0.19, 0.05, 0.002, 0.05),
        (0.02, -0.4, 3.0, 0.02),
        (0.0, -0.1, 0.01, 0.0),  # nothing is saved by being slower
        (0.1, 0.3, 0.0, 0.3),
    ],
)
def test_the_surer_of_guess_and_measurement_counts_more(guess, seen, width, expected):
    assert believed_saving(guess, seen, width) == pytest.approx(expected, abs=2e-4)


def test_a_loss_curve_meets_what_was_measured_and_follows_the_scores():
    scores = np.array([3.0, 1.0, 2.0, 4.0])
    curve = loss_curve(scores, [1, 3], [0.1, 2.4])
    np.testing.assert_allclose(curve, [0, 0.1, 3 * (0.1 * 0.4) ** 0.5, 2.4, 4.0], rtol=1e-9)
    np.testing.assert_allclose(loss_curve(scores, [2], [0.3]), [0, 0.1, 0.3, 0.6, 1.0], rtol=1e-9)


def test_a_loss_curve_never_falls_and_bears_zeros():
    noisy = loss_curve(np.ones(10), [2, 5], [0.5, 0.1])
    assert (np.diff(noisy) >= 0).all()
    free = loss_curve(np.array([0.0, 0.0, 1e-30, 5.0]), [1, 2], [0.0, 0.0])
    assert np.isfinite(free).all()
    assert free[2] < 1e-6


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.floats(0.05, 0.85))
def test_no_counts_that_save_as_much_lose_less(seed, groups, ratio):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 7, groups)
    losses = [np.append(0, np.cumsum(np.sort(rng.random(size)))) for size in sizes]
    costs = rng.uniform(0.5, 2, groups)
    counts = choose_by_loss(losses, costs.tolist(), ratio, [1] * groups, most=[0.99])
    saved = float(costs @ counts)
    lost = sum(loss[count] for loss, count in zip(losses, counts, strict=True))
    possible = itertools.product(*(range(size) for size in sizes))
    best = min(
        sum(loss[c] for loss, c in zip(losses, tried, strict=True))
        for tried in possible
        if costs @ tried >= saved - 1e-9
    )
    assert lost <= best + 1e-9
    assert saved >= min(ratio * float(costs @ sizes), float(costs @ (sizes - 1))) - 1e-9


def test_counts_by_loss_leave_granules():
    cheap, dear = (worst * np.linspace(0, 1, 33) ** 2 for worst in (0.1, 10))
    assert choose_by_loss([cheap, dear], [1.0, 1.0], 0.25, [8, 8]) == [16, 0]
    assert choose_by_loss([cheap, dear], [1.0, 1.0], 0.3, [8, 8]) == [16, 8]  # never most of one
    assert choose_by_loss([cheap, dear], [1.0, 1.0], 0.6, [8, 8]) == [24, 16]  # but where it must
    assert choose_by_loss([cheap, dear], [1.0, 1.0], 0.99, [8, 8], minimum=12) == [16, 16]
    assert choose_by_loss([cheap[:6]], [1.0], 0.5, [8]) == [0]
    assert choose_by_loss([cheap], [1.0], 0.0, [8]) == [0]
    assert choose_by_loss([], [], 0.5, []) == []
