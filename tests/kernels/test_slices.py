"""The worst slice of an output, against figures worked out by hand."""

import numpy as np
import pytest

from onnxshrink.kernels.metrics import OutputComparison, compare_outputs, relative_error


def compared(x: np.ndarray, y: np.ndarray, stacked: bool = False) -> OutputComparison:
    """In two feeds, the halves along the axis of the batch."""
    axis = 1 if stacked else 0
    runs = [[[part] for part in np.array_split(side, 2, axis)] for side in (x, y)]
    return compare_outputs(["y"], *runs, stacked={"y"} if stacked else ())[0]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def test_scores_beside_boxes_in_pixels() -> None:
    """Scores wrong by 13 % vanish in the norm of the boxes; their slices do not."""
    x = np.concatenate([300 + 50 * normal(40, 4), 0.3 + 0.1 * normal(40, 20)], axis=1)
    y = x.copy()
    y[:, 4:] *= 1.13
    row = compared(x, y)
    assert row.relative_error < 1e-3
    assert row.worst == pytest.approx(0.13, rel=0.1)
    assert row.slice in {f"[:, {place}]" for place in range(4, 24)}
    assert not row.vectors


def test_a_variance_beside_a_mean() -> None:
    x = np.abs(normal(60, 2)) * [5.0, 0.01] + [1.0, 0.001]
    y = x.copy()
    y[:, 1] *= 0.7
    row = compared(x, y)
    assert (row.slice, row.worst) == ("[:, 1]", pytest.approx(0.3))


@pytest.mark.parametrize(("axis", "place"), [(1, "[:, 2, :]"), (2, "[:, :, 2]")])
def test_every_axis_of_fixed_length(axis: int, place: str) -> None:
    x = normal(10, 5, 6)
    y = x.copy()
    at: list[slice | int] = [slice(None)] * 3
    at[axis] = 2
    y[tuple(at)] *= 1.5
    row = compared(x, y)
    assert row.slice == place
    assert row.worst == pytest.approx(0.5, rel=0.2)
    assert row.worst > 1.8 * row.relative_error


def test_the_first_axis_is_the_batch_unless_it_is_declared() -> None:
    x = normal(2, 12, 9)
    y = x.copy()
    y[1] *= 1.4
    assert compared(x, y, stacked=True).slice == "[1, :, :]"
    assert not compared(x, y).slice.startswith("[1")


def test_noise_in_what_is_next_to_nothing_is_held_against_its_kind() -> None:
    """Dead columns of an embedding, or classes that do not occur, need not be exact."""
    x, noise = normal(50, 64), 0.01 * normal(64, 50).T
    x[:, :2] *= 1e-6
    x[:, 5] = 0
    row = compared(x, x + noise)
    assert row.relative_error < row.worst < 2 * row.relative_error
    assert row.vectors


def test_axes_of_free_length_and_long_ones_are_no_slices() -> None:
    xs = [normal(3, 4, 600), normal(3, 7, 600)]
    row = compare_outputs(["y"], [[x] for x in xs], [[1.1 * x] for x in xs])[0]
    assert row.slice == ""
    assert row.worst == row.relative_error == pytest.approx(0.1)


def test_the_whole_counts_where_it_is_worse_and_labels_have_no_slices() -> None:
    labels = np.arange(12).reshape(6, 2)
    row = compared(labels, labels + np.array([0, 1]))
    assert (row.worst, row.slice, row.vectors) == (0.5, "", False)
    x = normal(8, 1)
    assert compared(x, x + 0.1).worst == pytest.approx(relative_error(x, x + 0.1))
    assert np.isinf(compared(x, np.full_like(x, np.nan)).worst)


@pytest.mark.parametrize(("arrays", "reason"), [
    ([np.zeros((0, 4)), np.zeros((0, 4))], "is empty"),
    ([np.zeros(3), np.zeros(3)], "is 0 throughout"),
    ([np.array([7]), np.array([7])], "is 7 throughout"),
    ([np.array(["a"]), np.array(["a"])], f"is {np.str_('a')!r} throughout"),
    ([np.full(2, np.nan)], "is nan throughout"),
    ([np.zeros((0, 4)), np.zeros((1, 4))], "is 0 throughout"),
    ([np.array([7]), np.array([8])], ""),
    ([np.array([0.0, 1e-9])], ""),
    ([np.array([np.nan, 1.0])], ""),
    ([np.array([3.0])], ""),
    ([np.array(["a", "b"])], ""),
])  # fmt: skip
def test_outputs_that_likeness_says_nothing_of(arrays: list[np.ndarray], reason: str) -> None:
    runs = [[array] for array in arrays]
    assert compare_outputs(["y"], runs, runs)[0].silent == reason


def test_a_class_that_is_never_likely_is_no_slice() -> None:
    """Shares of a whole are one thing: a class of next to no share may be off by as much."""
    shares = np.full((64, 4), 0.33, np.float32)
    shares[:, 3] = 0.01
    off = shares + np.array([0.0, -0.01, 0.0, 0.01], np.float32)
    row = compared(shares, off)
    assert (row.worst, row.slice) == (row.relative_error, "")
    assert compared(2 * shares, 2 * off).slice == "[:, 3]"  # what adds up to 2 is no whole


def test_units_of_a_state_are_one_thing_its_layers_are_not() -> None:
    x = np.sign(normal(2, 12, 64))
    y = x.copy()
    y[..., 5] *= 1.2
    told = compare_outputs(["y"], [[x]], [[y]], stacked={"y"})[0]
    state = compare_outputs(["y"], [[x]], [[y]], stacked={"y"}, states={"y"})[0]
    assert told.slice == "[:, :, 5]"
    assert state.slice == ""
    assert state.worst == state.relative_error == told.relative_error
    y[1] *= 1.1
    layer = compare_outputs(["y"], [[x]], [[y]], stacked={"y"}, states={"y"})[0]
    assert layer.slice == "[1, :, :]"
