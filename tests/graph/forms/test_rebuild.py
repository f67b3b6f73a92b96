"""What rebuilds a weight takes its place, its name and its home."""

import numpy as np
import pytest
from answers import answers, kinds, normal, view_of
from onnx import numpy_helper, parser

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms.rebuild import REBUILD_OVERHEAD, Rebuild, has_initializers

HOMES = {
    "initializer": "g (float[n, 4] x) => (float[n, 3] y) { y = MatMul (x, w) }",
    "node": "g (float[n, 4] x) => (float[n, 3] y) { w = Constant () y = MatMul (x, w) }",
}
W = normal(4, 3)


def model_of(home: str) -> Model:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {HOMES[home]}')
    tensor = numpy_helper.from_array(W, "w")
    if home == "node":
        attribute = proto.graph.node[0].attribute.add(name="value", type=4)
        attribute.t.CopyFrom(tensor)
    else:
        proto.graph.initializer.append(tensor)
    return Model.from_proto(proto)


@pytest.mark.parametrize("home", HOMES)
def test_halves_in_the_place_of_a_weight(home: str) -> None:
    model, x = model_of(home), normal(2, 4, seed=1)
    view = view_of(model, "w")
    assert has_initializers(model, view) == (home == "initializer")
    rebuild = Rebuild(model, view)
    assert rebuild.nbytes == REBUILD_OVERHEAD
    half, two = rebuild.constant(W / 2, "h"), rebuild.constant(np.array([2], np.float32), "t")
    rebuild.finish(rebuild.node("Mul", [half, two], "m"))
    assert rebuild.nbytes >= REBUILD_OVERHEAD + W.nbytes + 4
    np.testing.assert_allclose(answers(model, x=x)[0], x @ W, rtol=1e-6)
    proto = model.to_proto()
    assert "w" not in {tensor.name for tensor in proto.graph.initializer}
    assert kinds(model) == ["Constant"] * 2 * (home == "node") + ["Mul", "MatMul"]
    mul, product = proto.graph.node[-2:]
    assert list(mul.output) == ["w"]  # so that its users stay as they are
    assert list(product.input) == ["x", "w"]
