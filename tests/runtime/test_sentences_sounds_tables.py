"""Sentences, sounds and tables become what a model takes; so do the items of data sets."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from onnx import parser
from pyarrow import parquet
from scipy.io import wavfile
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from onnxshrink.errors import DataError
from onnxshrink.graph.file.model import Model
from onnxshrink.reading import Reading
from onnxshrink.runtime.inputs import choose_inputs, load_inputs

WORDS = {"[PAD]": 3, "[CLS]": 1, "[SEP]": 2, "a": 4, "b": 5, "c": 6, "[UNK]": 0}


def model(inputs: str) -> Model:
    name = re.search(r"[])\w] (\w+)(?:,|$)", inputs)[1]
    cast = f"y = Cast <to = 1> ({name})"
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (float[M] y) {{ {cast} }}'
    return Model.from_proto(parser.parse_model(text))


def same(feed, expected) -> None:
    assert feed.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(feed[name], np.asarray(array))


# -------------------------------------------------------------- sentences


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    made = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )  # fmt: skip
    made.enable_padding(length=50)  # as it is often saved: it must not fill every sentence
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return str(path)


BERT = model(
    "int64[N, S] input_ids, int64[N, S] attention_mask, int32[N, S] token_type_ids, "
    "int64[N, S] position_ids"
)


def test_every_sentence_is_an_input_of_its_own_length(tmp_path, tokenizer):
    (tmp_path / "lines.txt").write_text("a b c\n\n  \nc x\na b\tc\n")
    reading = Reading(tokenizer=tokenizer)
    found = load_inputs(tmp_path / "lines.txt", BERT, reading=reading)
    assert [feed["input_ids"].tolist() for feed in found] == [
        [[1, 4, 5, 6, 2]], [[1, 6, 0, 2]], [[1, 4, 5, 2, 6, 2]],
    ]  # fmt: skip
    same(found[2], {
        "input_ids": [[1, 4, 5, 2, 6, 2]], "attention_mask": [[1] * 6],
        "token_type_ids": [[0, 0, 0, 0, 1, 1]], "position_ids": [range(6)],
    })  # fmt: skip
    assert found[2]["token_type_ids"].dtype == np.int32


def test_fixed_lengths_are_filled_and_cut(tmp_path, tokenizer):
    (tmp_path / "lines.txt").write_text("a b c\na\nb\n")
    fixed = model("int32[2, 4] ids, float[2, 4] attention_mask")
    found = choose_inputs(tmp_path / "lines.txt", fixed, reading=Reading(tokenizer=tokenizer))
    (feed,) = found.feeds
    same(feed, {"ids": [[1, 4, 5, 6], [1, 4, 2, 3]], "attention_mask": [[1] * 4, [1, 1, 1, 0]]})
    assert "sentences of more than 4 tokens are cut" in found.notes
    short = Reading(tokenizer=tokenizer, max_length=2)
    assert load_inputs(tmp_path / "lines.txt", BERT, reading=short)[0]["input_ids"].shape == (1, 2)


def test_texts_of_data_sets_and_models_that_take_strings(tmp_path, tokenizer):
    rows = ({"text": line, "label": 1} for line in ("a b", "c"))
    found = choose_inputs(rows, BERT, reading=Reading(tokenizer=tokenizer))
    assert [feed["input_ids"].tolist() for feed in found.feeds] == [[[1, 4, 5, 2]], [[1, 6, 2]]]
    assert found.notes == ("the model has no input label; ignored",)
    (tmp_path / "lines.txt").write_text("a b\nc\n")
    found = load_inputs(tmp_path / "lines.txt", model("string[N, 1] s"))
    assert [feed["s"].tolist() for feed in found] == [[["a b"]], [["c"]]]


def test_show_inputs_shows_the_texts_again(tmp_path, tokenizer):
    (tmp_path / "lines.txt").write_text("a q\n")
    reading = Reading(tokenizer=tokenizer, show_inputs=str(tmp_path / "seen"))
    load_inputs(tmp_path / "lines.txt", BERT, reading=reading)
    assert (tmp_path / "seen" / "0000-0.txt").read_text() == "[CLS] a [UNK] [SEP]"


def test_what_sentences_need_is_said(tmp_path, tokenizer, monkeypatch):
    lines = tmp_path / "lines.txt"
    lines.write_text("a\n")
    with pytest.raises(DataError, match=r"need a tokenizer: give --tokenizer tokenizer\.json"):
        load_inputs(lines, BERT)
    with pytest.raises(DataError, match=r"lines\.txt: not a tokenizer\.json"):
        load_inputs(lines, BERT, reading=Reading(tokenizer=str(lines)))
    with pytest.raises(DataError, match=r"absent\.json: no such file; --tokenizer takes"):
        load_inputs(lines, BERT, reading=Reading(tokenizer="absent.json"))
    with pytest.raises(DataError, match="input 'past' is missing; given: 'input_ids'"):
        load_inputs(lines, model("int64[N, S] input_ids, float[N, 2] past"),
                    reading=Reading(tokenizer=tokenizer))  # fmt: skip
    with pytest.raises(DataError, match="sentences fit no input of the model"):
        load_inputs(lines, model("float[N, 3] x"), reading=Reading(tokenizer=tokenizer))
    lines.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not text in UTF-8"):
        load_inputs(lines, BERT, reading=Reading(tokenizer=tokenizer))
    lines.write_text("a\n")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"pip install 'onnxshrink\[text\]'"):
        load_inputs(lines, BERT, reading=Reading(tokenizer=tokenizer))


# ----------------------------------------------------------------- sounds

TONE = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint8, np.float32])
def test_sounds_are_numbers_from_minus_one_to_one(tmp_path, kind):
    scale = 1 if kind == np.float32 else np.iinfo(kind).max
    low = 128 if kind == np.uint8 else 0
    samples = (TONE * (scale - low) + low).astype(kind)
    wavfile.write(tmp_path / "tone.wav", 8000, np.stack([samples, samples], axis=1))
    audio = model("float[N, T] audio, int64 sr, int64[N] lengths")
    (feed,) = load_inputs(tmp_path / "tone.wav", audio)
    assert feed["audio"].shape == (1, 8000)
    np.testing.assert_allclose(feed["audio"][0], TONE, atol=2 / 100 if kind == np.uint8 else 1e-3)
    assert (feed["sr"], feed["lengths"].tolist()) == (8000, [8000])


def test_rate_and_length_are_the_models(tmp_path):
    wavfile.write(tmp_path / "tone.wav", 8000, TONE.astype(np.float32))
    reading = Reading(rate=16000, show_inputs=str(tmp_path / "seen"))
    windows = load_inputs(tmp_path, model("float[1, 1, 6000] x"), reading=reading)
    sound = np.concatenate([feed["x"][0, 0] for feed in windows])
    assert len(windows) == 3
    assert not sound[16000:].any()
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(sound[100:15900], expected[100:15900], atol=2e-3)
    rate, shown = wavfile.read(tmp_path / "seen" / "0001-0.wav")
    assert rate == 16000
    np.testing.assert_allclose(shown / 32767, np.clip(windows[1]["x"][0, 0], -1, 1), atol=1e-4)
    cut = load_inputs(tmp_path / "tone.wav", model("int16[T] x"), reading=Reading(max_length=3000))
    assert [len(feed["x"]) for feed in cut] == [3000, 3000, 2000]
    np.testing.assert_allclose(cut[0]["x"] / 32767, TONE[:3000], atol=1e-4)


def test_sounds_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF....WAVE")
    with pytest.raises(DataError, match=r"bad\.wav: not a \.wav that can be read"):
        load_inputs(tmp_path, model("float[N, T] x"))
    wavfile.write(tmp_path / "bad.wav", 8000, TONE.astype(np.float32))
    with pytest.raises(DataError, match=r"sounds fit no input .* spectrograms are given as \.npz"):
        load_inputs(tmp_path, model("float[N, 80, T, 1] features"))


# ----------------------------------------------------------------- tables

TABLE = model("int64[N] age, float[N, 1] income, string[N] town, float[N, 2] place")


def write_csv(path: Path, rows: list[list[object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_become_inputs_by_their_names(tmp_path, delimiter):
    rows = [[3, f"a{delimiter} b", 0.5, n, 2, n / 8] for n in range(40)]
    header = ["age", "town", "income", "place_1", "label", "place_0"]
    path = write_csv(tmp_path / "data.csv", [header, *rows], delimiter)
    found = choose_inputs(path, TABLE)
    assert len(found.feeds) == 8
    assert found.notes[0].endswith("no input takes the columns label; ignored")
    same(found.feeds[1], {
        "age": [3] * 5, "income": [[0.5]] * 5, "town": [f"a{delimiter} b"] * 5,
        "place": [[n / 8, n] for n in range(5, 10)],
    })  # fmt: skip
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    parquet.write_table(pa.table(columns), tmp_path / "data.parquet")
    same(load_inputs(tmp_path / "data.parquet", TABLE)[1], found.feeds[1])


def test_the_only_input_takes_as_many_columns_as_it_has_features(tmp_path):
    path = write_csv(tmp_path / "d.csv", [["a", "b"], [1, 2.5], ["3.0", 4]])
    found = load_inputs(path, model("float[N, 2] features"))
    np.testing.assert_array_equal(
        np.concatenate([f["features"] for f in found]), [[1, 2.5], [3, 4]]
    )
    parquet.write_table(pa.table({"x": [[1.0, 2.0], [3.0, 4.0]]}), tmp_path / "d.parquet")
    found = load_inputs(tmp_path / "d.parquet", model("float[N, 2] x"))
    assert [feed["x"].tolist() for feed in found] == [[[1, 2]], [[3, 4]]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["a", "b", "c"], [1, 2, 3]], r"has 3 columns, and 'x' takes \[N, 2\]: keep its 2, or"),
        ([["x_0", "x_1"], [1, ""]], "row 2, column 'x_1' is empty"),
        ([["x_0", "x_1"], [1, 2], [1, "two"]], "row 3, column 'x_1' holds 'two'"),
        ([["x_0", "x_1"], [1]], "row 2 has 1 cells for 2 columns"),
        ([[1, 2], [3, 4]], "its first line does not name the columns"),
        ([["x_0", "x_1"]], "holds no "),
        ([], "holds no rows"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load_inputs(write_csv(tmp_path / "d.csv", rows), model("float[N, 2] x"))


def test_columns_that_are_missing_and_parquet_without_pyarrow(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "d.csv", [["age", "incme", "town"], [1, 2, "a"]])
    with pytest.raises(DataError, match=r"no column for input 'income'.* did you mean 'incme'"):
        load_inputs(path, TABLE)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"parquet files need pyarrow: .*onnxshrink\[tables"):
        load_inputs(path.rename(tmp_path / "d.parquet"), TABLE)


# ------------------------------------------------------ data sets, loaders

PAIR = model("int64[N, S] ids, float[N, 3] x")
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


class Tensor:
    """As torch's: numpy cannot read it before it is detached and on the CPU."""

    def __init__(self, array, ready=False):
        self.array, self.ready, self.shape = array, ready, array.shape

    def detach(self):
        return self

    def cpu(self):
        return Tensor(self.array, True)

    def __array__(self, dtype=None, copy=None):
        if not self.ready:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        return self.array


def test_rows_of_a_data_set_get_their_first_axis():
    rows = [{"ids": [1, 2], "x": row.tolist(), "label": 0} for row in ROWS]
    found = choose_inputs(rows, PAIR)
    same(found.feeds[1], {"ids": [[1, 2]], "x": ROWS[1:2]})
    assert found.notes == ("the model has no input label; ignored",)


@pytest.mark.parametrize(
    "batch",
    [
        lambda x: (Tensor(np.array([[7]])), Tensor(x), Tensor(np.zeros(1))),
        lambda x: [{"ids": Tensor(np.array([[7]])), "x": Tensor(x)}, Tensor(np.zeros(1))],
        lambda x: {"ids": Tensor(np.array([[7]])), "x": Tensor(x)},
    ],
)
def test_batches_of_a_loader(batch):
    found = load_inputs((batch(ROWS[i : i + 1]) for i in range(4)), PAIR)
    same(found[2], {"ids": [[7]], "x": ROWS[2:3]})


class Frame:
    """As a DataFrame of pandas: columns, each with to_numpy()."""

    columns = ("ids_0", "ids_1", "x_0", "x_1", "x_2", "label")

    def to_numpy(self):
        return self

    def __getitem__(self, name):
        return Column(self.columns.index(name))


class Column:
    def __init__(self, number):
        self.number = number

    def to_numpy(self):
        return np.arange(3) + self.number


class Stored:
    """As a data set of torch: a length and rows by number, nothing to iterate on."""

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, number):
        return {"ids": [number], "x": ROWS[number]}


def test_frames_and_data_sets_by_number():
    found = choose_inputs(Frame(), PAIR)
    same(found.feeds[1], {"ids": [[1, 2]], "x": [[3.0, 4.0, 5.0]]})
    assert found.notes[0].endswith("no input takes the columns label; ignored")
    found = load_inputs(Stored(), PAIR)
    assert len(found) == 4
    same(found[3], {"ids": [[3]], "x": ROWS[3:]})


def test_one_key_and_one_input_need_not_agree():
    found = choose_inputs([{"pixels": ROWS[:1]}, {"pixels": ROWS[1:2]}], model("float[N, 3] x"))
    same(found.feeds[1], {"x": ROWS[1:2]})
    assert found.notes == ("'pixels' is taken for the model's only input, 'x'",)


# ------------------------------------------------------- what looks wrong


@pytest.mark.parametrize(
    ("array", "declared", "note"),
    [
        (np.arange(48.0).reshape(1, 3, 4, 4), "float[N, 3, 4, 4] x", "whole numbers of 0 to 255"),
        (np.ones((1, 20, 20, 3)), "float[N, C, H, W] x", r"transpose\(0, 3, 1, 2\)"),
        (np.arange(48.0).reshape(1, 3, 4, 4) / 255, "float[N, 3, 4, 4] x", None),
        (np.arange(48.0).reshape(1, 48), "float[N, 48] x", None),
        (np.arange(48).reshape(1, 3, 4, 4), "int64[N, 3, 4, 4] x", None),
    ],
)
def test_what_looks_wrong_is_said(array, declared, note):
    notes = choose_inputs([{"x": array}], model(declared)).notes
    assert [bool(re.search(note, line)) for line in notes] == [True] if note else notes == ()
    assert "alike" in choose_inputs([{"x": array}] * 2, model(declared)).notes[-1]


def test_channels_in_the_wrong_place_are_named():
    with pytest.raises(DataError, match=r"its channels are last, transpose\(0, 3, 1, 2\) makes it"):
        load_inputs([{"x": np.zeros((1, 4, 5, 3))}], model("float[N, 3, 4, 5] x"))
    with pytest.raises(DataError, match=r"before the rows, transpose\(0, 2, 3, 1\) makes it fit"):
        load_inputs([{"x": np.zeros((1, 3, 4, 5))}], model("float[N, 4, 5, 3] x"))


def test_a_folder_without_inputs_says_what_it_saw(tmp_path):
    for name in ("a.doc", "b.doc", "c.heic", "Makefile"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=r"holds no inputs, but 2 \.doc, 1 no suffix, 1 \.heic"):
        load_inputs(tmp_path, PAIR)
