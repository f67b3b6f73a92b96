"""Which constants are numbers to tune, what each is, and which must stay as they are."""

import numpy as np
import onnx
import pytest
from answers import normal
from hard_models import text

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.layers.parameters import Parameter, find


def found(proto: onnx.ModelProto) -> dict[str, Parameter]:
    return {parameter.name: parameter for parameter in find(Model.from_proto(proto))}


def kinds(source: str, **arrays: np.ndarray) -> dict[str, str]:
    proto = text(source, **arrays)
    return {name: parameter.kind for name, parameter in found(proto).items()}


VECTOR, ONE, MATRIX = normal(8), np.array(2, np.float32), normal(8, 8)
CODES, SCALES = np.arange(64, dtype=np.int8).reshape(8, 8), np.full(8, 0.5, np.float32)


@pytest.mark.parametrize(
    ("body", "arrays", "expected"),
    [
        ("y = MatMul (x, w)", {"w": MATRIX}, {"w": "weights"}),
        ("y = Gemm (x, w, b)", {"w": MATRIX, "b": VECTOR}, {"w": "weights", "b": "biases"}),
        (
            "m = Mul (x, g)  y = Add (m, b)", {"g": VECTOR, "b": VECTOR},
            {"g": "gains", "b": "biases"},
        ),
        ("y = Mul (x, o)", {"o": ONE}, {}),
        (
            "y = LayerNormalization (x, g, b)", {"g": VECTOR, "b": VECTOR},
            {"g": "gains", "b": "biases"},
        ),
        (
            "w = DequantizeLinear <axis = 1> (q, s)  y = MatMul (x, w)",
            {"q": CODES, "s": SCALES}, {"s": "scales"},
        ),
        (
            "c = Cast <to = 1> (q)  z = Sub (c, o)  w = Mul (z, s)  y = MatMul (x, w)",
            {"q": CODES, "s": SCALES, "o": ONE}, {"s": "scales"},
        ),
        (
            "i = Cast <to = 6> (q)  w = Gather (t, i)  y = MatMul (x, w)",
            {"q": CODES.astype(np.uint8) % 4, "t": normal(4)}, {"t": "tables"},
        ),
    ],
    ids=["product", "bias", "arithmetic", "one number", "norm", "codes", "zero point", "codebook"],
)  # fmt: skip
def test_what_each_constant_is(
    body: str, arrays: dict[str, np.ndarray], expected: dict[str, str]
) -> None:
    source = f"g (float[n, 8] x) => (float[n, 8] y) {{ {body} }}"
    assert kinds(source, **arrays) == expected


def test_numbers_come_as_copies_and_go_by_their_names() -> None:
    source = "g (float[n, 8] x) => (float[n, 8] y) { y = MatMul (x, w) }"
    parameter = found(text(source, w=MATRIX))["w"]
    numbers = parameter.numbers()
    np.testing.assert_array_equal(numbers, MATRIX.astype(np.float64))
    numbers[:] = 0
    assert parameter.numbers().any()
    assert {"MatMul", "w"} <= set(parameter.names)
    assert (parameter.differentiated, parameter.rounded, parameter.fixed) == ("w", False, "")


def test_what_is_cast_is_differentiated_behind_the_cast() -> None:
    source = """g (float[n, 8] x) => (float[n, 8] y) { c = Cast <to = 1> (w)  y = MatMul (x, c) }"""
    assert found(text(source, w=MATRIX.astype(np.float16)))["w"].differentiated == "c"


def test_what_must_stay_says_why() -> None:
    broken = MATRIX.copy()
    broken[0, 0] = np.nan
    source = "g (float[n, 8] x) => (float[n, 8] y) { y = MatMul (x, w) }"
    assert found(text(source, w=broken))["w"].fixed == "holds NaN or infinity"
    given = "g (float[n, 8] x, float[8, 8] w) => (float[n, 8] y) { y = MatMul (x, w) }"
    assert found(text(given, w=MATRIX))["w"].fixed == "may be overridden by the caller"
    inside = """g (bool c, float[n, 8] x) => (float[n, 8] y) {
        y = If (c) <then_branch = t () => (float[n, 8] u) { u = MatMul (x, w) },
                    else_branch = e () => (float[n, 8] v) { v = Identity (x) }> }"""
    assert "no gradient reaches it" in found(text(inside, w=MATRIX))["w"].fixed
