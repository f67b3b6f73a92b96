"""Multiply-accumulates of one node, worked out by hand."""

import onnx_ir as ir
import pytest

from onnxshrink.graph.analysis import macs, shape_rules
from onnxshrink.graph.analysis.macs import count
from onnxshrink.graph.analysis.shapes import Call

SHAPES = [
    # op_type, domain, attributes, inputs, outputs, multiply-accumulates
    ("Conv", "", {}, [(1, 8, 6, 6), (16, 2, 3, 3)], [(1, 16, 4, 4)], 256 * 2 * 9),
    ("ConvTranspose", "", {}, [(1, 8, 4, 4), (8, 2, 3, 3)], [(1, 8, 6, 6)], 128 * 2 * 9),
    ("QLinearConv", "", {}, [(1, 2, 4, 4), (), (), (4, 2, 1, 1)], [(1, 4, 4, 4)], 64 * 2),
    ("MatMul", "", {}, [(5, 3, 7), (7, 2)], [(5, 3, 2)], 5 * 3 * 7 * 2),
    ("MatMul", "", {}, [(1, 3, 7), (5, 7, 2)], [(5, 3, 2)], 5 * 3 * 7 * 2),
    ("MatMul", "", {}, [(7,), (7, 2)], [(2,)], 14),
    ("MatMul", "", {}, [(3, 7), (7,)], [(3,)], 21),
    ("Gemm", "", {"transA": 1, "transB": 1}, [(7, 3), (2, 7)], [(3, 2)], 42),
    ("LSTM", "", {}, [(5, 2, 3), (1, 16, 3), (1, 16, 4)], [(5, 1, 2, 4)], 10 * 16 * 7),
    ("Einsum", "", {"equation": "bij,bjk->bik"}, [(2, 3, 4), (2, 4, 5)], [(2, 3, 5)], 120),
    ("Einsum", "", {"equation": b"...ij,jk"}, [(6, 1, 3, 4), (4, 5)], [(6, 1, 3, 5)], 360),
    ("MatMulNBits", "com.microsoft", {"N": 5}, [(2, 7), None], [None], 70),
    ("Attention", "com.microsoft", {}, [(2, 3, 4), (4, 12)], [(2, 3, 4)], 2 * (144 + 9 * 8)),
    (
        "MultiHeadAttention", "com.microsoft", {"num_heads": 2},
        [(1, 3, 8), (1, 5, 8), (1, 5, 4)], [(1, 3, 4)], 3 * 5 * (8 + 4),
    ),
    (
        "MultiHeadAttention", "com.microsoft", {"num_heads": 2},
        [(1, 3, 8), (1, 2, 5, 4), (1, 2, 5, 4)], [(1, 3, 8)], 3 * 5 * (8 + 8),
    ),
    (
        "MultiHeadAttention", "com.microsoft", {"num_heads": 2},
        [(1, 1, 8), (1, 1, 8), (1, 1, 8), None, None, None, (1, 2, 6, 4)], [None], 7 * (8 + 8),
    ),
    ("Attention", "", {}, [(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6)], [None], 2 * 3 * 5 * 10),
    (
        "Attention", "", {"q_num_heads": 4, "kv_num_heads": 2},
        [(1, 1, 32), (1, 1, 16), (1, 1, 16), None, (1, 2, 5, 8)], [None], 4 * 6 * (8 + 8),
    ),
    ("LinearRegressor", "ai.onnx.ml", {"coefficients": [1.0] * 6}, [(4, 3)], [(4, 2)], 24),
    ("Relu", "", {}, [(4, 4)], [(4, 4)], 0),
    ("Conv", "", {}, [(1, 8, 6, 6), None], [(1, 16, 4, 4)], None),
    ("Conv", "", {}, [(1, 8, 6, 6), (16, 2, 3, 3)], [(None, 16, 4, 4)], None),
    ("MatMul", "", {}, [(None, 7), (7, 2)], [(None, 2)], None),
    ("MatMul", "", {}, [(7, 2)], [None], None),
    (
        "GroupQueryAttention", "com.microsoft", {"num_heads": 4, "kv_num_heads": 2},
        [(1, 3, 32), (1, 3, 16), (1, 3, 16), (1, 2, 5, 8)], [None], 4 * 3 * (5 + 3) * (8 + 8),
    ),
    (
        "GroupQueryAttention", "com.microsoft", {"num_heads": 4, "kv_num_heads": 2},
        [(1, 3, 64), None, None, (1, 2, 5, 8)], [None], 4 * 3 * (5 + 3) * (8 + 8),
    ),
    (
        "GroupQueryAttention", "com.microsoft", {"num_heads": 4, "kv_num_heads": 2},
        [(1, None, 64)], [None], None,
    ),
    ("DecoderMaskedMultiHeadAttention", "com.microsoft", {}, [(1, 2, 3)], [None], None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op_type", "domain", "attributes", "inputs", "outputs", "expected"), SHAPES
)
def test_one_node(op_type, domain, attributes, inputs, outputs, expected) -> None:
    node = ir.node(op_type, [], domain=domain)
    assert count(Call(node, attributes, tuple(inputs), tuple(outputs))) == expected


@pytest.mark.parametrize("shape", [(), (7,), (4, 8), (1, 3, 64), (1, 8, 6, 6), (0, 3, 0)], ids=str)
def test_nodes_without_their_attributes_are_unknown(shape: tuple[int, ...]) -> None:
    """No runtime loads them; whoever looks at such a model is told so, and no rule falls over."""
    for domain, op_type in macs.RULES:
        for inputs in range(1, 7):
            node = ir.node(op_type, [], domain=domain)
            macs_of_it = count(Call(node, {}, (shape,) * inputs, (shape,)))
            assert macs_of_it is None or macs_of_it >= 0
    for rule in shape_rules.RULES.values():
        for inputs in range(1, 7):
            assert isinstance(rule((shape,) * inputs, {}), tuple | None)
