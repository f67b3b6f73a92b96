"""Statistics that are kept: as fresh ones, never those of something else, never half written."""

import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from onnxshrink.errors import DataError, OutputError
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.observers import Extremes, Need, SecondMoment
from onnxshrink.runtime.calibrate import calibrate
from onnxshrink.runtime.calibration_cache import CalibrationCache, data_digest
from onnxshrink.runtime.worker import Worker

NEEDS = [Need("h", SecondMoment(3)), Need("x", Extremes(-1)), Need("y", SecondMoment(7))]


def model(factor: float = 1.0) -> Model:
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[n, 3] x) => (float[n, 3] y)
        <float s = {{{factor}}}> {{ h = Mul(x, s) y = Relu(h) }}
    """
    return Model.from_proto(parser.parse_model(text))


def feeds(seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((5, 3)).astype(np.float32)} for _ in range(3)]


class NoWorker:
    """A worker that must not be needed."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the model was run: {name}")


def same(first: object, second: object) -> None:
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(second, name))


def test_what_is_known_is_not_collected_again(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    fresh = calibrate(model(), NEEDS, feeds(), worker, cache=CalibrationCache(path))
    again = calibrate(model(), NEEDS, feeds(), NoWorker(), cache=CalibrationCache(path))  # type: ignore[arg-type]
    assert list(again) == list(fresh) == NEEDS[:2]
    for need in again:
        same(again[need], fresh[need])
    assert again.refused == fresh.refused
    assert "an activation of shape (5, 3)" in again.refused["y"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_need_joins(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    first = calibrate(model(), NEEDS[:1], feeds(), worker, cache=CalibrationCache(path))
    both = calibrate(model(), NEEDS[:2], feeds(), worker, cache=CalibrationCache(path))
    same(both[NEEDS[0]], first[NEEDS[0]])
    known = calibrate(model(), NEEDS[:2], feeds(), NoWorker(), cache=CalibrationCache(path))  # type: ignore[arg-type]
    assert list(known) == NEEDS[:2]


@pytest.mark.parametrize("other", ["model", "data", "order"])
def test_nothing_is_taken_for_something_else(
    other: str, worker: Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache"
    calibrate(model(), NEEDS, feeds(), worker, cache=CalibrationCache(path))
    changed = model(2.0) if other == "model" else model()
    data = feeds(1) if other == "data" else feeds()[::-1] if other == "order" else feeds()
    with caplog.at_level(logging.WARNING):
        found = calibrate(changed, NEEDS, data, worker, cache=CalibrationCache(path))
    assert "of another model, other inputs" in caplog.text
    same(found[NEEDS[0]], calibrate(changed, NEEDS, data, worker)[NEEDS[0]])
    with zipfile.ZipFile(path) as file:  # what was of no use is gone
        assert len(file.namelist()) == 3


def test_two_models_of_one_run_share_the_file(
    worker: Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache"
    for turn in range(2):
        cache, runner = CalibrationCache(path), NoWorker() if turn else worker
        for factor in (1.0, 2.0):
            calibrate(model(factor), NEEDS, feeds(), runner, cache=cache)  # type: ignore[arg-type]
    assert caplog.text.count("of another model") <= 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "folder", "index"])
def test_a_damaged_file_is_told_and_kept(damage: str, worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    calibrate(model(), NEEDS, feeds(), worker, cache=CalibrationCache(path))
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-40])
    elif damage == "flipped":
        path.write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    elif damage == "foreign":
        path.write_bytes(b"\x08\x07some other file")
    elif damage == "index":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("index.json", '{"format": "onnxshrink calibration cache 0"}')
    else:
        path.unlink()
        path.mkdir()
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(DataError, match="cache"):
        CalibrationCache(path)
    assert before is None or path.read_bytes() == before


def test_it_must_be_possible_to_write_it(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        CalibrationCache(tmp_path / "nowhere" / "cache")


def test_an_interrupted_write_leaves_the_old_file(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache"
    calibrate(model(), NEEDS[:1], feeds(), worker, cache=CalibrationCache(path))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OutputError, match="No space left"):
        calibrate(model(), NEEDS[:2], feeds(), worker, cache=CalibrationCache(path))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_of_inputs_tells_names_types_shapes_and_values() -> None:
    x = np.arange(6, dtype=np.int32)
    variants = [
        [{"x": x}], [{"y": x}], [{"x": x.astype(np.int64)}], [{"x": x.reshape(2, 3)}],
        [{"x": x + 1}], [{"x": x[:3]}, {"x": x[3:]}], [{"x": np.array(["a", "b"], object)}],
        [{"x": np.array(["a", "c"], object)}],
    ]  # fmt: skip
    assert len({data_digest(variant) for variant in variants}) == len(variants)
    assert data_digest([{"x": x, "y": x}]) == data_digest([{"y": x, "x": x}])
