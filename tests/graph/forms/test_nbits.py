"""Block-quantized operators answer with the weight that their codes stand for, or say why not."""

import numpy as np
import pytest
from answers import answers, kinds, normal, view_of
from hard_models import text

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import layout, nbits
from onnxshrink.kernels import affine

GEMM = "g (float[2, 20] x) => (float[2, 6] y) { y = Gemm <alpha = 2.0> (x, w, c) }"
LOOKUP = "g (int64[3] x) => (float[3, 32] y) { y = Gather <axis = 0> (w, x) }"


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_product_with_what_is_done_to_it(symmetric: bool) -> None:
    model = Model.from_proto(text(GEMM, w=normal(20, 6), c=normal(6, seed=1)))
    x, view = normal(2, 20, seed=2), view_of(model, "w")
    assert nbits.why_not(view, 4) == ""
    found = layout.blocks(view, 16)  # the last block of a row is not full
    dtype = "int4" if symmetric else "uint4"
    stored = affine.quantize(found.values(), dtype, found.axes, symmetric=symmetric)
    nbits.stored(model, view, stored, 0)
    assert kinds(model) == ["MatMulNBits", "Mul", "Add"]
    assert "w" not in model.ir.graph.initializers
    expected = 2 * x @ found.spread(affine.dequantize(stored)) + normal(6, seed=1)
    np.testing.assert_allclose(answers(model, x=x)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_lookup() -> None:
    model, x = Model.from_proto(text(LOOKUP, w=normal(8, 32))), np.array([7, 0, 7])
    view = view_of(model, "w")
    found = layout.blocks(view, 16)
    stored = affine.quantize(found.values(), "int4", found.axes)
    nbits.stored(model, view, stored, 0)
    assert kinds(model) == ["GatherBlockQuantized"]
    expected = found.spread(affine.dequantize(stored))[x]
    np.testing.assert_allclose(answers(model, x=x)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("stored_as", ["table", "head"])
def test_a_table_that_is_multiplied_too_has_one_set_of_codes(stored_as: str) -> None:
    turned = stored_as == "head"
    rows, head = ("t", "w") if turned else ("w", "t")
    source = f"""g (int64[3] i) => (float[3, 32] e, float[3, 8] y) {{
        t = Transpose <perm = [1, 0]> (w) e = Gather <axis = 0> ({rows}, i) y = MatMul(e, {head})
    }}"""
    table, i = normal(8, 32), np.array([7, 0, 7])
    model = Model.from_proto(text(source, w=table.T if turned else table))
    view = view_of(model, "w")
    assert nbits.why_not(view, 4, 16) == ""
    assert "no multiple of 64" in nbits.why_not(view, 4, 64)
    found = layout.blocks(view, 16)
    stored = affine.quantize(found.values(), "int4", found.axes)
    nbits.stored(model, view, stored, 0)
    assert sorted(kinds(model)) == ["GatherBlockQuantized", "MatMulNBits", "Reshape"]
    values = found.spread(affine.dequantize(stored))
    expected = (values.T if turned else values)[i]
    looked_up, scores = answers(model, i=i)
    np.testing.assert_allclose(looked_up, expected, rtol=1e-6)
    np.testing.assert_allclose(
        scores, expected @ (values if turned else values.T), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("source", "array", "said"),
    [
        (LOOKUP.replace("32", "3"), normal(8, 3), "a row of 3 codes does not fill"),
        ("g (float[2, 4] x) => (float[2, 4] y) { y = MatMul(w, x) }", normal(2, 2), "left operand"),
        (
            "g (double[2, 4] x) => (double[2, 4] y) { y = MatMul(x, w) }",
            normal(4, 4).astype(np.float64),
            "takes float and float16, not double",
        ),
        (
            "g (float[3, 2, 4] x) => (float[3, 2, 4] y) { y = MatMul(x, w) }",
            normal(3, 4, 4),
            "takes matrices",
        ),
    ],
)
def test_why_not(source: str, array: np.ndarray, said: str) -> None:
    assert said in nbits.why_not(view_of(Model.from_proto(text(source, w=array)), "w"), 4)
