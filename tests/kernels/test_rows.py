"""How the values of an activation make rows."""

import numpy as np
import pytest

from onnxshrink.kernels.patches import Window
from onnxshrink.kernels.rows import PLAIN, Rows, joined, rows_of

RNG = np.random.default_rng(0)


def test_plain_rows_of_one_width_are_one_array() -> None:
    parts = [RNG.standard_normal((rows, 5, 3)).astype(np.float32) for rows in (2, 1, 4)]
    (whole,) = joined(PLAIN, parts)
    (rows,) = rows_of(whole, PLAIN, 100, 0)
    np.testing.assert_array_equal(rows[:, 0], np.concatenate(parts).reshape(-1, 3))


@pytest.mark.parametrize(
    "layout",
    [Rows(axis=0), Rows(batch=(2,)), Window((1,), (1,), (1,), (0, 0)), None],
    ids=["columns", "several matrices", "patches", "none"],
)
def test_others_stay_apart(layout: object) -> None:
    parts = [np.zeros((2, 3)), np.zeros((2, 3))]
    assert len(joined(layout, parts)) == 2


def test_so_do_vectors_and_what_is_not_alike() -> None:
    assert len(joined(PLAIN, [np.zeros(3), np.zeros(3)])) == 2
    assert len(joined(PLAIN, [np.zeros((1, 3)), np.zeros((1, 2, 3))])) == 2
