"""Which nodes have integer kernels, and why the others have none."""

import numpy as np
import pytest
from answers import normal
from hard_models import text
from onnx import parser

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import integer_kernels
from onnxshrink.graph.forms.integer_kernels import IntegerCandidate

MIXED = """g (float[2, 4, 8, 8] x) => (float[2, 6] y) {
    a = Conv(x, w, c)  p = MaxPool <kernel_shape = [2, 2]> (a)  m = GlobalAveragePool(p)
    f = Flatten(m)  s = Erf(f)  t = Mul(s, k)  y = MatMul(t, v)
}"""


def found(source: str, **arrays: np.ndarray) -> dict[str, IntegerCandidate]:
    model = Model.from_proto(text(source, **arrays))
    return {site.node.op_type: site for site in integer_kernels.find(model)}


def test_the_candidates_of_a_net() -> None:
    sites = found(
        MIXED, w=normal(6, 4, 3, 3), c=normal(6), k=normal(6, seed=1), v=normal(6, 6, seed=2)
    )
    assert {op: site.kind for op, site in sites.items()} == {
        "Conv": "product", "MaxPool": "whole", "GlobalAveragePool": "function",
        "Flatten": "whole", "Mul": "function", "MatMul": "product",
    }  # fmt: skip
    conv, mul = sites["Conv"], sites["Mul"]
    assert (conv.why_not, conv.operands) == ("", (0,))
    assert conv.weight is not None
    assert conv.weight.name == "w"
    assert conv.bias is not None
    assert (mul.operands, mul.constants) == ((0,), (1,))
    assert sites["Conv"].needs_codes
    assert not sites["MatMul"].needs_codes


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("y = Gemm <alpha = 2.0> (x, w)", "no integer kernel for transA or alpha"),
        ("y = Gemm <transA = 1> (x, w)", "no integer kernel for transA or alpha"),
        ("y = Gemm <beta = 2.0> (x, w, c)", "no integer kernel for beta"),
        ("y = Gemm(w, x)", "its weight is on the left"),
        ("y = Gemm(x, w, x)", "its bias is an input"),
        ("y = Gemm(x, w, w)", "its bias is not a vector"),
        ("a = Max(x, w)  y = Gemm(a, w)", "its weight is used by Max too"),
        ("a = Relu(x)  y = Gemm(x, a)", "its weight is computed"),
    ],
)
def test_why_not(body: str, said: str) -> None:
    source = f"g (float[4, 4] x) => (float[4, 4] y) {{ {body} }}"
    arrays = {"w": normal(4, 4), "c": normal(4)}
    sites = found(source, **{name: array for name, array in arrays.items() if name in body})
    assert said in sites["Gemm"].why_not


def test_a_product_of_two_activations_has_no_weight() -> None:
    source = "g (float[4, 4] x) => (float[4, 4] y) { t = Transpose(w)  y = MatMul(x, t) }"
    site = found(source, w=normal(4, 4))["MatMul"]
    assert (site.operands, site.weight, site.why_not) == ((0, 1), None, "")


def test_what_a_caller_of_a_function_decides_is_not_known() -> None:
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "f": 1]>
        g (float[2, 2] x) => (float[2, 2] y) { y = f.fc <by: float = 2.0, m: string = "cubic"> (x) }
        <domain: "f", opset_import: ["": 21]> fc <by, m> (x) => (y) {
            w = Constant <value = float[2, 2] {1, 2, 3, 4}> ()
            s = Constant <value = float[2] {1, 1}> ()
            a = Gemm <alpha: float = @by> (x, w)
            y = Resize <mode: string = @m> (a, , s)
        }"""
    )
    (site,) = integer_kernels.find(Model.from_proto(proto))
    assert site.node.op_type == "Gemm"
    assert "'alpha' from the call" in site.why_not
