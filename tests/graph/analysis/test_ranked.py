"""Models that rank or pick are compared at what enters there; all others at their outputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Run
from hard_models import text, weight

from onnxshrink.goal import Goal
from onnxshrink.graph.analysis.ranked import deciding, entering
from onnxshrink.graph.file.model import Model
from onnxshrink.pipeline import Settings, run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.worker import Worker
from onnxshrink.trials import answers

DETECTOR = """g (float[1, 60, 16] x) => (float[n, 4] kept, int64[n, 3] which) {
    hidden = MatMul(x, w)  active = Relu(hidden)
    moved = MatMul(active, boxes_w)  sized = Sigmoid(moved)  boxes = Add(sized, anchors)
    seen = MatMul(active, scores_w)  share = Sigmoid(seen)
    scores = Transpose <perm = [0, 2, 1]> (share)
    which = NonMaxSuppression(boxes, scores, most, overlap, least)
    number = Gather <axis = 1> (which, last)  rows = Squeeze(boxes, first)
    kept = Gather(rows, number)
}"""


def detector() -> onnx.ModelProto:
    corners = np.random.default_rng(3).random((60, 2)) * 20
    return text(
        DETECTOR, w=weight(1, 64, 16).T, boxes_w=weight(2, 4, 64).T, scores_w=weight(3, 2, 64).T,
        anchors=np.hstack([corners, corners + 2]).astype(np.float32), most=np.array([60]),
        overlap=np.array([0.4], np.float32), least=np.array([0.5], np.float32),
        last=np.array(2), first=np.array([0]),
    )  # fmt: skip


def _feeds(seed: int, count: int = 12) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 60, 16)).astype(np.float32)} for _ in range(count)]


def test_a_detector_is_compared_before_its_boxes_are_picked(worker: Worker) -> None:
    found = entering(Model.from_proto(detector()))
    assert found.outputs == {"kept", "which"}
    assert found.values == ("boxes", "scores", "rows")
    step = find_pass("quantize-weights")(dtype="int4", block_size=16)
    settings = Settings(feeds=_feeds(0))
    result = run((step,), Model.from_proto(detector()), settings, worker)
    (row,) = result.report.steps
    assert row.status == "done", row.reason
    names = [f"value {place} before the tail" for place in range(3)]
    assert list(row.outputs) == names
    # What is compared there is what numpy says of these values.
    models = (Model.from_proto(detector()), result.model)
    before, after = (answers(each, settings.feeds, worker) for each in models)
    for place, name in enumerate(names, 2):
        x, y = (np.stack([o[place] for o in each.outputs]) for each in (before, after))
        error = np.linalg.norm(y - x) / np.linalg.norm(x)
        assert row.outputs[name]["relative_error"] == pytest.approx(error, rel=1e-6)
    assert [a[0].shape for a in before.outputs] != [a[0].shape for a in after.outputs]
    # The signature is the model's own, and what users' metrics get are its outputs.
    assert [v.name for v in result.model.ir.graph.outputs] == ["kept", "which"]
    assert before.plain.names == ("kept", "which")
    assert all(len(outputs) == 2 for outputs in before.plain.outputs)


def test_what_is_computed_behind_a_choice_is_compared_as_ever() -> None:
    """Experts that are picked by their scores are no tail."""
    proto = text(
        """g (float[6, 16] x) => (float[6, 8] y) {
            scores = MatMul(x, w)  best, which = TopK(scores, k)
            picked = Softmax(best)  y = MatMul(picked, head)
        }""",
        w=weight(1, 5, 16).T, k=np.array([3]), head=weight(2, 8, 3).T,
    )  # fmt: skip
    assert not entering(Model.from_proto(proto)).outputs
    plain = text("g (float[6, 16] x) => (float[6, 5] y) { y = MatMul(x, w) }", w=weight(1, 5, 16).T)
    assert not entering(Model.from_proto(plain)).values


def test_a_value_can_be_named(cli: Run, tmp_path: Path) -> None:
    proto = text(
        """g (float[6, 16] x) => (float[6, 5] y) {
            scores = MatMul(x, w)  coarse = Round(scores)  y = Mul(coarse, large)
        }""",
        w=weight(1, 5, 16).T, large=np.array(100, np.float32),
    )  # fmt: skip
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    np.savez("x.npz", x=np.random.default_rng(0).standard_normal((12, 6, 16), np.float32))
    words = ["quantize-weights", "in.onnx", "out.onnx", "--calibration", "x.npz", "--json"]
    refused = cli(*words, "--max-error", "0.03")
    assert '"status": "rolled back"' in refused.out
    taken = cli(*words, "--max-error", "0.03", "--compare-at", "scores")
    assert '"status": "done"' in taken.out
    assert "value 0 before the tail" in taken.out
    wrong = cli(*words, "--compare-at", "score")
    assert wrong.code == 2
    assert "the model has no such value; did you mean 'scores'?" in wrong.err


def _picking() -> onnx.ModelProto:
    """The detector, with scores and classes beside the boxes that it picks."""
    proto = detector()
    nodes = [
        onnx.helper.make_node("GatherND", ["scores", "which"], ["certain"]),
        onnx.helper.make_node("Gather", ["which", "kind"], ["class"], axis=1),
    ]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "kind"))
    del proto.graph.output[1]
    proto.graph.output.extend([
        onnx.helper.make_tensor_value_info("certain", onnx.TensorProto.FLOAT, ["n"]),
        onnx.helper.make_tensor_value_info("class", onnx.TensorProto.INT64, ["n"]),
    ])  # fmt: skip
    return proto


def test_detections_are_held_to_being_found_again(worker: Worker, tmp_path: Path, cli: Run) -> None:
    feeds = _feeds(0, 24)
    before = answers(Model.from_proto(_picking()), feeds, worker)
    goal = Goal(min_agreement=0.97)
    kinds = goal.kinds(before)
    assert [kinds[name].kind for name in ("kept", "certain", "class")] == [
        "detections", "states", "states",
    ]  # fmt: skip
    asked = {name: limits for name, limits in goal.asked(before).items() if limits}
    assert asked == {"kept": {"matched": 0.97}}
    step = find_pass("quantize-weights")(dtype="int4", block_size=16)
    result = run((step,), Model.from_proto(_picking()), Settings(feeds=feeds), worker)
    after = answers(result.model, feeds, worker)
    again, total = before.matched(after) or (0, 0)
    assert 0 < again < total  # int4 loses some
    assert result.report.matched == (again, total)
    (promise,) = goal.promises(before, after)
    assert promise.estimate.figure == again / total
    assert promise.strain == pytest.approx((1 - again / total) / 0.03)
    onnx.save(_picking(), tmp_path / "a.onnx")
    result.model.save(tmp_path / "b.onnx")
    np.savez(tmp_path / "x.npz", x=np.stack([feed["x"] for feed in feeds]))
    paths = [str(tmp_path / name) for name in ("a.onnx", "b.onnx")]
    data = str(tmp_path / "x.npz")
    done = cli("compare", *paths, "--calibration", data, "--min-agreement", "0.999")
    share = again / total
    assert f"matched detections {100 * share:.1f} % ({again:,} of {total:,})" in done.out + done.err
    assert done.code == 1
    assert f"matched detections {share:.4g} is below 0.999" in done.err


@pytest.mark.parametrize("decision", ["Ceil", "Floor", "Round"])
def test_what_weights_work_on_may_hang_on_a_decision(decision: str) -> None:
    graph = f"""g (float[n, 8] x) => (float[n, 4] y, float[n, 8] z) {{
        long = MatMul(x, w)  frames = {decision}(long)  free = MatMul(x, u)
        both = Add(frames, free)  y = MatMul(both, v)  last = MatMul(x, t)  z = {decision}(last)
    }}"""
    weights = {name: weight(n, 8, 8) for n, name in enumerate("wut")}
    model = Model.from_proto(text(graph, v=weight(9, 4, 8).T, **weights))
    assert deciding(model) & {*"wuvt"} == {"w"}
    assert deciding(Model.from_proto(detector())) == frozenset()  # its tail multiplies with none


@pytest.mark.parametrize("form", ["cast-mul", "dq"])
def test_weights_that_are_stored_as_integers_are_weights(form: str, worker: Worker) -> None:
    """What lies behind a choice and multiplies with them is no tail: it has to be compared."""
    graph = """g (float[n, 64] x) => (float[n, 64] y) {
        a = MatMul(x, w)  k = Constant <value = int64[1] {8}> ()  b, i = TopK(a, k)
        y = MatMul(b, v)
    }"""
    model = Model.from_proto(text(graph, w=weight(1, 64, 64), v=weight(2, 64, 8).T.copy()))
    step = find_pass("quantize-weights")(form=form)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((4, 64)).astype(np.float32)} for _ in range(4)]
    result = run((step,), model, Settings(feeds=feeds), worker)
    assert result.report.steps[0].status == "done"
    for each in (model, result.model):
        assert entering(each).values == ()
        assert any(name.startswith("w") for name in deciding(each))
    assert answers(result.model, feeds, worker).names == ("y",)


def test_constants_of_a_tail_that_are_stored_as_integers_do_not_enter_it(worker: Worker) -> None:
    """Anchors are weights of their own: they are what they were, whatever they are made of."""
    graph = """g (float[1, 64, 16] x) => (float[1, 8, 16] y) {
        h = MatMul(x, w)  s = ReduceMax <axes = [2], keepdims = 0> (h)
        k = Constant <value = int64[1] {8}> ()  best, at = TopK <axis = 1> (s, k)
        last = Constant <value = int64[1] {2}> ()  places = Unsqueeze(at, last)
        moved = GatherND <batch_dims = 1> (h, places)
        y = Add(moved, anchors)
    }"""
    proto = text(graph, w=weight(1, 16, 16), anchors=weight(2, 8, 16)[None])
    model = Model.from_proto(proto)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 64, 16)).astype(np.float32)} for _ in range(4)]
    step = find_pass("quantize-weights")(max_error=9.0)
    result = run((step,), model, Settings(feeds=feeds), worker)
    assert {change.what for change in result.report.steps[0].changes} >= {"anchors"}
    assert entering(model).outputs == entering(result.model).outputs == {"y"}
    assert len(entering(model).values) == len(entering(result.model).values)
