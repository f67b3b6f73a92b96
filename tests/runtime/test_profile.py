"""Profiles: the first run is left out, the others are averaged, operators are those that ran."""

import json

import numpy as np
import onnx
import pytest
from hard_models import text

from onnxshrink.runtime.bench import bench
from onnxshrink.runtime.profile import OperatorTime, by_operator


def test_the_first_run_is_left_out_and_the_others_averaged(tmp_path):
    def kernel(name, operator, at, micros):
        args = {"op_name": operator}
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": micros, "args": args}

    def run(at):
        return {"cat": "Session", "name": "model_run", "ts": at, "dur": 9}

    events = [
        {"cat": "Session", "name": "model_loading_uri", "ts": 0, "dur": 5},
        run(10), kernel("a", "MatMul", 11, 900), kernel("c", "Add", 12, 900),
        run(20), kernel("a", "MatMul", 21, 30), kernel("b", "MatMul", 22, 10),
        kernel("c", "Add", 23, 100), {"cat": "Node", "name": "a_fence_before", "ts": 24, "dur": 99},
        run(30), kernel("a", "MatMul", 31, 50), kernel("b", "MatMul", 32, 10),
        kernel("c", "Add", 33, 200),
    ]  # fmt: skip
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    slowest, other = by_operator(path)
    assert slowest == OperatorTime("Add", 1, pytest.approx(150e-6))
    assert other == OperatorTime("MatMul", 2, pytest.approx(50e-6))


def test_bench_names_what_ran(tmp_path):
    weights = {name: np.eye(32, dtype=np.float32) for name in ("v", "w")}
    source = (
        "g (float[N, 32] x) => (float[N, 32] y) { h = MatMul(x, v) t = Tanh(h) y = MatMul(t, w) }"
    )
    onnx.save(text(source, **weights), tmp_path / "m.onnx")
    feeds = [{"x": np.ones((2, 32), np.float32)}]
    (found,) = bench([tmp_path / "m.onnx"], feeds, rounds=6, operators=True).models
    assert {each.operator: each.nodes for each in found.operators} == {"MatMul": 2, "Tanh": 1}
    assert all(each.seconds > 0 for each in found.operators)
    (without,) = bench([tmp_path / "m.onnx"], feeds, rounds=6).models
    assert without.operators == ()
