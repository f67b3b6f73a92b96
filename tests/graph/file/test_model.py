"""Model: what goes through unread, what is guarded, and how it is written."""

import contextlib
import errno
import itertools
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper, parser

from onnxshrink.errors import ModelError, OutputError
from onnxshrink.graph import weights
from onnxshrink.graph.file import model, round_trip, wire
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import dequantize
from onnxshrink.kernels import affine

HEADER = '<ir_version: 10, opset_import: ["": 21, "local": 1]> g '


def described(holder: Any, text: str) -> Any:
    """Give a message a doc string and metadata."""
    holder.doc_string = f"about {text}"
    holder.metadata_props.add(key=f"key of {text}", value="b")
    holder.metadata_props.add(key="a", value=text)
    return holder


def sparse(name: str) -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, TensorProto.FLOAT, [2], [1.5, 2.5])
    indices = helper.make_tensor("", TensorProto.INT64, [2], [0, 3])
    return helper.make_sparse_tensor(values, indices, [4])


def everything() -> onnx.ModelProto:
    """A model with all that onnx_ir drops, reorders or refuses, at every level."""
    rng = np.random.default_rng(0)
    info = helper.make_tensor_value_info
    unknown = onnx.ValueInfoProto(name="h")  # a value about which only this is known: its text
    unknown.doc_string = "no type"
    branch = helper.make_graph(
        [described(helper.make_node("Add", ["x", "inner"], ["sum"], name="adds"), "inner node")],
        "branch",
        [],
        [described(info("sum", 1, [None]), "inner output")],
        [described(numpy_helper.from_array(np.ones(4, np.float32), "inner"), "inner tensor")],
        value_info=[],
    )
    branch.sparse_initializer.append(sparse("inner sparse"))
    described(branch, "branch")
    map_type = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    nodes = [
        described(helper.make_node("Constant", [], ["k"], name="k", sparse_value=sparse("")), "k"),
        helper.make_node("Constant", [], ["nan"], value_floats=[float("nan"), 1.0]),
        helper.make_node(
            "Constant", [], ["t"],
            value=described(helper.make_tensor("t", 1, [2], [float("nan"), 2.0]), "attribute"),
        ),
        helper.make_node("Dropout", ["x"], ["dropped", ""], name=""),
        helper.make_node("F", ["dropped"], ["h"], domain="local", overload="one", alpha=0.5),
        helper.make_node("If", ["cond"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("ArgMax", ["h"], ["label"], axis=-1, keepdims=0),
        helper.make_node(
            "ZipMap", ["h"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[3, 1]
        ),
        helper.make_node("MatMul", ["wide", "deep"], ["y"]),
    ]  # fmt: skip
    nodes[3].input.append("")  # a trailing input that is absent
    graph = helper.make_graph(
        nodes,
        "graph",
        [described(info("x", 1, ["N", None]), "x"), info("cond", 9, [])],
        [
            helper.make_value_info("map", helper.make_sequence_type_proto(map_type)),
            described(info("y", 1, [64, 8]), "y"),
            info("label", 7, None),
            info("z", 1, None),
        ],
        [
            described(numpy_helper.from_array(rng.random((64, 64), np.float32), "wide"), "wide"),
            numpy_helper.from_array(rng.random((64, 8), np.float32), "deep"),
            helper.make_tensor("typed", TensorProto.INT64, [500], range(500)),
            helper.make_tensor("bits", TensorProto.INT4, [3], [1, -2, 3]),
            helper.make_tensor("texts", TensorProto.STRING, [2], [b"\xff\xfe", b""]),
            numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty"),
        ],
        value_info=[unknown, info("stale", 1, [3]), info("dropped", 1, [None, 2])],
    )
    graph.sparse_initializer.append(sparse("sparse"))
    graph.quantization_annotation.add(
        tensor_name="deep",
        quant_parameter_tensor_names=[
            onnx.StringStringEntryProto(key="SCALE_TENSOR", value="typed")
        ],
    )
    described(graph, "graph")
    opsets = [helper.make_opsetid(d, v) for d, v in (("local", 1), ("ai.onnx.ml", 3), ("", 21))]
    attribute = helper.make_attribute("beta", 0.25)
    attribute.doc_string = "a default"
    relu = helper.make_node("LeakyRelu", ["a"], ["b"])
    relu.attribute.add(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT)
    functions = [
        described(
            helper.make_function(
                "local", "F", ["a"], ["b"], [relu], opsets[1:], ["alpha"], [attribute],
                overload=overload, value_info=[info("b", 1, [None]), info("nobody", 1, [1])],
            ),
            "function",
        )
        for overload in ("one", "two")
    ]  # fmt: skip
    proto = helper.make_model(
        graph, functions=functions, opset_imports=opsets, ir_version=10, producer_name="test",
    )  # fmt: skip
    proto.domain = proto.producer_version = ""  # written, though empty
    proto.model_version = 7
    proto.training_info.add().algorithm.name = "training"
    return described(proto, "model")


def bytes_of(proto: onnx.ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.onnx"
    path.write_bytes(everything().SerializeToString())
    return path


# --------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("cloned", [False, True])
def test_everything_comes_through(source: Path, tmp_path: Path, cloned: bool) -> None:
    loaded = Model.load(source)
    if cloned:
        loaded = loaded.clone().clone()
    written = loaded.save(tmp_path / "out.onnx")
    assert written == (tmp_path / "out.onnx").stat().st_size == loaded.nbytes()
    assert bytes_of(onnx.load(tmp_path / "out.onnx")) == bytes_of(everything())


def test_protos_come_through() -> None:
    assert bytes_of(Model.from_proto(everything()).to_proto()) == bytes_of(everything())


@pytest.mark.parametrize("name", ["recommender", "vision_cnn", "logistic_regression"])
def test_real_models_come_through(name: str, tmp_path: Path) -> None:
    path = Path(__file__).parents[3] / "models" / name / "model.onnx"
    before = path.read_bytes()
    Model.load(path).save(tmp_path / "out.onnx")
    assert bytes_of(onnx.load(tmp_path / "out.onnx")) == bytes_of(onnx.load(path))
    assert path.read_bytes() == before


def test_external_data_and_back(source: Path, tmp_path: Path) -> None:
    loaded = Model.load(source)
    outside = tmp_path / "outside.onnx"
    written = loaded.save(outside, "external")
    (data,) = tmp_path.glob("outside.onnx.*.data")
    assert written == outside.stat().st_size + data.stat().st_size
    proto = onnx.load(outside, load_external_data=False)
    places = {
        t.name: {e.key: e.value for e in t.external_data}
        for t in proto.graph.initializer
        if t.external_data
    }
    assert set(places) == {"wide", "deep", "typed"}
    for place in places.values():
        assert place["location"] == data.name
        assert int(place["offset"]) % 64 == 0
    again = Model.load(outside)
    assert again.digest() == loaded.digest() == Model.load(source).digest()
    again.save(tmp_path / "back.onnx", "single")
    back = onnx.load(tmp_path / "back.onnx")
    expected = everything()
    for now, before in zip(back.graph.initializer, expected.graph.initializer, strict=True):
        if now.name == "typed":  # its numbers were put into bytes on the way
            assert np.array_equal(numpy_helper.to_array(now), numpy_helper.to_array(before))
            now.CopyFrom(before)
    assert bytes_of(back) == bytes_of(expected)
    # What onnx itself reads is the same, too.
    assert np.array_equal(
        numpy_helper.to_array(onnx.load(outside).graph.initializer[0]),
        numpy_helper.to_array(expected.graph.initializer[0]),
    )


def test_untouched_external_data_keep_their_bytes(source: Path, tmp_path: Path) -> None:
    Model.load(source).save(tmp_path / "a.onnx", "external")
    Model.load(tmp_path / "a.onnx").save(tmp_path / "b.onnx", "external")
    (first,), (second,) = tmp_path.glob("a.onnx.*.data"), tmp_path.glob("b.onnx.*.data")
    assert first.read_bytes() == second.read_bytes()
    assert first.name[7:] == second.name[7:]  # named by what is in them


def outside_everywhere(folder: Path) -> Path:
    """A model whose tensors lie outside also in a Constant, a branch and a function."""
    array = np.random.default_rng(0).random((16, 16), np.float32)
    (folder / "data.bin").write_bytes(array.tobytes() * 4)

    def tensor(name: str, index: int) -> onnx.TensorProto:
        proto = TensorProto(
            name=name, data_type=1, dims=[16, 16], data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", "data.bin"), ("offset", 1024 * index), ("length", 1024)):
            proto.external_data.add(key=key, value=str(value))
        return proto

    info = helper.make_tensor_value_info
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["b"])], "branch", [], [info("b", 1, [2, 16])],
        [tensor("inner", 2)],
    )  # fmt: skip
    constant = helper.make_node("Constant", [], ["k"], value=tensor("", 3))
    proto = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Constant", [], ["c"], value=tensor("", 1)),
                helper.make_node("MatMul", ["x", "w"], ["p"]),
                helper.make_node("MatMul", ["p", "c"], ["q"]),
                helper.make_node("If", ["cond"], ["r"], then_branch=branch, else_branch=branch),
                helper.make_node("Mul", ["q", "r"], ["s"]),
                helper.make_node("F", ["s"], ["y"], domain="local"),
            ],
            "g", [info("x", 1, [2, 16]), info("cond", 9, [])], [info("y", 1, [2, 16])],
            [tensor("w", 0)],
        ),
        functions=[
            helper.make_function(
                "local", "F", ["a"], ["b"],
                [constant, helper.make_node("MatMul", ["a", "k"], ["b"])],
                [helper.make_opsetid("", 21)],
            )
        ],
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("local", 1)],
        ir_version=10,
    )  # fmt: skip
    path = folder / "outside.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("storage", ["single", "external"])
def test_tensors_outside_at_every_level(tmp_path: Path, storage: model.Storage) -> None:
    path = outside_everywhere(tmp_path)
    (tmp_path / "out").mkdir()
    loaded = Model.load(path)
    views = list(weights.find(loaded))
    assert len(views) == 5  # both branches have one
    expected = np.frombuffer((tmp_path / "data.bin").read_bytes()[:1024], np.float32)
    for view in views:
        np.testing.assert_array_equal(view.array().reshape(-1), expected)
        view.release()
    loaded.save(tmp_path / "out" / "m.onnx", storage)
    copies = [onnx.load(tmp_path / "out" / "m.onnx"), onnx.load(path)]
    for tensor in itertools.chain(*map(round_trip.tensors, copies)):
        tensor.ClearField("data_location")  # onnx.load leaves it there, as DEFAULT
        tensor.name = tensor.name  # absent is empty
    assert bytes_of(copies[0]) == bytes_of(copies[1])


# -------------------------------------------------------------------------------------- guard


def attribute_changed(loaded: Model) -> None:
    node = next(node for node in loaded.nodes if node.op_type == "ArgMax")
    node.attributes["axis"] = ir.AttrInt64("axis", 0)


def inner_attribute_changed(loaded: Model) -> None:
    node = next(node for node in loaded.nodes if node.op_type == "LeakyRelu")
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.1)


def inner_initializer_changed(loaded: Model) -> None:
    scope = next(s for s in loaded.scopes if s.name == "branch")
    assert isinstance(scope, ir.Graph)
    scope.initializers["inner"].const_value = ir.tensor(np.zeros(4, np.float32), name="inner")


def initializer_replaced(loaded: Model) -> None:
    zeros = np.zeros((64, 64), np.float32)
    loaded.ir.graph.initializers["wide"].const_value = ir.tensor(zeros, name="wide")


def small_initializer_replaced(loaded: Model) -> None:
    bits = ir.tensor(np.zeros(3, np.int64), name="bits")
    loaded.ir.graph.initializers["bits"].const_value = bits


def initializer_removed(loaded: Model) -> None:
    loaded.ir.graph.initializers.pop("empty")


def initializer_added(loaded: Model) -> None:
    value = ir.Value(name="new", const_value=ir.tensor(np.zeros(3, np.int64), name="new"))
    loaded.ir.graph.register_initializer(value)


def node_removed(loaded: Model) -> None:
    node = next(node for node in loaded.nodes if node.outputs[0].name == "nan")
    loaded.ir.graph.remove(node, safe=True)


def node_added(loaded: Model) -> None:
    node = ir.node("Relu", [loaded.ir.graph.inputs[0]])
    node.outputs[0].name = "new"
    loaded.ir.graph.append(node)


def constant_changed(loaded: Model) -> None:
    node = next(node for node in loaded.nodes if node.outputs[0].name == "t")
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(2, np.float32)))


def input_renamed(loaded: Model) -> None:
    loaded.ir.graph.inputs[0].name = "renamed"


def input_retyped(loaded: Model) -> None:
    loaded.ir.graph.inputs[0].type = ir.TensorType(ir.DataType.FLOAT16)


def output_dropped(loaded: Model) -> None:
    del loaded.ir.graph.outputs[1]


def producer_changed(loaded: Model) -> None:
    loaded.ir.producer_name = "somebody else"


def function_removed(loaded: Model) -> None:
    loaded.ir.functions.pop(("local", "F", "two"))


def function_redocumented(loaded: Model) -> None:
    loaded.ir.functions[("local", "F", "two")].doc_string = "something else"


EDITS = [
    attribute_changed, inner_attribute_changed, inner_initializer_changed, initializer_replaced,
    small_initializer_replaced, initializer_removed, initializer_added, node_removed, node_added,
    constant_changed, input_renamed, input_retyped, output_dropped, producer_changed,
    function_removed, function_redocumented,
]  # fmt: skip


@pytest.mark.parametrize("change", EDITS)
def test_an_unreported_edit_is_refused(
    change: Callable[[Model], None], source: Path, tmp_path: Path
) -> None:
    loaded = Model.load(source)
    change(loaded)
    with pytest.raises(ModelError, match="internal guard"):
        loaded.save(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_reported_edit_is_written(source: Path, tmp_path: Path) -> None:
    loaded = Model.load(source)
    attribute_changed(loaded)
    initializer_removed(loaded)
    loaded.touch("label", "empty")
    loaded.save(tmp_path / "out.onnx")
    expected = everything()
    (position,) = (i for i, t in enumerate(expected.graph.initializer) if t.name == "empty")
    del expected.graph.initializer[position]
    (node,) = (node for node in expected.graph.node if node.op_type == "ArgMax")
    next(a for a in node.attribute if a.name == "axis").i = 0
    assert bytes_of(onnx.load(tmp_path / "out.onnx")) == bytes_of(expected)


def test_a_clone_is_edited_apart(source: Path, tmp_path: Path) -> None:
    loaded = Model.load(source)
    before = loaded.digest()
    other = loaded.clone()
    attribute_changed(other)
    other.touch("label")
    assert loaded.digest() == before != other.digest()
    loaded.save(tmp_path / "out.onnx")


def test_a_rewriter_may_change_nodes_but_not_the_signature(source: Path, tmp_path: Path) -> None:
    def emptied(graph: ir.Model) -> ir.Model:
        graph.graph.remove(next(n for n in graph.graph if n.outputs[0].name == "nan"), safe=True)
        return graph

    loaded = Model.load(source)
    loaded.rewrite(emptied)
    loaded.save(tmp_path / "out.onnx")
    assert "nan" not in {n.output[0] for n in onnx.load(tmp_path / "out.onnx").graph.node}
    output_dropped(loaded)
    with pytest.raises(ModelError, match="outputs of graph"):
        loaded.save(tmp_path / "out.onnx")


# ------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a full disk: no file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("storage", ["single", "external"])
@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk(source: Path, tmp_path: Path, storage: model.Storage, old: bool) -> None:
    if old:
        (tmp_path / "out.onnx").write_bytes(b"old")
        (tmp_path / "out.onnx.data").write_bytes(b"old data")
    before = listing(tmp_path)
    loaded = Model.load(source)
    for size in (1000, 10_000):
        with largest_file(size), pytest.raises(OutputError, match=r"out\.onnx") as caught:
            loaded.save(tmp_path / "out.onnx", storage)
        assert "\n" not in str(caught.value)
        assert listing(tmp_path) == before
    loaded.save(tmp_path / "out.onnx", storage)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_no_space_at_the_end(
    source: Path, tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = listing(tmp_path)
    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OutputError, match="No space left"):
        Model.load(source).save(tmp_path / "out.onnx")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("storage", ["single", "external"])
def test_ctrl_c_in_the_middle(
    source: Path, tmp_path: Path, storage: model.Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.onnx").write_bytes(b"old")
    before = listing(tmp_path)
    loaded = Model.load(source)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model.tensors, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loaded.save(tmp_path / "out.onnx", storage)
    assert listing(tmp_path) == before
    monkeypatch.undo()
    loaded.save(tmp_path / "out.onnx", storage)  # and the model is still whole


def test_the_input_is_never_the_output(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = source.read_bytes()
    (tmp_path / "link.onnx").symlink_to(source)
    (tmp_path / "hard.onnx").hardlink_to(source)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    names = [
        source, "source.onnx", "./source.onnx", "folder/../source.onnx", "link.onnx", "hard.onnx",
    ]  # fmt: skip
    for loaded in (Model.load(source), Model.load("source.onnx"), Model.load("link.onnx").clone()):
        for name in names:
            with pytest.raises(OutputError, match="input"):
                loaded.save(name)
    assert source.read_bytes() == before


def test_the_inputs_data_are_never_the_outputs(source: Path, tmp_path: Path) -> None:
    Model.load(source).save(tmp_path / "a.onnx", "external")
    (data,) = tmp_path.glob("a.onnx.*.data")
    before = listing(tmp_path)
    loaded = Model.load(tmp_path / "a.onnx")
    with pytest.raises(OutputError, match="input"):
        loaded.save(data)
    link = tmp_path / data.name.replace("a.onnx", "b.onnx")
    link.symlink_to(data.name)
    with pytest.raises(OutputError, match="input"):
        loaded.save(tmp_path / "b.onnx", "external")
    link.unlink()
    assert listing(tmp_path) == before


def test_a_link_is_replaced_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "out.onnx").symlink_to("other")
    Model.load(source).save(tmp_path / "out.onnx")
    assert (tmp_path / "other").read_bytes() == b"other"


@pytest.mark.parametrize("name", ["absent/out.onnx", "source.onnx/out.onnx", ".", "x" * 300])
def test_places_that_cannot_be_written(source: Path, tmp_path: Path, name: str) -> None:
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=r"cannot be written|is a folder"):
        Model.load(source).save(tmp_path / name)
    assert listing(tmp_path) == before


def test_no_permission(folder_of_nobody: Path) -> None:
    model, folder = Model.from_proto(everything()), folder_of_nobody / "folder"
    folder.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        model.save(folder / "out.onnx")


def test_new_files_have_the_usual_permissions(source: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    Model.load(source).save(tmp_path / "out.onnx", "external")
    (data,) = tmp_path.glob("out.onnx.*.data")
    for name in ("out.onnx", data):
        assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_too_large_for_one_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "SINGLE_FILE_LIMIT", 1000)
    with pytest.raises(ModelError, match="external data"):
        Model.load(source).save(tmp_path / "out.onnx", "single")
    Model.load(source).save(tmp_path / "out.onnx", "auto")
    assert len(list(tmp_path.glob("out.onnx.*.data"))) == 1


# -------------------------------------------------------------------------- edits and spilling


def halved(loaded: Model) -> list[np.ndarray]:
    """Quantize every weight of 256 elements or more; what a runtime then computes with."""
    found = []
    for view in list(weights.find(loaded)):
        if not view.why_not and view.size >= 256:
            stored = affine.quantize(view.array(), "int8", view.axes.contract)
            view.release()
            dequantize.dequantized(loaded, view, stored, "dq")
            found.append(affine.dequantize(stored))
    return found


@pytest.mark.parametrize("storage", ["single", "external"])
@pytest.mark.parametrize("where", ["main", "everywhere"])
def test_new_tensors_of_large_models_wait_on_disk(
    tmp_path: Path, where: str, storage: model.Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "main":
        path = tmp_path / "source.onnx"
        path.write_bytes(everything().SerializeToString())
    else:
        path = outside_everywhere(tmp_path)
    expected = Model.load(path)
    count = len(halved(expected))
    expected.save(tmp_path / "expected.onnx", storage)
    monkeypatch.setattr(model, "_SPILL_ABOVE", 0)
    monkeypatch.setattr(wire, "STREAMED_BYTES", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loaded = Model.load(path).clone()
    assert len(halved(loaded)) == count > 0
    assert list(tmp_path.glob(".onnxshrink-*/*"))
    loaded = loaded.clone()
    digest = loaded.digest()
    loaded.save(tmp_path / "out.onnx", storage)
    assert digest == expected.digest()
    out = Model.load(tmp_path / "out.onnx")
    assert out.digest() == Model.load(tmp_path / "expected.onnx").digest()
    assert bytes_of(loaded.to_proto()) == bytes_of(expected.to_proto())
    del loaded
    assert not list(tmp_path.glob(".onnxshrink-*"))


def test_tensors_that_were_external_once(tmp_path: Path) -> None:
    """onnx marks them as lying inside by a field behind their bytes."""
    weight = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, [1, 40])],
        [helper.make_tensor_value_info("y", 1, [1, 50])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(proto, tmp_path / "external.onnx", save_as_external_data=True, location="data")
    onnx.save(onnx.load(tmp_path / "external.onnx"), path := tmp_path / "inside.onnx")
    assert onnx.load(path).graph.initializer[0].HasField("data_location")
    loaded = Model.load(path)
    (view,) = weights.find(loaded)
    np.testing.assert_array_equal(view.array(), weight)
    loaded.save(tmp_path / "out.onnx")
    (stored,) = onnx.load(tmp_path / "out.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(stored), weight)
    assert not stored.external_data


def test_long_lists_in_attributes_are_read_as_they_are(tmp_path: Path) -> None:
    """Tree ensembles have millions of numbers there: they are not walked one by one."""
    node = helper.make_node(
        "Foreign", ["x"], ["y"], domain="local", ints=list(range(9000)), text=["leaf"] * 9000,
        floats=np.arange(9000).tolist(),
        tensors=[numpy_helper.from_array(np.full(2000, i, np.float32)) for i in range(3)],
    )  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [info("x", 1, [1])], [info("y", 1, [1])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("local", 1)])
    onnx.save(proto, tmp_path / "m.onnx")
    read = wire.read(str(tmp_path / "m.onnx"))
    (found,) = read.graph.node
    lists = {a.name: a for a in found.attribute}
    expected = {a.name: a for a in node.attribute}
    for name in ("ints", "text", "floats"):
        assert lists[name] == expected[name]
    assert [len(t.raw_data) for t in lists["tensors"].tensors] == [0, 0, 0]
    assert [t.data_location for t in lists["tensors"].tensors] == [TensorProto.EXTERNAL] * 3
    assert len(read.SerializeToString()) < len(proto.SerializeToString()) - 20_000


def test_the_same_edits_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        loaded = Model.load(source)
        halved(loaded)
        loaded.save(tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_names_in_use_are_not_given_again(source: Path) -> None:
    loaded = Model.load(source)
    taken = {"x", "wide", "sum", "inner", "a", "b", "nan", "sparse"}
    for name in taken:
        assert loaded.unused_name(name) not in taken
    first, second = loaded.unused_name("new"), loaded.unused_name("new")
    assert first == "new" != second


def test_the_signature_leaves_out_initializers() -> None:
    proto = parser.parse_model(
        '<ir_version: 3, opset_import: ["": 9]> g (float[2, 2] x, float[2, 2] w) => (float[2, 2] y)'
        " <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
    )
    loaded = Model.from_proto(proto)
    assert loaded.signature == (("x",), ("y",))
    assert loaded.opset == 9
