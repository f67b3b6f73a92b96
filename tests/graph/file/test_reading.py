"""What ONNX Runtime runs though it is not quite ONNX is put right, and said."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hard_models import text, weight

from onnxshrink.contract import Settings
from onnxshrink.errors import ModelError
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.file.reading import checked
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import run

X = np.random.default_rng(1).standard_normal((2, 32)).astype(np.float32)
BODY = """(float[2, 32] x, bool c) => (float[2, 48] y) {
    a = MatMul(x, w)
    b = If(c) <then_branch = t () => (float[2, 48] p) { n = Neg(a) p = Abs(n) },
               else_branch = e () => (float[2, 48] q) { q = Identity(a) }>
    y = Relu(b) }"""


def shuffled() -> onnx.ModelProto:
    proto = text(f"g {BODY}", w=weight(1, 32, 48))
    branch = proto.graph.node[1].attribute[0].g
    for nodes in (branch.node, proto.graph.node):
        turned = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes][::-1]
        for node, other in zip(nodes, turned, strict=True):
            node.CopyFrom(other)
    return proto


def without_import() -> onnx.ModelProto:
    proto = text("g (float[2, 32] x) => (float[2, 48] y) { a = MatMul(x, w) y = Gelu(a) }",
                 w=weight(1, 32, 48))  # fmt: skip
    proto.graph.node[1].domain = "com.microsoft"
    return proto


@pytest.mark.parametrize("case", ["unsorted", "no import"])
def test_it_is_put_right_and_said(case: str, tmp_path: Path) -> None:
    proto = shuffled() if case == "unsorted" else without_import()
    feed = {"x": X, "c": np.array(True)} if case == "unsorted" else {"x": X}
    path, out = tmp_path / "given.onnx", tmp_path / "out.onnx"
    onnx.save(proto, path)
    # It sorts the nodes of the main graph only.
    given = text(f"g {BODY}", w=weight(1, 32, 48)) if case == "unsorted" else proto
    session = ort.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, feed)
    model = Model.load(path)
    assert not model.untouched
    result = run([QuantizeWeights()], model, Settings(feeds=[feed]))
    assert result.report.changed
    (warning,) = result.report.warnings
    assert ("sorted now" if case == "unsorted" else "without an import") in warning
    model.save(out)
    onnx.checker.check_model(out, full_check=True)
    (found,) = ort.InferenceSession(out, providers=["CPUExecutionProvider"]).run(None, feed)
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_only_what_must_move_is_moved() -> None:
    proto = text(f"g {BODY}", w=weight(1, 32, 48))
    before = proto.SerializeToString()
    assert checked(proto, "here") == []
    assert proto.SerializeToString() == before


def test_a_cycle_cannot_be_sorted() -> None:
    proto = text("g (float[2] x) => (float[2] y) { a = Neg(x) b = Add(a, x) y = Neg(b) }")
    proto.graph.node[0].input[0] = "b"
    with pytest.raises(ModelError, match="a cycle"):
        Model.from_proto(proto)
