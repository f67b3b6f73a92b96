"""Every bad input: one line that says why, the right exit code, and nothing written."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Run
from hard_models import rows, tensor, text, weight

MODELS = Path(__file__).parent.parent / "models"
NAMES = ("recommender", "vision_cnn", "logistic_regression")


def model_of(name: str) -> str:
    return str(MODELS / name / "model.onnx")


def data_of(name: str) -> str:
    return str(MODELS / name / "calibration.npz")


def write(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def missing(folder: Path) -> Path:
    return folder / "none.onnx"


def directory(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder / "model.onnx"


def empty(folder: Path) -> Path:
    (folder / "bad.onnx").touch()
    return folder / "bad.onnx"


def truncated(folder: Path) -> Path:
    whole = (folder / "in.onnx").read_bytes()
    (folder / "bad.onnx").write_bytes(whole[: len(whole) // 2])
    return folder / "bad.onnx"


def not_onnx(folder: Path) -> Path:
    (folder / "bad.onnx").write_bytes(b"PK\x03\x04 an archive, say")
    return folder / "bad.onnx"


def cyclic(folder: Path) -> Path:
    proto = text("g (float[n] x) => (float[n] y) { a = Add(x, b)  b = Relu(a)  y = Neg(b) }")
    return write(folder / "bad.onnx", proto)


def dangling(folder: Path) -> Path:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }")
    return write(folder / "bad.onnx", proto)


def unknown_opset(folder: Path) -> Path:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = Relu(x) }")
    proto.opset_import[0].version = 999
    return write(folder / "bad.onnx", proto)


def custom_operator(folder: Path) -> Path:
    proto = text(
        '<ir_version: 8, opset_import: ["": 17, "acme": 1]>'
        "g (float[n, 64] x) => (float[n, 64] y) { y = acme.Mystery(x) }"
    )
    return write(folder / "bad.onnx", proto)


def wrong_length(folder: Path) -> Path:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }")
    bad = tensor("w", weight(1, 64, 64))
    bad.raw_data = bad.raw_data[:-4]
    proto.graph.initializer.append(bad)
    return write(folder / "bad.onnx", proto)


def overflowing(folder: Path) -> Path:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }")
    bad = tensor("w", weight(1, 64, 64))
    bad.dims[:] = [2**62, 2**62]
    proto.graph.initializer.append(bad)
    return write(folder / "bad.onnx", proto)


def external_data(folder: Path, location: str, length: int = 64 * 64 * 4) -> Path:
    proto = text("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }")
    stub = onnx.TensorProto(name="w", dims=[64, 64], data_type=1)
    stub.data_location = onnx.TensorProto.EXTERNAL
    stub.external_data.add(key="location", value=location)
    stub.external_data.add(key="length", value=str(length))
    proto.graph.initializer.append(stub)
    return write(folder / "bad.onnx", proto)


def data_missing(folder: Path) -> Path:
    return external_data(folder, "none.data")


def data_truncated(folder: Path) -> Path:
    (folder / "short.data").write_bytes(bytes(100))
    return external_data(folder, "short.data")


def data_escaping(folder: Path) -> Path:
    inner = folder / "inner"
    inner.mkdir()
    (folder / "secret.data").write_bytes(bytes(64 * 64 * 4))
    return external_data(inner, "../secret.data")


BAD_MODELS = (
    missing, directory, empty, truncated, not_onnx, cyclic, dangling, unknown_opset,
    custom_operator, wrong_length, overflowing, data_missing, data_truncated, data_escaping,
)  # fmt: skip


@pytest.mark.parametrize("make", BAD_MODELS, ids=lambda make: make.__name__)
def test_a_bad_model(
    refused: Run, small: Path, make: Callable[[Path], Path], tmp_path: Path
) -> None:
    bad = make(tmp_path)
    done = refused(3, "shrink", bad, "out.onnx")
    assert str(bad) in done.err
    refused(3, "quantize-weights", bad, "out.onnx")
    refused(3, "compare", small, bad)
    if make not in (cyclic, dangling, custom_operator, unknown_opset):  # these can be looked at
        refused(3, "inspect", bad)


def wrong_name(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"X": feed["x"], "Y": feed["x"]}  # one alone would be taken


def wrong_shape(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"x": feed["x"][:, :63]}


def wrong_dtype(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"x": feed["x"].astype("U")}


def with_nan(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    feed["x"][1, 1] = np.nan
    return feed


def nothing(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wrong_name, "input 'x' is missing; given: 'X', 'Y'"),
        (wrong_shape, "input 'x' has shape [1, 63], but the model takes [n, 64]"),
        (wrong_dtype, "input 'x' is <U"),
        (with_nan, "input 'x' holds NaN"),
        (nothing, "input 'x' is missing"),
    ],
    ids=["name", "shape", "dtype", "nan", "nothing"],
)
def test_bad_inputs(refused: Run, small: Path, spoil: Callable[..., dict], said: str) -> None:
    np.savez("data.npz", **spoil(rows(3, 64)[0]))
    done = refused(3, "shrink", small, "out.onnx", "--calibration", "data.npz")
    assert said in done.err
    assert "data.npz" in done.err


@pytest.mark.parametrize("name", ["none.npz", "folder", "damaged.npz", "text.txt"])
def test_inputs_that_cannot_be_read(refused: Run, small: Path, name: str) -> None:
    Path("folder").mkdir()
    Path("damaged.npz").write_bytes(b"PK\x03\x04")
    Path("text.txt").write_text("1 2 3")
    assert name in refused(3, "quantize-weights", small, "out.onnx", "--calibration", name).err


@pytest.mark.parametrize("command", ["quantize-static", "quantize-rd", "prune-wanda"])
def test_real_inputs_are_missing(refused: Run, small: Path, command: str) -> None:
    done = refused(2, command, small, "out.onnx")
    assert f"{command} needs real inputs: give --calibration DATA" in done.err


def test_out_is_in(refused: Run, small: Path) -> None:
    assert "never modified" in refused(2, "shrink", small, small).err
    Path("link.onnx").hardlink_to(small)
    assert "never modified" in refused(2, "clean", small, "link.onnx").err


def test_out_is_nowhere(refused: Run, small: Path) -> None:
    Path("folder").mkdir()
    assert "there is no folder none" in refused(2, "shrink", small, "none/out.onnx").err
    assert "is a folder" in refused(2, "shrink", small, "folder").err
    assert (
        "there is no folder" in refused(2, "clean", small, "out.onnx", "--report", "none/r.md").err
    )
    assert "takes a .json" in refused(2, "clean", small, "out.onnx", "--report", "r.pdf").err


def test_no_permission(refused: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: tests may run as root, whom no folder refuses."""
    make_folder, open_file = os.mkdir, open

    def mkdir(path, *rest, **options):
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied")
        return make_folder(path, *rest, **options)

    def opened(path, mode="r", *rest, **options):
        if "locked" in str(path) and ("x" in mode or "w" in mode):
            raise PermissionError(13, "Permission denied")
        return open_file(path, mode, *rest, **options)

    make_folder("locked")
    monkeypatch.setattr("os.mkdir", mkdir)
    monkeypatch.setattr("builtins.open", opened)
    for check in ("full", "off"):
        done = refused(2, "quantize-weights", small, "locked/out.onnx", "--check", check)
        assert "locked" in done.err
        assert "Permission denied" in done.err


def test_disk_full(refused: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    done = refused(2, "quantize-weights", small, "out.onnx")
    assert "No space left on device" in done.err
    done = refused(2, "quantize-weights", small, "out.onnx", "--check", "off")
    assert "out.onnx: cannot be written: No space left" in done.err


def test_ctrl_c_leaves_nothing(cli: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxshrink.kernels.affine.quantize", interrupt)
    done = cli("quantize-weights", small, "out.onnx")
    assert done.code == 130  # 1 would be a budget that was missed
    assert {path.name for path in small.parent.iterdir()} == {"in.onnx"}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("[clean, quantise-weights]", "step 2 (quantise-weights): unknown pass"),
        ("[clean: {kep: []}]", "unknown option 'kep'; did you mean 'keep'?"),
        ("[quantize-weights: {keep: [nothing*]}]", "no weight matches 'nothing*'"),
        ("[quantize-weights: {layers: {w: {dtype: int3}}}]", "takes one of int8"),
        ("[", "not YAML"),
    ],
    ids=["pass", "option", "pattern", "override", "syntax"],
)
def test_bad_recipes(refused: Run, small: Path, recipe: str, said: str) -> None:
    Path("recipe.yaml").write_text(f"version: 1\nsteps: {recipe}")
    assert said in refused(2, "apply", "recipe.yaml", small, "out.onnx").err


def test_bad_values(refused: Run, small: Path) -> None:
    words = ("quantize-weights", small, "out.onnx")
    assert "not YAML" in refused(2, *words, "--layers", "{a: ").err
    assert "'layers' takes a mapping" in refused(2, *words, "--layers", "skip").err
    assert "'block_size' must be at least 0" in refused(2, *words, "--block-size", -1).err
    assert "no weight matches 'v'" in refused(2, *words, "--keep", "v").err
    for bad in ("x", "x:", ":1,64", "x:1;64", "x:-1,64"):
        assert "--shape takes NAME:1,3,224,224" in refused(2, *words, "--shape", bad).err
    assert "no such input" in refused(3, *words, "--shape", "z:1,64").err
    assert "takes n,64" in refused(3, *words, "--shape", "x:1,63").err.replace("?", "n")
    assert "--max-size takes" in refused(2, "shrink", small, "out.onnx", "--max-size", "big").err
    assert "unknown pass 'clen'; did you mean 'clean'" in refused(2, "explain", "clen").err
