"""The search holds inputs back, steps back when they refuse, and keeps the best when it ends."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hard_models import text

from onnxshrink import api
from onnxshrink.errors import RecipeError
from onnxshrink.goal import Goal, Promise
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.fidelity import Estimate
from onnxshrink.kernels.split import hold_back
from onnxshrink.search.smallest import Search


def model_of(largest: int) -> Model:
    """A product with whole numbers."""
    weight = np.random.default_rng(1).integers(-largest, largest + 1, (64, 64))
    graph = "g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }"
    return Model.from_proto(text(graph, w=weight.astype(np.float32)))


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [{"x": rng.standard_normal((16, 64)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize(("count", "most"), [(1, 64), (3, 64), (4, 64), (64, 64), (128, 64)])
def test_inputs_are_held_back(count: int, most: int) -> None:
    seen, unseen = hold_back(count, most)
    assert sorted(seen + unseen) == list(range(count))
    assert len(seen) <= most
    assert len(unseen) == (count - most if count > 85 else count // 4)


def test_a_look_that_refuses_makes_it_finer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    looks: list[int] = []
    model_of(1000).save(source)
    real = Goal.promises

    def refusing(goal: Goal, *asked: Any) -> list[Promise]:
        looks.append(asked[2])
        if len(looks) == 1:
            return [Promise("y", Estimate("error", 1.0, 1.0, 8), 0.05, 0.9)]
        return real(goal, *asked)

    monkeypatch.setattr(Goal, "promises", refusing)
    report = api.shrink(source, out, api.Options(calibration=feeds(8)))
    assert looks[:2] == [1, 1]  # the same path: one test
    refused, *_ = (one.recipe for one in report.tried if one.verdict == "not kept on unseen inputs")
    taken, *_ = (one.recipe for one in report.tried if one.taken)
    assert float(taken.split()[-1]) < float(refused.split()[-1])
    assert " unseen inputs or rows: " in report.promises[0]


def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(search: Search) -> Iterator[None]:
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "_explore", interrupted)
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    model_of(7).save(source)
    report = api.shrink(source, out, api.Options(calibration=feeds(4)))
    assert out.exists()
    assert any(line.startswith("interrupted: ") for line in report.warnings)


def test_what_few_inputs_cannot_promise_is_said(tmp_path: Path) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    model_of(7).save(source)
    for count in (1, 2, 3):
        report = api.shrink(source, out, api.Options(calibration=feeds(count)), time_limit=0)
        assert any("nothing is promised" in line for line in report.warnings)
        assert not report.promises


def test_an_output_that_is_not_there_is_told(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    model_of(7).save(source)
    options = api.Options(calibration=feeds(4))
    with pytest.raises(RecipeError, match="no such output"):
        api.shrink(source, tmp_path / "o.onnx", options, goal=Goal(measures={"z": "classes"}))
    with pytest.raises(RecipeError, match="takes one of"):
        Goal(measures={"y": "detections"})  # type: ignore[dict-item]
