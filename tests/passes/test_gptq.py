"""quantize-weights with ``rounding: gptq``: the same grid, a smaller error of the outputs."""

from typing import Any

import numpy as np
import pytest
from onnx import parser

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.session import open_session
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

TEXT = """<ir_version: 10, opset_import: ["": 21]> g (float[n, 64] x) => (float[n, 32] y)
    { y = %s }"""
FORMS = {"matmul": "MatMul(x, w)", "gemm": "Gemm<transB = 1>(x, w)"}


def problem(op: str) -> tuple[Model, list[dict[str, np.ndarray]], np.ndarray]:
    """A product with correlated inputs."""
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 32)).astype(np.float32)
    proto = parser.parse_model(TEXT % FORMS[op])
    stored = weight if op == "matmul" else np.ascontiguousarray(weight.T)
    proto.graph.initializer.append(numpy_helper.from_array(stored, "w"))
    mix = rng.standard_normal((64, 64)) ** 3
    feeds = [{"x": (rng.standard_normal((50, 64)) @ mix).astype(np.float32)} for _ in range(6)]
    return Model.from_proto(proto), feeds, weight


def quantized(op: str, worker: Worker, feeds: Any = None, **options: Any) -> Result:
    model, real, _ = problem(op)
    step = QuantizeWeights(dtype="int4", weights=Select(min_size=1), **options)
    return run([step], model, Settings(feeds=real if feeds is None else feeds), worker)


@pytest.mark.parametrize("op", list(FORMS))
@pytest.mark.parametrize(
    "options",
    [{}, {"block_size": 16}, {"form": "dq", "block_size": 32}, {"symmetric": False}],
    ids=["channel", "blocks", "dq", "asymmetric"],
)
def test_smaller_error_on_the_same_grid(op: str, options: dict[str, Any], worker: Worker) -> None:
    feeds, weight = problem(op)[1:]
    errors = {}
    for rounding in ("rtn", "gptq", "adaround"):
        result = quantized(op, worker, rounding=rounding, **options)
        assert result.report.steps[0].status == "done"
        session = open_session(result.model.to_proto().SerializeToString())
        rebuilt = session.run(None, {"x": np.eye(64, dtype=np.float32)})[0]
        x = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
        errors[rounding] = np.linalg.norm(x @ (rebuilt - weight)) / np.linalg.norm(x @ weight)
    assert errors["gptq"] < 0.7 * errors["rtn"]
    assert errors["adaround"] < 0.85 * errors["rtn"]


def test_says_where_it_had_no_inputs(worker: Worker) -> None:
    fitted = quantized("matmul", worker, rounding="gptq").report.steps[0].changes[0]
    assert fitted.note.endswith(", gptq")
    plain = quantized("matmul", worker, feeds=[], rounding="gptq").report.steps[0].changes[0]
    assert plain.note.endswith(" (no gptq: its inputs were not observed)")


def test_an_override_alone_asks_for_the_statistics() -> None:
    model, _, _ = problem("matmul")
    assert not list(QuantizeWeights().needs(model))
    step = QuantizeWeights(weights=Select(layers={"w": {"rounding": "gptq"}}))
    assert [need.value for need in step.needs(model)] == ["x"]


def test_the_same_bytes_twice(worker: Worker) -> None:
    first, second = (quantized("gemm", worker, rounding="gptq").model.digest() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("rounding", ["mse", "hqq"])
def test_methods_without_data_say_their_name(rounding: str, worker: Worker) -> None:
    result = quantized("matmul", worker, feeds=[], rounding=rounding)
    (change,) = result.report.steps[0].changes
    assert change.note.endswith(f", {rounding}")


def test_narrow_types_search_their_range_unless_told_otherwise(worker: Worker) -> None:
    def scale(**options: Any) -> np.ndarray:
        from onnx import numpy_helper

        done = quantized("matmul", worker, feeds=[], rounding="rtn", **options)
        stored = [numpy_helper.to_array(t) for t in done.model.to_proto().graph.initializer]
        return next(a for a in stored if a.dtype.kind == "f").astype(np.float32)

    assert (scale() <= scale(clip="minmax")).all()
    assert scale().sum() < 0.95 * scale(clip="minmax").sum()
    np.testing.assert_array_equal(scale(), scale(clip="mse"))


CHAIN = """<ir_version: 10, opset_import: ["": 21]> g (float[n, 24] x) => (float[n, 24] y) {
    a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Relu(c) e = MatMul(d, w2) f = Relu(e)
    y = MatMul(f, w3)
}"""


def chain() -> tuple[Model, list[dict[str, np.ndarray]]]:
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    proto = parser.parse_model(CHAIN)
    for number in range(4):
        weight = (rng.standard_normal((24, 24)) / 4).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, f"w{number}"))
    mix = rng.standard_normal((24, 24)) ** 3 / 3
    feeds = [{"x": (rng.standard_normal((60, 24)) @ mix).astype(np.float32)} for _ in range(6)]
    return Model.from_proto(proto), feeds


def test_sequential_fits_each_layer_to_what_it_will_be_given(worker: Worker) -> None:
    """The last layer's second moment is that of the quantized model's activation."""
    from onnxshrink.graph import weights
    from onnxshrink.graph.weights import second_moments
    from onnxshrink.kernels import affine

    model, feeds = chain()
    step = QuantizeWeights(
        dtype="int4", rounding="gptq", sequential=True, weights=Select(min_size=1)
    )
    assert [need.value for need in step.needs(model)] == ["x"]
    result = run([step], model, Settings(feeds=feeds), worker)
    assert result.report.steps[0].status == "done"
    from onnxshrink.runtime.calibrate import calibrate

    view = next(v for v in weights.find(model) if v.name == "w3")
    found = calibrate(result.model, second_moments.needs(view), feeds, worker)
    stored = affine.quantize(view.array(), "int4", (0,), clip="mse", short_scale=True)
    scale = np.broadcast_to(stored.scale, view.shape)
    codes = second_moments.fitted(found, view, scale, np.zeros_like(scale), (-8, 7))
    assert codes is not None
    rebuilt = result.model.to_proto()
    rebuilt.graph.output.append(rebuilt.graph.output[0].__class__(name="w3"))
    answer = open_session(rebuilt.SerializeToString()).run(["w3"], feeds[0])[0]
    np.testing.assert_allclose(answer, codes * scale, rtol=1e-6)
