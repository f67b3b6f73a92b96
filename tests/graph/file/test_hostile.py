"""Damaged and hostile files: one clear error, nothing else, and no memory or time to speak of."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import shares
from onnx import TensorProto, helper, numpy_helper, parser

from onnxshrink import pipeline
from onnxshrink.errors import ModelError, OutputError
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.runtime.worker import Worker

HEADER = '<ir_version: 10, opset_import: ["": 21]> g '


def small_model() -> onnx.ModelProto:
    """A bit of everything: typed and raw tensors, 4 bits, text, subgraphs, a function."""
    rng = np.random.default_rng(0)
    initializers = [
        numpy_helper.from_array(rng.random((4, 4), np.float32), "w"),
        numpy_helper.from_array(rng.random((40, 40), np.float32), "streamed"),
        numpy_helper.from_array(np.array([0]), "axes"),
        numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "kernel"),
        numpy_helper.from_array(np.ones((1, 8, 2), np.float16), "gates"),
        helper.make_tensor("typed", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("narrow", TensorProto.INT4, [3], [1, 2, 3]),
        helper.make_tensor("texts", TensorProto.STRING, [2], [b"a", b"b"]),
    ]
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["sum"])],
        "branch",
        [],
        [helper.make_tensor_value_info("sum", 1, [4, 4])],
        [numpy_helper.from_array(np.ones(3, np.float32), "inner")],
    )
    value = numpy_helper.from_array(np.ones((2, 2), np.float32))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Constant", [], ["c"], value=value),
        helper.make_node("Constant", [], ["words"], value_strings=["p"]),
        helper.make_node("If", ["cond"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("F", ["y"], ["q"], domain="local"),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["y", "wt"], ["y2"]),
        helper.make_node("Unsqueeze", ["w", "axes"], ["wu"]),
        helper.make_node("Einsum", ["x", "w"], ["e"], equation="ij,jk->ik"),
        helper.make_node("Conv", ["x", "kernel"], ["cv"], group=1),
        helper.make_node("LSTM", ["x", "gates", "gates"], ["h"], hidden_size=2),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", 1, [None, 4]),
            helper.make_tensor_value_info("cond", 9, []),
        ],
        [helper.make_tensor_value_info("y", 1, ["n", 4])],
        initializers,
        value_info=[helper.make_tensor_value_info("z", 1, [4, 4])],
    )
    opset = helper.make_opsetid("", 21)
    relu = helper.make_node("Relu", ["a"], ["b"])
    function = helper.make_function("local", "F", ["a"], ["b"], [relu], [opset])
    return helper.make_model(
        graph, functions=[function], opset_imports=[opset, helper.make_opsetid("local", 1)]
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def refused(path: Path, *says: str) -> str:
    """Load a file; assert that it is refused in one line that names the file and what is said."""
    with pytest.raises(ModelError) as caught:
        Model.load(path)
    message = str(caught.value)
    assert type(caught.value).exit_code == 3
    assert "\n" not in message
    assert str(path) in message
    for text in says:
        assert text in message
    return message


def refusal(path: Path) -> str:
    """Why a file is refused; empty when it is a model. Any other exception is a failure."""
    try:
        Model.load(path)
    except ModelError as error:
        return str(error)
    return ""


# ------------------------------------------------------------------------------------- files


def test_a_missing_file(path: Path) -> None:
    refused(path, "no such file")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "folder")


def test_a_folder_on_the_way_is_a_file(path: Path) -> None:
    path.write_bytes(b"x")
    refused(path / "model.onnx", "no such file")


def test_a_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")
    refused(path, "no such file")


def test_an_unreadable_file(folder_of_nobody: Path) -> None:
    path = folder_of_nobody / "model.onnx"
    path.write_bytes(b"x")
    path.chmod(0)
    refused(path, "cannot be read")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\0" * 10_000,
        b"\xff" * 10_000,
        b"This is text, and it goes on for some time.\n" * 10,
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)),
        b"PK\x03\x04" + bytes(200),
        b'{"format": "json"}',
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a graph of 2**63 bytes
        b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",  # a length of more than 64 bits
        b"\x08\x0a",  # a version, but no graph
        b"\x08\x0a\x3a\x00",  # an empty graph is not an error by itself: see below
    ],
)
def test_files_that_are_no_models(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    if content == b"\x08\x0a\x3a\x00":
        assert list(Model.load(path).nodes) == []
    else:
        refused(path)


def test_random_bytes(path: Path) -> None:
    rng = np.random.default_rng(0)
    for length in (1, 2, 3, 10, 100, 1000, 10_000, 100_000):
        for _ in range(10):
            path.write_bytes(rng.bytes(length))
            refused(path)


def test_every_truncation(path: Path) -> None:
    whole = small_model().SerializeToString()
    for end in range(0, len(whole), 64):
        path.write_bytes(whole[:end])
        message = refusal(path)
        if message:
            assert str(path) in message
        else:  # cut between two fields of the model: what is left is a model
            onnx.ModelProto.FromString(whole[:end])


# ------------------------------------------------------------------------------------ tensors


def with_tensor(change: Callable[[onnx.TensorProto], None]) -> bytes:
    model = parser.parse_model(
        HEADER + "(float[4, 8] x) => (float[4, 8] y) { y = MatMul(x, weight) }"
    )
    tensor = numpy_helper.from_array(np.eye(8, dtype=np.float32), "weight")
    change(tensor)
    model.graph.initializer.append(tensor)
    return model.SerializeToString()


def dims(*sizes: int) -> Callable[[onnx.TensorProto], None]:
    def change(tensor: onnx.TensorProto) -> None:
        tensor.dims[:] = sizes

    return change


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ((8, 9), "asks for 288"),
        ((8, 7), "asks for 224"),
        ((0,), "asks for 0"),
        ((8, -8), "negative"),
        ((-8, -8), "negative"),
        ((2**31, 2**31, 2**31), "overflow"),
        ((2**62, 4), "overflow"),
        ((2**63 - 1,), "overflow"),
        ((2**31, 2**30), "asks for"),
    ],
)
def test_shapes_that_do_not_fit(path: Path, sizes: tuple[int, ...], says: str) -> None:
    path.write_bytes(with_tensor(dims(*sizes)))
    refused(path, "'weight'", says)


@pytest.mark.parametrize("number", [0, 27, 28, 99, 2**31 - 1, -1])
def test_unknown_types(path: Path, number: int) -> None:
    path.write_bytes(with_tensor(lambda tensor: setattr(tensor, "data_type", number)))
    refused(path, "'weight'")


def test_values_in_a_typed_field(path: Path) -> None:
    def three_of_four(tensor: onnx.TensorProto) -> None:
        tensor.CopyFrom(helper.make_tensor("weight", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4]))
        del tensor.float_data[3]

    path.write_bytes(with_tensor(three_of_four))
    refused(path, "'weight'", "3 values", "asks for 4")


def test_no_values_for_a_huge_shape(path: Path) -> None:
    def empty(tensor: onnx.TensorProto) -> None:
        tensor.ClearField("raw_data")
        tensor.dims[:] = [2**20, 2**20]

    path.write_bytes(with_tensor(empty))
    refused(path, "'weight'", "0 values")


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.INT4, TensorProto.COMPLEX128])
def test_other_kinds_of_values(path: Path, kind: int) -> None:
    values = [b"a", b"b", b"c"] if kind == TensorProto.STRING else [1, 2, 3]
    path.write_bytes(
        with_tensor(lambda tensor: tensor.CopyFrom(helper.make_tensor("weight", kind, [3], values)))
    )
    Model.load(path)
    path.write_bytes(
        with_tensor(
            lambda tensor: (
                tensor.CopyFrom(helper.make_tensor("weight", kind, [3], values)),
                dims(5)(tensor),
            )[1]
        )
    )
    refused(path, "'weight'")


@pytest.mark.parametrize("place", ["Constant", "If"])
def test_tensors_below_the_main_graph(path: Path, place: str) -> None:
    model = small_model()
    node = next(node for node in model.graph.node if node.op_type == place)
    attribute = node.attribute[0]
    (attribute.t if place == "Constant" else attribute.g.initializer[0]).dims[:] = [77]
    path.write_bytes(model.SerializeToString())
    refused(path, "asks for 308")


# ------------------------------------------------------------------------------ external data


def external(path: Path, **entries: object) -> Path:
    """A model whose weight of 256 bytes lies in ``data.bin``, unless told otherwise."""
    data = path.parent / "data.bin"
    if not data.exists():
        data.write_bytes(np.eye(8, dtype=np.float32).tobytes() + bytes(64))

    def change(tensor: onnx.TensorProto) -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "data.bin", **entries}.items():
            tensor.external_data.add(key=key, value=str(value))

    path.write_bytes(with_tensor(change))
    return path


def test_external_data(path: Path) -> None:
    for entries in ({}, {"offset": 0, "length": 256}, {"offset": 64}, {"checksum": "abc"}):
        (view,) = weights.find(Model.load(external(path, **entries)))
        assert view.array().shape == (8, 8)
        view.release()


@pytest.mark.parametrize(
    "location",
    [
        "../data.bin",
        "a/../../data.bin",
        "a/../data.bin",
        "/etc/passwd",
        "//server/share/data.bin",
        "C:\\data.bin",
        "C:data.bin",
        "\\\\server\\share\\data.bin",
        "..\\data.bin",
        "a\\..\\..\\data.bin",
        "\\data.bin",
        "",
        ".",
        "a/..",
        "data.bin\0",
        "data.bin\0.png",
        "\0inside",
        "x" * 5000,
    ],
)
def test_external_data_elsewhere(path: Path, location: str) -> None:
    refused(external(path, location=location), "external data")


def test_no_location(path: Path) -> None:
    external(path)
    model = onnx.load(path, load_external_data=False)
    del model.graph.initializer[0].external_data[:]
    path.write_bytes(model.SerializeToString())
    refused(path, "'weight'")


def test_missing_external_data(path: Path) -> None:
    refused(external(path, location="absent.bin"), "'absent.bin'", "missing")


@pytest.mark.parametrize("kind", ["file", "folder", "dangling"])
def test_linked_external_data(path: Path, kind: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data.bin").write_bytes(bytes(256))
    folder = tmp_path / "model"
    folder.mkdir()
    location = "data.bin"
    if kind == "folder":
        (folder / "sub").symlink_to(outside)
        location = "sub/data.bin"
    else:
        (folder / "data.bin").symlink_to(outside / ("data.bin" if kind == "file" else "absent"))
    target = folder / "model.onnx"
    change = with_tensor(lambda tensor: _point(tensor, location))
    target.write_bytes(change)
    refused(target, "link")


@pytest.mark.parametrize("layout", ["hub", "link within", "hard link"])
def test_links_that_onnx_runtime_takes(layout: str, tmp_path: Path) -> None:
    """A hub's cache: model and data are links into a folder of blobs."""
    blobs, folder = tmp_path / "blobs", tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    blobs.mkdir()
    values = np.arange(64, dtype=np.float32)
    target, data = folder / "model.onnx", folder / "data.bin"
    model = with_tensor(lambda tensor: _point(tensor, "data.bin"))
    if layout == "hub":
        (blobs / "1").write_bytes(model)
        (blobs / "2").write_bytes(values.tobytes())
        target.symlink_to("../blobs/1")
        data.symlink_to("../blobs/2")
    else:
        target.write_bytes(model)
        inner = (folder / "sub" if layout == "link within" else blobs) / "data"
        inner.write_bytes(values.tobytes())
        data.symlink_to("sub/data") if layout == "link within" else data.hardlink_to(inner)
    ort.InferenceSession(target, providers=["CPUExecutionProvider"])
    loaded = Model.load(target)
    np.testing.assert_array_equal(
        loaded.ir.graph.initializers["weight"].const_value.numpy().reshape(-1), values
    )
    with Worker() as worker:
        worker.check(target)
    loaded.save(tmp_path / "single.onnx", "single")
    assert values.tobytes() in (tmp_path / "single.onnx").read_bytes()
    with pytest.raises(OutputError, match="never modified"):
        loaded.save(data)


def test_a_model_that_is_a_link_does_not_reach_what_lies_beside_the_link(tmp_path: Path) -> None:
    """ONNX Runtime takes the folder of what the model is a link to, and nothing between."""
    for name in ("blobs", "middle", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "blobs/1").write_bytes(with_tensor(lambda tensor: _point(tensor, "data.bin")))
    (tmp_path / "middle/model.onnx").symlink_to("../blobs/1")
    (tmp_path / "middle/data.bin").write_bytes(bytes(256))
    target = tmp_path / "model/model.onnx"
    target.symlink_to("../middle/model.onnx")
    (tmp_path / "model/data.bin").symlink_to("../middle/data.bin")
    refused(target, "link")


def _point(tensor: onnx.TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def test_a_folder_as_external_data(path: Path) -> None:
    (path.parent / "folder").mkdir()
    refused(external(path, location="folder"), "missing")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"offset": 65}, "truncated"),
        ({"offset": 2**40}, "truncated"),
        ({"offset": 10**30}, "truncated"),
        ({"offset": -1}, "offset"),
        ({"offset": "one"}, "offset"),
        ({"offset": ""}, "offset"),
        ({"offset": "1e2"}, "offset"),
        ({"length": 255}, "255 bytes"),
        ({"length": 257}, "257 bytes"),
        ({"length": -256}, "bytes"),
        ({"length": 2**62}, "bytes"),
        ({"length": "NaN"}, "offset or length"),
    ],
)
def test_places_that_do_not_exist(path: Path, entries: dict[str, object], says: str) -> None:
    refused(external(path, **entries), "'weight'", says)


def test_truncated_external_data(path: Path) -> None:
    external(path)
    (path.parent / "data.bin").write_bytes(bytes(255))
    refused(path, "'weight'", "data.bin", "truncated")


def test_external_data_that_shrink_while_they_are_read(path: Path, tmp_path: Path) -> None:
    model = Model.load(external(path))
    (path.parent / "data.bin").write_bytes(bytes(100))
    with pytest.raises(ModelError, match="cut short"):
        model.save(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


# -------------------------------------------------------------------------------------- graphs


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{ y = Relu(absent) }", "'absent'"),
        ("{ a = Relu(b) b = Relu(a) y = Relu(x) }", "cycle"),
        ("{ y = Add(x, y) }", "'y'"),
        ("{ y = Relu(x) y = Abs(x) }", "twice"),
        ("{ x = Relu(x) y = Abs(x) }", "twice"),
        ("{ z = Relu(x) }", "'y'"),
    ],
)
def test_graphs_that_are_none(path: Path, body: str, says: str) -> None:
    path.write_bytes(
        parser.parse_model(HEADER + f"(float[4] x) => (float[4] y) {body}").SerializeToString()
    )
    refused(path, says)


def test_invalid_operators_are_refused_by_the_run(path: Path) -> None:
    model = parser.parse_model(HEADER + "(float[4] x) => (float[4] y) { y = Relu(x, x) }")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="Relu") as caught:
        pipeline.run([], Model.load(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("part", ["domain", "op_type"])
def test_operators_whose_names_are_no_words(path: Path, part: str) -> None:
    model = parser.parse_model(HEADER + "(float[4] x) => (float[4] y) { y = Relu(x) }")
    setattr(model.graph.node[0], part, "Re\n\x1b[31mlu")
    path.write_bytes(model.SerializeToString())
    refused(path, r"names no operator")


@pytest.mark.parametrize("opset", [0, 99, 2**31])
def test_unknown_opsets_are_refused_by_the_run(path: Path, opset: int) -> None:
    model = parser.parse_model(HEADER + "(float[4] x) => (float[4] y) { y = Relu(x) }")
    model.opset_import[0].version = opset
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError):
        pipeline.run([], Model.load(path))


def test_text_that_is_not_text(path: Path) -> None:
    content = with_tensor(lambda tensor: None).replace(b"MatMul", b"Mat\xfful")
    path.write_bytes(content)
    refused(path, "op_type")


def _message(number: int, content: bytes) -> bytes:
    length = bytearray()
    size = len(content)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes([*length, size]) + content


@pytest.mark.parametrize("depth", [100, 3000])
def test_deep_nesting(path: Path, depth: int) -> None:
    graph = _message(2, b"g")
    for _ in range(depth):
        attribute = _message(1, b"body") + _message(6, graph) + struct.pack("BBB", 0xA0, 0x01, 5)
        graph = _message(1, _message(4, b"If") + _message(5, attribute)) + _message(2, b"g")
    path.write_bytes(b"\x08\x0a" + _message(7, graph))
    refused(path)


# -------------------------------------------------------------------------------------- fuzzing


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, most of them in the part that describes the graph, or cut out."""
    content = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(content) if rng.random() < 0.3 else min(len(content), 1500))
        flipped = content[at] ^ (1 << rng.randrange(8))
        content[at] = rng.choice([0, 255, 127, 128, flipped, rng.randrange(256)])
    if rng.random() < 0.1:
        at = rng.randrange(len(content))
        del content[at : at + rng.randrange(1, 20)]
    return bytes(content)


def through(path: Path) -> str:
    """Load a model, look at its weights, save it, load it again; why it was refused, if it was."""
    try:
        model = Model.load(path)
        for view in weights.find(model):
            if not view.why_not:
                assert np.array_equal(view.from_matrix(view.matrix), view.array(), equal_nan=True)
            view.release()
        model.clone().save(path.with_name("out.onnx"), durable=False)
    except ModelError as error:
        return str(error)
    assert refusal(path.with_name("out.onnx")) == ""
    return ""


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")  # onnx_ir's, about what is damaged
def test_damaged_models_are_refused_or_come_through(path: Path) -> None:
    rng = random.Random(0)
    folder = Path(__file__).parents[3] / "models"
    sources = [
        small_model().SerializeToString(),
        (folder / "logistic_regression/model.onnx").read_bytes(),
    ]
    sources += [
        parser.parse_model(
            HEADER + "(seq(float[N]) s, bool c) => (float[M] y) "
            "{ a = SequenceLength(s) b = ConcatFromSequence<axis = 0>(s) "
            "y = If(c) <then_branch = t () => (float[M] p) { p = Relu(b) },"
            " else_branch = e () => (float[M] q) "
            "{ k = Constant<value = float {2.0}>() q = Mul(b, k) }> }"
        ).SerializeToString()
    ]
    outcomes = {"refused": 0, "saved": 0}
    for round_ in range(shares.FUZZ):
        path.write_bytes(damaged(sources[round_ % len(sources)], rng))
        message = through(path)
        assert not message or str(path) in message or "no pass reported it" in message
        outcomes["refused" if message else "saved"] += 1
    assert min(outcomes.values()) > shares.FUZZ / 20, outcomes
