import logging
import re

import ml_dtypes
import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxshrink.errors import DataError, UnsupportedModel
from onnxshrink.graph.file.model import Model
from onnxshrink.reading import Reading
from onnxshrink.runtime import shelf
from onnxshrink.runtime.inputs import choose_inputs, load_inputs, stored_inputs

HEADER = '<ir_version: 8, opset_import: ["": 17]> g '


def model(inputs: str) -> Model:
    """A model with these inputs; what it computes does not matter here."""
    first = re.search(r"[])\w] (\w+)(?:,|$)", inputs)[1]
    text = f"{HEADER} ({inputs}) => (float[M] y) {{ y = Cast <to = 1> ({first}) }}"
    return Model.from_proto(parser.parse_model(text))


ONE = model("float[N, 3] x")
FIXED = model("float[4, 3] x")
TWO = model("int64[N, S] ids, float[N, 3] x")
ROWS = np.arange(210, dtype=np.float32).reshape(70, 3)
FEED = {"ids": np.array([[5, 6]]), "x": ROWS[:1]}


def same(feeds, expected) -> None:
    assert [list(feed) for feed in feeds] == [list(feed) for feed in expected]
    for feed, wanted in zip(feeds, expected, strict=True):
        for name, array in feed.items():
            assert array.dtype == wanted[name].dtype
            np.testing.assert_array_equal(array, wanted[name])


# ------------------------------------------------------------------ forms


class Reader:
    """As onnxruntime.quantization.CalibrationDataReader: a dict each time, then None."""

    def __init__(self, feeds):
        self._left = list(feeds)

    def get_next(self):
        return self._left.pop(0) if self._left else None


@pytest.mark.parametrize("form", [list, tuple, iter, Reader, lambda feeds: (f for f in feeds)])
def test_feeds_one_by_one(form):
    feeds = [FEED, {"x": ROWS[1:3], "ids": np.array([[7], [8]])}]
    same(load_inputs(form(feeds), TWO), [FEED, {"ids": feeds[1]["ids"], "x": feeds[1]["x"]}])


def test_a_generator_is_asked_for_no_more_than_the_limit():
    asked = []

    def endless():
        while True:
            asked.append(None)
            yield {"x": ROWS}

    assert len(load_inputs(endless(), ONE, limit=3)) == 3
    assert len(asked) == 3


@pytest.mark.parametrize("count", [1, 5, 8, 32, 33, 63, 256, 257, 1000])
def test_stacked_arrays_are_cut_into_eight_feeds_or_more_of_near_equal_size(count):
    """Halves of them are halves of the rows: one of 33 does not stand alone against 32."""
    rows = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    feeds = [feed["x"] for feed in load_inputs({"x": rows}, ONE)]
    np.testing.assert_array_equal(np.concatenate(feeds), rows)
    sizes = {len(feed) for feed in feeds}
    assert max(sizes) <= 32
    assert max(sizes) - min(sizes) <= 1
    assert len(feeds) == max(min(8, count), -(-count // 32))


def test_a_batch_that_is_asked_for_decides():
    same(load_inputs(ROWS[:3], ONE, batch=2), [{"x": ROWS[:2]}, {"x": ROWS[2:3]}])


def test_files_among_others_are_cut_only_where_they_are_large(tmp_path):
    np.save(tmp_path / "a.npy", ROWS[:20])
    np.save(tmp_path / "b.npy", ROWS[20:60])
    expected = [{"x": ROWS[:20]}, {"x": ROWS[20:40]}, {"x": ROWS[40:60]}]
    same(load_inputs(tmp_path, ONE), expected)
    same(load_inputs([tmp_path / "a.npy", tmp_path / "b.npy"], ONE), expected)


@pytest.mark.parametrize("count", [3, 4, 7, 64, 250])
def test_fewer_than_there_are_is_spread_over_all(count):
    rows = np.arange(3 * count, dtype=np.float32).reshape(count, 1, 3)
    feeds, left, *_ = choose_inputs([{"x": row} for row in rows], ONE, limit=4)
    places = np.array([feed["x"][0, 0] for feed in feeds]) / 3
    assert left == max(count - 4, 0)
    assert len(places) == min(count, 4)
    assert places[0] == 0
    assert (np.diff(places) >= count // 8).all()
    assert places[-1] >= count / 2


def test_stacked_rows_beyond_the_limit_are_spread(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.repeat(np.arange(320.0), 3).reshape(320, 3))
    feeds, left, *_ = choose_inputs(tmp_path / "data.npz", ONE, limit=5)
    assert [feed["x"][0, 0] // 32 for feed in feeds] == [0, 2, 4, 6, 8]
    assert left == 5


@pytest.mark.parametrize("source", [
    {"x": ROWS[:0]}, [{"x": ROWS[:0]}], ROWS[:0], {"x": np.zeros((0, 2, 3))},
])  # fmt: skip
def test_no_rows_prove_nothing(source):
    with pytest.raises(DataError, match=r"holds no (rows|inputs)"):
        load_inputs(source, ONE)


def test_some_inputs_may_be_empty():
    """A cache of the past has no length at first."""
    cached = model("float[N, 3] x, float[N, 2, P, 4] past")
    feed = {"x": ROWS[:1], "past": np.zeros((1, 2, 0, 4), np.float32)}
    same(load_inputs([feed], cached), [feed])


def test_a_fixed_batch_decides_and_its_remainder_is_left_out():
    same(load_inputs({"x": ROWS[:10]}, FIXED), [{"x": ROWS[:4]}, {"x": ROWS[4:8]}])
    same(load_inputs({"x": ROWS[:4]}, FIXED), [{"x": ROWS[:4]}])
    one = model("float[1, 3] x")
    same(load_inputs({"x": ROWS[:2]}, one, batch=2), [{"x": ROWS[:1]}, {"x": ROWS[1:2]}])


def test_one_more_axis_is_a_stack_of_feeds():
    stack = ROWS.reshape(35, 2, 3)
    same(load_inputs({"x": stack}, ONE), [{"x": rows} for rows in stack])


def test_inputs_without_a_batch_go_into_every_chunk():
    recurrent = model("float[N, 3] x, float[2, N, 5] state, int64 rate")
    state, rate = np.ones((2, 40, 5), np.float32), np.array(16000)
    whole = {"x": ROWS[:1], "state": state[:, :1], "rate": rate}
    same(load_inputs(whole, recurrent), [whole])
    scaled = model("float[N, 3] x, float[1] scale, int64 rate")
    shared = {"scale": np.ones(1, np.float32), "rate": rate}
    found = load_inputs({"x": ROWS[:40], **shared}, scaled)
    same(found, [{"x": ROWS[at : at + 5], **shared} for at in range(0, 40, 5)])


def test_npz_with_input_names_as_keys(tmp_path):
    np.savez(tmp_path / "data.npz", ids=np.zeros((40, 2), np.int64), x=ROWS[:40])
    feeds = load_inputs(tmp_path / "data.npz", TWO)
    assert [feed["ids"].shape for feed in feeds] == [(5, 2)] * 8
    np.testing.assert_array_equal(feeds[7]["x"], ROWS[35:40])


def test_npz_with_indexed_keys(tmp_path):
    arrays = {
        "calibration|00010|x": ROWS[:1],
        "calibration|00002|x": ROWS[1:2],
        "test|00000|x": ROWS[2:3],
        "truth|label": np.arange(3),
    }
    np.savez(tmp_path / "data.npz", **arrays)
    same(load_inputs(tmp_path / "data.npz", ONE), [{"x": ROWS[1:2]}, {"x": ROWS[:1]}])
    same(load_inputs(f"{tmp_path}/data.npz:test", ONE), [{"x": ROWS[2:3]}])
    with pytest.raises(DataError, match="has no split 'tset'; it has calibration, test"):
        load_inputs(f"{tmp_path}/data.npz:tset", ONE)
    np.savez(tmp_path / "plain.npz", **{"0|x": ROWS[:1], "1|x": ROWS[1:2]})
    same(load_inputs(tmp_path / "plain.npz", ONE), [{"x": ROWS[:1]}, {"x": ROWS[1:2]}])


def test_npy_and_pb_for_a_model_of_one_input(tmp_path):
    np.save(tmp_path / "x.npy", ROWS[:5])
    (tmp_path / "x.pb").write_bytes(numpy_helper.from_array(ROWS[:5]).SerializeToString())
    for name in ("x.npy", "x.pb"):
        same(load_inputs(tmp_path / name, ONE), [{"x": ROWS[i : i + 1]} for i in range(5)])
        with pytest.raises(DataError, match="one array, but the model has several inputs: ids, x"):
            load_inputs(tmp_path / name, TWO)


def test_folder_of_files_in_natural_order(tmp_path):
    for index in (10, 9):
        np.save(tmp_path / f"sample{index}.npy", ROWS[index : index + 1])
    np.savez(tmp_path / "sample11.npz", x=ROWS[11:12])
    (tmp_path / "notes.txt").write_text("not an input")
    expected = [{"x": ROWS[index : index + 1]} for index in (9, 10, 11)]
    same(load_inputs(tmp_path, ONE), expected)


def test_folder_with_a_file_for_each_input(tmp_path):
    np.save(tmp_path / "ids.npy", np.zeros((3, 2), np.int64))
    np.save(tmp_path / "x.npy", ROWS[:3])
    expected = [{"ids": np.zeros((1, 2), np.int64), "x": ROWS[i : i + 1]} for i in range(3)]
    same(load_inputs(tmp_path, TWO), expected)


def test_test_data_sets_of_onnx(tmp_path):
    for index in range(2):
        folder = tmp_path / f"test_data_set_{index}"
        folder.mkdir()
        feed = (np.array([[index]]), ROWS[index : index + 1])
        for place, array in enumerate(feed):
            data = numpy_helper.from_array(array).SerializeToString()
            (folder / f"input_{place}.pb").write_bytes(data)
        (folder / "output_0.pb").write_bytes(b"not read")
    expected = [{"ids": np.array([[i]]), "x": ROWS[i : i + 1]} for i in range(2)]
    same(load_inputs(tmp_path, TWO), expected)
    same(load_inputs(tmp_path / "test_data_set_1", TWO), expected[1:])


def test_functions_of_a_file(tmp_path):
    (tmp_path / "rows.py").write_text("import numpy as np\nX = np.ones((2, 3), np.float32)\n")
    script = tmp_path / "calibration.py"
    script.write_text(
        "from rows import X\n"
        "def stacked(): return {'x': X}\n"
        "def streamed():\n    yield {'x': X}\n    yield {'x': 2 * X}\n"
        "def broken(): return 1 / 0\n"
        "def breaks():\n    yield {'x': X}\n    raise KeyError('gone')\n"
        "def nothing(): pass\n"
    )
    ones = np.ones((2, 3), np.float32)
    same(load_inputs(f"{script}:stacked", ONE), [{"x": ones[:1]}, {"x": ones[1:]}])
    same(load_inputs(f"{script}:streamed", ONE), [{"x": ones}, {"x": 2 * ones}])
    for name, message in {
        "broken": "raised ZeroDivisionError: division by zero",
        "breaks": "raised KeyError: 'gone'",
        "nothing": "returned None",
        "stackd": "no function 'stackd'; did you mean 'stacked'",
    }.items():
        with pytest.raises(DataError, match=message):
            load_inputs(f"{script}:{name}", ONE)


def test_several_sources_in_a_row(tmp_path):
    np.save(tmp_path / "a.npy", ROWS[:2])
    same(
        load_inputs([tmp_path / "a.npy", {"x": ROWS[2:3]}, ROWS[3:4]], ONE),
        [{"x": ROWS[:2]}, {"x": ROWS[2:3]}, {"x": ROWS[3:4]}],
    )


def test_a_model_without_inputs_has_one_empty_feed():
    text = f"{HEADER} () => (float[1] y) {{ y = Constant <value_floats = [1.0]> () }}"
    assert load_inputs([], Model.from_proto(parser.parse_model(text))) == [{}]


# ----------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([{"ids": [[1]]}], r"item 0: input 'x' is missing; given: 'ids'$"),
        ([{"ids": [[1]], "xx": ROWS}], "input 'x' is missing; .* did you mean 'xx'"),
        ([{"ids": [[1]], "x": ROWS[0]}], r"input 'x' has shape \[3\], .* takes \[N, 3\]"),
        ([{"ids": [[1]], "x": ROWS[:, :2]}], r"input 'x' has shape \[70, 2\]"),
        ([{"ids": [[1.0]], "x": ROWS}], "input 'ids' is float64, but the model takes int64"),
        ([{"ids": [[2**63]], "x": ROWS}], "input 'ids' holds values that do not fit int64"),
        ([{"ids": [[1]], "x": np.full((1, 3), 1e300)}], "do not fit float32"),
        ([{"ids": [[1]], "x": np.ones((1, 3), complex)}], "input 'x' is complex128"),
        ([{"ids": [[1]], "x": [[1, 2, 3]]}], "input 'x' is int64, but the model takes float32"),
        ([{"ids": [["a"]], "x": ROWS}], "input 'ids' is <U1"),
        ([{"ids": [[1], [2, 3]], "x": ROWS}], "'ids'.* not an array"),
        ([FEED, {"ids": [[1]], "x": ROWS * np.nan}], "item 1: input 'x' holds NaN or infinity"),
        ([FEED, {"ids": [[1]], "x": np.array([[1, np.inf, 0]])}], "NaN or infinity"),
        ([FEED, [1, 2]], "item 1: is a list, not a dict of arrays"),
        ([], "the inputs: holds no inputs"),
        ({}, "input 'ids' is missing; given: nothing"),
        ({"ids": np.zeros((2, 1, 1), int), "x": np.zeros((3, 1, 3))}, r"lengths \[2, 3\]"),
        (7, "a int is no form of inputs"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(source, message):
    with pytest.raises(DataError, match=message):
        load_inputs(source, TWO)


def test_a_batch_that_is_too_small_is_refused_with_its_shape():
    with pytest.raises(DataError, match=r"shape \[3, 3\], but the model takes \[4, 3\]"):
        load_inputs({"x": ROWS[:3]}, FIXED)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.npz", None, "no such file"),
        ("empty.npz", b"", "cannot be read"),
        ("cut.npz", b"PK\x03\x04 and no more", "cannot be read"),
        ("cut.npy", b"\x93NUMPY\x01", "cannot be read"),
        ("cut.pb", b"\xff\xff\xff", "not a tensor of ONNX"),
        ("data.doc", b"1,2,3", "not a .npz, .npy or .pb file"),
        ("absent.py:make", None, "absent.py: no such file"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_inputs(str(path), ONE)
    assert name.split(":")[0] in str(caught.value)


def test_files_of_python_objects_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="holds no inputs"):
        load_inputs(tmp_path, ONE)
    np.savez(tmp_path / "data.npz", x=np.array([{}], object))
    with pytest.raises(DataError, match=r"data.npz: holds Python objects"):
        load_inputs(tmp_path, ONE)
    np.savez(tmp_path / "data.npz", x=np.full((1, 3), np.nan))
    with pytest.raises(DataError, match=r"data.npz: input 'x' holds NaN"):
        load_inputs(tmp_path, ONE)


@pytest.mark.parametrize(
    ("declared", "given", "expected"),
    [
        ("float", np.array([0.1, 1e-50]), np.array([0.1, 0], np.float32)),
        ("float16", np.array([0.1], np.float32), np.array([0.1], np.float16)),
        ("bfloat16", np.array([0.1], np.float32), np.array([0.1], ml_dtypes.bfloat16)),
        ("float", np.array([0.5], np.float16), np.array([0.5], np.float32)),
        ("float", np.array([7], np.uint8), np.array([7], np.float32)),
        ("int64", np.array([7], np.int32), np.array([7])),
        ("int32", [7], np.array([7], np.int32)),
        ("uint8", [255], np.array([255], np.uint8)),
        ("int64", np.array([True]), np.array([1])),
        ("bool", [1, 0], np.array([True, False])),
        ("string", ["a", "bc"], np.array(["a", "bc"], object)),
        ("string", np.array([b"a"]), np.array(["a"], object)),
    ],
)
def test_types_are_cast_where_nothing_is_lost(declared, given, expected):
    (feed,) = load_inputs([{"x": given}], model(f"{declared}[N] x"))
    assert feed["x"].dtype == expected.dtype
    np.testing.assert_array_equal(feed["x"], expected)


@pytest.mark.parametrize(
    ("declared", "given"),
    [
        ("uint8", [256]),
        ("uint8", [-1]),
        ("bool", [2]),
        ("float16", [1e6]),
        ("int64", [0.5]),
        ("string", [1]),
        ("string", np.array([1, "a"], object)),
        ("float", ["1"]),
    ],
)
def test_types_are_not_cast_where_something_is_lost(declared, given):
    with pytest.raises(DataError, match="input 'x'"):
        load_inputs([{"x": given}], model(f"{declared}[N] x"))


def test_bfloat16_survives_npy(tmp_path):
    np.save(tmp_path / "x.npy", np.array([1.5, -2], ml_dtypes.bfloat16))
    (feed,) = load_inputs(tmp_path / "x.npy", model("bfloat16[2] x"))
    np.testing.assert_array_equal(feed["x"].astype(np.float32), [1.5, -2])


def test_names_that_the_model_does_not_have_are_dropped_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        feeds = load_inputs([{**FEED, "token_type_ids": [[0]]}] * 2, TWO)
    same(feeds, [FEED, FEED])
    assert [record.getMessage() for record in caplog.records] == [
        "the model has no input token_type_ids; ignored",
        "all 2 inputs are alike: they show no more than one would",
    ]


def test_inputs_with_an_initializer_need_no_data():
    text = f"{HEADER} (float[N, 3] x, float[1] w) => (float[N, 3] y) {{ y = Mul(x, w) }}"
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "w"))
    same(load_inputs([{"x": ROWS}], Model.from_proto(proto)), [{"x": ROWS}])


def test_inputs_that_are_no_tensors_are_unsupported():
    with pytest.raises(UnsupportedModel, match="input 'x' is not a tensor"):
        load_inputs([], model("seq(float[N]) x"))


def test_many_inputs_lie_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "IN_MEMORY", 0)
    for number in range(150):
        np.save(tmp_path / f"{number:03}.npy", np.full((1, 4), number, np.float64))
    wanted = model("float[n, 4] x")
    expected = load_inputs(tmp_path, wanted)
    found = stored_inputs(tmp_path, wanted, 140, Reading())
    assert len(found) == 140
    for one, other in zip(found, expected, strict=False):
        np.testing.assert_array_equal(one["x"], other["x"])
        assert one["x"].dtype == np.float32
        assert not one["x"].flags.writeable  # it is mapped
    with pytest.raises(DataError, match="nowhere"):
        stored_inputs(tmp_path / "nowhere", wanted, 2, Reading())
