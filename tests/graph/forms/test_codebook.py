"""Weights that are looked up at load are, bit by bit, what their tables say."""

import numpy as np
import pytest
from answers import answers, kinds, normal, view_of
from hard_models import text

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import sharing
from onnxshrink.graph.forms.codebook import CodebookWriter

PRODUCTS = """<ir_version: 10, opset_import: ["": 21]>
g (float[2, 8] x) => (float[2, 6] y) { a = MatMul(x, v)  y = MatMul(a, w) }"""
PLANS = {
    "sixteen": {"entries": 16}, "three": {"entries": 3}, "many": {"entries": 40},
    "scaled": {"entries": 4, "scaled": True}, "pairs": {"entries": 4, "width": 2},
    "groups": {"entries": 4, "rows": 3},
}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_tables_give_what_was_shared(plan: str) -> None:
    model, x = Model.from_proto(text(PRODUCTS, v=normal(8, 8), w=normal(8, 6))), normal(2, 8)
    writer, values = CodebookWriter(model), {}
    how = sharing.Sharing(method="kmeans", **PLANS[plan])  # type: ignore[arg-type]
    for name in "vw":
        view = view_of(model, name)
        rows = {"rows": 4} if plan == "groups" and name == "v" else {}
        how = sharing.Sharing(method="kmeans", **{**PLANS[plan], **rows})  # type: ignore[arg-type]
        shared = sharing.share(view, view.array(), how, np.random.default_rng(0))
        values[name] = shared.values
        writer.replace(view, shared, four_bit=plan == "sixteen")
    assert not {"v", "w"} & set(model.ir.graph.initializers)
    expected = x @ values["v"] @ values["w"]
    np.testing.assert_allclose(answers(model, x=x)[0], expected, rtol=1e-5, atol=1e-5)
    stored = [t.raw_data for t in model.to_proto().graph.initializer if len(t.raw_data) > 16]
    assert len(set(stored)) == len(stored)  # what both need is there once


def test_sparse_values_come_back_to_their_places() -> None:
    weight = normal(8, 8) * (normal(8, 8, seed=1) > 1)
    model, x = Model.from_proto(text(PRODUCTS, v=weight, w=normal(8, 6))), normal(2, 8)
    CodebookWriter(model).replace_sparse(view_of(model, "v"), weight)
    np.testing.assert_allclose(answers(model, x=x)[0], x @ weight @ normal(8, 6), rtol=1e-5)


def test_rows_can_be_looked_up_as_codes() -> None:
    source = "g (int64[3] x) => (float[3, 8] y) { y = Gather <axis = 0> (w, x) }"
    model, x = Model.from_proto(text(source, w=normal(6, 8))), np.array([5, 0, 5])
    view, writer = view_of(model, "w"), CodebookWriter(model)
    plan = sharing.Sharing(method="kmeans", entries=16)
    shared = sharing.share(view, view.array(), plan, np.random.default_rng(0))
    assert writer.can_look_up(view, shared)
    writer.replace_lookups(view, shared)
    assert kinds(model) == ["Gather", "Cast", "Gather", "Reshape"]
    np.testing.assert_array_equal(answers(model, x=x)[0], shared.values[x])
