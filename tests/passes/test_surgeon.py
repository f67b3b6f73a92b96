"""A user's graphsurgeon function as a step: only what it did changes, and the contract holds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import onnxruntime as ort
import pytest
import shares
from onnx import TensorProto, helper, numpy_helper, parser

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError, ShrinkError, UnsupportedModel
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite import surgeon
from onnxshrink.graph.rewrite.surgeon import Edit
from onnxshrink.passes.surgeon import Surgeon
from onnxshrink.pipeline import Result, run

HEADER = '<ir_version: 8, opset_import: ["": 17]> g '
TWO_LAYERS = """(float[N,2] x) => (float[N,2] y)
    <float[2,2] w = {1.0, 2.0, 3.0, 4.0}, float[2] b = {0.5, -0.5}> {
    [product] h = MatMul (x, w)
    [relu] r = Relu (h)
    [sum] y = Add (r, b)
}"""
X = np.array([[1, -1], [2, 0.5]], np.float32)


def parsed(text: str) -> onnx.ModelProto:
    return parser.parse_model(text if text.startswith("<") else HEADER + text)


def edited(proto: onnx.ModelProto, edit: Edit) -> tuple[onnx.ModelProto, list[tuple[Any, ...]]]:
    """The model after an edit, and rows of name, kind and note."""
    model = Model.from_proto(proto)
    rows = surgeon.edit(model, edit, "edit")
    result = model.to_proto()
    onnx.checker.check_model(result)
    return result, [(row.what, row.kind, row.note) for row in rows]


def answers(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[Any]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, feed)
    return found


def named(graph: gs.Graph, name: str) -> gs.Node:
    found: gs.Node = next(node for node in graph.nodes if node.name == name)
    return found


def mark(graph: gs.Graph) -> gs.Graph:
    """The smallest edit there is: one more node, which nothing uses."""
    extra = gs.Variable("extra_output")
    graph.nodes.append(gs.Node("Identity", "extra", inputs=[graph.inputs[0]], outputs=[extra]))
    return graph


def without_mark(proto: onnx.ModelProto) -> bytes:
    node = next(node for node in proto.graph.node if node.name == "extra")
    proto.graph.node.remove(node)
    return proto.SerializeToString(deterministic=True)


def assert_only_marked(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Everything but the added node is as it was, byte for byte."""
    before = Model.from_proto(proto).to_proto().SerializeToString(deterministic=True)
    result, rows = edited(proto, mark)
    assert rows == [("extra", "Identity", "added")]
    after = onnx.ModelProto()
    after.CopyFrom(result)
    assert without_mark(after) == before
    return result


# ---------------------------------------------------------------- what an edit does


def test_edited_weight_and_replaced_node() -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        weight = graph.tensors()["w"]
        weight.values = weight.values * 2
        named(graph, "relu").op = "Abs"
        return graph

    result, rows = edited(parsed(TWO_LAYERS), edit)
    assert rows == [("w", "initializer", "changed"), ("relu", "Abs", "changed")]
    want = np.abs(X @ np.array([[2, 4], [6, 8]], np.float32)) + np.array([0.5, -0.5])
    np.testing.assert_allclose(answers(result, {"x": X})[0], want, rtol=1e-6)


def test_added_and_removed_by_name() -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        last = named(graph, "sum")
        last.inputs[1] = gs.Constant("c", np.array([1, 2, 3, 4], np.float32).reshape(2, 2)[:1])
        relu = named(graph, "relu")
        last.inputs[0] = relu.inputs[0]
        return graph.cleanup().toposort()

    model = Model.from_proto(parsed(TWO_LAYERS))
    rows = surgeon.edit(model, edit, "edit")
    found = {(row.what, row.kind, row.note): (row.before, row.after) for row in rows}
    assert found[("c", "initializer", "added")] == (0, 8)
    assert found[("b", "initializer", "removed")] == (8, 0)
    assert found[("relu", "Relu", "removed")][1] == 0
    before, after = found[("sum", "Add", "changed")]
    assert before > 0
    assert after > 0
    assert len(found) == 4
    want = X @ np.array([[1, 2], [3, 4]], np.float32) + [1, 2]
    np.testing.assert_allclose(answers(model.to_proto(), {"x": X})[0], want, rtol=1e-6)


def test_no_change_is_no_change() -> None:
    def look(graph: gs.Graph) -> gs.Graph:
        for tensor in graph.tensors().values():
            if isinstance(tensor, gs.Constant):
                tensor.values.sum()
        return graph

    proto = parsed(TWO_LAYERS)
    result, rows = edited(proto, look)
    assert rows == []
    assert result == Model.from_proto(proto).to_proto()


def test_another_graph_may_be_returned() -> None:
    result, rows = edited(parsed(TWO_LAYERS), lambda graph: mark(graph.copy()))
    assert rows == [("extra", "Identity", "added")]
    assert len(answers(result, {"x": X})) == 1


def test_shape_of_an_input_may_be_edited() -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        graph.inputs[0].shape = (7, 2)
        return graph

    result, rows = edited(parsed(TWO_LAYERS), edit)
    assert rows == [("x", "input", "changed")]
    assert result.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 7


def test_recorded_shape_may_be_edited() -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        graph.tensors()["h"].shape = (5, 2)
        return graph

    proto = parsed(TWO_LAYERS)
    for name in ("h", "r"):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    result, rows = edited(proto, edit)
    assert rows == [("h", "shape", "changed")]
    (info,) = result.graph.value_info  # what follows from it may be wrong now, and is left out
    assert (info.name, info.type.tensor_type.shape.dim[0].dim_value) == ("h", 5)


def test_order_of_nodes_may_be_edited() -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        graph.nodes[0], graph.nodes[1] = graph.nodes[1], graph.nodes[0]
        return graph

    proto = parsed("(float[2] x) => (float[2] a, float[2] b) { a = Abs (x) b = Neg (x) }")
    result, rows = edited(proto, edit)
    assert rows == [("order of nodes", "graph", "changed")]
    assert [node.op_type for node in result.graph.node] == ["Neg", "Abs"]


def test_opset_may_be_edited() -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        graph.opset = 18
        graph.import_domains = None
        return graph

    result, rows = edited(parsed(TWO_LAYERS), edit)
    assert rows == [("opset_import", "model", "changed")]
    assert [entry.version for entry in result.opset_import] == [18]


# ---------------------------------------------------------------- what must survive


def test_metadata_and_doc_strings_survive() -> None:
    proto = parsed(TWO_LAYERS)
    proto.doc_string, proto.domain, proto.model_version = "the model", "org.example", 4
    proto.producer_name = "me"
    helper.set_model_props(proto, {"key": "value"})
    graph = proto.graph
    graph.doc_string = "the graph"
    holders = (graph, graph.node[0], graph.node[1], graph.initializer[0], graph.input[0])
    for index, holder in enumerate(holders):
        holder.metadata_props.add(key="place", value=str(index))
        holder.doc_string = f"doc {index}"
    graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 2]))
    note = graph.quantization_annotation.add(tensor_name="h")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b")
    training = proto.training_info.add()
    training.algorithm.name = "sgd"
    result = assert_only_marked(proto)
    assert result.metadata_props[0].key == "key"
    assert result.graph.node[1].metadata_props[0].value == "2"
    assert result.graph.quantization_annotation[0].tensor_name == "h"
    assert result.graph.value_info[0].name == "h"
    assert result.training_info[0].algorithm.name == "sgd"


def test_metadata_of_an_edited_node_survive_and_its_old_shape_does_not() -> None:
    proto = parsed(TWO_LAYERS)
    proto.graph.node[1].metadata_props.add(key="a", value="b")
    proto.graph.node[1].doc_string = "why"
    for name in ("h", "r"):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def edit(graph: gs.Graph) -> gs.Graph:
        named(graph, "relu").op = "Relu"
        named(graph, "relu").name = "renamed"
        return graph

    result, rows = edited(proto, edit)
    assert rows == [("relu", "Relu", "changed")]
    node = result.graph.node[1]
    assert (node.name, node.doc_string) == ("renamed", "why")
    assert node.metadata_props[0].key == "a"
    assert [value.name for value in result.graph.value_info] == ["h"]


IF = """
<ir_version: 8, opset_import: ["": 17]> g (float[N,64] x, bool which) => (float[N,64] y)
    <float[64,64] w> {
    y = If (which) <
        then_branch = a () => (float[N,64] t) <float[1] k = {2.0}> {
            m = MatMul (x, w) t = Mul (m, k) },
        else_branch = b () => (float[N,64] e) <float[1] k = {3.0}> {
            e = If (which) <
                then_branch = c () => (float[N,64] c1) { c1 = MatMul (x, w) },
                else_branch = d () => (float[N,64] d1) { n = MatMul (x, w) d1 = Mul (n, k) }> }>
}"""


def if_model(*, in_main: bool) -> onnx.ModelProto:
    proto = parser.parse_model(IF)
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.ones(64, np.float32), "unused"),
        ]
    )
    if in_main:
        proto.graph.node.insert(0, helper.make_node("MatMul", ["x", "w"], ["main"]))
    return proto


@pytest.mark.parametrize("in_main", [True, False])
def test_outer_weight_is_not_copied_into_branches(in_main: bool) -> None:
    result = assert_only_marked(if_model(in_main=in_main))
    assert [tensor.name for tensor in result.graph.initializer] == ["w", "unused"]


@pytest.mark.parametrize("in_main", [True, False])
def test_outer_weight_is_edited_for_all_branches(in_main: bool) -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        branch = graph.nodes[-1].attrs["then_branch"]
        weight = branch.nodes[0].inputs[1]
        weight.values = -weight.values
        return graph

    proto = if_model(in_main=in_main)
    result, rows = edited(proto, edit)
    assert rows == [("w", "initializer", "changed")]
    assert result.ByteSize() - proto.ByteSize() < 100
    rng = np.random.default_rng(1)
    for which in (True, False):
        feed = {"x": rng.normal(size=(3, 64)).astype(np.float32), "which": np.array(which)}
        np.testing.assert_array_equal(answers(result, feed)[0], -answers(proto, feed)[0])


def test_edit_inside_a_branch_is_named() -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        branch = graph.nodes[0].attrs["else_branch"]
        constant = branch.nodes[0].attrs["else_branch"].nodes[1].inputs[1]
        constant.values = constant.values * 2
        return graph

    proto = if_model(in_main=False)
    result, rows = edited(proto, edit)
    assert rows == [("k", "initializer", "changed")]
    feed = {"x": np.ones((1, 64), np.float32), "which": np.array(False)}
    np.testing.assert_array_equal(answers(result, feed)[0], 2 * answers(proto, feed)[0])
    inner = dict((a.name, a.g) for a in result.graph.node[0].attribute)["else_branch"]
    assert numpy_helper.to_array(inner.initializer[0]) == [6.0]


def old_ir() -> onnx.ModelProto:
    proto = parsed(TWO_LAYERS)
    proto.ir_version = 3
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", 8))
    weight = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2])
    proto.graph.input.insert(0, weight)
    proto.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
    return proto


def test_initializers_of_ir_3_stay_inputs() -> None:
    result = assert_only_marked(old_ir())
    assert [value.name for value in result.graph.input] == ["w", "x", "b"]


def test_new_initializer_of_ir_3_becomes_an_input() -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        named(graph, "sum").inputs[1] = gs.Constant("c", np.ones(2, np.float32))
        return graph

    result, _ = edited(old_ir(), edit)
    assert [value.name for value in result.graph.input] == ["w", "x", "c"]
    np.testing.assert_allclose(
        answers(result, {"x": X})[0], np.maximum(X @ [[1, 2], [3, 4]], 0) + 1, rtol=1e-6
    )


def test_defaults_stay_inputs() -> None:
    proto = parsed(TWO_LAYERS)
    proto.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
    result = assert_only_marked(proto)
    np.testing.assert_allclose(
        answers(result, {"x": X, "b": np.zeros(2, np.float32)})[0],
        np.maximum(X @ np.array([[1, 2], [3, 4]], np.float32), 0), rtol=1e-6,
    )  # fmt: skip


OVERLOADS = """<ir_version: 10, opset_import: ["": 17, "own": 1]>
g (float[2] x) => (float[2] y) {
    h = own.twice:by_add (x)
    y = own.twice:by_mul (h)
}
<domain: "own", opset_import: ["": 17], overload: "by_add"> twice (v) => (w) { w = Add (v, v) }
<domain: "own", opset_import: ["": 17], overload: "by_mul">
twice (v) => (w) { c = Constant <value_float = 2.0> () w = Mul (v, c) }
"""


def test_function_overloads_survive() -> None:
    proto = parsed(OVERLOADS)
    proto.functions[0].metadata_props.add(key="a", value="b")
    result = assert_only_marked(proto)
    assert [function.overload for function in result.functions] == ["by_add", "by_mul"]
    assert [node.overload for node in result.graph.node][:2] == ["by_add", "by_mul"]


def test_overloads_are_told_apart_by_what_they_do() -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        graph.functions.reverse()
        return mark(graph)

    result, _ = edited(parsed(OVERLOADS), edit)
    found = [(function.overload, function.node[-1].op_type) for function in result.functions]
    assert sorted(found) == [("by_add", "Add"), ("by_mul", "Mul")]


def test_edited_function_keeps_its_overload() -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        graph.functions[0].nodes[0].op = "Mul"
        return graph

    result, rows = edited(parsed(OVERLOADS), edit)
    assert rows == [("w", "Mul", "changed")]
    assert [function.overload for function in result.functions] == ["by_add", "by_mul"]


def test_unreadable_attributes_and_types_survive() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 1]>
    g (float[N,2] x) => (float[N] z, float[2] d) {
        p = Relu (x)
        z = ai.onnx.ml.ZipMap <classlabels_int64s = [4, 9]> (p)
        d = Identity (s)
    }"""
    proto = parsed(text)
    kind = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    proto.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(kind))
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [3.0])
    indices = helper.make_tensor("s_at", TensorProto.INT64, [1], [1])
    sparse = helper.make_sparse_tensor(values, indices, [2])
    constant = helper.make_node("Constant", [], ["s"])
    constant.attribute.append(helper.make_attribute("sparse_value", sparse))
    proto.graph.node.insert(0, constant)
    result = assert_only_marked(proto)
    assert result.graph.output[0].type.HasField("sequence_type")
    assert result.graph.node[0].attribute[0].sparse_tensor.values.float_data == [3.0]


def test_external_weights_stay_in_their_file(tmp_path: Path) -> None:
    proto = if_model(in_main=True)
    weight = proto.graph.initializer[0].raw_data
    path = tmp_path / "m.onnx"
    onnx.save_model(proto, str(path), save_as_external_data=True, size_threshold=1024, location="d")
    model = Model.load(path)
    surgeon.edit(model, mark, "mark")
    assert isinstance(model.ir.graph.initializers["w"].const_value, ir.ExternalTensor)
    model.save(tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "out.onnx")
    assert saved.graph.initializer[0].raw_data == weight


# ---------------------------------------------------------------- what is refused


def odd_types() -> onnx.ModelProto:
    proto = parsed(
        """<ir_version: 10, opset_import: ["": 21]> g (float[2] x, int64 i)
        => (float[2] y, float[2] z, string t) {
            q = DequantizeLinear (w, scale) y = Add (x, q)
            e = DequantizeLinear (f, scale) z = Add (x, e)
            t = Gather (names, i)
        }"""
    )
    codes = helper.make_tensor("w", TensorProto.INT4, [2], b"\x21", raw=True)
    eights = helper.make_tensor("f", TensorProto.FLOAT8E4M3FNUZ, [2], b"\x40\x48", raw=True)
    names = helper.make_tensor("names", TensorProto.STRING, [2], [b"emu", b"koala"])
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5])
    proto.graph.initializer.extend([codes, eights, names, scale])
    return proto


def test_unwritable_types_pass_when_nobody_reads_them() -> None:
    result = assert_only_marked(odd_types())
    kinds = [tensor.data_type for tensor in result.graph.initializer]
    assert kinds == [TensorProto.INT4, TensorProto.FLOAT8E4M3FNUZ, TensorProto.STRING, 1]


@pytest.mark.parametrize(
    ("name", "kind"), [("w", "int4"), ("f", "float8_e4m3fnuz"), ("names", "text")]
)
def test_unwritable_types_are_refused_when_read(name: str, kind: str) -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        graph.tensors()[name].values.sum() if kind != "text" else graph.tensors()[name].values
        return graph

    model = Model.from_proto(odd_types())
    before = model.digest()
    with pytest.raises(UnsupportedModel, match=f"edit .* '{name}', .* cannot write {kind}"):
        surgeon.edit(model, edit, "edit")
    assert model.digest() == before


def test_what_graphsurgeon_cannot_write_is_refused() -> None:
    def edit(graph: gs.Graph) -> gs.Graph:
        graph.nodes[0].attrs["nonsense"] = object()
        return graph

    with pytest.raises(UnsupportedModel, match="cannot write the model"):
        edited(parsed(TWO_LAYERS), edit)


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Writes a user's file; how to name its function."""

    def write(body: str, name: str = "edit") -> str:
        path = tmp_path / "mine.py"
        path.write_text(f"import onnx_graphsurgeon as gs\n\n\n{body}\n")
        return f"{path}:{name}"

    return write


def step(place: str, **options: Any) -> Result:
    model = Model.from_proto(parsed(TWO_LAYERS))
    return run([Surgeon(function=place, **options)], model, Settings(feeds=[{"x": X}]))


def test_step_stands(script: Callable[..., str]) -> None:
    place = script(
        "def edit(graph: gs.Graph) -> gs.Graph:\n"
        "    print('hello')\n"
        "    for node in graph.nodes:\n"
        "        node.name = ''\n"
        "    return graph"
    )
    result = step(place)
    (done,) = result.report.steps
    assert done.status == "done"
    assert [change.what for change in done.changes] == ["product", "relu", "sum"]
    assert done.bytes_before - done.bytes_after >= len("productrelusum") + 3 * 2
    assert [node.name for node in result.model.to_proto().graph.node] == [""] * 3


def test_prints_do_not_mix_with_results(
    script: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    step(script("def edit(graph):\n    print('hello')\n    return graph"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello" in captured.err


def rolled_back(script: Callable[..., str], body: str, **options: Any) -> str:
    result = step(script(body), **options)
    (done,) = result.report.steps
    assert done.status == "rolled back"
    assert result.model.to_proto() == Model.from_proto(parsed(TWO_LAYERS)).to_proto()
    return done.reason


GROWING = (
    "import numpy as np\ndef edit(graph):\n"
    "    node = graph.nodes[-1]\n"
    "    node.inputs[1] = gs.Constant('c', np.array([[0.5, -0.5]] * 2, 'float32'))\n"
    "    return graph"
)


def test_growth_must_be_allowed(script: Callable[..., str]) -> None:
    assert "bigger" in rolled_back(script, GROWING)
    result = step(script(GROWING), allow_growth=True)
    assert result.report.steps[0].status == "done"
    assert result.report.outputs["y"]["max_abs"] == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def edit(graph):\n    return None", "returned NoneType, not an onnx_graphsurgeon.Graph"),
        ("def edit(graph):\n    return 3", "returned int"),
        ("def edit(graph):\n    raise KeyError('node7')", "mine.py:edit raised KeyError: 'node7'"),
        ("1 / 0", "mine.py raised ZeroDivisionError: division by zero"),
        (
            "def edit(graph):\n    graph.nodes[1].op = 'Abs'\n    graph.nodes[1].name = ''\n"
            "    return graph",
            "output 'y' changed by",
        ),
        (
            "def edit(graph):\n    graph.outputs[0].name = 'other'\n    return graph",
            "inputs or outputs changed",
        ),
        ("def edit(graph):\n    graph.nodes.reverse()\n    return graph", "does not run"),
        ("def edit(graph):\n    graph.nodes[1].op = 'Nope'\n    return graph", "does not run"),
    ],
)
def test_step_is_rolled_back(script: Callable[..., str], body: str, words: str) -> None:
    assert words in rolled_back(script, body)


def test_max_error_is_the_users_choice(script: Callable[..., str]) -> None:
    body = "def edit(graph):\n    graph.nodes[1].op = 'Abs'\n    return graph"
    assert step(script(body), max_error=10).report.steps[0].status == "done"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("", "takes path/to/file.py:name, not ''"),
        ("edit", "takes path/to/file.py:name"),
        ("nothing.py", "takes path/to/file.py:name"),
        ("nothing.py:edit", "nothing.py: no such file"),
    ],
)
def test_bad_place(place: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        step(place)


def test_missing_function_names_the_nearest(script: Callable[..., str]) -> None:
    place = script("def edit(graph):\n    return graph", name="edti")
    with pytest.raises(RecipeError, match="no function 'edti'; did you mean 'edit'"):
        step(place)


def test_errors_are_of_the_tree() -> None:
    assert issubclass(UnsupportedModel, ShrinkError)


# ---------------------------------------------------------------- oracle


def shipped() -> Iterator[onnx.ModelProto]:
    import onnx.backend.test
    from onnx.backend.test.case.node import collect_testcases

    folder = Path(onnx.backend.test.__file__).parent / "data"
    for path in sorted(folder.rglob("*.onnx")):
        if shares.chosen(str(path.relative_to(folder))):
            yield onnx.load(path)
    for case in collect_testcases(None):
        if case.model is not None and shares.chosen(case.name):
            yield case.model


@pytest.mark.oracle
@pytest.mark.xdist_group("oracle")
@pytest.mark.filterwarnings("ignore")
def test_every_model_that_onnx_ships_survives() -> None:
    """Nearly all of them; the others have no input to add a node to."""
    marked, tried = 0, list(shipped())
    for proto in tried:
        model = Model.from_proto(proto)
        before = model.to_proto().SerializeToString(deterministic=True)
        if proto.graph.input:
            rows = surgeon.edit(model, mark, "mark")
            assert [row.what for row in rows] == ["extra"], proto.graph.name
            assert without_mark(model.to_proto()) == before, proto.graph.name
            marked += 1
    assert marked > 0.9 * len(tried) > 100
