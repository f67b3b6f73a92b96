"""split-lowrank on real inputs: the least error of the outputs, and integers for the rest."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.linalg
from weight_models import Case, normal, operators, parsed
from weight_passes import EVERY, check

from onnxshrink.contract import Settings
from onnxshrink.errors import DataError, RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import split
from onnxshrink.kernels import affine, lowrank
from onnxshrink.options import build
from onnxshrink.passes.split_lowrank import SplitLowrank
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.session import open_session
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

TEXTS = {
    "matmul": "g (float[n, 48] x) => (float[n, 40] y) { y = MatMul(x, W) }",
    "gemm": "g (float[n, 48] x) => (float[n, 40] y) { y = Gemm<transB = 1>(x, W) }",
    "conv": "g (float[n, 8, 9, 7] x) => (float[n, 12, p, q] y) { y = Conv(x, W) }",
}
SHAPES = {"matmul": (48, 40), "gemm": (40, 48), "conv": (12, 8, 3, 3)}


def problem(op: str) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """A product with correlated inputs, few enough that every row of them is seen."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((48, 48)) ** 3
    if op == "conv":
        feeds = [rng.standard_normal((4, 9, 7, 8)) @ mix[:8, :8] for _ in range(6)]
        feeds = [x.transpose(0, 3, 1, 2).cumsum(3) for x in feeds]
    else:
        feeds = [rng.standard_normal((50, 48)) @ mix for _ in range(6)]
    model = parsed(TEXTS[op], W=normal(*SHAPES[op], seed=2))
    return model, [{"x": x.astype(np.float32)} for x in feeds]


def apply(
    model: onnx.ModelProto, worker: Worker, feeds: Any, *, generated: bool = False, **options: Any
) -> Result:
    options.setdefault("weights", EVERY)
    settings = Settings(feeds=feeds, generated=generated, check="off")
    return run([SplitLowrank(**options)], Model.from_proto(model), settings, worker)


def answers(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    session = open_session(model.SerializeToString())
    return np.concatenate([session.run(None, feed)[0] for feed in feeds]).astype(np.float64)


def measured(op: str, worker: Worker, **options: Any) -> tuple[float, dict[str, float]]:
    """The error of the outputs on the inputs themselves, and the reported figures."""
    model, feeds = problem(op)
    result = apply(model, worker, feeds, **options)
    (change,) = [row for row in result.report.steps[0].changes if row.what == "W"]
    exact, near = answers(model, feeds), answers(result.model.to_proto(), feeds)
    return float(np.linalg.norm(near - exact) / np.linalg.norm(exact)), dict(change.error)


@pytest.mark.parametrize("op", ["matmul", "gemm"])
def test_the_outputs_have_the_least_error(op: str, worker: Worker) -> None:
    _, feeds = problem(op)
    x = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    weight = normal(*SHAPES[op], seed=2).astype(np.float64)
    exact = x @ (weight if op == "matmul" else weight.T)
    values = scipy.linalg.svdvals(exact)
    for rank in (3, 10):
        best = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
        error, reported = measured(op, worker, rank=rank)
        assert reported["output_error"] == pytest.approx(error, rel=1e-3)
        # What it is damped by is all that it may lose.
        assert best - 1e-6 <= error <= 1.1 * best
        plain, said = measured(op, worker, rank=rank, whiten="false")
        assert "output_error" not in said
        assert error < 0.9 * plain
        assert reported["relative_error"] > said["relative_error"]


@pytest.mark.parametrize("way", ["channel", "spatial"])
def test_convolutions_too(way: str, worker: Worker) -> None:
    error, reported = measured("conv", worker, rank=7, split=way)
    assert reported["output_error"] == pytest.approx(error, rel=1e-3)
    plain, _ = measured("conv", worker, rank=7, split=way, whiten="false")
    assert error < 0.8 * plain


def test_when_it_is_whitened(worker: Worker) -> None:
    model, feeds = problem("matmul")
    plain = apply(model, worker, feeds, rank=5, whiten="false").model.digest()
    assert apply(model, worker, feeds, rank=5, generated=True).model.digest() == plain
    assert apply(model, worker, [], rank=5).model.digest() == plain
    whitened = apply(model, worker, feeds, rank=5).model.digest()
    assert whitened != plain
    asked = {"rank": 5, "whiten": "true"}
    assert apply(model, worker, feeds, generated=True, **asked).model.digest() == whitened
    with pytest.raises(DataError, match="give --calibration"):
        SplitLowrank(whiten="true").apply(Model.from_proto(model), _context())
    # YAML reads the words as what they mean.
    assert build(SplitLowrank, {"whiten": True}, "yaml").whiten == "true"
    layers = {"W": {"whiten": True}}
    some = Select(min_size=0, layers=layers)
    result = apply(model, worker, feeds, rank=5, whiten="false", weights=some)
    assert result.model.digest() == whitened


def _context() -> Any:
    from onnxshrink.pipeline import Context
    from onnxshrink.report import Step

    return Context(Step("split-lowrank", {}))


@pytest.mark.parametrize("rows", [1, 3])
def test_few_inputs_or_none_but_zeros(rows: int, worker: Worker) -> None:
    model, _ = problem("matmul")
    zeros = [{"x": np.zeros((rows, 48), np.float32)}]
    plain = apply(model, worker, zeros, rank=5, whiten="false").model.digest()
    result = apply(model, worker, zeros, rank=5)
    assert result.model.digest() == plain
    assert result.report.steps[0].changes[0].error["output_error"] == 0
    few = [{"x": normal(rows, 48)}]
    result = apply(model, worker, few, rank=5)
    error = result.report.steps[0].changes[0].error
    assert error["output_error"] < 0.1 * error["relative_error"]


# ------------------------------------------------------------------------ shared out ranks


def pair(first: np.ndarray, second: np.ndarray) -> onnx.ModelProto:
    text = "g (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, A) y = MatMul(h, B) }"
    return parsed(text, A=first, B=second)


def test_ranks_go_where_a_byte_helps_most(worker: Worker) -> None:
    low = normal(64, 4) @ normal(4, 64) + normal(64, 64, seed=5) * 0.01
    result = apply(pair(low, normal(64, 64)), worker, [], ratio=0.6, ranks="together")
    (change,) = result.report.steps[0].changes
    # What B leaves of the bytes is enough for more than the four.
    assert (change.what, change.note.split(",")[0]) == ("A", "rank 6 of 64")
    (skip,) = result.report.steps[0].skips
    assert skip.what == "B"
    assert skip.reason == "keeps its rank: other weights lose less for their bytes"
    spoiled = normal(64, 64)
    spoiled[3, 3] = np.nan
    row = apply(pair(low, spoiled), worker, [], ratio=0.6, ranks="together").report.steps[0]
    assert [change.what for change in row.changes] == ["A"]
    assert [skip.reason for skip in row.skips] == ["holds NaN or infinity"]
    # Two alike get the same, as when each is asked by itself.
    alike = pair(normal(64, 64), normal(64, 64))
    for ranks in ("each", "together"):
        row = apply(alike, worker, [], ratio=0.5, ranks=ranks).report.steps[0]
        ratio = sum(c.after for c in row.changes) / sum(c.before for c in row.changes)
        assert 0.47 < ratio < 0.52
        assert {c.note.split()[1] for c in row.changes} <= {"15", "16"}


@pytest.mark.parametrize(
    "options", [{}, {"ratio": 0.5, "rank": 3}, {"ratio": 0.5, "residual": "int8"}]
)
def test_what_ranks_need(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="needs 'ratio', and goes with no"):
        SplitLowrank(ranks="together", **options)


# ------------------------------------------------------------------------ an integer residual


@pytest.fixture
def rebuilt(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The weights that are stored as factors and integers from now on, by name."""
    kept: dict[str, np.ndarray] = {}
    write = split.with_residual

    def spy(model: Any, view: Any, left: Any, right: Any, stored: affine.Quantized) -> int:
        product = left.astype(np.float64) @ right.astype(np.float64)
        kept[view.name] = view.from_matrix(product) + affine.dequantize(stored)
        for side in (left, right):
            np.testing.assert_array_equal(side, side.astype(np.float16).astype(np.float32))
        return write(model, view, left, right, stored)

    monkeypatch.setattr(split, "with_residual", spy)
    return kept


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize(
    "case",
    [case for case in operators() if case.name in (
        "MatMul right", "MatMul left", "Gemm", "Gemm transB", "Conv 1-D", "Conv 2-D",
        "ConvTranspose", "Gather axis 0 (40, 32)", "Gather axis 0 (300, 8)",
    )],
    ids=str,
)  # fmt: skip
def test_the_runtime_sums_factors_and_integers_up(
    case: Case, dtype: str, rebuilt: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    result = apply(case.model, worker, [], residual=dtype, rank=2)
    (step,) = result.report.steps
    result.model.save(tmp_path / "after.onnx")
    if not rebuilt:
        assert any("would not be smaller at rank 2" in skip.reason for skip in step.skips)
        return
    check(case, rebuilt, worker, tmp_path, tolerance=2e-6)
    size = (tmp_path / "after.onnx").stat().st_size
    saved = sum(change.before - change.after for change in step.changes)
    assert abs((step.bytes_before - size) - saved) <= 250 * len(rebuilt)


@pytest.mark.parametrize("op", list(TEXTS))
def test_factors_make_integers_better(op: str, worker: Worker) -> None:
    errors = {}
    for rank in (1, 4, 8):
        error, reported = measured(op, worker, residual="int4", rank=rank)
        assert reported["output_error"] == pytest.approx(error, rel=0.02)
        errors[rank] = error
    assert errors[8] < errors[4] < errors[1]
    # Feedback and factors that know the inputs, against those that do not.
    assert errors[4] < 0.7 * measured(op, worker, residual="int4", rank=4, whiten="false")[0]


@pytest.mark.parametrize(
    ("options", "rank"),
    [({}, 1), ({"rank": 99}, 40), ({"ratio": 0.1}, 4), ({"ratio": 0.0}, 1), ({"energy": 1.0}, 40),
     ({"error": 1.0}, 1)],
)  # fmt: skip
def test_the_rank_next_to_integers(options: dict[str, Any], rank: int, worker: Worker) -> None:
    model, feeds = problem("gemm")
    (step,) = apply(model, worker, feeds, residual="int8", **options).report.steps
    if rank == 40:
        assert step.skips[0].reason == "would not be smaller at rank 40 with the rest as int8"
    else:
        assert step.changes[-1].note.startswith(f"rank {rank} of 40 and int8")


def test_weights_that_are_not_rebuilt_from_factors(worker: Worker) -> None:
    large = parsed(TEXTS["gemm"], W=np.full(SHAPES["gemm"], 1e12, np.float32))
    (step,) = apply(large, worker, [], residual="int8").report.steps
    assert step.skips[0].reason == "its factors are too large for float16"
    (grouped,) = (case for case in operators() if case.name == "ConvTranspose grouped")
    half = parsed("g (float16[n, 9] x) => (y) { y = MatMul(x, W) }", W=normal(9, 9).astype("f2"))
    between = parsed("g (float[5, 6, 9] x) => (y) { y = MatMul(x, W) }", W=normal(5, 9, 7))
    for model, reason in (
        (grouped.model, "is no matrix"),
        (half, "is float16, and only float32 weights are rebuilt from factors"),
        (between, "has its inputs between its output channels"),
    ):
        (step,) = apply(model, worker, [], residual="int8").report.steps
        assert step.status == "nothing to do"
        assert reason in [skip.reason for skip in step.skips]
    zeros = parsed(TEXTS["gemm"], W=np.zeros(SHAPES["gemm"], np.float32))
    result = apply(zeros, worker, problem("gemm")[1], residual="int4")
    answer = answers(result.model.to_proto(), [{"x": normal(3, 48)}])
    np.testing.assert_array_equal(answer, np.zeros((3, 40)))
    assert lowrank.decompose(np.zeros((3, 4)), np.eye(4)).error(1) == 0
