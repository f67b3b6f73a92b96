"""Notes beside a graph are counted and dropped by kind; those of the model itself stay."""

import onnx
import pytest
from onnx import helper, parser

from onnxshrink.graph.file import notes
from onnxshrink.graph.file.round_trip import OUR_KEYS

TRACE = 'File "/home/me/net.py", line 3, in forward'


def noted() -> onnx.ModelProto:
    body = "g (float[2] x) => (float[2] y) { y = Relu (x) }"
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 17]> {body}')
    model.doc_string, model.graph.doc_string = "of the model", "of the graph"
    model.graph.node[0].doc_string = TRACE
    helper.set_model_props(model, {"author": "somebody"})
    for key, value in (("pkg.torch.onnx.stack", TRACE), ("mine", "kept"), (f"{OUR_KEYS}x", "ours")):
        model.graph.node[0].metadata_props.add(key=key, value=value)
    return model


@pytest.mark.parametrize(
    ("drops", "left", "doc"),
    [
        (notes.of_exporters, ["mine", f"{OUR_KEYS}x"], "of the graph"),
        (notes.all_of_them, [f"{OUR_KEYS}x"], ""),
    ],
)
def test_what_goes_and_what_stays(drops: notes.Drops, left: list[str], doc: str) -> None:
    model = noted()
    before = model.SerializeToString()
    found, clean = notes.counted(model, drops), notes.stripped(model, drops)
    assert model.SerializeToString() == before
    node = clean.graph.node[0]
    assert [entry.key for entry in node.metadata_props] == left
    assert (node.doc_string, clean.graph.doc_string) == ("", doc)
    assert [entry.value for entry in clean.metadata_props] == ["somebody"]
    assert not notes.counted(clean, drops)
    texts = sum(
        len(text.encode())
        for text in (model.doc_string, model.graph.doc_string, TRACE)
        if drops("", text)
    )
    gone = [entry for entry in model.graph.node[0].metadata_props if entry.key not in left]
    assert found[notes.DOC_STRING] == texts
    assert sum(found.values()) - texts == sum(entry.ByteSize() for entry in gone)


@pytest.mark.parametrize(
    ("text", "trace"),
    [
        (TRACE, True),
        ("# File: /x/net.py:12 in forward", True),
        ("/x/net.py(12): forward", True),
        ("net.py:3", True),
        ("Adds two numbers.", False),
        ("see net.py", False),
    ],
)
def test_a_trace_is_told_from_a_sentence(text: str, trace: bool) -> None:
    assert notes.of_exporters("", text) == trace
