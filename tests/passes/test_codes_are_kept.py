"""Weights that are integers already stay these integers on the way to integer kernels."""

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from weight_models import normal, parsed

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import coded, packed
from onnxshrink.graph.forms import codes as codes_
from onnxshrink.kernels import saturation
from onnxshrink.pipeline import Result, run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

RNG = np.random.default_rng(11)
FEEDS = [{"x": RNG.standard_normal((2, 8, 7, 7)).astype(np.float32)} for _ in range(4)]


def coarse(*shape: int, reach: int = 40) -> np.ndarray:
    """Codes as coarse grids have them: most are small, and no two that meet overflow 16 bits."""
    codes = np.rint(RNG.laplace(0, reach / 8, shape))
    return np.clip(codes, -reach, reach).astype(np.int8)


CONV, GEMM = coarse(16, 8, 3, 3), coarse(64, 16 * 49)
FULL = RNG.integers(-127, 128, (32, 64)).astype(np.int8)
STEP, STEPS = np.float32(0.01), RNG.uniform(0.005, 0.02, 64).astype(np.float32)


def foreign(conv: str, gemm: str) -> onnx.ModelProto:
    """A convolution, a Gemm and a MatMul, whose codes others wrote."""
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 8, 7, 7] x) => (float[2, 32] y) {{
        {conv}  c = Conv<pads = [1, 1, 1, 1]>(x, w, a)  r = Relu(c)  f = Flatten(r)
        {gemm}  h = Gemm<transB = 1>(f, v, b)  t = Tanh(h)
        d = DequantizeLinear<axis = 0>(full, steps)  u = Transpose<perm = [1, 0]>(d)
        y = MatMul(t, u)
    }}"""
    return parsed(
        text, "", qw=CONV, qv=GEMM, full=FULL, s=STEP, sv=STEPS, steps=STEPS[:32],
        a=normal(16), b=normal(64, seed=2).astype(np.float16).astype(np.float32),
    )  # fmt: skip


OTHERS = foreign("cw = Cast<to = 1>(qw) w = Mul(cw, s)", "v = DequantizeLinear<axis = 0>(qv, sv)")


def step(name: str, source: onnx.ModelProto, worker: Worker, **options: Any) -> Result:
    pass_ = find_pass(name)(**options, max_error=1.0)
    return run([pass_], Model.from_proto(source), Settings(feeds=FEEDS), worker)


def tensors(model: Model) -> list[np.ndarray]:
    return [numpy_helper.to_array(tensor) for tensor in model.to_proto().graph.initializer]


def holds(model: Model, codes: np.ndarray) -> bool:
    return any(t.dtype == codes.dtype and np.array_equal(t, codes) for t in tensors(model))


def optimized(path: Path) -> collections.Counter[str]:
    """The operators that ONNX Runtime makes of a file."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return collections.Counter(node.op_type for node in nodes)


def test_static_keeps_the_codes_of_others(worker: Worker, tmp_path: Path) -> None:
    result = step("quantize-static", OTHERS, worker)
    (row,) = result.report.steps
    notes = {change.what: change.note for change in row.changes}
    assert row.status == "done"
    assert row.may_grow
    assert notes["w"] == notes["v"] == "int8 with uint8, its codes kept"
    assert holds(result.model, CONV)
    assert holds(result.model, GEMM)
    result.model.save(tmp_path / "plain.onnx")
    found = optimized(tmp_path / "plain.onnx")
    assert found["QLinearConv"] == found["QGemm"] == 1
    assert not found["Conv"] + found["Gemm"] + found["FusedGemm"] + found["MatMul"]
    again = step("quantize-static", result.model.to_proto(), worker)
    assert again.report.steps[0].status == "nothing to do"
    reasons = {skip.reason for skip in again.report.steps[0].skips}
    assert "computes with integers already" in reasons


def test_only_channels_that_would_overflow_get_coarser(worker: Worker) -> None:
    """On CPUs without VNNI, of a weight of the full range; with VNNI its codes stay."""
    wide = step("quantize-static", OTHERS, worker, cpu="vnni")
    assert any(np.array_equal(t, FULL.T) for t in tensors(wide.model))
    assert wide.report.steps[0].status == "done"
    safe = step("quantize-static", OTHERS, worker)
    (codes,) = (t for t in tensors(safe.model) if t.shape == (64, 32) and t.dtype.kind in "iu")
    assert codes.dtype == np.uint8 or not saturation.can_saturate(codes.T).any()
    few = FULL.copy()
    few[1:] //= 4
    kept = OTHERS.SerializeToString()
    proto = onnx.ModelProto.FromString(kept)
    (tensor,) = (t for t in proto.graph.initializer if t.name == "full")
    tensor.CopyFrom(numpy_helper.from_array(few, "full"))
    result = step("quantize-static", proto, worker)
    (codes,) = (t for t in tensors(result.model) if t.shape == (64, 32) and t.dtype.kind in "iu")
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes.T[1:], few[1:])
    assert (codes.T[0] != few[0]).any()
    assert not saturation.can_saturate(codes.T).any()


@pytest.mark.parametrize("cpu", ["any", "vnni"])
def test_dynamic_keeps_the_codes_of_others(cpu: str, worker: Worker) -> None:
    result = step("quantize-dynamic", OTHERS, worker, cpu=cpu)
    (row,) = result.report.steps
    notes = {change.what: change.note for change in row.changes}
    assert "its codes kept" in notes["v"]
    assert "its codes kept" in notes["u"]
    assert holds(result.model, GEMM.T)
    assert holds(result.model, FULL.T) == (cpu == "vnni")
    assert holds(result.model, CONV)  # it goes back as it came
    assert [skip.reason for skip in row.skips if skip.what == "w"] == []


@pytest.mark.parametrize(
    ("first", "options"),
    [("quantize-rd", {"bits_per_weight": 3.0}), ("quantize-weights", {"dtype": "int4"})],
    ids=["rd", "int4"],
)
def test_integer_kernels_form_in_front_of_coded_weights(
    first: str, options: dict[str, Any], worker: Worker, tmp_path: Path
) -> None:
    floats = parsed(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[2, 8, 7, 7] x) => (float[2, 32] y) {
            c = Conv<pads = [1, 1, 1, 1]>(x, w, a)  r = Relu(c)  f = Flatten(r)
            h = Gemm<transB = 1>(f, v, b)  t = Tanh(h)  y = MatMul(t, u)
        }""", "", w=normal(16, 8, 3, 3) / 8, v=normal(64, 784) / 28, u=normal(64, 32) / 8,
        a=normal(16), b=normal(64, seed=2),
    )  # fmt: skip
    steps = [find_pass(first)(**options, max_error=1.0), find_pass("quantize-static")(max_error=1)]
    result = run(steps, Model.from_proto(floats), Settings(feeds=FEEDS), worker)
    before, after = result.report.steps
    kept = [change for change in after.changes if "its codes kept" in change.note]
    assert len(kept) >= 2
    assert before.bytes_after * 1.1 > after.bytes_after
    plain, small = tmp_path / "plain.onnx", tmp_path / "coded.onnx"
    result.model.save(plain)
    assert bool(coded.code(result.model).coded) == (first == "quantize-rd")
    result.model.save(small)
    assert small.stat().st_size <= plain.stat().st_size
    found = optimized(small)
    assert found == optimized(plain)
    assert found["QLinearConv"] == found["QGemm"] == 1
    answers = [worker.run(path, FEEDS).outputs for path in (plain, small)]
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_grids_that_a_model_has_are_used_again(worker: Worker) -> None:
    """As training that knows of rounding leaves them: pairs around activations, and weights."""
    proto = parsed(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 8, 7, 7] x) => (float[2, 16, 7, 7] y) {
            q = QuantizeLinear(x, sx, zx)  p = DequantizeLinear(q, sx, zx)
            i = QuantizeLinear<axis = 0>(w, sw, zw)  j = DequantizeLinear<axis = 0>(i, sw, zw)
            c = Conv<pads = [1, 1, 1, 1]>(p, j, a)  r = Relu(c)
            k = QuantizeLinear(r, sr, zr)  l = DequantizeLinear(k, sr, zr)
            y = Conv<pads = [1, 1, 1, 1]>(l, v)
        }""", "", w=normal(16, 8, 3, 3) / 8, v=normal(16, 16, 3, 3, seed=1) / 12, a=normal(16),
        sx=np.float32(0.031), zx=np.uint8(117), sr=np.float32(0.0173), zr=np.uint8(0),
        sw=np.linspace(0.01, 0.02, 16, dtype=np.float32), zw=np.zeros(16, np.int8),
    )  # fmt: skip
    result = step("quantize-static", proto, worker, weights=Select(min_size=0))
    graph = result.model.to_proto().graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    pairs = {
        node.input[0]: (values[node.input[1]].item(), values[node.input[2]].item())
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert len(pairs) == 3  # of x, of what the first convolution makes, and of the answer
    assert pairs["x"] == (pytest.approx(0.031), 117)
    assert sum(pair == (pytest.approx(0.0173), 0) for pair in pairs.values()) == 1
    assert "w" not in values


def test_integers_become_narrower_only_when_that_is_asked_for(worker: Worker) -> None:
    options = {"dtype": "int4", "block_size": 8, "vectors": "keep"}
    left = step("quantize-weights", OTHERS, worker, **options)
    assert left.report.steps[0].status == "nothing to do"
    reasons = {skip.what: skip.reason for skip in left.report.steps[0].skips}
    assert all(reasons[name].startswith("already quantized") for name in ("qw", "qv", "full"))
    asked = step("quantize-weights", OTHERS, worker, requantize=True, **options)
    rows = {row.what: row for row in asked.report.steps[0].changes}
    came = {"w": CONV.nbytes + 4, "v": GEMM.nbytes + STEPS.nbytes, "u": FULL.nbytes + 4 * 32}
    assert {name: row.before for name, row in rows.items() if name in came} == came
    assert not any(holds(asked.model, codes) for codes in (CONV, GEMM, FULL))
    # As if they had been floats.
    floats = Model.from_proto(OTHERS)
    codes_.take_out(floats, codes_.is_weight)
    direct = step("quantize-weights", floats.to_proto(), worker, **options)
    assert direct.model.digest() == asked.model.digest()


def test_integers_get_coarser_grids_only_when_that_is_asked_for(
    worker: Worker, tmp_path: Path
) -> None:
    before = packed.save(Model.from_proto(OTHERS), tmp_path / "before.onnx")
    left = step("quantize-rd", OTHERS, worker, lam=0.02)
    assert left.report.steps[0].status == "nothing to do"
    asked = step("quantize-rd", OTHERS, worker, lam=0.02, requantize=True)
    assert asked.report.steps[0].status == "done", asked.report.steps[0].reason
    assert holds(asked.model, CONV)  # too small for a grid of its own, it goes back as it came
    assert not holds(asked.model, GEMM)
    assert packed.save(asked.model, tmp_path / "after.onnx") < 0.8 * before
