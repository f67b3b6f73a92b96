"""Stored weights are the nearest float16, exactly; nothing is lost that 11 bits could hold."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import Run
from hard_models import HARD, rows, text, weight
from onnx import TensorProto

from onnxshrink.contract import Judge, Settings
from onnxshrink.errors import RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.to_float16 import ToFloat16
from onnxshrink.pipeline import Result, run
from onnxshrink.report import Step
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select


def answers(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def stored(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def converted(proto: onnx.ModelProto, worker: Worker, step: ToFloat16, feeds=None) -> Result:
    return run([step], Model.from_proto(proto), Settings(feeds=feeds or rows(3, 64)), worker)


def skipped(result: Result) -> dict[str, str]:
    return {skip.what: skip.reason for skip in result.report.steps[0].skips}


@pytest.fixture
def proto() -> onnx.ModelProto:
    return text(
        """g (float[n, 64] x) => (float[n, 32] y) {
            a = MatMul(x, w)  b = Add(a, bias)  c = Relu(b)  d = MatMul(c, v)  y = Add(d, few)
        }""",
        w=weight(1, 64, 128), bias=weight(2, 128), v=weight(3, 128, 32), few=weight(4, 32),
    )  # fmt: skip


def test_weights_are_the_nearest_float16_and_answers_follow_numpy(proto, worker) -> None:
    result = converted(proto, worker, ToFloat16())
    after = result.model.to_proto()
    arrays = stored(proto)
    halves = {n: a for n, a in stored(after).items() if a.dtype == np.float16}
    casts = {node.output[0]: node.input[0] for node in after.graph.node if node.op_type == "Cast"}
    assert set(casts) == {"w", "bias", "v"}
    for name, half in casts.items():
        assert np.array_equal(halves[half], arrays[name].astype(np.float16))
    assert np.array_equal(stored(after)["few"], arrays["few"])  # 32 of them gain nothing
    rounded = {n: a.astype(np.float16).astype(np.float32) for n, a in arrays.items()}
    for feed in rows(3, 64):
        hidden = np.maximum(feed["x"] @ rounded["w"] + rounded["bias"], 0)
        expected = hidden @ rounded["v"] + arrays["few"]
        np.testing.assert_allclose(answers(after, feed)[0], expected, rtol=2e-6, atol=2e-6)
    assert result.report.ratio == pytest.approx(2, rel=0.05)
    changes = {change.what: change for change in result.report.steps[0].changes}
    assert changes["w"].before == 4 * 64 * 128
    assert 2 * 64 * 128 < changes["w"].after < 2 * 64 * 128 + 200


@pytest.mark.parametrize(
    ("value", "fits"),
    [(65504, True), (65519, True), (65520, False), (1e30, False), (np.inf, False), (np.nan, False)],
)
def test_what_float16_does_not_hold_is_left_alone(worker, value, fits) -> None:
    table = weight(5, 64, 64)
    table[63, 0] = value  # never looked up
    proto = text("g (int64[n] i) => (float[n, 64] y) { y = Gather(table, i) }", table=table)
    result = converted(proto, worker, ToFloat16(), [{"i": np.arange(63)}])
    assert result.report.changed == fits
    if not fits:
        assert skipped(result) == {"table": "float16 does not hold its values to 11 bits"}
        assert result.model.to_proto() == proto


def test_weights_below_the_range_of_float16_are_left_alone(worker) -> None:
    proto = text(
        "g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }",
        w=weight(6, 64, 64) * np.float32(1e-6),
    )
    result = converted(proto, worker, ToFloat16())
    assert "11 bits" in skipped(result)["w"]
    # The limit is half a unit in the last place of a normal number.
    half_way = np.full((64, 64), 1 + 2.0**-11, np.float32)
    subnormal = np.full((64, 64), 700.5 * 2.0**-24, np.float32)
    for array, fits in ((half_way, True), (subnormal, False)):
        proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
        assert converted(proto, worker, ToFloat16()).report.changed == fits
    # A few tiny ones beside others of usual size are nothing.
    proto.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(weight(6, 64, 64) * np.logspace(0, -6, 64, dtype="f"), "w")
    )
    assert converted(proto, worker, ToFloat16()).report.changed


def test_selection_holds_for_vectors_too(proto, worker) -> None:
    result = converted(proto, worker, ToFloat16(weights=Select(keep=("bias", "w"), min_size=64)))
    assert [change.what for change in result.report.steps[0].changes] == ["v"]
    assert skipped(result) == {
        "w": "kept as asked", "bias": "kept as asked", "few": "fewer than 64 elements",
    }  # fmt: skip
    result = converted(proto, worker, ToFloat16(weights=Select(only=("bias",), min_size=64)))
    assert [change.what for change in result.report.steps[0].changes] == ["bias"]
    result = converted(proto, worker, ToFloat16(weights=Select(layers={"b*": "skip"}, min_size=64)))
    assert skipped(result)["bias"] == "kept as asked"
    with pytest.raises(RecipeError, match="to-float16: no weight matches 'nothing'"):
        converted(proto, worker, ToFloat16(weights=Select(keep=("nothing",))))


def test_what_is_narrow_already_is_said_to_be(worker) -> None:
    hard = HARD["float16"]()
    result = converted(hard.proto, worker, ToFloat16(), hard.feeds)
    assert set(skipped(result).values()) == {"is stored as float16 already"}
    hard = HARD["bfloat16"]()
    result = converted(hard.proto, worker, ToFloat16(), hard.feeds)
    assert skipped(result) == {"w": "is stored as bfloat16 already"}


def test_double_weights_become_float16(worker) -> None:
    array = weight(7, 64, 64).astype(np.float64)
    proto = text("g (double[n, 64] x) => (double[n, 64] y) { y = MatMul(x, w) }", w=array)
    feeds = rows(3, 64, "float64")
    result = converted(proto, worker, ToFloat16(), feeds)
    assert result.report.ratio == pytest.approx(4, rel=0.05)
    expected = feeds[0]["x"] @ array.astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(answers(result.model.to_proto(), feeds[0])[0], expected, rtol=1e-12)


def test_full_computes_in_float16_and_keeps_inputs_and_outputs(proto, worker) -> None:
    result = converted(proto, worker, ToFloat16(full=True))
    assert result.report.changed, result.report.steps[0].reason
    after = result.model.to_proto()
    assert after.graph.input == proto.graph.input
    assert after.graph.output == proto.graph.output
    types = {t.name: t.data_type for t in after.graph.initializer}
    assert set(types.values()) == {TensorProto.FLOAT16}
    cast_to = [n.attribute[0].i for n in after.graph.node if n.op_type == "Cast"]
    assert sorted(cast_to) == [TensorProto.FLOAT, TensorProto.FLOAT16]
    (before,), (found,) = answers(proto, rows(3, 64)[0]), answers(after, rows(3, 64)[0])
    assert np.linalg.norm(found - before) < 2e-3 * np.linalg.norm(before)
    assert result.report.ratio == pytest.approx(2, rel=0.1)


def test_inputs_and_outputs_become_float16_where_that_is_asked_for(
    proto: onnx.ModelProto, worker: Worker, tmp_path: Path, cli: Run
) -> None:
    result = converted(proto, worker, ToFloat16(full=True, io="float16"))
    assert result.report.steps[0].status == "done"
    assert result.report.steps[0].warnings == ["take and give float16 now, as asked for: x, y"]
    after = result.model.to_proto()
    assert {v.type.tensor_type.elem_type for v in (*after.graph.input, *after.graph.output)} == {
        TensorProto.FLOAT16
    }
    assert not any(node.op_type == "Cast" for node in after.graph.node)
    feed = rows(3, 64)[0]
    (found,) = answers(after, {"x": feed["x"].astype(np.float16)})
    (wanted,) = answers(proto, feed)
    np.testing.assert_allclose(found, wanted, atol=4e-3 * np.abs(wanted).max())
    # The same inputs go to both, and no other step may change a type.
    onnx.save(proto, tmp_path / "m.onnx")
    onnx.save(after, tmp_path / "h.onnx")
    np.savez(tmp_path / "d.npz", **feed)
    words = ("compare", "m.onnx", "h.onnx", "--calibration", "d.npz", "--max-error", "0.01")
    for where in ((), ("--providers", "CPU,reference")):
        done = cli(*words, *where)
        assert done.code == 0, done.err
    other = onnx.ModelProto.FromString(after.SerializeToString())
    other.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    assert "changed" in _refused(proto, other, worker, retyped=True)
    assert "changed" in _refused(proto, after, worker, retyped=False)
    assert not _refused(proto, after, worker, retyped=True)


def _refused(
    before: onnx.ModelProto, after: onnx.ModelProto, worker: Worker, *, retyped: bool
) -> str:
    judge = Judge(Model.from_proto(before), Settings(feeds=rows(3, 64)), worker)
    step = Step("any", bytes_before=before.ByteSize(), retyped=retyped)
    return judge.refusal(Model.from_proto(after), 0.05, False, step)


def test_elements_of_a_sequence_become_float16_too(worker: Worker) -> None:
    proto = text(
        """g (float[n, 64] x) => (seq(float[n, 64]) s) {
            a = MatMul(x, w)  b = Relu(a)  s = SequenceConstruct(a, b)
        }""", w=weight(1, 64, 64),
    )  # fmt: skip
    result = converted(proto, worker, ToFloat16(full=True, io="float16"))
    assert result.report.steps[0].warnings == ["take and give float16 now, as asked for: x, s"]
    (output,) = result.model.to_proto().graph.output
    elements = output.type.sequence_type.elem_type.tensor_type
    assert elements.elem_type == TensorProto.FLOAT16


def test_where_no_input_or_output_is_float32_that_is_said(worker: Worker) -> None:
    proto = text(
        """g (int64[n] x) => (int64[n] y) {
            r = Gather(w, x)  h = MatMul(r, v)  y = ArgMax<axis = 1, keepdims = 0>(h)
        }""", w=weight(1, 64, 64), v=weight(2, 64, 32),
    )  # fmt: skip
    feeds = [{"x": np.arange(start, start + 4)} for start in range(3)]
    result = converted(proto, worker, ToFloat16(full=True, io="float16"), feeds)
    assert skipped(result)["signature"] == "no input or output is of float32"
    assert result.report.steps[0].status == "done"


def test_types_of_inputs_are_for_whole_models(proto: onnx.ModelProto, worker: Worker) -> None:
    with pytest.raises(RecipeError, match="'io' is for 'full'"):
        converted(proto, worker, ToFloat16(io="float16"))


def test_full_takes_no_selection(proto, worker) -> None:
    with pytest.raises(RecipeError, match="takes no selection"):
        converted(proto, worker, ToFloat16(full=True, weights=Select(keep=("w",))))


def test_full_on_what_onnx_ir_cannot_read_alone(worker) -> None:
    """Sequences of maps as outputs."""
    hard = HARD["zipmap"]()
    result = converted(hard.proto, worker, ToFloat16(full=True), hard.feeds)
    row = result.report.steps[0]
    assert row.status == "nothing to do"
    assert result.model.to_proto().graph.output == hard.proto.graph.output
    assert json.loads(result.report.to_json())


def test_whole_conversion_of_models_that_declare_the_types_of_their_values(proto, worker) -> None:
    declared = onnx.shape_inference.infer_shapes(proto)
    assert len(declared.graph.value_info) == 4  # as torch's newer exporter writes them
    result = converted(declared, worker, ToFloat16(full=True))
    assert result.report.steps[0].status == "done"
    types = {v.name: v.type.tensor_type.elem_type for v in result.model.to_proto().graph.value_info}
    assert set(types.values()) == {TensorProto.FLOAT16}
    assert {"a", "b", "c", "d"} <= set(types)


def test_whole_conversion_reaches_into_branches(worker) -> None:
    branches = text(
        """g (float[n, 64] x, bool c) => (float[n, 64] y) {
            y = If (c) <then_branch = t () => (float[n, 64] u) { u = MatMul(x, w) },
                        else_branch = e () => (float[n, 64] v) { v = Add(x, b) }>
        }""",
        w=weight(1, 64, 64), b=weight(2, 64),
    )  # fmt: skip
    feeds = [{**feed, "c": np.array(bool(i))} for i, feed in enumerate(rows(2, 64))]
    result = converted(branches, worker, ToFloat16(full=True), feeds)
    assert result.report.steps[0].status == "done"
    after = result.model.to_proto()
    for feed, taken in zip(feeds, ("b", "w"), strict=True):
        x = feed["x"].astype(np.float16)
        arrays = {name: a.astype(np.float16) for name, a in stored(branches).items()}
        expected = x + arrays["b"] if taken == "b" else x @ arrays["w"]
        np.testing.assert_allclose(answers(after, feed)[0], expected, rtol=2e-3, atol=2e-2)


def test_full_leaves_values_beyond_its_range_in_float32(worker) -> None:
    """They reach a few times 1e5 on these inputs."""
    proto = text(
        """g (float[n, 64] x) => (float[n, 32] y) {
            up = Constant<value = float {1e5}>()  down = Constant<value = float {1e-5}>()
            a = MatMul(x, w)
            b = Mul(a, up)  c = Relu(b)  d = Mul(c, down)  y = MatMul(d, v)
        }""",
        w=weight(1, 64, 128), v=weight(2, 128, 32),
    )  # fmt: skip
    result = converted(proto, worker, ToFloat16(full=True))
    row = result.report.steps[0]
    assert row.status == "done"
    assert {skip.what for skip in row.skips} == {"b", "c", "d"}
    assert all(skip.reason.endswith("are beyond float16") for skip in row.skips)
    assert row.max_error < 2e-3
    (before,), (found,) = (answers(m, rows(3, 64)[0]) for m in (proto, result.model.to_proto()))
    assert np.linalg.norm(found - before) < 2e-3 * np.linalg.norm(before)
    assert result.report.ratio == pytest.approx(2, rel=0.1)


def test_full_leaves_operators_without_a_kernel_in_float32(worker) -> None:
    proto = text(
        """g (float[n, 64] x) => (float[n, 128] y) {
            i = Constant<value = int64[1, 2] {3, 5}>()  u = Constant<value = float[1, 2] {1, 2}>()
            s = ScatterElements<axis = 1, reduction = "add">(x, i, u)  y = MatMul(s, w)
        }""",
        w=weight(1, 64, 128),
    )
    feeds = [{"x": feed["x"]} for feed in rows(1, 64)]
    result = converted(proto, worker, ToFloat16(full=True), feeds)
    row = result.report.steps[0]
    assert row.status == "done"
    assert {skip.what: skip.reason for skip in row.skips} == {"s": "float16 does not do for it"}
    kinds = {t.name: t.data_type for t in result.model.to_proto().graph.initializer}
    assert kinds["w"] == TensorProto.FLOAT16


def test_full_leaves_constants_that_float16_does_not_hold(worker) -> None:
    """Also those of Constant nodes, which ONNX Runtime's converter would clip."""
    small = np.full(64, 1e-9, np.float32)
    proto = text(
        f"""g (float[n, 64] x) => (float[n, 64] y) {{
            t = Constant<value = float[64] {{{", ".join(["1e-9"] * 64)}}}>()
            a = MatMul(x, w)  b = Div(t, a)  c = Mul(b, big)  y = MatMul(c, w)
        }}""",
        w=np.eye(64, dtype=np.float32), big=1 / small,
    )  # fmt: skip
    feeds = [{"x": 1 + abs(feed["x"])} for feed in rows(3, 64)]
    result = converted(proto, worker, ToFloat16(full=True), feeds)
    row = result.report.steps[0]
    assert row.status == "done", row.reason
    reasons = {skip.what: skip.reason for skip in row.skips}
    assert reasons["b"] == "float16 does not hold its constants to 11 bits"
    assert row.max_error < 2e-3


def test_full_of_what_has_nothing_to_narrow(worker) -> None:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { a = Relu(x)  y = Neg(a) }")
    row = converted(proto, worker, ToFloat16(full=True)).report.steps[0]
    assert row.status == "nothing to do"
    assert row.skips[0].reason == "no float32 constant in it has 64 elements or more"


def test_what_is_in_float16_already_is_no_work(proto, worker) -> None:
    half = converted(proto, worker, ToFloat16(full=True)).model.to_proto()
    again = converted(half, worker, ToFloat16(full=True))
    assert again.report.steps[0].status == "nothing to do"
    assert skipped(again) == {"graph": "no float32 constant in it has 64 elements or more"}


def test_names_of_an_earlier_conversion_are_no_obstacle(worker) -> None:
    before = text(
        """g (float[n, 64] x) => (float[n, 32] y) {
            [graph_input_cast0] graph_input_cast_0 = Cast<to = 10>(x)
            graph_output_cast_0 = MatMul(graph_input_cast_0, w)
            [graph_output_cast0] a = Cast<to = 1>(graph_output_cast_0)
            y = MatMul(a, v)
        }""",
        w=weight(1, 64, 64).astype(np.float16), v=weight(2, 64, 32),
    )  # fmt: skip
    result = converted(before, worker, ToFloat16(full=True))
    assert result.report.steps[0].status == "done"
    after = result.model.to_proto()
    assert {array.dtype for array in stored(after).values()} == {np.dtype(np.float16)}
    feed = rows(3, 64)[0]
    wanted = feed["x"] @ stored(before)["w"].astype(np.float32) @ stored(before)["v"]
    np.testing.assert_allclose(answers(after, feed)[0], wanted, atol=2e-3 * np.abs(wanted).max())


def test_quantized_parts_keep_their_scales(worker) -> None:
    proto = text(
        """g (float[n, 64] x) => (float[n, 32] y) {
            w = DequantizeLinear(q, s, z)  h = MatMul(x, w)  y = MatMul(h, v)
        }""",
        q=np.arange(-64, 64, dtype=np.int8).repeat(16).reshape(64, 32), s=np.float32(0.01),
        z=np.int8(0), v=weight(3, 32, 32),
    )  # fmt: skip
    result = converted(proto, worker, ToFloat16(full=True))
    assert result.report.steps[0].status == "done"
    types = {name: array.dtype for name, array in stored(result.model.to_proto()).items()}
    assert (types["s"], types["v"]) == (np.float32, np.float16)
