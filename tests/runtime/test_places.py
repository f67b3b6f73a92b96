"""Models in other places: what they answer, what they leave to others, and what they refuse."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hard_models import text
from onnx import parser

from onnxshrink.errors import DataError, RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import run
from onnxshrink.runtime import run_inputs
from onnxshrink.runtime.compare import compare
from onnxshrink.runtime.places import (
    SCRIPT,
    Place,
    compare_places,
    javascript,
    providers,
    save_inputs,
)
from onnxshrink.runtime.session import SessionOptions
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

JS = Path(__file__).parent.parent / "readers" / "js"


def _installed(runtime):
    missing = not (JS / "node_modules" / runtime).is_dir() or shutil.which("node") is None
    reason = f"node or {runtime} is not installed: tests/readers/js/install"
    return pytest.param(runtime, marks=pytest.mark.skipif(missing, reason=reason))


def _model(path, gain):
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 2] y)
    <float[3, 2] w = {{1.0, -2.0, 0.5, {gain}, 3.0, -1.0}}> {{ h = MatMul(x, w) y = Tanh(h) }}"""
    onnx.save(parser.parse_model(text), path)
    return path


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A reference, another, and inputs."""
    folder = tmp_path_factory.mktemp("places")
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((2, 3)).astype(np.float32)} for _ in range(3)]
    return _model(folder / "a.onnx", 0.25), _model(folder / "b.onnx", 0.5), feeds


@pytest.fixture(scope="module")
def worker():
    """One child for all."""
    with Worker() as worker:
        yield worker


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3), np.array(True), np.zeros((0, 4), np.float16),
        np.array([np.nan, -np.inf], np.float32), np.array([["a", ""]], object),
        np.arange(4, dtype=">u2"),
    ],
)  # fmt: skip
def test_values_survive_the_file(array, tmp_path):
    run_inputs.write(str(tmp_path / "f"), [{"x": array}, {}], {"why": "é"})
    (first, second), about = run_inputs.read(str(tmp_path / "f"))
    assert second == {}
    assert about == {"why": "é"}
    assert first["x"].shape == array.shape
    assert first["x"].dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(first["x"], array)


def test_the_cpu_as_a_place_is_the_cpu(case, worker):
    a, b, feeds = case
    (found,) = compare_places(a, b, feeds, providers(["cpu"]), worker=worker, max_error=1e-3)
    expected = compare(a, b, feeds, worker=worker, max_error=1e-3)
    assert found.comparison is not None
    assert found.comparison.outputs == expected.outputs
    assert found.missed == [f"CPU: {line}" for line in expected.missed] != []
    assert found.elsewhere == ""


def test_what_a_provider_does_not_take_is_named(case, worker):
    """Azure's provider comes with ONNX Runtime, and takes none of these nodes."""
    a, _, feeds = case
    azure = providers(["AzureExecutionProvider"])
    (found,) = compare_places(a, a, feeds, azure, worker=worker)
    assert found.comparison is not None
    assert found.comparison.relative_error == 0
    assert found.elsewhere.startswith("2 on CPU: MatMul, Tanh")
    (alone,) = compare_places(a, a, feeds, azure, worker=worker, fallback=False)
    assert alone.comparison is None
    assert "fallback" in alone.refusal
    assert alone.missed == [f"Azure: {alone.refusal}"]


def test_the_oracle_agrees(case, worker):
    a, _, feeds = case
    (found,) = compare_places(a, a, feeds, providers(["reference"]), worker=worker)
    assert found.comparison is not None
    assert found.comparison.relative_error < 1e-6


def test_answers_from_elsewhere_belong_to_the_model_and_the_inputs(case, worker, tmp_path):
    a, b, feeds = case
    inputs, answers = tmp_path / "inputs.json", tmp_path / "answers.json"
    save_inputs(inputs, feeds)
    subprocess.run([sys.executable, SCRIPT, b, inputs, answers], check=True)
    (found,) = compare_places(a, b, feeds, [], [answers], worker=worker)
    assert found.comparison is not None
    assert found.comparison.outputs == compare(a, b, feeds, worker=worker).outputs
    with pytest.raises(DataError, match="other inputs"):
        compare_places(a, b, feeds[:2], [], [answers], worker=worker)
    with pytest.raises(DataError, match="another model"):
        compare_places(a, a, feeds, [], [answers], worker=worker)
    cut = json.loads(answers.read_text())
    cut["rows"].pop()
    answers.write_text(json.dumps(cut))
    (short,) = compare_places(a, b, feeds, [], [answers], worker=worker)
    assert short.refusal == "gives 2 answers to 3 inputs"
    answers.write_text(answers.read_text()[:-9])
    with pytest.raises(DataError, match="not a file of inputs or answers"):
        compare_places(a, b, feeds, [], [answers], worker=worker)


def test_one_accuracy_level_holds_in_every_place(case, worker, tmp_path):
    """ONNX Runtime rounds what MatMulNBits multiplies, unless it is told not to."""
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((64, 32)).astype(np.float32)}
    original = Model.from_proto(text("g (float[N, 64] x) => (float[N, 32] y) { y = MatMul(x, w) }",
                                     **weights))  # fmt: skip
    step = QuantizeWeights(dtype="int4", block_size=32, form="dq", weights=Select(min_size=0))
    original.save(tmp_path / "a.onnx")
    run([step], original).model.save(tmp_path / "b.onnx")
    feeds = [{"x": rng.standard_normal((4, 64)).astype(np.float32)}]
    exact, usual = (
        compare_places(
            tmp_path / "b.onnx", tmp_path / "b.onnx", feeds, providers(["CPU"], None, level),
            options_a=SessionOptions(accuracy_level=0), worker=worker,
        )[0]
        for level in (0, 4)
    )  # fmt: skip
    assert exact.comparison is not None
    assert usual.comparison is not None
    assert exact.comparison.relative_error < 1e-6 < 1e-4 < usual.comparison.relative_error
    assert exact.seconds > 0


def test_outputs_of_openvino_have_all_their_names(monkeypatch):
    """A port's names come in any order, and ONNX's is one of them."""

    class Port(frozenset):
        get_names = frozenset.copy

    ports = [Port({"461", "zz"}), Port({"b", "a"})]

    class Compiled:
        outputs = ports

        def __call__(self, row):
            return {each: row["x"] + number for number, each in enumerate(ports)}

    core = SimpleNamespace(compile_model=lambda model, device, settings: Compiled())
    fake = SimpleNamespace(Core=lambda: core, __version__="0")
    monkeypatch.setitem(sys.modules, "openvino", fake)
    (row,), about = run_inputs.run("m", [{"x": np.zeros(1)}], "openvino")
    assert {name: value.item() for name, value in row.items()} == {
        "461": 0,
        "zz": 0,
        "a": 1,
        "b": 1,
    }
    assert about["provider"] == "CPU"


def test_a_place_that_breaks_is_a_finding(case, worker):
    a, b, feeds = case
    broken = Place(label="broken", program=(sys.executable, "-c", "raise SystemExit(9)"))
    slow = Place(label="slow", program=(sys.executable, "-c", "import time; time.sleep(60)"))
    first, second = compare_places(a, b, feeds, [broken, slow], worker=worker, timeout=0.5)
    assert first.missed == ["broken: ended with exit code 9: no word why"]
    assert second.missed == ["slow: took longer than 0.5 s"]


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(RecipeError, match=r"'abacus' is none; there are .*openvino-native"):
        providers(["CPU", "abacus"])
    with pytest.raises(RecipeError, match="there is no such program"):
        providers(["CPU"], python=str(tmp_path / "python"))
    with pytest.raises(RecipeError, match="npm install onnxruntime-web"):
        javascript("onnxruntime-web", tmp_path)


def test_a_provider_that_is_not_installed_is_a_finding(case, worker):
    a, b, feeds = case
    (found,) = compare_places(a, b, feeds, providers(["MIGraphX"]), worker=worker)
    assert "MIGraphXExecutionProvider is not installed here; installed: " in found.refusal


@pytest.mark.e2e
@pytest.mark.parametrize("runtime", list(map(_installed, ["onnxruntime-node", "onnxruntime-web"])))
def test_javascript_agrees(runtime, case, worker):
    a, b, feeds = case
    (found,) = compare_places(a, b, feeds, [javascript(runtime, JS)], worker=worker)
    assert found.comparison is not None, found.refusal
    expected = compare(a, b, feeds, worker=worker)
    assert found.comparison.relative_error == pytest.approx(expected.relative_error, abs=1e-6)
