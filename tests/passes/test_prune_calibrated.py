"""prune-wanda and prune-sparsegpt: the weights that matter least go, and the others make up."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import ONE_BY_ONE, Case, homes, normal, operators, parsed
from weight_passes import EVERY, check, check_against_numpy

from onnxshrink.contract import Settings
from onnxshrink.errors import InputsMissing, RecipeError
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels import masks
from onnxshrink.kernels.moments import damped, loss
from onnxshrink.passes._pruning import Pruning
from onnxshrink.passes.prune_magnitude import PruneMagnitude
from onnxshrink.passes.prune_sparsegpt import PruneSparsegpt
from onnxshrink.passes.prune_wanda import PruneWanda
from onnxshrink.pipeline import Result, run
from onnxshrink.report import Step
from onnxshrink.runtime.session import open_session
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

BOTH = pytest.mark.parametrize("kind", [PruneWanda, PruneSparsegpt])
#: What is not a product of plain rows, so that there is no second moment of its inputs.
UNOBSERVED = (*ONE_BY_ONE, "DeformConv", "EmbedLayer", "Gather", "Squeeze on the way")
Feeds = list[dict[str, np.ndarray]]


def pruned(model: onnx.ModelProto, step: Pruning, feeds: Feeds, worker: Worker) -> Result:
    return run([step], Model.from_proto(model), Settings(check="off", feeds=feeds), worker)


def only(result: Result) -> Step:
    (step,) = result.report.steps
    return step


def arrays(model: Model) -> dict[str, np.ndarray]:
    return {view.name: view.array() for view in weights.find(model)}


def product(op: str, *shape: int) -> tuple[onnx.ModelProto, Feeds]:
    """A model of one weight, and correlated inputs for it."""
    rng = np.random.default_rng(0)
    if op == "Conv":
        text = f"g (float[n, {shape[1]}, 9, 9] x) => (float y) {{ y = Conv(x, W) }}"
        loud = np.arange(1, shape[1] + 1)[:, None, None]
        feeds = [loud * rng.standard_normal((2, shape[1], 9, 9)).cumsum(2) for _ in range(4)]
    else:
        text = f"g (float[n, {shape[0]}] x) => (float y) {{ y = MatMul(x, W) }}"
        mix = rng.standard_normal((shape[0], shape[0])) ** 3
        feeds = [rng.standard_normal((80, shape[0])) @ mix for _ in range(4)]
    return parsed(text, W=normal(*shape)), [{"x": x.astype(np.float32)} for x in feeds]


def second_moment(feeds: Feeds) -> np.ndarray:
    rows = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    return rows.T @ rows / len(rows)


# ---------------------------------------------------------------------------- every operator


@BOTH
@pytest.mark.parametrize("case", operators() + homes(), ids=str)
def test_the_runtime_computes_with_what_is_left(
    kind: type[Pruning], case: Case, worker: Worker, tmp_path: Path
) -> None:
    step = kind(weights=EVERY, ratio=0.5, allocate="uniform")  # type: ignore[call-arg]
    result = pruned(case.model, step, [case.feed], worker)
    row = only(result)
    if case.name.startswith(UNOBSERVED):
        assert row.status == "nothing to do"
        reasons = {skip.what: skip.reason for skip in row.skips}
        for name in case.weights:
            assert reasons[name].startswith(("its inputs cannot be observed", "is not summed"))
        return
    before, after = arrays(Model.from_proto(case.model)), arrays(result.model)
    changes = [change for change in row.changes if change.kind != "model"]
    changed = {change.what: after[change.what] for change in changes}
    result.model.save(tmp_path / "after.onnx")
    check(case, changed, worker, tmp_path, 2e-6)
    check_against_numpy(case, changed, worker, tmp_path, 3e-6)
    for view in weights.find(result.model):
        if view.name in changed:
            width = view.matrix.shape[1]
            assert ((view.matrix == 0).sum(1) == round(0.5 * width)).all()
    for change in changes:
        lost = np.linalg.norm(before[change.what].astype(float) - after[change.what].astype(float))
        whole = np.linalg.norm(before[change.what].astype(float))
        assert change.error["relative_error"] == pytest.approx(lost / whole, rel=1e-5)
        assert 0 <= change.error["output_error"] < 1


# ------------------------------------------------------------------- the right ones, and how


def test_wanda_keeps_the_largest_products(worker: Worker) -> None:
    model, feeds = product("MatMul", 64, 20)
    weight = normal(64, 20).T
    scores = np.abs(weight) * np.sqrt(np.diagonal(second_moment(feeds)))
    for options, mask in (
        ({}, masks.by_row(scores, 0.25)),
        ({"scope": "weight"}, masks.by_ratio(scores, 0.25)),
        ({"pattern": "2:4"}, masks.n_of_m(scores, 2, 4)),
        ({"block": "4x2", "scope": "weight"},
         masks.spread(masks.by_ratio(masks.blocks(scores, (4, 2)), 0.25), (4, 2), (20, 64))),
    ):  # fmt: skip
        step = PruneWanda(ratio=0.25, **options)  # type: ignore[arg-type]
        found = arrays(pruned(model, step, feeds, worker).model)["W"].T
        np.testing.assert_array_equal(found, weight * mask)


def test_sparsegpt_solves_for_what_is_left(worker: Worker) -> None:
    """Each output is the least squares solution on its own inputs, which numpy finds too."""
    model, feeds = product("MatMul", 24, 12)
    weight, h = normal(24, 12).T, damped(second_moment(feeds), 0.1)
    result = pruned(model, PruneSparsegpt(damping=0.1), feeds, worker)
    for row, new in zip(weight, arrays(result.model)["W"].T, strict=True):
        kept = new != 0
        assert kept.sum() == 12
        best = np.zeros(24)
        best[kept] = np.linalg.solve(h[np.ix_(kept, kept)], h[kept] @ row)
        error, least = row - new, row - best
        assert error @ h @ error <= 1.001 * (least @ h @ least)
    (change,) = only(result).changes
    exact = second_moment(feeds)
    error = weight - arrays(result.model)["W"].T
    lost = loss(error, exact) / loss(weight, exact)
    assert change.error["output_error"] == pytest.approx(lost**0.5, rel=1e-4)


@pytest.mark.parametrize(("op", "shape"), [("MatMul", (64, 30)), ("Conv", (16, 8, 3, 3))])
def test_closer_than_wanda_than_magnitude(op: str, shape: tuple[int, ...], worker: Worker) -> None:
    model, feeds = product(op, *shape)
    errors = {}
    x = feeds[1]["x"]
    exact = open_session(model.SerializeToString()).run(None, {"x": x})[0]
    for step in (PruneMagnitude(scope="row"), PruneWanda(), PruneSparsegpt()):
        proto = pruned(model, step, feeds, worker).model.to_proto()
        found = open_session(proto.SerializeToString()).run(None, {"x": x})[0]
        errors[step.name] = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert errors["prune-sparsegpt"] < 0.7 * errors["prune-wanda"]
    assert errors["prune-wanda"] < errors["prune-magnitude"]


@BOTH
def test_patterns_lie_along_the_input_channels(kind: type[Pruning], worker: Worker) -> None:
    model, feeds = product("MatMul", 64, 40)
    result = pruned(model, kind(pattern="2:4"), feeds, worker)
    matrix = arrays(result.model)["W"]
    assert ((matrix.T.reshape(40, 16, 4) != 0).sum(-1) == 2).all()
    (tensor,) = result.model.to_proto().graph.initializer
    assert [(e.key, e.value) for e in tensor.metadata_props] == [("onnxshrink.sparsity", "2:4")]
    model, feeds = product("Conv", 16, 8, 3, 3)
    kernel = arrays(pruned(model, kind(pattern="1:8"), feeds, worker).model)["W"]
    assert ((kernel != 0).sum(1) == 1).all()


@BOTH
def test_sparse_storage(kind: type[Pruning], worker: Worker) -> None:
    model, feeds = product("MatMul", 128, 96)
    dense = pruned(model, kind(ratio=0.8), feeds, worker)
    sparse = pruned(model, kind(ratio=0.8, store="sparse"), feeds, worker)
    assert only(sparse).changes[0].note == "79.7% zeros, sparse; smaller on disk, dense once loaded"
    assert sparse.report.bytes_after < 0.4 * dense.report.bytes_after
    answers = [
        open_session(result.model.to_proto().SerializeToString()).run(None, feeds[0])[0]
        for result in (dense, sparse)
    ]
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-5, atol=1e-3)


# ------------------------------------------------------------------------------- quantization


@pytest.mark.parametrize("op", ["MatMul", "Conv"])
@pytest.mark.parametrize(("quantize", "block"), [("int8", 0), ("int4", 0), ("int4", 8)])
def test_joint_quantization(op: str, quantize: Any, block: int, worker: Worker) -> None:
    """Zeros stay, the rest is on a grid, and closer than when it is rounded without feedback."""
    model, feeds = product(op, *((64, 40) if op == "MatMul" else (32, 16, 3, 3)))
    floats = pruned(model, PruneSparsegpt(), feeds, worker)
    step = PruneSparsegpt(quantize=quantize, block_size=block)
    result = pruned(model, step, feeds, worker)
    (change,) = [c for c in only(result).changes if c.kind != "model"]
    assert change.note.startswith("50.0% zeros; " + quantize)
    assert change.note.endswith("gptq")
    assert {"sparsity", "relative_error", "output_error", "sqnr_db"} <= set(change.error)
    assert change.after < change.before / (2.5 if quantize == "int8" else 4)
    proto = result.model.to_proto()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("W", 1, None))
    options = open_session(proto.SerializeToString())
    _, rebuilt = options.run(None, feeds[0])
    exact = arrays(floats.model)["W"]
    assert (rebuilt[exact == 0] == 0).all()
    codes = [t for t in proto.graph.initializer if t.data_type in (3, 22)]
    assert [t.data_type for t in codes] == [3 if quantize == "int8" else 22]
    scale = np.abs(rebuilt - exact).max() / np.abs(exact).max()
    assert scale < (0.03 if quantize == "int8" else 0.5)


def test_quantization_by_layer(worker: Worker) -> None:
    text = "g (float[n, 64] x) => (float y) { h = MatMul(x, A)  y = MatMul(h, B) }"
    model = parsed(text, A=normal(64, 64), B=normal(64, 64, seed=1))
    feeds = product("MatMul", 64, 1)[1]
    step = PruneSparsegpt(quantize="int8", weights=Select(layers={"B": {"quantize": "none"}}))
    changes = {c.what: c for c in only(pruned(model, step, feeds, worker)).changes}
    assert "int8" in changes["A"].note
    assert changes["B"].note.endswith("smaller once packed")


# --------------------------------------------------------------------------------- allocation


def two_layers(scale: float) -> onnx.ModelProto:
    """Of the second layer, little reaches the output."""
    text = """g (float[n, 64] x) => (float y)
        { a = MatMul(x, A)  b = MatMul(x, B)  s = Mul(b, k)  y = Add(a, s) }"""
    return parsed(text, A=normal(64, 64), B=normal(64, 64, seed=1), k=np.float32([scale]))


@BOTH
def test_what_the_outputs_miss_least_goes_first(kind: type[Pruning], worker: Worker) -> None:
    feeds = product("MatMul", 64, 1)[1]
    zeros = {}
    for scale in (1.0, 0.1):
        model = two_layers(scale)
        found = arrays(pruned(model, kind(), feeds, worker).model)
        zeros[scale] = [float((found[name] == 0).mean()) for name in "AB"]
        assert sum(zeros[scale]) / 2 == pytest.approx(0.5, abs=0.02)
    assert zeros[1.0][0] == pytest.approx(zeros[1.0][1], abs=0.1)
    assert zeros[0.1][1] > zeros[0.1][0] + 0.15
    uniform = kind(allocate="uniform")  # type: ignore[call-arg]
    found = arrays(pruned(two_layers(0.1), uniform, feeds, worker).model)
    assert [(found[name] == 0).mean() for name in "AB"] == [0.5, 0.5]


def test_a_layer_that_saw_few_rows_is_not_taken_for_free(worker: Worker) -> None:
    """On the rows that it was fitted to, a layer with more inputs than those loses nothing."""
    rng = np.random.default_rng(0)
    text = """g (float[m, 64] x, float[n, 64] z) => (float y, float w) {
        y = MatMul(x, A) w = MatMul(z, B)
    }"""
    model = parsed(text, A=normal(64, 64), B=normal(64, 64))
    feeds = [
        {"x": rng.standard_normal((400, 64)), "z": rng.standard_normal((4, 64))} for _ in range(8)
    ]
    feeds = [{name: rows.astype(np.float32) for name, rows in feed.items()} for feed in feeds]
    found = arrays(pruned(model, PruneSparsegpt(), feeds, worker).model)
    shares = [(found[name] == 0).mean() for name in "AB"]
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert 0.4 < shares[1] < 0.55  # 0.69 if it is judged by the rows that it was fitted to


@BOTH
def test_a_share_of_its_own_takes_no_part(kind: type[Pruning], worker: Worker) -> None:
    feeds = product("MatMul", 64, 1)[1]
    step = kind(weights=Select(layers={"A": {"ratio": 0.125}}))
    found = arrays(pruned(two_layers(0.1), step, feeds, worker).model)
    assert [(found[name] == 0).mean() for name in "AB"] == [0.125, 0.5]


# ---------------------------------------------------------------------------------- bad input


@BOTH
def test_why_a_weight_is_left_alone(kind: type[Pruning], worker: Worker) -> None:
    def reason(model: onnx.ModelProto, feeds: Feeds, **options: Any) -> str:
        row = only(pruned(model, kind(**options), feeds, worker))
        assert row.status == "nothing to do"
        return row.skips[0].reason

    model, feeds = product("MatMul", 30, 40)
    assert reason(model, feeds, pattern="2:4") == "30 inputs cannot be taken 4 at a time"
    assert reason(model, feeds, ratio=0.0) == "has no more weights to remove (0.0% are zero)"
    spoiled = np.copy(normal(30, 40))
    spoiled[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(spoiled, "W"))
    assert reason(model, feeds) == "holds NaN or infinity"
    nans = [{"x": np.full((4, 30), np.nan, np.float32)}]
    unseen = "its inputs cannot be observed ({}); prune-magnitude does without"
    assert reason(model, nans) == unseen.format("no input reached it")
    gather = parsed("g (int64[n] x) => (float y) { y = Gather(W, x) }", W=normal(30, 40))
    ids = [{"x": np.arange(3)}]
    assert reason(gather, ids) == unseen.format("its rows are looked up")


@BOTH
def test_without_inputs_nothing_is_done(kind: type[Pruning], worker: Worker) -> None:
    model, feeds = product("MatMul", 30, 40)
    for settings in (Settings(), Settings(feeds=feeds, generated=True)):
        with pytest.raises(InputsMissing, match="needs real inputs: give --calibration DATA"):
            run([kind()], Model.from_proto(model), settings, worker)


@BOTH
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_dead_and_constant_inputs_and_too_few(
    kind: type[Pruning], value: float, worker: Worker
) -> None:
    model, _ = product("MatMul", 30, 40)
    constant = [{"x": np.full((1, 30), value, np.float32)}]
    result = pruned(model, kind(), constant, worker)
    found = arrays(result.model)["W"]
    assert np.isfinite(found).all()
    assert ((found == 0).sum(0) == 15).all()
    if kind is PruneSparsegpt:  # one row is easily met
        answers = constant[0]["x"] @ found, constant[0]["x"] @ normal(30, 40)
        assert np.abs(answers[0] - answers[1]).max() <= 0.5 * np.abs(answers[1]).max() + 1e-6


@BOTH
def test_everything_may_go(kind: type[Pruning], worker: Worker) -> None:
    model, feeds = product("MatMul", 30, 40)
    result = pruned(model, kind(ratio=1.0), feeds, worker)
    assert (arrays(result.model)["W"] == 0).all()


def test_weights_that_outgrow_their_type(worker: Worker) -> None:
    """Half precision near its end: what makes up for the others would be infinite."""
    text = "g (float16[n, 32] x) => (float16 y) { y = MatMul(x, W) }"
    model = parsed(text, W=np.full((32, 8), 6e4, np.float16))
    feeds = [{"x": np.full((4, 32), 1e-3, np.float16)}]
    row = only(pruned(model, PruneSparsegpt(damping=1e-6), feeds, worker))
    assert row.skips[0].reason == "its new weights would be too large for its type"


@BOTH
def test_empty_and_scalar_weights(kind: type[Pruning], worker: Worker) -> None:
    text = """g (float[n, 4] x) => (float y, float[n, 0] z)
        { a = Mul(x, k)  y = Relu(a)  z = MatMul(x, W) }"""
    model = parsed(text, k=np.float32(2), W=np.zeros((4, 0), np.float32))
    result = pruned(model, kind(weights=EVERY), [{"x": normal(3, 4)}], worker)
    assert only(result).status == "nothing to do"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pattern": "4:4"}, "4 of 4 removes nothing"),
        ({"block": "4x1", "pattern": "2:4"}, "use one of"),
        ({"ratio": 1.5}, "at most 1"),
        ({"steps": 0}, "at least 1"),
        ({"damping": 0.0}, "at least 1e-06"),
        ({"quantize": "int4", "store": "sparse"}, "for weights that stay floats"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        PruneSparsegpt(**options)
