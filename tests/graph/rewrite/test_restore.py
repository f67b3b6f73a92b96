"""What graphsurgeon alone did is put back; what the user did is told."""

import numpy as np
import onnx
from hard_models import tensor, text, weight

from onnxshrink.graph.rewrite.restore import Edits, fingerprint, is_dropped


def compared(edited: onnx.ModelProto, plain: onnx.ModelProto, original: onnx.ModelProto) -> Edits:
    tensors = {each.name: each for each in original.graph.initializer}
    prints = {name: fingerprint(each) for name, each in tensors.items()}
    edits = Edits(original, plain, edited, prints)
    edits.restore(tensors)
    return edits


def copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    new = onnx.ModelProto()
    new.CopyFrom(proto)
    return new


def test_what_both_copies_lost_comes_back() -> None:
    original = text("g (float[2, 4] x) => (float[2, 4] y) { y = MatMul(x, w) }", w=weight(1, 4, 4))
    original.doc_string = original.graph.node[0].doc_string = "what people wrote"
    original.graph.node[0].name = "fc"
    plain = copy(original)  # graphsurgeon drops texts
    plain.doc_string = plain.graph.node[0].doc_string = ""
    edited = copy(plain)
    edits = compared(edited, plain, original)
    assert edits.differences == []
    assert edited.doc_string == edited.graph.node[0].doc_string == "what people wrote"


def test_what_one_copy_lost_was_the_user() -> None:
    original = text(
        "g (float[2, 4] x) => (float[2, 4] y) { a = MatMul(x, w)  y = Elu <alpha = 2.0> (a) }",
        w=weight(1, 4, 4),
    )
    original.graph.node[1].doc_string = "kept"
    for node, name in zip(original.graph.node, ("fc", "act"), strict=True):
        node.name = name
    plain = copy(original)
    plain.graph.node[1].doc_string = ""
    edited = copy(plain)
    edited.graph.node[1].attribute[0].f = 3
    edited.graph.initializer[0].CopyFrom(tensor("w", np.zeros((4, 4), np.float32)))
    edits = compared(edited, plain, original)
    told = {(one.what, one.note) for one in edits.differences}
    assert told == {("act", "changed"), ("w", "changed")}
    assert edited.graph.node[1].attribute[0].f == 3
    assert edited.graph.node[1].doc_string == "kept"


def test_what_graphsurgeon_cannot_hold_is_known() -> None:
    sparse = onnx.AttributeProto(name="s", type=onnx.AttributeProto.SPARSE_TENSOR)
    assert is_dropped(sparse)
    assert not is_dropped(onnx.helper.make_attribute("axis", 1))
