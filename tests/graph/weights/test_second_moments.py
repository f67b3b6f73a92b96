"""Which inputs a weight is rounded against: of every product of the table, or why of none."""

from __future__ import annotations

import numpy as np
import pytest
from spellings import NETS
from weight_models import normal, parsed

from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.weights import second_moments
from onnxshrink.graph.weights.views import WeightView
from onnxshrink.runtime.calibrate import calibrate
from onnxshrink.runtime.worker import Worker


def views(text: str, **arrays: np.ndarray) -> dict[str, WeightView]:
    return {view.name: view for view in weights.find(Model.from_proto(parsed(text, **arrays)))}


@pytest.mark.parametrize("net", ["dense", "convolutions"])
def test_every_spelling_has_them(net: str) -> None:
    """Of as many rows and columns as the plain one, against whatever is multiplied there."""
    known = NETS[net]()
    for name, proto in known.spellings.items():
        found = {view.name: view for view in weights.find(Model.from_proto(proto))}
        for weight in ("w1", "w2"):
            assert second_moments.why_not(found[weight]) == "", name
            (need,) = second_moments.needs(found[weight])
            statistic = need.statistic
            assert isinstance(statistic, second_moments.SecondMoment)
            assert statistic.width == found[weight].matrix.shape[1], name


def test_the_fused_attention_reads_rows_too() -> None:
    found = views(
        """g (float[2, 3, 8] x) => (float y) {
            y = com.microsoft.Attention<num_heads = 2>(x, w, b)
        }""",
        w=normal(8, 24), b=normal(24),
    )  # fmt: skip
    (need,) = second_moments.needs(found["w"])
    assert need.value == "x"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("y = Add(x, w)", "it is not summed over"),
        ("i = Cast<to = 7>(x)  y = Gather(w, i)", "its rows are looked up"),
        ('y = Einsum<equation = "ab,ab->a">(x, w)', "Einsum: its equation is no product"),
        ("y = com.microsoft.FusedMatMul<transBatchA = 1>(x, w)", "the batches of its input"),
        (
            "c = Unsqueeze(w, k)  i = Unsqueeze(x, k)  z = Conv(i, c)  y = MatMul(x, w)",
            "different numbers of inputs",
        ),
    ],
)
def test_what_has_none_says_why(text: str, why: str) -> None:
    found = views(
        f"g (float[6, 6] x) => (float y) {{ {text} }}", w=normal(6, 6), k=np.array([0, 1])
    )
    assert second_moments.needs(found["w"]) == ()
    assert why in second_moments.why_not(found["w"])


def test_a_table_that_is_looked_up_twice_has_no_counts_of_its_own() -> None:
    once = "g (int64[2] i) => (float y) { y = Gather(w, i) }"
    twice = "g (int64[2] i) => (float y, float z) { y = Gather(w, i)  z = Gather(w, i) }"
    need = second_moments.lookups(views(once, w=normal(9, 4))["w"])
    assert need is not None
    assert need.value == "i"
    assert second_moments.lookups(views(twice, w=normal(9, 4))["w"]) is None


def test_like_products_are_one_sum(worker: Worker) -> None:
    """Of all rows of all of them; where one of them saw none, nothing is known."""
    model = Model.from_proto(parsed(
        "g (float[n, 6] x, float[m, 6] z) => (float[n, 6] a, float[m, 6] b) {"
        " a = MatMul(x, w)  b = MatMul(z, w) }", w=normal(6, 6),
    ))  # fmt: skip
    (view,) = weights.find(model)
    (need,) = second_moments.needs(view)
    assert need.values == ("x", "z")
    assert need.statistic.nbytes == 8 * 6 * 6  # once for both
    feeds = [{"x": normal(3, 6, seed=i), "z": normal(2 + i, 6, seed=9 - i)} for i in range(3)]
    rows = np.concatenate([array for feed in feeds for array in feed.values()])
    found = second_moments.of(calibrate(model, [need], feeds, worker), view)
    assert found is not None
    np.testing.assert_allclose(found.mean(), [rows.T @ rows / len(rows)], rtol=1e-5, atol=1e-6)
    empty = [feed | {"z": np.zeros((0, 6), np.float32)} for feed in feeds]
    known = calibrate(model, [need], empty, worker)
    assert second_moments.of(known, view) is None
    assert "always empty" in known.refused["x"]
