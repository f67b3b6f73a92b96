"""A node whose attribute comes from the caller of a function: finders leave it alone, and go on."""

from collections.abc import Callable, Iterable

import onnx
import pytest
from onnx import parser

from onnxshrink.graph import weights
from onnxshrink.graph.analysis import operands, pointwise, shapes
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import integer_kernels
from onnxshrink.graph.layers import fitting, means, scalable
from onnxshrink.graph.rewrite import plain
from onnxshrink.graph.weights import second_moments

MODEL = """<ir_version: 10, opset_import: ["": 21, "f": 1]>
g (float[1, 4, 8] x, float[2, 3] z) => (float[1, 4, n] y, float[2, 3] v) {
    y = f.convs <g: int = 2, s: ints = [1], a: int = 1> (x)
    v = f.products <alpha: float = 2.0, t: int = 1, p: ints = [1, 0], eps: float = 0.1> (z)
}
<domain: "f", opset_import: ["": 21]>
convs <g, s, a> (x) => (y) {
    w = Constant <value = float[4, 2, 1] {1, 2, 3, 4, 5, 6, 7, 8}> ()
    k = Constant <value = float[4] {1, 2, 3, 4}> ()
    c = Conv <group: int = @g> (x, w)
    n = BatchNormalization <training_mode = 0> (c, k, k, k, k)
    r = LeakyRelu(n)
    d = Conv <group: int = @g, strides: ints = @s> (r, w, k)
    e = Softmax <axis: int = @a> (d)
    y = ConvTranspose <group: int = @g> (e, w)
}
<domain: "f", opset_import: ["": 21]>
products <alpha, t, p, eps> (z) => (v) {
    w = Constant <value = float[3, 3] {1, 2, 3, 4, 5, 6, 7, 8, 9}> ()
    k = Constant <value_floats = [1.0, 2.0, 3.0]> ()
    a = Gemm <alpha: float = @alpha> (z, w, k)
    b = LeakyRelu <alpha: float = @alpha> (a)
    c = Gemm <transB: int = @t> (b, w)
    l = LayerNormalization <epsilon: float = @eps, axis: int = @t> (c, k)
    u = Transpose <perm: ints = @p> (w)
    v = MatMul(l, u)
}"""


def found_in(model: Model) -> Iterable[object]:
    return [pointwise.behind(v) for n in model.nodes for v in n.outputs]


FINDERS: dict[str, Callable[[Model], object]] = {
    "weights": lambda model: list(weights.find(model)),
    "sites": lambda model: scalable.find(model, norms=True),
    "sites of weights": lambda model: scalable.find(model, norms=False),
    "kernels": integer_kernels.find,
    "layers": lambda model: list(fitting.outlines(model, model)),
    "operands": operands.find,
    "constants": lambda model: operands.fixed_values(model, set()),
    "functions": found_in,
    "bounds": lambda model: [pointwise.bounds(node) for node in model.nodes],
    "means": means.means,
    "shapes": shapes.walk,
    "spelled out": plain.spell_out,
    "second moments": lambda model: [
        (second_moments.why_not(view), second_moments.needs(view)) for view in weights.find(model)
    ],
}


def model() -> Model:
    proto = parser.parse_model(MODEL)
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


@pytest.mark.parametrize("finder", FINDERS)
def test_a_finder_never_raises(finder: str) -> None:
    FINDERS[finder](model())


def test_what_depends_on_it_is_no_site_and_says_why() -> None:
    sites, unfit = scalable.find(model(), norms=True)
    assert all(site.why_not for site in sites)
    assert sites or unfit


def test_functions_of_their_parameters_are_not_followed() -> None:
    made = {value.name: value for node in model().nodes for value in node.outputs}
    assert pointwise.behind(made["d"]) is None  # Softmax over an axis that the caller gives
