"""The mistakes that are made most often, as a table: what is typed, the exit code, what is said."""

import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Run
from onnx import parser

MODEL = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3, 4, 4] image) => (float[N, 3, 4, 4] y) { y = Relu (image) }"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder as somebody has it."""
    proto = parser.parse_model(MODEL)
    onnx.save(proto, tmp_path / "model.onnx")
    shutil.copy(tmp_path / "model.onnx", tmp_path / "classifier_v2.onnx")
    proto.ir_version = 99
    onnx.save(proto, tmp_path / "new_ir.onnx")
    proto.ir_version, proto.opset_import[0].version = 8, 99
    onnx.save(proto, tmp_path / "new_opset.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 4, 4), np.uint8)
    np.savez(tmp_path / "inputs.npz", image=pixels / np.float32(255))
    np.savez(tmp_path / "nhwc.npz", image=np.zeros((8, 4, 4, 3), np.float32))
    np.savez(tmp_path / "pixels.npz", image=pixels)
    np.savez(tmp_path / "nan.npz", image=np.full((8, 3, 4, 4), np.nan, np.float32))
    np.savez(tmp_path / "key.npz", imaeg=pixels / np.float32(255), label=np.arange(8))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "inputs.pkl").write_bytes(pickle.dumps(pixels))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.md").write_text("nothing")
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", "x")
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    safetensors = struct.pack("<Q", len(header)) + header + b"\0" * 4
    (tmp_path / "model.safetensors").write_bytes(safetensors)
    (tmp_path / "model.tflite").write_bytes(b"\x1c\0\0\0TFL3" + b"\0" * 64)
    (tmp_path / "model.keras").write_bytes(b"\x08hello")
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    (tmp_path / "pointer.onnx").write_bytes(lfs)
    (tmp_path / "page.onnx").write_bytes(b"<!DOCTYPE html><html><title>404</title></html>")
    (tmp_path / "answer.onnx").write_bytes(b'{\n  "error": "not found"\n}')
    (tmp_path / "song.mp3").write_bytes(b"ID3")
    return tmp_path


CLEAN = ("clean", "model.onnx", "out.onnx")
DATA = "--calibration"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["clean", "modle.onnx", "o.onnx"], 3, "modle.onnx: no such file; did you mean 'model"),
        (["clean", "modls/m.onnx", "o.onnx"], 3, "m.onnx: no such file, and no folder modls"),
        ([*CLEAN, DATA, "input.npz"], 3, "input.npz: no such file; did you mean 'inputs.npz'?"),
        ([*CLEAN, DATA, "empty"], 3, "empty: holds no inputs, but 1 .md; it takes"),
        ([*CLEAN, DATA, "key.npz"], 3, "'image' is missing; given: 'imaeg', 'label'; did you mean"),
        ([*CLEAN, DATA, "nhwc.npz"], 3, "its channels are last, transpose(0, 3, 1, 2) makes it"),
        ([*CLEAN, DATA, "nan.npz"], 3, "nan.npz, rows 0-0: input 'image' holds NaN or infinity"),
        ([*CLEAN, DATA, "objects.npy"], 3, "objects.npy: holds Python objects"),
        ([*CLEAN, DATA, "inputs.pkl"], 3, "inputs.pkl: not a .npz, .npy or .pb file, pictures"),
        (["clean", "new_ir.onnx", "o.onnx"], 3, "no support for IR version 99 yet; the newest"),
        (["clean", "new_opset.onnx", "o.onnx"], 3, "no support for opset 99 yet; the newest"),
        (["clean", "model.pt", "o.onnx"], 3, "a PyTorch file (or another archive)"),
        (["clean", "model.safetensors", "o.onnx"], 3, "weights without a model; export it to ONNX"),
        (["clean", "model.tflite", "o.onnx"], 3, "a TensorFlow Lite model, not an ONNX model; exp"),
        (["clean", "model.keras", "o.onnx"], 3, "a Keras file, not an ONNX model; export it"),
        (["shrink", "model.onnx", "o.onnx", "--max-size", "5", "MB"], 2, "write --max-size 5MB,"),
        ([*CLEAN, DATA, "a.jpg", "b.jpg"], 2, "put a pattern in quotes ('*.jpg')"),
        ([*CLEAN, "--target-ratio", "4"], 2, "has no option --target-ratio; apply, search, shrin"),
        (["clean", "model.onnx", "empty"], 2, "empty: is a folder; name the file to write in it"),
        (["clean", "model.onnx", "model.onnx"], 2, "is the input, which is never modified"),
        (["clean", "model.onnx"], 2, "name the output once"),
        (["clean", "empty", "o.onnx"], 3, "empty: is a folder; name the .onnx file in it"),
        (["model.onnx", "o.onnx"], 2, "a command comes first: onnxshrink shrink model.onnx o"),
        (["clean", "pointer.onnx", "o.onnx"], 3, "Git LFS keeps; 'git lfs pull' fetches it"),
        (["clean", "page.onnx", "o.onnx"], 3, "page.onnx: a web page, not an ONNX model; its"),
        (["clean", "answer.onnx", "o.onnx"], 3, "answer.onnx: text, not an ONNX model; export"),
        (["clean", "https://example.com/model.onnx", "o.onnx"], 3, "is a web address; download"),
        ([*CLEAN, DATA, "model.onnx"], 3, "model.onnx: is a model; name inputs for it"),
        ([*CLEAN, DATA, "song.mp3"], 3, "song.mp3: of sounds .wav is taken; convert it"),
        ([*CLEAN, "-calibration", "inputs.npz"], 2, "write --calibration, with two dashes"),
        ([*CLEAN, "--mean", "0.5,", "0.4,", "0.3"], 2, "write --mean 0.5,0.4,0.3, without spa"),
        ([*CLEAN, "--image-size", "480", "640"], 2, "write --image-size 480x640, without spac"),
        ([*CLEAN, "--max-error", "5%"], 2, "'5%' is written as 0.05"),
        (["shrink", *CLEAN[1:], "--max-error", "5%"], 2, "'5%' is written as 0.05"),
        (["shrink", *CLEAN[1:], "--min-agreement", "99"], 2, "of 0 to 1, not 99.0; 99 % is 0.99"),
        (["compare", *[CLEAN[1]] * 2, "--min-agreement", "99"], 2, "not 99.0; 99 % is 0.99"),
        (["shrink", *CLEAN[1:], "--target-ratio", ".5"], 2, "0.5: says how many times smaller, as"),
        (["apply", "model.onnx", "web", "o.onnx"], 2, "that comes first: apply RECIPE IN OUT"),
        (["quantize-weights", *CLEAN[1:], "--only", "relu"], 2, "no weight matches 'relu'"),
        (["explain", "shrink"], 2, "shrink is no pass: 'onnxshrink shrink --help' says what"),
    ],
)  # fmt: skip
def test_every_likely_mistake_has_its_message(
    cli: Run, desk: Path, words: list[str], code: int, said: str
) -> None:
    before = sorted(path.name for path in desk.iterdir())
    done = cli(*words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err, done.err
    assert sorted(path.name for path in desk.iterdir()) == before


def test_pixels_that_nobody_scaled_are_said(cli: Run, desk: Path) -> None:
    done = cli(*CLEAN, DATA, "pixels.npz")
    assert done.code == 0
    assert "whole numbers of 0 to 255, as pixels that nobody scaled" in done.err


def test_a_packed_model_without_its_sidecar(cli: Run) -> None:
    """Of version 1, whose graph lay beside the pack."""
    shutil.copy(Path(__file__).parent / "golden" / "pair" / "model.onnx", "packed.onnx")
    for words in (["unpack", "o.onnx"], ["verify"], ["clean", "o.onnx"], ["inspect"]):
        done = cli(words[0], "packed.onnx", *words[1:])
        assert done.code == 3
        assert "put it beside packed.onnx" in done.err
