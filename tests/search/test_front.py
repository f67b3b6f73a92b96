"""Models to choose from, what they cost here, and where they run."""

import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hard_models import text

from onnxshrink import api
from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.recipe import Recipe, find_pass
from onnxshrink.search import front
from onnxshrink.search.evaluation import Tried
from onnxshrink.search.platform import PLATFORMS
from onnxshrink.search.smallest import Search

RNG = np.random.default_rng(3)


def tried(nbytes: int, error: float) -> Tried:
    return Tried(Recipe(()), nbytes, error, error, [])


def test_a_front_is_what_no_smaller_one_beats() -> None:
    every = [(100, 0.0), (60, 0.01), (61, 0.02), (59, 0.009), (30, 0.1), (29.9, 0.2), (10, np.inf)]
    found = front.best_of_each_size([tried(round(1e3 * n), error) for n, error in every])
    assert [(one.nbytes, one.error) for one in found] == [
        (100_000, 0.0), (59_000, 0.009), (30_000, 0.1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "refused"), [("cpu", ""), ("web", ""), ("mobile", "is not for mobile")]
)
def test_a_platform_refuses_only_what_is_new(name: str, refused: str) -> None:
    graph = """g (float[2, 4] x) => (uint8[2, 4] y) {
        y, scale, zero = DynamicQuantizeLinear(x)
    }"""
    ranged = Model.from_proto(text(graph))
    plain = Model.from_proto(text("g (float[2, 4] x) => (float[2, 4] y) { y = Relu(x) }"))
    assert refused in PLATFORMS[name].why_not(ranged, plain)
    assert PLATFORMS[name].why_not(ranged, ranged) == ""


@pytest.mark.usefixtures("one_worker")
def test_models_from_near_lossless_to_smallest(tmp_path: Path) -> None:
    weight = RNG.standard_normal((256, 192)).astype(np.float32)
    source, folder = tmp_path / "in.onnx", tmp_path / "front"
    graph = "g (float[n, 256] x) => (float[n, 192] y) { y = MatMul(x, w) }"
    Model.from_proto(text(graph, w=weight)).save(source)
    feeds = [{"x": RNG.standard_normal((16, 256)).astype(np.float32)} for _ in range(8)]
    options = api.Options(calibration=feeds)
    report = api.shrink(source, tmp_path / "o.onnx", options, time_limit=0, pareto=folder)
    models = sorted(folder.glob("*.onnx"))
    assert 4 <= len(models) <= 9
    sizes = [path.stat().st_size for path in models]
    assert sizes == sorted(sizes, reverse=True)
    ET.parse(folder / "front.svg")
    assert report.front is not None
    assert report.front.to_markdown() + "\n" == (folder / "front.md").read_text()
    assert [row["file"] for row in report.front.to_dicts()] == [path.name for path in models]
    assert sum(one.taken for one in report.tried) == 1
    assert len(report.unseen) == 2 * 16  # every fourth input is held back
    assert report.unseen[0].error == max(one.error for one in report.unseen)
    assert report.layers[0].after < 256 * 192 < report.layers[0].before
    latencies = {one.recipe: one.latency for one in report.tried}
    assert all(latencies[row["recipe"]] is not None for row in report.front.to_dicts())


def test_the_fastest_is_taken_and_of_equals_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    smallest, fast, nearly = tried(100, 0.4), tried(300, 0.5), tried(200, 0.5)
    costs = {100: 1.0, 300: 0.5, 200: 0.51}
    steps = ("quantize-rd", "quantize-static", "quantize-dynamic")
    every = [smallest, fast, nearly]
    for one, name in zip(every, steps, strict=True):
        one.recipe = Recipe((find_pass(name)(),))

    def measured(ask: Any, kinds: list[Tried]) -> None:
        for one in kinds:
            one.latency = costs[one.nbytes]

    monkeypatch.setattr("onnxshrink.search.smallest.bench_tried", measured)
    ask = SimpleNamespace(settings=Settings(), look=lambda one, looks: None)
    search = Search(ask, "latency")  # type: ignore[arg-type]
    search._tried += every
    assert search._cheapest(smallest) is nearly
    costs |= {300: 1.2, 200: 1.1}  # slower here than the original
    assert search._cheapest(smallest) is smallest
