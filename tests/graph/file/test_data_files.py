"""The data of a model go with it, and those of others stay."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hard_models import text, weight

from onnxshrink.graph.file.data_files import data_files, kept, superseded, superseding


def save(path: Path, seed: int, data: str = "") -> bytes:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul (x, w) }",
                 w=weight(seed, 64, 64))  # fmt: skip
    if data:
        onnx.save(proto, path, save_as_external_data=True, location=data, size_threshold=0)
    else:
        onnx.save(proto, path)
    return path.read_bytes()


def test_only_files_beside_it_that_are_named_after_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(path, 1, "m.onnx.data")
    assert data_files(path) == {tmp_path / "m.onnx.data"}
    save(tmp_path / "other.onnx", 1, "shared.bin")
    assert data_files(tmp_path / "other.onnx") == set()  # others may have it, too
    (tmp_path / "m.onnx.data").rename(tmp_path / "moved")
    (tmp_path / "m.onnx.data").symlink_to(tmp_path / "moved")
    assert data_files(path) == set()


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 40])
def test_what_is_no_model_has_none(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    assert data_files(path) == set()


@pytest.mark.parametrize("spared", [False, True])
def test_the_data_of_what_was_there_go_after_the_new_model_came(
    spared: bool, tmp_path: Path
) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    save(path, 1, data.name)
    old = data_files(path)
    with superseding(path, [data] if spared else []):
        save(path, 2)
        assert data.exists()
    assert data.exists() == spared
    gone = f"removed {data.name}, which the model there had its data in"
    assert superseded(old, path) == ([] if spared else [gone])


def test_what_a_new_model_still_uses_stays(tmp_path: Path) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    save(path, 1, data.name)
    with superseding(path):
        data.unlink()
        save(path, 2, data.name)
    np.testing.assert_array_equal(
        np.frombuffer(data.read_bytes(), np.float32), weight(2, 64, 64).ravel()
    )


def test_what_was_there_can_be_put_back(tmp_path: Path) -> None:
    path, data, more = (tmp_path / name for name in ("m.onnx", "m.onnx.data", "m.onnx.note"))
    with kept(path) as put_back:
        assert not put_back()  # there was nothing
    old = save(path, 1, data.name)
    bytes_of_data = data.read_bytes()
    with kept(path, [more]) as put_back:
        path.unlink()  # as a rename does: what is held is another name of the same file
        data.unlink()
        save(path, 2)
        more.write_text("new")
        assert put_back()
    assert (path.read_bytes(), data.read_bytes()) == (old, bytes_of_data)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
