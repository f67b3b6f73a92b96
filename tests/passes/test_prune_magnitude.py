"""prune-magnitude: the right weights are zero, and ONNX Runtime computes with the others."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import shares
from weight_models import ONE_BY_ONE, Case, homes, normal, operators, parsed
from weight_passes import EVERY, apply, check, check_against_numpy

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.prune_magnitude import PruneMagnitude
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

VARIANTS: dict[str, dict[str, Any]] = {
    "model": {},
    "weight": {"scope": "weight", "ratio": 0.3},
    "row": {"scope": "row", "ratio": 0.75},
    "threshold": {"threshold": 0.5},
    "2:4": {"pattern": "2:4"},
    "block": {"block": "2x4", "scope": "weight"},
    "sparse": {"store": "sparse", "ratio": 0.8},
}


def arrays(model: Model) -> dict[str, np.ndarray]:
    return {view.name: view.array() for view in weights.find(model)}


def largest_kept(array: np.ndarray, pruned: np.ndarray) -> bool:
    """Whether what is gone is no larger than what is left, and what is left is unchanged."""
    kept = pruned != 0
    np.testing.assert_array_equal(pruned[kept], array[kept])
    return np.abs(array[~kept]).max(initial=0) <= np.abs(array[kept]).min(initial=np.inf)


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        pytest.param(case, variant, id=f"{case}-{variant}")
        for case in operators() + homes()
        for variant in VARIANTS
        if variant == "model"
        or (variant == "sparse" and shares.chosen(f"{case}-{variant}", 3))
        or case.name in ("MatMul left", "Conv 2-D", "ConvTranspose grouped")
    ],
)
def test_the_runtime_computes_without_the_smallest(
    case: Case, variant: str, worker: Worker, tmp_path: Path
) -> None:
    step = PruneMagnitude(weights=EVERY, **VARIANTS[variant])
    result = apply(case.model, tmp_path, step)
    (row,) = result.report.steps
    if case.name in ONE_BY_ONE:
        assert "element by element" in row.skips[0].reason
        return
    before = arrays(Model.from_proto(case.model))
    options = {**VARIANTS[variant], "store": "dense"}
    dense = apply(case.model, tmp_path, PruneMagnitude(weights=EVERY, **options))
    pruned = {change.what: arrays(dense.model)[change.what] for change in row.changes}
    assert set(pruned) == set(case.weights)
    result.model.save(tmp_path / "after.onnx")
    check(case, pruned, worker, tmp_path)
    check_against_numpy(case, pruned, worker, tmp_path)
    for change in row.changes:
        values = pruned[change.what]
        zeros = float((values == 0).mean())
        assert change.error["sparsity"] == pytest.approx(zeros)
        lost = np.linalg.norm(before[change.what].astype(float) - values)
        whole = np.linalg.norm(before[change.what].astype(float))
        assert change.error["relative_error"] == pytest.approx(lost / whole, rel=1e-6)
        if variant in ("weight", "model", "threshold", "sparse"):
            assert largest_kept(before[change.what], values)
    size = (tmp_path / "after.onnx").stat().st_size
    assert row.bytes_after == size
    if VARIANTS[variant].get("store") != "sparse":
        assert size <= row.bytes_before + (60 * len(pruned) if variant == "2:4" else 0)


def shape_of(*shape: int) -> onnx.ModelProto:
    if len(shape) == 4:
        text = "g (float[n, %d, h, w] x) => (float y) { y = Conv(x, W) }" % shape[1]  # noqa: UP031
    else:
        text = f"g (float[n, {shape[0]}] x) => (float y) {{ y = MatMul(x, W) }}"
    return parsed(text, W=normal(*shape))


def values(result: Result) -> np.ndarray:
    return arrays(result.model)["W"]


def test_patterns_lie_along_the_input_channels(tmp_path: Path) -> None:
    product = values(apply(shape_of(64, 40), tmp_path, PruneMagnitude(pattern="2:4")))
    assert ((product.T.reshape(40, 16, 4) != 0).sum(-1) == 2).all()
    kernel = values(apply(shape_of(16, 8, 3, 3), tmp_path, PruneMagnitude(pattern="1:8")))
    assert ((kernel != 0).sum(1) == 1).all()


def test_a_pattern_is_noted_in_the_tensor(tmp_path: Path) -> None:
    apply(shape_of(64, 40), tmp_path, PruneMagnitude(pattern="4:8"))
    (tensor,) = onnx.load(tmp_path / "after.onnx").graph.initializer
    noted = {entry.key: entry.value for entry in tensor.metadata_props}
    assert noted == {"onnxshrink.sparsity": "4:8"}


def test_weights_in_constant_nodes_do_not_grow() -> None:
    """Their values have no value_info, and get none; their nodes have no name, and get none."""
    case = next(case for case in homes() if case.name == "Constant node")
    (weight,) = (node for node in case.model.graph.node if node.op_type == "Constant")
    weight.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(normal(64, 40)))  # as raw bytes
    model = Model.from_proto(case.model)
    for node in model.nodes:
        node.name = "a name that onnx_ir gave it"
    done = run([PruneMagnitude()], model, Settings(check="off"))
    assert done.report.steps[0].status == "done"
    assert done.model.nbytes() <= case.model.ByteSize()


def test_shares_of_rows_and_blocks(tmp_path: Path) -> None:
    rows = values(apply(shape_of(64, 40), tmp_path, PruneMagnitude(scope="row", ratio=0.25)))
    assert ((rows == 0).sum(0) == 16).all()
    step = PruneMagnitude(block="8x16", ratio=0.5, scope="weight")
    blocks = values(apply(shape_of(64, 40), tmp_path, step)).T.reshape(5, 8, 4, 16)
    empty = (blocks == 0).all((1, 3))
    assert (empty | (blocks != 0).all((1, 3))).all()
    assert empty.sum() == 10


def test_the_model_as_a_whole_spares_small_layers(tmp_path: Path) -> None:
    text = "g (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, A) y = MatMul(h, B) }"
    model = parsed(text, A=normal(64, 64), B=normal(64, 64, seed=1) / 1000)
    pruned = arrays(apply(model, tmp_path, PruneMagnitude(ratio=0.6)).model)
    zeros = {name: float((array == 0).mean()) for name, array in pruned.items()}
    assert sum(zeros.values()) / 2 == pytest.approx(0.6, abs=1e-3)
    assert zeros["A"] == pytest.approx(zeros["B"], abs=0.05)  # their size alone says nothing
    # One that has a share of its own does not take part.
    step = PruneMagnitude(ratio=0.6, weights=Select(layers={"A": {"ratio": 0.1}}))
    pruned = arrays(apply(model, tmp_path, step).model)
    assert [round(float((pruned[n] == 0).mean()), 3) for n in "AB"] == [0.1, 0.6]


def test_sparse_is_written_where_it_is_smaller(worker: Worker, tmp_path: Path) -> None:
    case = Case("sparse", shape_of(101, 77), ("W",), {"x": normal(3, 101)})
    plain = len(case.model.SerializeToString())
    sizes = {}
    for ratio in (0.5, 0.9, 0.995):
        step = PruneMagnitude(ratio=ratio, store="sparse")
        result = apply(case.model, tmp_path, step)
        sizes[ratio] = result.report.bytes_after
        kept = 101 * 77 - round(ratio * 101 * 77)
        assert sizes[ratio] <= 4 * kept + 101 * 77 / 8 + 3500  # the bits of every byte once
        dense = apply(case.model, tmp_path, PruneMagnitude(ratio=ratio))
        pruned = values(dense)
        result.model.save(tmp_path / "after.onnx")
        check(case, {"W": pruned}, worker, tmp_path)
    assert plain > sizes[0.5] > sizes[0.9] > sizes[0.995]
    nothing = run(
        [PruneMagnitude(ratio=0.0, store="sparse")], Model.from_proto(case.model),
        Settings(check="off"),
    )  # fmt: skip
    assert nothing.report.steps[0].status == "nothing to do"


def reason(model: onnx.ModelProto, **options: Any) -> str:
    done = run([PruneMagnitude(**options)], Model.from_proto(model), Settings(check="off"))
    (step,) = done.report.steps
    assert step.status == "nothing to do"
    return step.skips[0].reason


def test_why_a_weight_is_left_alone() -> None:
    assert reason(shape_of(30, 40), pattern="2:4") == "30 inputs cannot be taken 4 at a time"
    assert reason(shape_of(30, 40), ratio=0.0) == "has no more weights to remove (0.0% are zero)"
    spoiled = shape_of(30, 40)
    array = normal(30, 40)
    array[0, 0] = np.inf
    spoiled.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "W"))
    for options in ({}, {"scope": "row"}, {"threshold": 1.0}):
        assert reason(spoiled, **options) == "holds NaN or infinity"


def test_everything_may_go(worker: Worker, tmp_path: Path) -> None:
    case = Case("all", shape_of(30, 40), ("W",), {"x": normal(3, 30)})
    for scope in ("model", "weight", "row"):
        apply(case.model, tmp_path, PruneMagnitude(ratio=1.0, scope=scope))  # type: ignore[arg-type]
        check(case, {"W": np.zeros((30, 40), np.float32)}, worker, tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratio": 1.5}, "at most 1"),
        ({"ratio": -0.1}, "at least 0"),
        ({"pattern": "2/4"}, "'pattern' takes two numbers such as 2:4, not '2/4'"),
        ({"pattern": "4:4"}, "4 of 4 removes nothing"),
        ({"pattern": "0:4"}, "takes two numbers"),
        ({"block": "4"}, "'block' takes two numbers such as 2x4"),
        ({"block": "4x1", "pattern": "2:4"}, "use one of"),
        ({"block": "4x1", "threshold": 0.0}, "use one of"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        PruneMagnitude(**options)
