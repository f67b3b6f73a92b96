"""Weights that integer kernels take as they are, stored in fewer bits: bit for bit what is said."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxshrink.contract import Settings
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import integer_codes
from onnxshrink.kernels import affine
from onnxshrink.passes.quantize_rd import QuantizeRd
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.worker import Worker

OURS = "com.microsoft"
RNG = np.random.default_rng(11)


def codes(*shape: int, dtype: Any = np.int8, spread: float = 30) -> np.ndarray:
    """Normal numbers around the middle, some at the ends of the range."""
    info = np.iinfo(dtype)
    middle = (info.max + info.min + 1) // 2
    drawn = np.rint(RNG.normal(middle, spread, shape))
    drawn.flat[:2] = info.min, info.max
    return np.clip(drawn, info.min, info.max).astype(dtype)


@dataclass
class Case:
    """A node of one kernel, its constants, and what it is fed."""

    node: onnx.NodeProto
    feed: np.ndarray
    constants: dict[str, np.ndarray]
    weights: tuple[str, ...] = ("w",)
    output: int = TensorProto.FLOAT
    before: list[onnx.NodeProto] = field(default_factory=list)

    def model(self, **changed: np.ndarray) -> onnx.ModelProto:
        """The model, with other constants if wanted."""
        shape = [None] * {"ConvInteger": 4, "QLinearConv": 4}.get(self.node.op_type, 2)
        shape = [None] * 4 if self.node.op_type == "DynamicQuantizeLSTM" else shape
        kind = helper.np_dtype_to_tensor_dtype(self.feed.dtype)
        graph = helper.make_graph(
            [*self.before, self.node], "g",
            [helper.make_tensor_value_info("x", kind, self.feed.shape)],
            [helper.make_tensor_value_info("y", self.output, shape)],
            [numpy_helper.from_array(a, n) for n, a in (self.constants | changed).items()],
        )  # fmt: skip
        imports = [helper.make_opsetid("", 21), helper.make_opsetid(OURS, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


def integer_case(op_type: str, w: np.ndarray, zero: np.ndarray | None, x: np.ndarray) -> Case:
    constants = {"w": w, "xz": np.uint8(128)} | ({} if zero is None else {"wz": zero})
    node = helper.make_node(op_type, ["x", "w", "xz", *(["wz"] if zero is not None else [])], ["y"])
    return Case(node, x, constants, output=TensorProto.INT32)


def linear_case(op_type: str, w: np.ndarray, zero: np.ndarray, x: np.ndarray) -> Case:
    constants = {"sx": np.float32(0.02), "zx": np.uint8(120), "w": w, "wz": zero,
                 "sy": np.float32(0.7), "zy": np.uint8(128)}  # fmt: skip
    constants["sw"] = np.full(zero.shape, 0.01, np.float32)
    node = helper.make_node(op_type, ["x", "sx", "zx", "w", "sw", "wz", "sy", "zy"], ["y"])
    return Case(node, x, constants, output=TensorProto.UINT8)


def lstm_case() -> Case:
    zero, scale = np.zeros(1, np.int8), np.full(1, 0.004, np.float32)
    constants = {"w": codes(1, 48, 96), "r": codes(1, 24, 96), "s": scale, "z": zero}
    node = helper.make_node(
        "DynamicQuantizeLSTM", ["x", "w", "r", *[""] * 5, "s", "z", "s", "z"], ["y"],
        domain=OURS, hidden_size=24,
    )  # fmt: skip
    x = RNG.standard_normal((5, 2, 48), np.float32)
    return Case(node, x, constants, ("w", "r"))


def bytes_of(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


CASES = {
    "MatMulInteger": integer_case("MatMulInteger", codes(64, 40), None, bytes_of(5, 64)),
    "of uint8, a zero point a channel": integer_case(
        "MatMulInteger", codes(64, 40, dtype=np.uint8),
        np.linspace(100, 150, 40).astype(np.uint8), bytes_of(5, 64),
    ),
    "ConvInteger": integer_case(
        "ConvInteger", codes(16, 16, 3, 3, dtype=np.uint8), np.uint8(131), bytes_of(1, 16, 9, 9)
    ),
    "QLinearConv": linear_case(
        "QLinearConv", codes(16, 16, 3, 3), np.zeros(16, np.int8), bytes_of(1, 16, 9, 9)
    ),
    "QLinearMatMul": linear_case(
        "QLinearMatMul", codes(64, 40), np.array(0, np.int8), bytes_of(5, 64)
    ),
    "DynamicQuantizeLSTM": lstm_case(),
}  # fmt: skip


def answer(proto: onnx.ModelProto, case: Case, optimize: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": case.feed})[0]


def computed(proto: onnx.ModelProto, name: str, case: Case) -> np.ndarray:
    """What the kernel is given as an input."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    kind = helper.np_dtype_to_tensor_dtype(case.constants[name].dtype)
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return answer(proto, case)


def quantized(case: Case, worker: Worker, **options: Any) -> Result:
    step = QuantizeWeights(max_error=10, **options)
    return run([step], Model.from_proto(case.model()), Settings(feeds=[{"x": case.feed}]), worker)


@pytest.mark.parametrize("symmetric", [None, False])
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_gets_whole_steps_of_its_codes(
    name: str, symmetric: bool | None, worker: Worker
) -> None:
    case = CASES[name]
    result = quantized(case, worker, dtype="int4", requantize=True, symmetric=symmetric)
    step = result.report.steps[0]
    assert step.status == "done", step.reason
    assert {change.what for change in step.changes} >= set(case.weights)
    proto = result.model.to_proto()
    assert [node.op_type for node in proto.graph.node].count(case.node.op_type) == 1
    views = {view.name: view for view in weights.find(Model.from_proto(case.model()))}
    expected = {}
    for weight in case.weights:
        found = integer_codes.coarser(
            views[weight], "int4", symmetric=symmetric is None, clip="mse", rounding="balanced"
        )
        expected[weight] = affine.dequantize(found.stored) + found.zero
        was = case.constants[weight].astype(np.float64)
        assert (found.stored.scale % 1 == 0).all()
        np.testing.assert_array_equal(computed(proto, weight, case), expected[weight])
        noise = np.square(expected[weight] - was).sum() / np.square(was - found.zero).sum()
        assert -10 * np.log10(noise) == pytest.approx(found.sqnr, abs=1e-3)
        assert found.sqnr > 15
    dtype = case.constants[case.weights[0]].dtype
    alone = case.model(**{name: values.astype(dtype) for name, values in expected.items()})
    for optimize in (True, False):
        np.testing.assert_array_equal(answer(proto, case, optimize), answer(alone, case, optimize))


def test_others_say_why_they_stay(worker: Worker) -> None:
    case = CASES["MatMulInteger"]
    for options, said in (
        ({"dtype": "int4"}, "already quantized (MatMulInteger)"),
        ({"dtype": "int8", "requantize": True}, "takes 8 bits, and int8 has no fewer"),
    ):
        rows = quantized(case, worker, **options).report.steps[0].skips
        assert said in {row.what: row.reason for row in rows}["w"]


def feeds(case: Case) -> list[dict[str, np.ndarray]]:
    """Inputs like that of a case."""
    draws = [RNG.permuted(case.feed, axis=-1) for _ in range(7)]
    return [{"x": one} for one in (case.feed, *draws)]


@pytest.mark.parametrize("name", CASES)
def test_grids_of_a_kernels_codes_are_chosen_by_what_outputs_see(name: str, worker: Worker) -> None:
    case = CASES[name]
    step = QuantizeRd(max_error=10, requantize=True, bits_per_weight=4)
    model = Model.from_proto(case.model())
    result = run([step], model, Settings(feeds=feeds(case), storage="packed"), worker)
    row = result.report.steps[0]
    assert row.status == "done", row.reason
    changes = {change.what: change for change in row.changes}
    sizes = [case.constants[weight].size for weight in case.weights]
    assert 8 * sum(changes[weight].coded for weight in case.weights) / sum(sizes) <= 4
    proto = result.model.to_proto()
    assert [node.op_type for node in proto.graph.node].count(case.node.op_type) == 1
    expected = {}
    for weight in case.weights:
        given, was = computed(proto, weight, case), case.constants[weight]
        assert given.dtype == was.dtype
        zero = case.constants.get("wz", np.int8(0)).astype(int)
        whole = given.astype(int) - (zero if zero.any() else 0)
        step = np.gcd.reduce(whole, axis=None)
        assert f"steps of {step} codes" in changes[weight].note
        assert step > 1
        # To nearest, but for what the kernel's type does not hold.
        inside = (was > np.iinfo(was.dtype).min + step) & (was < np.iinfo(was.dtype).max - step)
        assert (np.abs(given.astype(int) - was) <= step / 2)[inside].all()
        expected[weight] = given
    alone = case.model(**expected)
    for optimize in (True, False):
        np.testing.assert_array_equal(answer(proto, case, optimize), answer(alone, case, optimize))


def test_grids_of_a_kernels_codes_are_for_those_who_ask(worker: Worker) -> None:
    case = CASES["MatMulInteger"]
    model = Model.from_proto(case.model())
    for options, said in (
        ({}, "already quantized (MatMulInteger)"),
        ({"requantize": True, "lam": 1e-12}, "would not be smaller as integer codes"),
    ):
        result = run([QuantizeRd(**options)], model, Settings(feeds=feeds(case)), worker)
        assert said in {row.what: row.reason for row in result.report.steps[0].skips}["w"]
