"""Long lists of attributes go without tags, and every reader reads them back."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from onnxshrink.graph.file.model import Model


def _proto(count: int) -> onnx.ModelProto:
    ids = [(-1) ** place * place**5 for place in range(count)]
    node = helper.make_node("Constant", [], ["c"], "c", value_ints=ids)
    reader = helper.make_node("Add", ["x", "c"], ["y"], "add")
    sides = [helper.make_tensor_value_info(name, TensorProto.INT64, [count]) for name in "xy"]
    graph = helper.make_graph([node, reader], "g", sides[:1], sides[1:], doc_string="a graph")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_lists_are_shorter_and_the_same(tmp_path: Path) -> None:
    proto = _proto(300)
    model = Model.from_proto(proto)
    assert model.nbytes() == model.save(tmp_path / "packed.onnx")
    stored = (tmp_path / "packed.onnx").read_bytes()
    assert len(stored) <= proto.ByteSize() - 290
    assert onnx.load_model_from_string(stored) == proto
    assert Model.load(tmp_path / "packed.onnx").to_proto() == proto
    x = np.arange(300)
    (y,) = onnxruntime.InferenceSession(stored).run(None, {"x": x})
    assert np.array_equal(y, x + np.array(proto.graph.node[0].attribute[0].ints))


def test_short_lists_stay_byte_for_byte(tmp_path: Path) -> None:
    proto = _proto(20)
    Model.from_proto(proto).save(tmp_path / "plain.onnx")
    assert len((tmp_path / "plain.onnx").read_bytes()) == proto.ByteSize()
