"""share-codebook on real inputs: error feedback, weighed entries, bytes where outputs need them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import normal, parsed
from weight_passes import EVERY

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.options import build
from onnxshrink.passes.share_codebook import ShareCodebook
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.session import open_session
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

TEXTS = {
    "matmul": "g (float[n, 48] x) => (float[n, 40] y) { y = MatMul(x, W) }",
    "gemm": "g (float[n, 48] x) => (float[n, 40] y) { y = Gemm<transB = 1>(x, W) }",
    "conv": "g (float[n, 8, 9, 7] x) => (float[n, 12, p, q] y) { y = Conv(x, W) }",
    "groups": "g (float[n, 8, 9, 7] x) => (float[n, 48, p, q] y) { y = Conv<group = 2>(x, W) }",
}
SHAPES = {"matmul": (48, 40), "gemm": (40, 48), "conv": (12, 8, 3, 3), "groups": (48, 4, 3, 3)}


def problem(op: str) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """A product with correlated inputs, few enough that every row of them is seen."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((48, 48)) ** 3
    if op in ("conv", "groups"):
        feeds = [rng.standard_normal((4, 9, 7, 8)) @ mix[:8, :8] for _ in range(6)]
        feeds = [x.transpose(0, 3, 1, 2).cumsum(3) for x in feeds]
    else:
        feeds = [rng.standard_normal((50, 48)) @ mix for _ in range(6)]
    model = parsed(TEXTS[op], W=normal(*SHAPES[op], seed=2))
    return model, [{"x": x.astype(np.float32)} for x in feeds]


def apply(model: onnx.ModelProto, worker: Worker, feeds: Any, **options: Any) -> Result:
    options.setdefault("weights", EVERY)
    step = ShareCodebook(vectors=options.pop("vectors", "keep"), **options)
    return run([step], Model.from_proto(model), Settings(feeds=feeds, check="off"), worker)


def answers(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    session = open_session(model.SerializeToString())
    return np.concatenate([session.run(None, feed)[0] for feed in feeds]).astype(np.float64)


def measured(op: str, worker: Worker, **options: Any) -> tuple[float, Any]:
    """The error of the outputs on the inputs themselves, and the report's row."""
    model, feeds = problem(op)
    result = apply(model, worker, feeds, **options)
    (change,) = [row for row in result.report.steps[0].changes if row.what == "W"]
    exact, near = answers(model, feeds), answers(result.model.to_proto(), feeds)
    return float(np.linalg.norm(near - exact) / np.linalg.norm(exact)), change


@pytest.mark.parametrize("op", list(TEXTS))
@pytest.mark.parametrize(
    "options",
    [{"bits": 2}, {"bits": 3, "scale": "channel"}, {"entries": 6, "rows": 4}, {"method": "nf4"},
     {"method": "uniform", "bits": 3, "packing": "uint4"}],
    ids=["4 entries", "scaled", "tables for rows", "nf4", "uniform"],
)  # fmt: skip
def test_weights_make_up_for_each_others_errors(
    op: str, options: dict[str, Any], worker: Worker
) -> None:
    error, change = measured(op, worker, rounding="gptq", **options)
    assert change.error["output_error"] == pytest.approx(error, rel=2e-3)
    assert ", gptq;" in change.note
    nearest, plain = measured(op, worker, rounding="nearest", **options)
    assert ", gptq;" not in plain.note
    assert "output_error" not in plain.error
    assert error < 0.8 * nearest


def test_entries_lie_where_outputs_need_them(worker: Worker) -> None:
    for op in TEXTS:
        errors = {}
        for asked in ("false", "true"):
            step = {"bits": 2, "rounding": "nearest", "scale": "none", "importance": asked}
            errors[asked], _ = measured(op, worker, **step)
        assert errors["true"] < errors["false"]
    assert build(ShareCodebook, {"importance": True}, "yaml").importance == "true"
    assert not list(ShareCodebook(rounding="nearest").needs(Model.from_proto(problem("gemm")[0])))


def test_zeros_stay_zero_under_feedback(worker: Worker) -> None:
    _, feeds = problem("gemm")
    weight = normal(40, 48, seed=2)
    weight[:, ::3] = 0
    pruned = parsed(TEXTS["gemm"], W=weight)
    result = apply(pruned, worker, feeds, rounding="gptq", bits=2)
    rebuilt = answers(result.model.to_proto(), [{"x": np.eye(48, dtype=np.float32)}]).T
    np.testing.assert_array_equal(rebuilt[:, ::3], 0)
    assert len(np.unique(rebuilt)) <= 4


def test_no_inputs_or_none_but_zeros(worker: Worker) -> None:
    model, _ = problem("matmul")
    plain = apply(model, worker, [], rounding="nearest").model.digest()
    assert apply(model, worker, [], rounding="gptq").model.digest() == plain
    zeros = [{"x": np.zeros((3, 48), np.float32)}]
    answered = apply(model, worker, zeros, rounding="gptq").model.to_proto()
    assert np.isfinite(answers(answered, [{"x": normal(3, 48)}])).all()


# ---------------------------------------------------------------------------- shared out bytes


def test_bytes_go_where_outputs_lose_least(worker: Worker) -> None:
    text = "g (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, A) y = MatMul(h, B) }"
    few = np.random.default_rng(0).choice([-1.0, 0.5, 2.0], (64, 64)).astype(np.float32)
    model = parsed(text, A=few, B=normal(64, 64))
    feeds = [{"x": normal(40, 64)}]
    for bits in (3.5, 6.5):
        result = apply(model, worker, feeds, method="adaptive", mean_bits=bits, scale="none")
        changes = {change.what: change for change in result.report.steps[0].changes}
        assert changes["A"].note.startswith("3 entries")
        assert changes["A"].error["sqnr_db"] == np.inf
        taken = sum(change.after for change in changes.values())
        # What bytes of 3 and of 16 entries stand for is there once, beside all weights.
        assert taken <= bits / 8 * 2 * 64 * 64 + 243 * 5 + 256 * 2
    entries = int(changes["B"].note.split()[0])
    assert entries > 240  # all that the three values leave


def test_small_weights_are_narrowed_instead(worker: Worker) -> None:
    text = """g (float[n, 16, 8, 8] x) => (y)
        { h = Conv<pads = [1, 1, 1, 1], group = 16>(x, A) y = Conv(h, B) }"""
    model = parsed(text, A=normal(16, 1, 3, 3), B=normal(64, 16, 3, 3))
    for options in ({}, {"method": "adaptive", "mean_bits": 6.0}):
        result = apply(model, worker, [], vectors="float16", **options)
        changes = {change.what: change for change in result.report.steps[0].changes}
        assert changes["A"].note == "float16, folded at load"
        assert "entries" in changes["B"].note
    kept = apply(model, worker, [], vectors="keep").report.steps[0]
    assert all("entries" in change.note for change in kept.changes)


def test_biases_become_float16_beside_codebooks(worker: Worker, tmp_path: Path) -> None:
    text = "g (float[n, 48] x) => (float[n, 400] y) { y = Gemm(x, W, b) }"
    model = parsed(text, W=normal(48, 400), b=normal(400, seed=1))
    for options, narrowed in (({}, True), ({"method": "unique", "bits": 8}, False)):
        row = apply(model, worker, [], vectors="float16", **options).report.steps[0]
        assert any(change.what == "b" for change in row.changes) == narrowed


# ------------------------------------------------------------------------- rows of codes


def test_embeddings_stay_codes_in_memory(worker: Worker) -> None:
    text = "g (int64[n, m] x) => (float[n, m, 64] y) { y = Gather(W, x) }"
    table = normal(20_000, 64)
    model = parsed(text, W=table)
    feed = {"x": np.array([[0, 5, -1], [19_999, 7, 7]])}
    for form, share in (("auto", "memory"), ("gather", "memory"), ("fold", "folded at load")):
        result = apply(model, worker, [], form=form)
        (change,) = result.report.steps[0].changes
        assert share in change.note
        proto = result.model.to_proto()
        (kept,) = [t for t in proto.graph.initializer if len(t.raw_data) > 2**16]
        assert len(kept.raw_data) == 20_000 * 64 / 2
        rows = answers(proto, [feed])
        assert rows.shape == (2, 3, 64)
        assert len(np.unique(rows)) <= 16
        assert np.linalg.norm(rows - table[feed["x"]]) < 0.15 * np.linalg.norm(table[feed["x"]])
        # The next pass finds a weight that is compressed already.
        again = list(weights.find(result.model))
        assert all(view.why_not for view in again)
    odd = parsed("g (int64[n] x) => (y) { y = Gather(W, x) }", W=normal(300, 63))
    assert "folded" in apply(odd, worker, [], form="gather").report.steps[0].changes[0].note


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounding": "gptq", "width": 2}, "needs a table and 'width: 1'"),
        ({"rounding": "gptq", "method": "hash"}, "needs a table and 'width: 1'"),
        ({"mean_bits": 4}, "works with method 'adaptive' only"),
        ({"mean_bits": 9, "method": "adaptive"}, "at most 8"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        ShareCodebook(**options)


def test_overrides_ask_for_the_statistics() -> None:
    model = Model.from_proto(problem("gemm")[0])
    step = ShareCodebook(weights=Select(layers={"W": {"rounding": "gptq"}}))
    assert [need.value for need in step.needs(model)] == ["x"]
