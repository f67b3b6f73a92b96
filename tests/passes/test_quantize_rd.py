"""quantize-rd: what is stored is what was measured, goals are met, bad input is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxshrink.contract import Settings
from onnxshrink.errors import InputsMissing, RecipeError
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import coded, dequantize, packed
from onnxshrink.kernels import rate
from onnxshrink.kernels.affine import Quantized
from onnxshrink.passes.quantize_rd import QuantizeRd
from onnxshrink.passes.quantize_rd.rates import FINEST
from onnxshrink.pipeline import Result, run
from onnxshrink.report import Step
from onnxshrink.runtime.session import open_session
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

WIDTH = 96


def network(classes: int = 12, *, softmax: bool = True) -> Model:
    """An embedding, a convolution with its norm, two products, and classes."""
    rng = np.random.default_rng(0)
    stored = {
        "table": rng.standard_normal((200, WIDTH)),
        "conv": rng.standard_normal((WIDTH, WIDTH, 3)) / 17,
        "gamma": rng.uniform(0.05, 3, WIDTH), "beta": rng.standard_normal(WIDTH),
        "mean": rng.standard_normal(WIDTH) / 3, "var": rng.uniform(0.5, 2, WIDTH),
        "w1": rng.standard_normal((WIDTH, 2 * WIDTH)) / 10,
        "w2": rng.standard_normal((2 * WIDTH, WIDTH)) / 14,
        "head": rng.standard_normal((classes, WIDTH)) / 3,
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "x"], ["e"]),
        node("Transpose", ["e"], ["t"], perm=[0, 2, 1]),
        node("Conv", ["t", "conv"], ["c"], pads=[1, 1]),
        node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("ReduceMean", ["r"], ["m"], axes=[2], keepdims=0),
        node("MatMul", ["m", "w1"], ["h"]),
        node("Tanh", ["h"], ["a"]),
        node("MatMul", ["a", "w2"], ["o"]),
        node("Gemm", ["o", "head"], ["logits"], transB=1),
        node("Softmax" if softmax else "Identity", ["logits"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in stored.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 13)]
    return Model.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))


def inputs(count: int = 8, rows: int = 16, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.integers(0, 200, (rows, 10))} for _ in range(count)]


def quantized(worker: Worker, model: Model | None = None, **options: Any) -> tuple[Result, Step]:
    feeds = options.pop("feeds", inputs())
    step = QuantizeRd(weights=Select(min_size=options.pop("min_size", 256)), **options)
    result = run([step], model or network(), Settings(feeds=feeds), worker)
    return result, result.report.steps[0]


def answers(model: Model, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    session = open_session(model.to_proto().SerializeToString())
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def codes(model: Model) -> dict[str, np.ndarray]:
    """The integer constants of a model, by name."""
    stored = {t.name: numpy_helper.to_array(t) for t in model.to_proto().graph.initializer}
    return {name: array for name, array in stored.items() if array.dtype in (np.int8, np.int16)}


def test_works_with_nothing_else_given(worker: Worker) -> None:
    result, step = quantized(worker, feeds=inputs(8, 128))
    assert step.status == "done", step.reason
    other = inputs(24, 512, seed=7)
    agree = answers(network(), other).argmax(-1) == answers(result.model, other).argmax(-1)
    assert agree.mean() >= 0.99
    bits = [8 * rate.packed_bytes(array) / array.size for array in codes(result.model).values()]
    assert np.mean(bits) < 10  # random weights make near ties of many inputs
    assert any("bits packed" in change.note for change in step.changes)


def test_the_norm_is_folded_and_answers_come_from_the_codes(worker: Worker) -> None:
    result, step = quantized(worker, lam=1e-3)
    proto = result.model.to_proto()
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert len(codes(result.model)) == 5  # the head has 1,152 weights: plain 8 bits
    plain = [change for change in step.changes if change.note == "int8 (fewer than 2048 elements)"]
    assert [change.what for change in plain] == ["head"]
    for node in proto.graph.node:
        if node.op_type == "Mul":
            stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
            short = {n.output[0] for n in proto.graph.node if n.op_type == "Cast"}
            assert any(name in stored or name in short for name in node.input)


@pytest.mark.parametrize("bits", [1.5, 3.0, 6.0])
def test_bits_per_weight_are_met_in_packed_bytes(bits: float, worker: Worker) -> None:
    result, step = quantized(worker, bits_per_weight=bits, max_error=10.0)
    assert step.status == "done", step.reason
    stored = codes(result.model)
    total = sum(rate.packed_bytes(array) for array in stored.values())
    found = 8 * total / sum(array.size for array in stored.values())
    assert 0.97 * bits < found < 1.01 * bits


def test_target_ratio_is_met_on_the_disk(worker: Worker, tmp_path: Path) -> None:
    model = network()
    result, _ = quantized(worker, model, target_ratio=7.0)
    total = packed.save(result.model, tmp_path / "small.onnx")
    assert 7.0 <= model.nbytes() / total < 7.0 / 0.99


def test_target_ratio_is_met_by_coded_models(worker: Worker, tmp_path: Path) -> None:
    model = network()
    step = QuantizeRd(weights=Select(min_size=256), target_ratio=5.0)
    result = run([step], model, Settings(feeds=inputs(), storage="coded"), worker)
    total, _ = coded.save(result.model, tmp_path / "small.onnx")
    assert 5.0 <= model.nbytes() / total < 5.0 / 0.99


def test_a_target_may_be_looser_than_the_start(worker: Worker) -> None:
    result, step = quantized(worker, network(), target_ratio=2)
    assert step.warnings == ["smaller than asked for: finer codes would gain nothing"]
    found = codes(result.model).values()
    bits = 8 * sum(map(rate.packed_bytes, found)) / sum(array.size for array in found)
    assert 0.95 * FINEST < bits <= FINEST


def test_goals_in_bytes_where_no_weight_has_a_grid_of_its_own(worker: Worker) -> None:
    for goal, said in (({"target_ratio": 1.005}, ""), ({"bits_per_weight": 4.0}, "no grid meets")):
        step = QuantizeRd(weights=Select(only=("head",)), **goal)
        row = run([step], network(), Settings(feeds=inputs()), worker).report.steps[0]
        assert said in row.reason
        assert [change.what for change in row.changes] == [] if said else ["head"]


def test_more_to_spend_gives_fewer_bits_and_more_error(worker: Worker) -> None:
    sizes, errors = [], []
    for lam in (1e-4, 1e-3, 1e-2):
        result, step = quantized(worker, lam=lam)
        sizes.append(sum(rate.packed_bytes(array) for array in codes(result.model).values()))
        errors.append(step.max_error)
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_small_weights_get_more_bits_where_eight_lose_what_is_to_be_spent(worker: Worker) -> None:
    feeds, found = inputs(rows=4, seed=9), {}
    before = answers(network(softmax=False), feeds)
    for spend in (1e-2, 1e-7):
        result, step = quantized(worker, network(softmax=False), lam=spend)
        (head,) = (row for row in step.changes if row.what == "head")
        found[head.note.split()[0]] = np.linalg.norm(answers(result.model, feeds) - before)
    assert list(found) == ["int8", "int16"]
    # Codes of 8 bits alone are off by half a step of a hundred: nothing else could make up for it.
    assert found["int16"] < 1e-3 * np.linalg.norm(before)


def test_min_fidelity_of_values(worker: Worker) -> None:
    model = network(softmax=False)
    result, _ = quantized(worker, model, min_fidelity=0.999)
    other = inputs(6, 64, seed=8)
    x, y = answers(model, other).ravel(), answers(result.model, other).ravel()
    assert 0.997 < x @ y / np.linalg.norm(x) / np.linalg.norm(y) < 0.99995


def test_the_same_bytes_twice(worker: Worker) -> None:
    first, second = (quantized(worker, lam=1e-3)[0].model.digest() for _ in range(2))
    assert first == second


def test_bad_input_is_told(worker: Worker) -> None:
    for settings in (Settings(), Settings(feeds=inputs(1), generated=True)):
        with pytest.raises(InputsMissing, match="give --calibration DATA"):
            run([QuantizeRd()], network(), settings, worker)
    with pytest.raises(RecipeError, match="one of lam and min_fidelity"):
        quantized(worker, lam=0.1, min_fidelity=0.9)
    _, step = quantized(worker, target_ratio=500.0)
    assert "no grid meets the budget" in step.reason


def test_near_ties_that_no_grid_keeps_are_told(worker: Worker) -> None:
    model = network()
    scores = answers(model, (feeds := inputs(2, 16)))
    assert scores.shape == (32, 12)
    _, step = quantized(worker, model, feeds=feeds, min_fidelity=1.0, measure="agreement")
    assert step.status == "rolled back"
    assert "times what may be lost of the answers" in step.reason
    assert "lower --min-fidelity" in step.reason
    goal: dict[str, Any] = {"feeds": feeds, "min_fidelity": 1.0, "measure": "agreement"}
    result, step = quantized(worker, model, beside_integers=True, **goal)
    assert step.status == "done"
    assert (
        np.mean([rate.entropy_bits(array) / array.size for array in codes(result.model).values()])
        < 9
    )


def test_nothing_to_do_is_said(worker: Worker) -> None:
    result, step = quantized(worker, min_size=10**9, feeds=[])
    assert step.status == "nothing to do"
    assert "BatchNormalization" in {n.op_type for n in result.model.to_proto().graph.node}


def test_infinite_weights_are_left_alone(worker: Worker) -> None:
    proto = network().to_proto()
    table = next(t for t in proto.graph.initializer if t.name == "table")
    values = numpy_helper.to_array(table).copy()
    values[199, 0] = np.inf
    table.CopyFrom(numpy_helper.from_array(values, "table"))
    feeds = [{"x": feed["x"] % 199} for feed in inputs()]
    _, step = quantized(worker, Model.from_proto(proto), feeds=feeds, lam=1e-3)
    assert step.status == "done", step.reason
    assert ("table", "holds NaN or infinity") in {(s.what, s.reason) for s in step.skips}


def test_rows_of_a_table_have_steps_of_their_own(worker: Worker) -> None:
    feeds = [{"x": np.minimum(feed["x"] ** 2 // 250, 199)} for feed in inputs(8, 64)]
    result, step = quantized(worker, feeds=feeds, lam=1e-3)
    assert step.status == "done", step.reason
    note = next(change.note for change in step.changes if change.what == "table")
    assert "steps by how often rows are looked up" in note
    stored = {t.name: numpy_helper.to_array(t) for t in result.model.to_proto().graph.initializer}
    (name,) = [k for k, v in stored.items() if v.shape == (200, WIDTH) and v.dtype == np.int8]
    scales = stored[name.replace(".q", ".s")]
    assert scales.shape == (200, 1)
    assert scales[0] < scales[158]  # row 0 is looked up most


def test_rare_large_codes_leave_the_others_in_int8() -> None:
    model = network()
    view = next(v for v in weights.find(model) if v.name == "w2")
    wide = np.rint(48 * np.random.default_rng(3).standard_normal(view.shape)).astype(np.int16)
    wide[7, 9] = -30000
    step = np.full((1, 1), 0.5, np.float32)
    dequantize.dequantized(model, view, Quantized(wide, step, None, "int16"), "cast-mul")
    proto = model.to_proto()
    kinds = [array.dtype for array in codes(model).values() if array.size == wide.size]
    assert kinds == [np.int8]
    proto.graph.output.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, None))
    found = open_session(proto.SerializeToString()).run(["w2"], inputs(1)[0])[0]
    np.testing.assert_array_equal(found, wide * np.float32(0.5))
