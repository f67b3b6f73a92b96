"""What is computed from weights alone is stored where the file does not grow, and only there."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hard_models import tensor, text, weight

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite.computed import fold_weights
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import run

PLAIN = ort.SessionOptions()
PLAIN.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def answers(proto: onnx.ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime says of the very graph, with nothing folded."""
    session = ort.InferenceSession(
        proto.SerializeToString(), PLAIN, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def graph(body: str, opset: int = 17, ir_version: int = 8, **arrays: np.ndarray) -> onnx.ModelProto:
    proto = text(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> g {body}')
    proto.graph.initializer.extend(tensor(name, array) for name, array in arrays.items())
    return proto


def folded(
    proto: onnx.ModelProto, file: Path | None = None
) -> tuple[Model, list[str], dict[str, np.ndarray]]:
    """The model after folding, its operators and its stored constants."""
    if file is not None:
        onnx.save(proto, file)
    model = Model.from_proto(proto) if file is None else Model.load(file)
    before = model.nbytes()
    fold_weights(model)
    assert model.nbytes() <= before
    after = model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    return model, [node.op_type for node in model.nodes], stored


X = np.random.default_rng(3).standard_normal((2, 32)).astype(np.float32)
IMAGE = np.random.default_rng(3).standard_normal((1, 16, 40)).astype(np.float32)


def test_weight_norm_is_one_weight(tmp_path: Path) -> None:
    """The gain times the direction, divided by its norm: what every vocoder leaves in the graph."""
    v, g = weight(1, 24, 16, 7), weight(2, 24, 1, 1)
    proto = graph(
        "(float[1, 16, 40] x) => (float[1, 24, 34] y) { n = ReduceL2<axes = [1, 2]>(v)"
        " u = Div(v, n) w = Mul(u, g) y = Conv(x, w) }", v=v, g=g,
    )  # fmt: skip
    model, operators, stored = folded(proto, tmp_path / "vocoder.onnx")
    assert operators == ["Conv"]
    assert set(stored) == {"w"}
    norm = np.sqrt((v.astype(np.float64) ** 2).sum((1, 2), keepdims=True))
    np.testing.assert_allclose(stored["w"], v * g / norm, rtol=1e-6)
    np.testing.assert_allclose(
        answers(model.to_proto(), x=IMAGE)[0], answers(proto, x=IMAGE)[0], rtol=1e-5, atol=1e-5
    )


def test_passes_see_a_weight_that_is_computed() -> None:
    """Without ``clean`` before them, and with a row that says so."""
    v = weight(1, 24, 16, 7)
    proto = graph(
        "(float[1, 16, 40] x) => (float[1, 24, 34] y) { n = ReduceL2<axes = [1, 2]>(v)"
        " w = Div(v, n) y = Conv(x, w) }", v=v,
    )  # fmt: skip
    model = Model.from_proto(proto)
    report = run([QuantizeWeights()], model, Settings(feeds=[{"x": IMAGE}])).report
    assert report.bytes_after < 0.4 * report.bytes_before
    assert [change.what for change in report.steps[0].changes] == ["w", "weights"]
    assert [node.op_type for node in model.nodes] == ["ReduceL2", "Div", "Conv"]


def test_fake_quantization_of_a_weight_is_codes_without_an_error() -> None:
    proto = graph(
        "(float[2, 32] x) => (float[2, 48] y) { q = QuantizeLinear<axis = 1>(v, s, z)"
        " w = DequantizeLinear<axis = 1>(q, s, z) y = MatMul(x, w) }",
        v=weight(1, 32, 48), s=(np.abs(weight(2, 48)) / 50 + 1e-3).astype(np.float32),
        z=np.zeros(48, np.int8),
    )  # fmt: skip
    model, operators, stored = folded(proto)
    assert operators == ["DequantizeLinear", "MatMul"]
    assert stored["q"].dtype == np.int8
    assert np.array_equal(answers(model.to_proto(), x=X)[0], answers(proto, x=X)[0])
    # A step that leaves codes alone stores them, as no step leaves the floats.
    result = run([QuantizeWeights()], Model.from_proto(proto), Settings(feeds=[{"x": X}]))
    assert result.report.bytes_after == model.nbytes() < 0.5 * result.report.bytes_before
    (change,) = result.report.steps[0].changes
    assert (change.note, change.before - change.after) == (
        "1 were computed from constants", result.report.bytes_before - model.nbytes()
    )  # fmt: skip


@pytest.mark.parametrize("size", [32, 256])
def test_a_reshaped_constant_is_one_at_any_size(size: int) -> None:
    proto = graph(
        f"(float[2, 32] x) => (float[2, {size}] y) {{ w = Reshape(v, n) y = MatMul(x, w) }}",
        v=weight(1, 32 * size), n=np.array([32, size], np.int64),
    )  # fmt: skip
    _, operators, stored = folded(proto)
    assert operators == ["MatMul"]
    assert stored["w"].shape == (32, size)


@pytest.mark.parametrize("cut", ["Split", "Slice"])
def test_parts_of_one_weight_are_weights(cut: str) -> None:
    cuts = {
        "Split": "a, b = Split<axis = 1>(v, n)",
        "Slice": "a = Slice(v, c0, c24, c1) b = Slice(v, c24, c48, c1)",
    }
    constants = {f"c{at}": np.array([at], np.int64) for at in (0, 1, 24, 48)}
    proto = graph(
        f"(float[2, 32] x) => (float[2, 24] y, float[2, 24] z) {{ {cuts[cut]}"
        " y = MatMul(x, a) z = MatMul(x, b) }",
        v=weight(1, 32, 48), **({"n": np.array([24, 24])} if cut == "Split" else constants),
    )  # fmt: skip
    model, operators, _ = folded(proto)
    assert operators == ["MatMul", "MatMul"]
    for one, two in zip(answers(model.to_proto(), x=X), answers(proto, x=X), strict=True):
        np.testing.assert_array_equal(one, two)


STAYS = {
    "codes": "w = DequantizeLinear(q, s) y = MatMul(x, w)",
    "half precision": "w = Cast<to = 1>(h) y = MatMul(x, w)",
    "tied": "w = Transpose(t) y = MatMul(x, w) z = Gather<axis = 1>(t, i)",
    "overlapping": "a = Slice(v, c0, c40, c1) b = Slice(v, c8, c48, c1)"
    " y = MatMul(x, a) z = MatMul(x, b)",
    "random": "r = RandomNormalLike(v) w = Add(r, v) y = MatMul(x, w)",
    "output": "z = Abs(v) y = MatMul(x, z)",
}


@pytest.mark.parametrize("case", STAYS)
def test_what_would_be_larger_stays(case: str) -> None:
    body = STAYS[case]
    arrays = {
        "q": weight(1, 32, 48).astype(np.int8), "s": np.array(0.1, np.float32),
        "h": weight(1, 32, 48).astype(np.float16), "t": weight(1, 48, 32), "v": weight(1, 32, 48),
        "i": np.array([1, 2], np.int64),
        **{f"c{at}": np.array([at], np.int64) for at in (0, 1, 8, 40, 48)},
    }  # fmt: skip
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    more = ", float[n, m] z" if "z" in words else ""
    proto = graph(
        f"(float[2, 32] x) => (float[2, m1] y{more}) {{ {body} }}",
        **{name: array for name, array in arrays.items() if name in words},
    )
    assert fold_weights(Model.from_proto(proto)) == 0


def test_initializers_that_are_inputs_by_rule_are_constants() -> None:
    old = graph(
        "(float[2, 32] x) => (float[2, 48] y) { w = Transpose(v) y = MatMul(x, w) }",
        opset=9, ir_version=3, v=weight(1, 48, 32),
    )  # fmt: skip
    old.graph.input.append(onnx.helper.make_tensor_value_info("v", 1, [48, 32]))
    model, operators, stored = folded(old)
    assert operators == ["Constant", "MatMul"]
    assert not stored
    assert [value.name for value in model.to_proto().graph.input] == ["x"]
    np.testing.assert_array_equal(answers(model.to_proto(), x=X)[0], answers(old, x=X)[0])
