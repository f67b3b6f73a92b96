"""How nodes take stored weights, in words."""

import numpy as np
import pytest
from hard_models import text

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import phrases
from onnxshrink.options import build
from onnxshrink.pipeline import run
from onnxshrink.recipe import find_pass

TABLE = "g (int64[N, 6] x) => (float[N, 6, 32] y) { t = Gather(a, x) y = MatMul(t, b) }"


def _model():
    rng = np.random.default_rng(0)
    weights = {"a": rng.standard_normal((256, 64)), "b": rng.standard_normal((64, 32))}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    return Model.from_proto(text(TABLE, **arrays))


@pytest.mark.parametrize(
    ("form", "dtype", "block", "expected"),
    [
        ("dq", "int8", 0, {
            "Gather of DequantizeLinear<int8>", "MatMul of DequantizeLinear<int8>",
        }),
        ("dq", "uint4", 32, {
            "Gather of DequantizeLinear<uint4, blocks>",
            "MatMul of DequantizeLinear<uint4, blocks>",
        }),
        ("nbits", "int4", 32, {
            "com.microsoft.GatherBlockQuantized<4 bits>", "com.microsoft.MatMulNBits<4 bits>",
            "com.microsoft.GatherBlockQuantized of uint8", "com.microsoft.MatMulNBits of uint8",
        }),
    ],
)  # fmt: skip
def test_what_a_pass_writes(form, dtype, block, expected):
    options = {"form": form, "dtype": dtype, "block_size": block, "min_size": 0}
    step = build(find_pass("quantize-weights"), options, "test")
    original = _model()
    assert phrases.find(original) == set()
    assert phrases.find(run([step], original).model) == expected


def test_what_is_quantized_at_run_time():
    graph = """g (float[N, 4] x) => (float[N, 2] y) <float s = {0.1}, uint8 z = {0}> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        w = Mul(v, v) y = MatMul(d, w)
    }"""
    model = Model.from_proto(text(graph, v=np.ones((4, 2), np.float32)))
    assert phrases.find(model) == {
        "QuantizeLinear of uint8", "DequantizeLinear of uint8",
        "MatMul of DequantizeLinear<uint8>", "MatMul of Mul<float>",
    }  # fmt: skip
