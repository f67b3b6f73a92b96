"""Steps and recipes hold their results to what outputs are, on inputs that no step has seen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run
from hard_models import text

from onnxshrink import api
from onnxshrink.errors import BudgetMissed
from onnxshrink.goal import Goal
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.quantize_rd import QuantizeRd
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import Pass
from onnxshrink.recipe import Recipe
from onnxshrink.runtime.worker import Worker

pytestmark = pytest.mark.usefixtures("one_worker")
RNG = np.random.default_rng(0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    graph = "g (float[n, 64] x) => (float[n, 32] y) { y = MatMul(x, w) }"
    path = tmp_path / "in.onnx"
    Model.from_proto(text(graph, w=RNG.standard_normal((64, 32)).astype(np.float32))).save(path)
    return path


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.standard_normal((8, 64)).astype(np.float32)} for _ in range(count)]


def apply(source: Path, step: Pass, data: Any, **more: Any) -> Any:
    out = source.parent / "out.onnx"
    return api.apply_recipe(Recipe((step,)), source, out, api.Options(calibration=data), **more)


@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
def test_what_strays_too_far_is_written_and_said(source: Path, rounding: Any) -> None:
    """A step that sees no inputs is judged by all, one that fits by those that were held back."""
    int8 = QuantizeWeights(rounding=rounding)
    rows = 8 * 8 if rounding == "rtn" else 8 * 8 // 4
    kept = apply(source, int8, feeds(8), goal=Goal())
    assert f" of 'y' on {rows} unseen " in kept.promises[0]
    assert not kept.missed
    coarse = QuantizeWeights(dtype="int2", rounding=rounding, max_error=9)
    (source.parent / "out.onnx").unlink()
    with pytest.raises(BudgetMissed, match="the goal was missed: likeness of 'y'"):
        apply(source, coarse, feeds(8), goal=Goal())
    assert (source.parent / "out.onnx").stat().st_size < source.stat().st_size
    assert apply(source, coarse, feeds(8)).missed == []


def test_the_command_line_has_a_budget_unless_it_is_lifted(
    cli: Run, source: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", x=np.concatenate([feed["x"] for feed in feeds(8)]))
    words = ("quantize-weights", source, "o.onnx", "--dtype", "int2", "--calibration", "data.npz")
    done = cli(*words)
    assert done.code == 1
    assert "the goal was missed" in done.err
    assert cli(*words, "--no-budget").code == 0
    assert cli(*words, "--max-error", "0.9").code == 0  # said by hand
    Path("r.yaml").write_text("version: 1\nsteps: [quantize-weights: {dtype: int2}]")
    assert cli("apply", "r.yaml", *words[1:3], *words[5:]).code == 1
    assert cli("apply", "r.yaml", *words[1:3], *words[5:], "--no-budget").code == 0
    done = cli("apply", "r.yaml", *words[1:3], *words[5:], "--no-budget", "--max-error", "1")
    assert done.code == 2
    assert "--no-budget: nothing is held to --max-error" in done.err
    done = cli("apply", "r.yaml", *words[1:3], "--target-ratio", "99")
    assert done.code == 1
    assert "is less than 99x" in done.err


def test_a_size_out_of_reach_is_a_miss_with_the_best_there_is(cli: Run, source: Path) -> None:
    np.savez("data.npz", x=np.concatenate([feed["x"] for feed in feeds(8)]))
    words = ("quantize-rd", source, "o.onnx", "--calibration", "data.npz", "--storage", "coded")
    done = cli(*words, "--target-ratio", "60")
    assert done.code == 1
    assert "--target-ratio 60: " in done.err
    assert Path("o.onnx").stat().st_size < source.stat().st_size / 2


def test_inputs_that_are_alike_are_one(source: Path) -> None:
    data = feeds(1) * 8
    with pytest.raises(BudgetMissed):  # one input promises nothing of int2
        apply(
            source, QuantizeWeights(dtype="int2", rounding="gptq", max_error=9), data, goal=Goal()
        )
    report = api.shrink(
        source, source.parent / "s.onnx", api.Options(calibration=data), time_limit=0
    )
    assert any("1 inputs are too few to hold any back" in line for line in report.warnings)


def test_a_metric_that_cannot_tell_does_not_judge(source: Path, worker: Worker) -> None:
    out, data = source.parent / "out.onnx", feeds(8)

    def constant(outputs: Any) -> float:
        return 1.0

    goal = Goal(metric=constant, max_drop=0.0)
    report = api.shrink(source, out, api.Options(calibration=data), goal=goal, time_limit=0)
    assert any("it cannot tell right from wrong" in line for line in report.warnings)
    assert list(report.measures) == ["y"]


def test_a_step_that_chose_to_spend_too_much_spends_less(source: Path) -> None:
    """Every fourth input is held back: here these lie where the others hardly are."""
    data = [
        {"x": feed["x"] * np.where(np.arange(64) < 32, 1, 4 if number % 4 == 3 else 0.2)}
        for number, feed in enumerate(feeds(32))
    ]
    data = [{"x": feed["x"].astype(np.float32)} for feed in data]
    kept = apply(source, QuantizeRd(), data, goal=Goal())
    spend = kept.steps[0].options["lam"]
    assert not kept.missed
    assert spend is not None
    (source.parent / "out.onnx").unlink()
    with pytest.raises(BudgetMissed, match="is not promised"):  # who says what, gets that
        apply(source, QuantizeRd(lam=spend * 8), data, goal=Goal())


@pytest.mark.parametrize("decides", [True, False])
def test_what_rare_inputs_may_decide_otherwise_is_said(tmp_path: Path, decides: bool) -> None:
    rounded = "Ceil(h)" if decides else "Relu(h)"
    graph = f"""g (float[n, 64] x) => (float[n, 32] y) {{
        h = MatMul(x, w)  r = {rounded}  y = MatMul(r, v)
    }}"""
    w, v = (RNG.standard_normal(shape).astype(np.float32) for shape in ((64, 64), (64, 32)))
    Model.from_proto(text(graph, w=w, v=v)).save(tmp_path / "in.onnx")
    report = apply(tmp_path / "in.onnx", QuantizeWeights(), feeds(8), goal=Goal(max_error=0.5))
    assert any("rounds or picks" in line for line in report.warnings) == decides
