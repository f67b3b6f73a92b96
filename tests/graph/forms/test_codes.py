"""Codes times scale: read in every form, and put back so that no answer changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from weight_models import normal, parsed

from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import codes
from onnxshrink.graph.forms.codes import Codes
from onnxshrink.kernels import affine

RNG = np.random.default_rng(3)
Q = RNG.integers(-90, 90, (64, 40)).astype(np.int8)
NARROW = RNG.integers(-8, 8, (64, 40)).astype(np.int8)
STEP = np.float32(0.125)
STEPS = RNG.uniform(0.01, 0.1, 40).astype(np.float32)
HALVES = RNG.uniform(0.01, 0.1, 40).astype(np.float16)
ZERO = np.full(40, 3, np.int8)
FLOATS = normal(64, 40)
LARGE = np.array([5, 700]), np.array([300, -301], np.int16)


def product(nodes: str, opset: int = 21, **constants: np.ndarray) -> onnx.ModelProto:
    text = f"""<ir_version: 10, opset_import: ["": {opset}]>
        g (float[3, 64] x) => (float[3, 40] y) {{ {nodes} y = MatMul(x, w) }}"""
    return parsed(text, "", **constants)


@dataclass(frozen=True)
class Form:
    """Nodes that make a weight, its constants, and the codes, zero points and scales they are."""

    nodes: str
    constants: dict[str, np.ndarray]
    codes: np.ndarray
    scale: Any = STEP
    zero: Any = 0
    dtype: str = "int8"


def scattered() -> np.ndarray:
    row = Q.astype(np.int16).reshape(-1)
    row[LARGE[0]] = LARGE[1]
    return row.reshape(Q.shape)


FORMS = {
    "one step": Form("c = Cast<to = 1>(q) w = Mul(c, s)", {"q": Q, "s": STEP}, Q),
    "turned round": Form("c = Cast<to = 1>(q) w = Mul(s, c)", {"q": Q, "s": STEPS}, Q, STEPS),
    "short scales": Form(
        "c = Cast<to = 1>(q) f = Cast<to = 1>(s) w = Mul(c, f)", {"q": Q, "s": HALVES}, Q,
        HALVES.astype(np.float32),
    ),
    "zero points": Form(
        "c = Cast<to = 1>(q) d = Sub(c, z) w = Mul(d, s)",
        {"q": Q, "s": STEPS, "z": ZERO.astype(np.float32)}, Q, STEPS, 3,
    ),
    "large codes": Form(
        "c = Cast<to = 1>(q) e = Reshape(c, l) y0 = Cast<to = 1>(v)"
        " g = ScatterElements<axis = 0>(e, p, y0) a = Reshape(g, o) w = Mul(a, s)",
        {"q": Q, "s": STEP, "l": np.array([-1]), "p": LARGE[0], "v": LARGE[1],
         "o": np.array([64, 40])}, scattered(), dtype="int16",
    ),
    "dequantized": Form(
        "w = DequantizeLinear<axis = 1>(q, s, z)", {"q": Q, "s": STEPS, "z": ZERO}, Q, STEPS, 3
    ),
    "a matrix of its own": Form(
        "d = DequantizeLinear<axis = 0>(q, s) w = Transpose<perm = [1, 0]>(d)",
        {"q": np.ascontiguousarray(Q.T), "s": STEPS}, Q, STEPS,
    ),
    "four bits": Form(
        "w = DequantizeLinear(q, s)", {"q": NARROW.astype(ml_dtypes.int4), "s": STEP}, NARROW,
        dtype="int4",
    ),
    "fake": Form(
        "r = QuantizeLinear(f, s, z) w = DequantizeLinear(r, s, z)",
        {"f": FLOATS, "s": np.float32(0.02), "z": np.int8(0)},
        np.clip(np.rint(FLOATS / np.float32(0.02)), -128, 127), np.float32(0.02),
    ),
}  # fmt: skip


def taken(proto: onnx.ModelProto) -> tuple[Model, codes.Taken]:
    model = Model.from_proto(proto)
    return model, codes.take_out(model, lambda node, index: node.op_type == "MatMul")


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_every_form_is_read_and_put_back(
    form: Form, ran: Callable[[onnx.ModelProto, dict[str, np.ndarray]], np.ndarray]
) -> None:
    proto = product(form.nodes, **form.constants)
    model, found = taken(proto)
    ((name, one),) = found.items()
    assert name == "w"
    assert isinstance(one, Codes)
    np.testing.assert_array_equal(one.stored.codes, form.codes)
    np.testing.assert_array_equal(one.stored.scale.reshape(-1), np.reshape(form.scale, -1))
    assert one.stored.dtype == form.dtype
    assert (one.eight_bits() is None) == (form.dtype == "int16")
    zero = one.stored.zero_point
    assert (0 if zero is None else int(zero.max())) == form.zero
    feed = {"x": normal(3, 64, seed=9)}
    wanted = ran(proto, feed)
    plain = model.to_proto()
    assert [node.op_type for node in plain.graph.node] == ["MatMul"]
    np.testing.assert_allclose(ran(plain, feed), wanted, rtol=1e-6, atol=1e-6)
    assert codes.put_back(model, list(weights.find(model)), found) == ["w"]
    back = model.to_proto()
    assert "w" not in {tensor.name for tensor in back.graph.initializer}
    np.testing.assert_allclose(ran(back, feed), wanted, rtol=1e-6, atol=1e-6)
    ((_, again),) = taken(back)[1].items()
    np.testing.assert_array_equal(again.values, one.values)


@pytest.fixture
def ran() -> Callable[[onnx.ModelProto, dict[str, np.ndarray]], np.ndarray]:
    """What ONNX Runtime answers without optimization."""
    import onnxruntime as ort

    def run(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        answer: np.ndarray = session.run(None, feed)[0]
        return answer

    return run


@pytest.mark.parametrize(
    "proto",
    [
        product("w = DequantizeLinear<axis = 0, block_size = 32>(q, s)", q=Q,
                s=np.ones((2, 40), np.float32)),
        product("c = Cast<to = 1>(q) w = Mul(c, s)", q=Q, s=-STEP),
        product("c = Cast<to = 1>(q) w = Add(c, s)", q=Q, s=STEP),
        product("w = Identity(f)", f=FLOATS),
        product("c = Cast<to = 1>(q) n = ReduceMean(x) w = Mul(c, n)", q=Q),
    ],
    ids=["blocks", "negative", "a sum", "floats", "computed"],
)  # fmt: skip
def test_what_is_not_codes_times_scale(proto: onnx.ModelProto) -> None:
    assert not taken(proto)[1]


def test_codes_outlast_the_channels_that_are_multiplied() -> None:
    """A norm that is folded scales channels, turns them round, or puts them out."""
    proto = product("w = DequantizeLinear(q, s)", q=Q, s=STEP)
    model, found = taken(proto)
    one = found["w"]
    gains = RNG.uniform(-2, 2, 40).astype(np.float32)
    gains[7] = 0
    (view,) = (v for v in weights.find(model) if v.name == "w")
    scaled = product("w = Identity(f)", f=view.array() * gains)
    (now,) = (v for v in weights.find(Model.from_proto(scaled)) if v.name == "f")
    again = one.of(now)
    assert isinstance(again, Codes)
    expected = Q * np.sign(gains).astype(np.int8)
    np.testing.assert_array_equal(again.stored.codes, expected)
    np.testing.assert_allclose(affine.dequantize(again.stored), now.array(), rtol=1e-6)
    other = product("w = Identity(f)", f=view.array() * gains + STEP / 3)
    (moved,) = (v for v in weights.find(Model.from_proto(other)) if v.name == "f")
    assert one.of(moved) is None
