"""Steps that are for speed are timed, and keep only what is faster where that is asked for."""

from pathlib import Path

import numpy as np
import pytest
from hard_models import text, weight

from onnxshrink.contract import Judge, Settings
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.quantize_dynamic import QuantizeDynamic
from onnxshrink.pipeline import run
from onnxshrink.runtime.bench import Ratio, ratio
from onnxshrink.runtime.worker import Worker

FEEDS = [{"x": weight(9, 16, 64)}] * 2


def parallel(count: int = 4) -> Model:
    """Products side by side."""
    lines = " ".join(f"p{i} = MatMul(x, w{i})" for i in range(count))
    names = ", ".join(f"p{i}" for i in range(count))
    body = f"g (float[n, 64] x) => (float[n, 64] y) {{ {lines}  y = Sum({names}) }}"
    return Model.from_proto(text(body, **{f"w{i}": weight(i, 64, 64) for i in range(count)}))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The weights whose integer kernels take twice the time; those of others take half of it."""
    names: set[str] = set()

    def cost(model: Model) -> float:
        floats = {view.name for view in weights.find(model) if view.uses}
        return sum(1 if n in floats else 2 if n in names else 0.5 for n in ("w0", "w1", "w2", "w3"))

    def told(self: Judge, before: Model, after: Model) -> Ratio:
        return Ratio(*[cost(after) / cost(before)] * 3)

    monkeypatch.setattr(Judge, "latency", told)
    return names


@pytest.mark.parametrize("names", [{"w1"}, {"w0", "w2", "w3"}, set()])
def test_what_is_not_faster_stays_float(names: set[str], slow: set[str], worker: Worker) -> None:
    slow.update(names)
    step = QuantizeDynamic(faster_only=True, vectors="keep")
    row = run([step], parallel(), Settings(feeds=FEEDS), worker).report.steps[0]
    assert row.status == "done"
    assert {change.what for change in row.changes} == {"w0", "w1", "w2", "w3"} - names
    assert {skip.what for skip in row.skips if "not faster" in skip.reason} == names
    assert row.latency is not None
    assert row.latency["ratio"] == (4 - 0.5 * (4 - len(names))) / 4
    assert len(row.warnings) == bool(names)


def test_what_is_faster_nowhere_is_rolled_back(slow: set[str], worker: Worker) -> None:
    slow.update({"w0", "w1", "w2", "w3"})
    step = QuantizeDynamic(faster_only=True)
    row = run([step], parallel(), Settings(feeds=FEEDS), worker).report.steps[0]
    assert (row.status, row.reason) == (
        "rolled back", "nothing that it does is faster on this machine",
    )  # fmt: skip


def test_a_result_that_is_not_faster_is_said_to_be_so(slow: set[str], worker: Worker) -> None:
    slow.update({"w0", "w1", "w2", "w3"})
    report = run([QuantizeDynamic()], parallel(), Settings(feeds=FEEDS), worker).report
    assert report.steps[0].status == "done"
    assert "not faster on this machine: 2.00 times the latency before" in report.warnings[-1]


def test_turns_tell_the_longer_from_the_shorter(worker: Worker, tmp_path: Path) -> None:
    paths = []
    for count in (1, 40):
        paths.append(tmp_path / f"{count}.onnx")
        parallel(count).save(paths[-1], durable=False)
    feed = {"x": np.ones((64, 64), np.float32)}
    found = ratio(paths[0], paths[1], feed, worker)
    assert 1 < found.low <= found.median <= found.high
