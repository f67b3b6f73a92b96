"""split-lowrank: two operators answer what one does with the closest weight of that rank."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.linalg
from weight_models import Case, homes, normal, operators, parsed
from weight_passes import EVERY, apply, check

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.split_lowrank import SplitLowrank
from onnxshrink.pipeline import run
from onnxshrink.report import Change
from onnxshrink.runtime.worker import Worker

CONV = "g (float[2, 8, 13, 15] x) => (float y) { y = Conv<%s>(x, W, b) }"


def closest(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The nearest matrix of that rank, by scipy."""
    u, s, vt = scipy.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def split(model: onnx.ModelProto, folder: Path, **options: Any) -> Change:
    options.setdefault("weights", EVERY)
    result = apply(model, folder, SplitLowrank(**options))
    (step,) = result.report.steps
    assert step.status == "done", step.skips
    (change,) = step.changes
    return change


def nodes(folder: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(folder / "after.onnx").graph.node)


SPLIT = ("MatMul right", "MatMul left", "MatMul N-D activation", "Gemm", "Gemm transB", "Conv 1-D",
         "Conv 2-D", "Conv 3-D", "Gather axis 0 (40, 32)", "Gather axis 0 (300, 8)", "initializer",
         "Constant node", "Einsum right", "Einsum left", "FusedMatMul", "FusedGemm")  # fmt: skip


@pytest.mark.parametrize("case", operators() + homes(), ids=str)
@pytest.mark.parametrize("rank", [5])
def test_the_runtime_computes_with_the_closest_weight(
    case: Case, rank: int, worker: Worker, tmp_path: Path
) -> None:
    step = SplitLowrank(rank=rank, split="channel", force=True, weights=EVERY)
    result = apply(case.model, tmp_path, step)
    (row,) = result.report.steps
    views = {view.name: view for view in weights.find(Model.from_proto(case.model))}
    expected = {
        change.what: views[change.what].from_matrix(closest(views[change.what].matrix, rank))
        for change in row.changes
        if change.kind != "model"  # functions that were inlined
    }
    if case.formula is not None or case.name in SPLIT:  # an operator, or a home that all can leave
        assert bool(expected) == (case.name in SPLIT)
    if not expected:
        assert all(skip.reason for skip in row.skips)
        return
    check(case, expected, worker, tmp_path, tolerance=2e-6)
    for change in row.changes:
        if change.what not in expected:
            continue
        exact, near = views[change.what].array(), expected[change.what]
        error = np.linalg.norm(exact - near) / np.linalg.norm(exact)
        assert change.error["relative_error"] == pytest.approx(error, abs=2e-3)


@pytest.mark.parametrize(
    ("attributes", "kernel"),
    [
        ("strides = [2, 3], pads = [1, 2, 0, 1]", (3, 5)),
        ("dilations = [2, 1], pads = [2, 0, 2, 0]", (3, 2)),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', (3, 3)),
        ('auto_pad = "SAME_LOWER"', (2, 4)),
        ('auto_pad = "VALID"', (5, 3)),
        ("pads = [1, 1, 1, 1]", (3, 3)),
    ],
)
@pytest.mark.parametrize("way", ["channel", "spatial"])
def test_convolutions_keep_their_places_and_bias(
    way: str, attributes: str, kernel: tuple[int, int], worker: Worker, tmp_path: Path
) -> None:
    weight = normal(12, 8, *kernel)
    model = parsed(CONV % attributes, W=weight, b=normal(12, seed=3))
    model.graph.node[0].name = "conv"
    case = Case(way, model, ("W",), {"x": normal(2, 8, 13, 15, seed=1)})
    change = split(model, tmp_path, rank=7, split=way, force=True)
    assert f"by {way}" in change.note
    if way == "channel":
        expected = closest(weight.reshape(12, -1), 7).reshape(weight.shape)
    else:
        turned = weight.transpose(0, 3, 1, 2)
        near = closest(turned.reshape(12 * kernel[1], -1), 7)
        expected = near.reshape(turned.shape).transpose(0, 2, 3, 1)
    check(case, {"W": expected}, worker, tmp_path, tolerance=2e-6)
    first, second = nodes(tmp_path)
    assert second.name == "conv"
    assert list(second.output) == ["y"]
    assert list(second.input)[2:] == ["b"]
    assert len(first.input) == 2


def test_a_gemm_keeps_its_bias_and_factors(worker: Worker, tmp_path: Path) -> None:
    text = "g (float[3, 64] x) => (float[3, 40] y) { y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, W, b) }"  # noqa: E501
    weight = normal(40, 64)
    model = parsed(text, W=weight, b=normal(40, seed=2))
    case = Case("gemm", model, ("W",), {"x": normal(3, 64, seed=1)})
    split(model, tmp_path, rank=9)
    check(case, {"W": closest(weight, 9)}, worker, tmp_path, tolerance=2e-6)
    assert [node.op_type for node in nodes(tmp_path)] == ["MatMul", "Gemm"]


def product(weight: np.ndarray) -> onnx.ModelProto:
    rows, columns = weight.shape
    return parsed(
        f"g (float[n, {rows}] x) => (float[n, {columns}] y) {{ y = MatMul(x, W) }}", W=weight
    )


def spectrum(*values: float) -> np.ndarray:
    """A 64 x 64 matrix with these singular values."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((64, len(values))))[0] for _ in range(2))
    return ((u * values) @ v.T).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({"rank": 3}, 3),
        ({"ratio": 0.5}, 16),
        ({"ratio": 0.0}, 1),
        ({"energy": 0.9}, 2),  # 64 + 36 of 100 + 10 + 1
        ({"energy": 0.91}, 3),
        ({"error": 0.31}, 3),  # the square root of 11 / 111 is .3148
        ({"error": 0.32}, 2),
        ({}, 3),  # .1: the last has .095
        ({"rank": 2, "ratio": 0.5, "energy": 1.0, "error": 0.0}, 2),
    ],
)
def test_how_the_rank_is_chosen(options: dict[str, Any], rank: int, tmp_path: Path) -> None:
    weight = spectrum(8, 6, 10**0.5, 1)
    change = split(product(weight), tmp_path, **options)
    assert change.note.startswith(f"rank {rank} of 64, by product")
    assert f"{rank / 32:.2f} of the work" in change.note
    shapes = sorted(tuple(t.dims) for t in onnx.load(tmp_path / "after.onnx").graph.initializer)
    assert shapes == sorted([(64, rank), (rank, 64)])
    assert abs(change.after - 2 * 64 * rank * 4) < 200


def reason(model: onnx.ModelProto, **options: Any) -> str:
    step = SplitLowrank(weights=EVERY, **options)
    done = run([step], Model.from_proto(model), Settings(check="off"))
    (row,) = done.report.steps
    assert row.status == "nothing to do"
    return next(skip.reason for skip in row.skips if skip.what == "W")


def test_nothing_is_split_that_does_not_pay(tmp_path: Path) -> None:
    full = product(normal(64, 64))
    assert reason(full) == "would not be smaller at rank 50 of 64"
    assert "would not be smaller" in reason(full, ratio=1.0)
    assert reason(full, energy=1.0) == "would not be smaller at rank 64 of 64"
    assert split(full, tmp_path, energy=1.0, force=True).after > 64 * 64 * 4
    looked_up = parsed("g (int64[n] x) => (float y) { y = Gather(W, x) }", W=normal(400, 64))
    assert "more multiplications at rank 8" in reason(looked_up, rank=8)
    assert split(looked_up, tmp_path, rank=8, force=True).after < 400 * 64
    # Along a stride the first of two convolutions computes what the second does not use.
    strided = parsed(CONV % "strides = [1, 6]", W=normal(8, 8, 3, 3), b=normal(8))
    assert "more multiplications" in reason(strided, split="spatial", rank=7)


def test_why_a_weight_is_left_alone() -> None:
    twice = parsed(
        "g (float[n, 64] x) => (float y) { h = MatMul(x, W) y = MatMul(h, W) }", W=normal(64, 64)
    )
    assert reason(twice, rank=2) == "is used by several operators"
    turned = parsed(
        "g (float[n, 64] x) => (float y) { t = Transpose(W) y = MatMul(x, t) }", W=normal(64, 64)
    )
    assert reason(turned, rank=2) == "reaches its operator through other nodes"
    kernel = parsed(CONV % "pads = [0, 0, 0, 0]", W=normal(12, 8, 1, 1), b=normal(12))
    assert reason(kernel, rank=2, split="spatial") == "its kernel cannot be split by spatial"
    spoiled = normal(64, 64)
    spoiled[1, 1] = np.nan
    assert reason(product(spoiled), rank=2) == "holds NaN or infinity"


def test_weights_of_nothing_but_zeros(worker: Worker, tmp_path: Path) -> None:
    zeros = np.zeros((64, 64), np.float32)
    split(product(zeros), tmp_path)
    case = Case("zeros", product(zeros), ("W",), {"x": normal(3, 64)})
    check(case, {"W": zeros}, worker, tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rank": 0}, "at least 1"), ({"ratio": 1.1}, "at most 1"), ({"energy": -1}, "at least 0")],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        SplitLowrank(**options)
