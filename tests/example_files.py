"""The files that examples name: models, and data for them in every form that people have."""

import csv
import shutil
from pathlib import Path

import decoders
import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
from onnx import numpy_helper, parser
from PIL import Image
from pyarrow import parquet
from scipy.io import wavfile
from tokenizers import Tokenizer, models, pre_tokenizers, processors

MODELS = Path(__file__).parent.parent / "models"
#: In the place of vision_cnn, a quarter of its work: what the commands do is the same.
NARROW = Path(__file__).with_name("narrow_cnn.onnx")
_WORDS = (
    "the",
    "model",
    "answers",
    "a",
    "question",
    "of",
    "an",
    "old",
    "friend",
    "with",
    "kind",
    "words",
)
_WIDTH = 64
_FEW, _FEWER = 64, 32  # inputs of an example, and of models/


def make(folder: Path) -> None:
    """Write all of them into a folder."""
    rng = np.random.default_rng(0)
    shutil.copy(NARROW, folder / "model.onnx")
    shutil.copy(MODELS / "recommender" / "model.onnx", folder / "tabular.onnx")
    images = _clear_images(_FEW)
    np.savez(folder / "inputs.npz", image=images)
    _photos(folder / "photos", images)
    _tables(folder)
    _sounds(folder, rng)
    _sentences(folder, rng)
    onnx.save(decoders.genai(layers=1, packed=True), folder / "decoder.onnx")


def make_models(folder: Path) -> None:
    """The models of the project, small and with few inputs, so that examples take seconds."""
    for path in MODELS.glob("*/model.onnx"):
        there = folder / path.parent.name
        there.mkdir(parents=True)
        model = NARROW if there.name == "vision_cnn" else path
        (there / "model.onnx").symlink_to(model)
        (there / "test.npz").symlink_to(path.with_name("test.npz"))
        if model == NARROW:
            few = {"image": _clear_images(_FEWER)}
        else:
            with np.load(path.with_name("calibration.npz")) as inputs:
                few = {name: inputs[name][:_FEWER] for name in inputs.files}
        np.savez(there / "calibration.npz", **few)


def _clear_images(count: int) -> np.ndarray:
    """Images whose kind the narrow model is sure of: few of them are enough for a promise."""
    with np.load(MODELS / "vision_cnn" / "calibration.npz") as inputs:
        images = inputs["image"]
    (scores,) = onnxruntime.InferenceSession(NARROW).run(None, {"image": images})
    second, first = np.sort(scores, axis=1)[:, -2:].T
    return images[np.sort(np.argsort(second - first)[:count])]


def _photos(folder: Path, images: np.ndarray) -> None:
    (folder / "more").mkdir(parents=True)
    low, high = images.min(), images.max()
    for number, image in enumerate(images[:, 0]):
        pixels = np.rint((image - low) / (high - low) * 255).astype(np.uint8)
        place = folder / "more" if number % 2 else folder
        Image.fromarray(pixels).save(place / f"{number}.png")


def _tables(folder: Path) -> None:
    with np.load(MODELS / "recommender" / "calibration.npz") as inputs:
        columns = {name: inputs[name] for name in inputs.files}
    history = columns.pop("history")
    flat = {name: column.tolist() for name, column in columns.items()}
    flat |= {f"history_{place}": history[:, place].tolist() for place in range(history.shape[1])}
    with (folder / "trips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(flat), *zip(*flat.values(), strict=True)])
    parquet.write_table(pa.table(flat), folder / "trips.parquet")


def _sounds(folder: Path, rng: np.random.Generator) -> None:
    (folder / "recordings").mkdir()
    for number in range(8):
        wave = np.sin(np.arange(4000) * (number + 1) / 20) * rng.uniform(0.5, 1)
        path = folder / "recordings" / f"{number}.wav"
        wavfile.write(path, 8000, (wave * 2**15 - 1).astype(np.int16))
    _save(
        folder / "speech.onnx",
        """(float[N, 1, 1600] audio) => (float[N, 16] features) {
            windows = Conv <strides = [40]> (audio, filters)
            mean = ReduceMean <axes = [2], keepdims = 0> (windows)
            features = Tanh (mean)
        }""",
        {"filters": rng.normal(0, 0.1, (16, 1, 80))},
    )


def _sentences(folder: Path, rng: np.random.Generator) -> None:
    ids = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    ids |= {word: number for number, word in enumerate(_WORDS, 4)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    lines = [" ".join(rng.choice(_WORDS, rng.integers(3, 12))) for _ in range(48)]
    (folder / "sentences.txt").write_text("\n".join(lines))
    _save(
        folder / "encoder.onnx",
        """(int64[N, S] input_ids, int64[N, S] attention_mask) => (float[N, 8] sentence) {
            words = Gather (table, input_ids)
            axis = Constant <value_ints = [2]> ()
            mask = Cast <to = 1> (attention_mask)
            masked = Unsqueeze (mask, axis)
            seen = Mul (words, masked)
            sum = ReduceMean <axes = [1], keepdims = 0> (seen)
            hidden = MatMul (sum, inner)
            active = Tanh (hidden)
            sentence = MatMul (active, outer)
        }""",
        {"table": rng.normal(0, 1, (len(ids), _WIDTH)), "inner": rng.normal(0, 0.1, (_WIDTH, 256)),
         "outer": rng.normal(0, 0.1, (256, 8))},
    )  # fmt: skip


def _save(path: Path, text: str, weights: dict[str, np.ndarray]) -> None:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    proto.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()
    )
    onnx.save(proto, path)
