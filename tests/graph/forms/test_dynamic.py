"""Integer products of activations that are quantized as the model runs, computed in numpy."""

from dataclasses import replace

import numpy as np
import pytest
from answers import answers, kinds, normal, view_of
from hard_models import text

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import dynamic
from onnxshrink.kernels import affine


def rounded(x: np.ndarray) -> np.ndarray:
    """What DynamicQuantizeLinear makes of an activation."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def test_products_share_the_codes_of_what_they_read() -> None:
    source = """g (float[4, 2] x) => (float[2, 6] y, float[2, 6] z) {
        y = Gemm <transA = 1, beta = 2.0> (x, w, c)  z = Gemm <transA = 1> (x, v)
    }"""
    arrays = {"w": normal(4, 6) / 4, "v": normal(4, 6, seed=1) / 4, "c": normal(6, seed=2)}
    model, x = Model.from_proto(text(source, **arrays)), normal(4, 2, seed=3)
    activations, values = dynamic.Activations(model), {}
    for name in "wv":
        view = view_of(model, name)
        assert dynamic.why_not(view) == ""
        found = dynamic.layout(view, per_channel=True)
        stored = affine.quantize(found.values(), "int8", found.axes)
        # Up to 64: CPUs without VNNI add two products up in 16 bits.
        stored = replace(stored, codes=stored.codes // 2)
        values[name] = affine.dequantize(stored)
        dynamic.integer_products(model, view, stored, activations)
    assert kinds(model).count("DynamicQuantizeLinear") == 1
    y, z = answers(model, x=x)
    seen = rounded(x).T
    np.testing.assert_allclose(y, seen @ values["w"] + 2 * arrays["c"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(z, seen @ values["v"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("a = MatMul(x, w)  y = Max(a, w)", "is also used by Max"),
        ("y = MatMul(w, x)", "the left operand"),
    ],
)
def test_why_not(body: str, said: str) -> None:
    source = f"g (float[4, 4] x) => (float[4, 4] y) {{ {body} }}"
    assert said in dynamic.why_not(view_of(Model.from_proto(text(source, w=normal(4, 4))), "w"))
