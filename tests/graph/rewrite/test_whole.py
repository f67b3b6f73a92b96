"""Whole-model rewriters: nodes in any order are sorted, and nonsense is refused."""

import numpy as np
import onnx
import pytest
from answers import answers, kinds
from hard_models import text

from onnxshrink.errors import UnsupportedModel
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite import whole

CHAIN = "g (float[2] x) => (float[2] y) { a = Neg(x)  b = Abs(a)  y = Sqrt(b) }"


def test_nodes_in_any_order() -> None:
    def change(proto: onnx.ModelProto) -> onnx.ModelProto:
        nodes = list(proto.graph.node)[::-1]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        return proto

    model = Model.from_proto(text(CHAIN))
    whole.rewrite(model, change)
    assert kinds(model) == ["Neg", "Abs", "Sqrt"]
    assert answers(model, x=np.array([-4, 9], np.float32))[0].tolist() == [2, 3]


def test_a_circle_is_no_graph() -> None:
    def change(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto.graph.node[0].input[0] = "y"
        return proto

    with pytest.raises(UnsupportedModel, match="the rewritten graph is not valid"):
        whole.rewrite(Model.from_proto(text(CHAIN)), change)
