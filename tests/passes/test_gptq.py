"""quantize-weights with ``rounding: gptq``: the same grid, a smaller error of the outputs."""

from typing import Any

import numpy as np
import pytest
from onnx import parser

from onnxshrink.contract import Settings
from onnxshrink.graph.model import Model
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
    for rounding in ("rtn", "gptq"):
        result = quantized(op, worker, rounding=rounding, **options)
        assert result.report.steps[0].status == "done"
        session = open_session(result.model.to_proto().SerializeToString())
        rebuilt = session.run(None, {"x": np.eye(64, dtype=np.float32)})[0]
        x = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
        errors[rounding] = np.linalg.norm(x @ (rebuilt - weight)) / np.linalg.norm(x @ weight)
    assert errors["gptq"] < 0.7 * errors["rtn"]


def test_says_where_it_had_no_inputs(worker: Worker) -> None:
    fitted = quantized("matmul", worker, rounding="gptq").report.steps[0].changes[0]
    assert fitted.note.endswith(", gptq")
    plain = quantized("matmul", worker, feeds=[], rounding="gptq").report.steps[0].changes[0]
    assert "gptq" not in plain.note


def test_an_override_alone_asks_for_the_statistics() -> None:
    model, _, _ = problem("matmul")
    assert not list(QuantizeWeights().needs(model))
    step = QuantizeWeights(weights=Select(layers={"w": {"rounding": "gptq"}}))
    assert [need.value for need in step.needs(model)] == ["x"]


def test_the_same_bytes_twice(worker: Worker) -> None:
    first, second = (quantized("gemm", worker, rounding="gptq").model.digest() for _ in range(2))
    assert first == second
