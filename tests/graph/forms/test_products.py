"""Products are told apart from everything else that a weight may be used for."""

import numpy as np
import pytest
from answers import answers, normal, view_of
from hard_models import text
from onnx import parser

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import products
from onnxshrink.graph.forms.rebuild import Rebuild

GEMM = "g (float[4, 4] x) => (float[4, 4] y) { y = Gemm <transA = 1, alpha = 2.0, beta = 0.5> (x, w, c) }"  # noqa: E501


def test_a_gemm_is_its_product_and_what_is_done_to_it() -> None:
    model = Model.from_proto(text(GEMM, w=normal(4, 4), c=normal(4, seed=1)))
    x = normal(4, 4, seed=2)
    (before,) = answers(model, x=x)
    view = view_of(model, "w")
    (product,) = products.of(view)
    assert (product.turned_activation, product.alpha, product.beta) == (True, 2.0, 0.5)
    rebuild = Rebuild(model, view)
    weight = rebuild.constant(view.array(), "q")
    result = rebuild.node("MatMul", [product.rows(rebuild), weight], "m")
    rebuild.put_in_place(product.node, [product.completed(rebuild, result)])
    rebuild.drop()
    assert "w" not in model.ir.graph.initializers
    np.testing.assert_allclose(answers(model, x=x)[0], before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("y = MatMul(w, x)", "the left operand"),
        ("t = Transpose <perm = [1, 0]> (w)  y = MatMul(x, t)", "something lies between"),
        ("a = MatMul(x, w)  t = Transpose <perm = [1, 0]> (w)  y = MatMul(a, t)", "transposed and"),
        ("a = MatMul(x, w)  y = Max(a, w)", "is also used by Max"),
        ("y = Add(x, w)", "is used by Add"),
    ],
)
def test_other_uses_say_what_they_are(body: str, said: str) -> None:
    source = f"g (float[4, 4] x) => (float[4, 4] y) {{ {body} }}"
    with pytest.raises(ValueError, match=said):
        products.of(view_of(Model.from_proto(text(source, w=normal(4, 4))), "w"))


def test_factors_that_a_caller_gives_are_not_known() -> None:
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "f": 1]>
        g (float[2, 2] x) => (float[2, 2] y) { y = f.fc <by: float = 2.0> (x) }
        <domain: "f", opset_import: ["": 21]> fc <by> (x) => (y) {
            w = Constant <value = float[2, 2] {1, 2, 3, 4}> ()
            y = Gemm <alpha: float = @by> (x, w)
        }"""
    )
    with pytest.raises(ValueError, match="'alpha' from the call of the function"):
        products.of(view_of(Model.from_proto(proto), "w"))
