"""Operators that only ONNX Runtime knows have the shapes that ONNX Runtime gives them."""

import decoders
import numpy as np
import onnx
import pytest
from answers import normal
from hard_models import text

from onnxshrink.graph.analysis.shape_rules import LIKE, RULES, common, filled, shape_of, tensor_type
from onnxshrink.graph.analysis.shapes import walk
from onnxshrink.graph.file.model import Model
from onnxshrink.runtime.session import open_session

HEADER = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> '
PACKED = {"w": np.zeros((5, 2, 8), np.uint8), "s": np.ones(10, np.float32)}  # 5 rows of 2 blocks
HEAVY = {"w": normal(8, 24), "b": normal(24)}
CASES = {
    "FusedMatMul": ("y = com.microsoft.FusedMatMul <transB = 1> (x, w)", {"w": normal(5, 8)}),
    "FusedGemm": (
        'y = com.microsoft.FusedGemm <activation = "Relu", transB = 1> (r, w)',
        {"w": normal(5, 8)},
    ),
    "Attention": ("y = com.microsoft.Attention <num_heads = 2> (x, w, b)", HEAVY),
    "MultiHeadAttention": ("y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x)", {}),
    "MatMulNBits": (
        "y = com.microsoft.MatMulNBits <K = 32, N = 5, bits = 4, block_size = 16> (wide, w, s)",
        PACKED,
    ),
    "DynamicQuantizeMatMul": (
        "y = com.microsoft.DynamicQuantizeMatMul (x, w, s)",
        {"w": np.ones((8, 5), np.int8), "s": np.ones(1, np.float32)},
    ),
    "SkipLayerNormalization": (
        "y = com.microsoft.SkipLayerNormalization (x, x, g)", {"g": normal(8)},
    ),
    "QuickGelu": ("y = com.microsoft.QuickGelu (x)", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_those_of_the_runtime(name: str) -> None:
    assert name in {**RULES, **LIKE}
    body, arrays = CASES[name]
    inputs = "float[2, 3, 8] x, float[3, 8] r, float[2, 32] wide"
    proto = text(f"{HEADER} g ({inputs}) => (y) {{ {body} }}", **arrays)
    model = Model.from_proto(proto)
    (output,) = model.ir.graph.outputs
    found = walk(model).shapes[output]
    shapes = {"x": (2, 3, 8), "r": (3, 8), "wide": (2, 32)}
    feed = {key: normal(*shape) for key, shape in shapes.items()}
    (answer,) = open_session(proto.SerializeToString()).run(None, feed)
    assert found == answer.shape


@pytest.mark.parametrize("packed", [False, True])
def test_shapes_of_a_decoder_are_those_of_the_runtime(packed: bool) -> None:
    """Without a word of the file on what lies between, nor on the size of its heads."""
    proto, feed = decoders.genai(packed=packed), decoders.genai_feed(3, 2)
    model = Model.from_proto(proto)
    shapes = walk(model, {name: array.shape for name, array in feed.items()}).shapes
    session = open_session(proto.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    found = {value.name: shape for value, shape in shapes.items()}
    for name, answer in zip(names, session.run(names, feed), strict=True):
        known = found[name]
        assert known is not None
        assert [length for length in known if length is not None] == [
            length for length, told in zip(answer.shape, known, strict=True) if told is not None
        ]
        assert known[-1] == answer.shape[-1]


@pytest.mark.parametrize("name", ["FusedMatMul", "MatMulNBits", "Attention", "MultiHeadAttention"])
def test_what_is_not_known_of_inputs_is_not_known_of_outputs(name: str) -> None:
    assert RULES[name]([None, None, None], {}) is None


def test_types_are_joined_and_completed() -> None:
    known, half = tensor_type(1, (2, 3)), tensor_type(1, (2, None))
    assert shape_of(common(known, tensor_type(1, (2, 4)))) == (2, None)
    assert shape_of(common(known, tensor_type(1, (2,)))) is None
    assert common(known, tensor_type(7, (2, 3))).tensor_type.elem_type == 0
    assert shape_of(filled(half, tensor_type(1, (5, 3)))) == (2, 3)  # what is inferred comes first
    assert filled(onnx.TypeProto(), known) == known
    assert filled(tensor_type(0, None), known) == known
    assert shape_of(tensor_type(1, ())) == ()
    assert shape_of(tensor_type(1, None)) is None
