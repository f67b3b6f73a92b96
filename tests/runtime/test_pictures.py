"""Pictures as people have them become what a model takes, pixel for pixel."""

import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import parser
from PIL import Image

from onnxshrink.errors import DataError, OutputError, RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.reading import Reading
from onnxshrink.runtime.inputs import choose_inputs, load_inputs

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))


def model(inputs: str) -> Model:
    name = inputs.split()[-1]
    text = (
        f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (float[M] y) '
        f"{{ y = Cast <to = 1> ({name}) }}"
    )
    return Model.from_proto(parser.parse_model(text))


PLAIN = model("float[N, 3, 6, 8] x")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "a" / "b").mkdir(parents=True)
    Image.fromarray(PIXELS).save(folder / "2.png")
    Image.fromarray(PIXELS[::-1]).save(folder / "a" / "b" / "10.WEBP", lossless=True)
    Image.fromarray(255 - PIXELS).save(folder / "11.bmp")
    (folder / "notes.md").write_text("not a picture")
    return folder


def first(source: object, declared: Model, **reading: object) -> np.ndarray:
    return load_inputs(source, declared, reading=Reading(**reading))[0]["x"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("declared", "reading", "expected"),
    [
        (PLAIN, {}, PIXELS / 255),
        (PLAIN, {"normalize": "imagenet"}, (PIXELS / 255 - IMAGENET[0]) / IMAGENET[1]),
        (PLAIN, {"normalize": "imagenet", "color": "bgr"},
         (PIXELS[..., ::-1] / 255 - IMAGENET[0]) / IMAGENET[1]),
        (PLAIN, {"mean": (127.5,), "std": "127.5"}, PIXELS / 127.5 - 1),
        (PLAIN, {"mean": [0.5] * 3, "std": "0.5,0.5,0.5"}, PIXELS / 127.5 - 1),
        (PLAIN, {"scale": "1/128"}, PIXELS / 128),
        (PLAIN, {"scale": 1}, PIXELS),
        (model("uint8[N, 3, 6, 8] x"), {}, PIXELS),
        (model("float16[N, 3, 6, 8] x"), {}, PIXELS / 255),
    ],
)  # fmt: skip
def test_pixels_become_the_numbers_that_were_asked_for(photos, declared, reading, expected):
    found = first(photos / "2.png", declared, **reading)
    assert found.dtype == next(iter(declared.inputs)).dtype.numpy()
    tolerance = 1e-3 if found.dtype == np.float16 else 1e-6
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), expected, atol=tolerance, rtol=1e-6)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("float[N, 6, 8, 3] x", PIXELS[None] / 255),
        ("float[3, 6, 8] x", PIXELS.transpose(2, 0, 1) / 255),
        ("float[6, 8, 3] x", PIXELS / 255),
        ("uint8[1, 6, 8, 4] x", np.dstack([PIXELS, np.full((6, 8), 255)])[None]),
        ("uint8[N, 6, 8] x", np.asarray(Image.fromarray(PIXELS).convert("L"))[None]),
        ("uint8[N, 1, 6, 8] x", np.asarray(Image.fromarray(PIXELS).convert("L"))[None, None]),
    ],
)
def test_size_and_layout_are_the_models(photos, declared, expected):
    np.testing.assert_allclose(first(photos / "2.png", model(declared)), expected, atol=1e-6)


@pytest.mark.parametrize("how", ["fit", "fill", "stretch"])
def test_other_sizes_are_made_to_fit(tmp_path, how):
    """A wide picture: left half dark, right half light."""
    wide = np.repeat(np.array([[0, 200]], np.uint8), 32, axis=1).repeat(32, axis=0)
    Image.fromarray(np.dstack([wide] * 3)).save(tmp_path / "wide.png")
    found = first(tmp_path / "wide.png", model("uint8[N, 16, 16, 3] x"), resize=how)[0, ..., 0]
    assert (found[8, 0], found[8, 15]) == (0, 200)
    frame = found[0].tolist()
    assert (frame == [114] * 16) == (how == "fit")
    np.testing.assert_array_equal(np.sort(found[8]), found[8])


def test_folders_patterns_and_lists_of_pictures(photos):
    everything = load_inputs(photos, PLAIN)
    assert len(everything) == 3
    for source in ([str(p) for p in sorted(photos.rglob("*.*")) if p.suffix != ".md"],
                   [photos / "11.bmp", f"{photos}/**/*.WEBP", photos / "2.png"]):  # fmt: skip
        found = load_inputs(source, PLAIN)
        assert {f["x"].tobytes() for f in found} == {f["x"].tobytes() for f in everything}
    assert len(load_inputs(f"{photos}/*.png", PLAIN)) == 1
    with pytest.raises(DataError, match="no file is named like this"):
        load_inputs(f"{photos}/*.jpg", PLAIN)


def test_only_the_pictures_that_are_taken_are_opened_and_many_share_an_input(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "000.png")
    for number in range(1, 40):
        name = f"{number:03}.png"
        if number % 2:
            (tmp_path / name).write_bytes(b"nobody reads this")
        else:
            (tmp_path / name).write_bytes((tmp_path / "000.png").read_bytes())
    files = sorted(tmp_path.iterdir())
    found = choose_inputs(files[::2], PLAIN, limit=4)
    assert [feed["x"].shape[0] for feed in found.feeds] == [4] * 4
    found = choose_inputs(tmp_path, model("float[1, 3, 6, 8] x"), limit=20)
    assert len(found.feeds) == found.left == 20
    with pytest.raises(DataError, match=r"001\.png: not a picture that can be read"):
        load_inputs(tmp_path, PLAIN)


def test_the_model_may_take_any_size(photos):
    free = model("float[N, 3, H, W] x")
    assert first(photos, free, image_size="12x10").shape == (1, 3, 12, 10)
    assert first(photos, free, image_size=10).shape == (1, 3, 10, 10)
    with pytest.raises(DataError, match=r"any size, \[N, 3, H, W\]: give --image-size 224"):
        load_inputs(photos, free)
    with pytest.raises(DataError, match="--image-size 7: input 'x' takes"):
        first(photos, PLAIN, image_size=7)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"image_size": "big"}, "image_size takes numbers such as 224 or 480x640, not 'big'"),
        ({"image_size": 0}, "image_size takes 224 or 480x640"),
        ({"std": "0,1,1"}, "std and scale are not 0"),
        ({"mean": "1/0"}, "mean takes numbers such as"),
        ({"normalize": "imagnet"}, "takes one of imagenet, clip, yolo, zero-one"),
    ],
)
def test_options_say_what_they_take(reading, message):
    with pytest.raises(RecipeError, match=message):
        Reading(**reading)


def test_what_is_taken_for_granted_is_said(photos):
    notes = "\n".join(choose_inputs(photos, PLAIN).notes)
    assert "numbers of 0 to 1, NCHW, 6x8; --normalize imagenet" in notes
    assert "1 files that are no pictures are left out" in notes
    assert not choose_inputs(photos / "2.png", PLAIN, reading=Reading(normalize="clip")).notes


def test_show_inputs_shows_what_the_model_sees(photos, tmp_path):
    reading = Reading(normalize="imagenet", color="bgr", show_inputs=tmp_path / "seen")
    load_inputs(photos, PLAIN, reading=reading)
    load_inputs(photos, PLAIN, reading=reading)  # and once more over the first
    shown = {path.name for path in (tmp_path / "seen").iterdir()}
    assert shown == {"inputs.txt", "0000-0.png", "0001-0.png", "0002-0.png"}
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "seen/0000-0.png")), PIXELS)
    assert "0000 x: float32 [1, 3, 6, 8], -" in (tmp_path / "seen/inputs.txt").read_text()
    with pytest.raises(OutputError, match="holds other files"):
        load_inputs(photos, PLAIN, reading=Reading(show_inputs=str(photos)))


def test_rows_of_data_sets_may_hold_pictures(photos):
    rows = [{"image": Image.open(photos / "2.png"), "label": 3}] * 2
    found = choose_inputs(rows, PLAIN)
    np.testing.assert_array_equal(found.feeds[1]["x"], first(photos / "2.png", PLAIN))
    assert "the model has no input label; ignored" in found.notes
    np.testing.assert_array_equal(
        first(iter([rows[0]["image"]]), PLAIN), first(photos / "2.png", PLAIN)
    )


def test_without_pillow_the_extra_is_named(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"pictures need Pillow: pip .*'onnxshrink\[images\]'"):
        load_inputs(photos, PLAIN)


def test_models_that_take_no_pictures(photos):
    with pytest.raises(DataError, match=r"pictures fit no input of the model, .*: x \[N, 4"):
        load_inputs(photos, model("float[N, 4] x"))
    with pytest.raises(DataError, match="not pictures of 1, 3 or 4 channels"):
        load_inputs(photos, model("float[N, 5, 6, 8] x"))
