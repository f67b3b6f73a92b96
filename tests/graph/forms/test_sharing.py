"""Codes and tables of a weight: what is said of them is what they are."""

import numpy as np
import pytest
from answers import normal, view_of
from hard_models import text

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import sharing
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.kernels import codebooks

SOURCE = "g (float[2, 8] x) => (float[2, 6] y) { y = MatMul(x, w) }"


def weight(array: np.ndarray) -> WeightView:
    return view_of(Model.from_proto(text(SOURCE, w=array)), "w")


def shared(view: WeightView, **plan: object) -> sharing.Shared:
    how = sharing.Sharing(method="kmeans", **plan)  # type: ignore[arg-type]
    return sharing.share(view, sharing.values_of(view), how, np.random.default_rng(0))


def test_the_values_are_the_decoded_codes() -> None:
    view = weight(normal(8, 6))
    found = shared(view, entries=4, rows=2)
    assert found.rows
    assert found.packed
    assert found.stored.codes.shape == (3, 16)  # two output channels to a table
    np.testing.assert_array_equal(found.values, view.from_matrix(found.stored.decode()))
    assert found.sqnr_db == codebooks.sqnr_db(view.array(), found.values)


def test_balanced_errors_cancel_in_every_channel() -> None:
    view = weight(normal(8, 6))
    plain, balanced = shared(view, entries=8), shared(view, entries=8, balanced=True)
    means = [np.abs((s.values - view.array()).mean(axis=0)).mean() for s in (plain, balanced)]
    assert means[1] < means[0]


@pytest.mark.parametrize(
    ("array", "plan", "said"),
    [
        (normal(8, 6), {"entries": 4, "rows": 4}, "6 output channels cannot be shared 4 at a time"),
        (np.full((8, 6), np.inf, np.float32), {"entries": 4}, "NaN or infinity"),
    ],
)
def test_why_not(array: np.ndarray, plan: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shared(weight(array), **plan)


def test_one_table_for_several() -> None:
    views = [weight(normal(8, 6)), weight(10 * normal(8, 6, seed=1))]
    plan = sharing.Sharing(method="kmeans", entries=4)
    table = sharing.common_table(views, plan, np.random.default_rng(0))
    assert table is not None
    assert table.shape == (4, 1)
    assert sharing.common_table([], plan, np.random.default_rng(0)) is None
