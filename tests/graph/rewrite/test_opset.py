"""Raising the operator set: the same answers, and what the converter cannot know stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hard_models import HARD, text, weight
from onnx import TensorProto, helper, numpy_helper

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError, UnsupportedModel
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite.hoist import hoist_constants
from onnxshrink.graph.rewrite.opset import needs, newest_for, raise_opset
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import run
from onnxshrink.runtime.session import open_session, run_session
from onnxshrink.runtime.worker import Worker


def branches(opset: int = 13, ir_version: int = 8) -> onnx.ModelProto:
    """An If whose branches say nothing of the types of their outputs, as exporters leave it."""
    rng = np.random.default_rng(0)

    def branch(name: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(rng.standard_normal((40, 40)).astype(np.float32))
        nodes = [
            helper.make_node("Constant", [], [f"{name}_w"], value=weight),
            helper.make_node("MatMul", ["x", f"{name}_w"], [name]),
        ]
        return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=name)])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 40]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 40])
    graph = helper.make_graph([node], "g", inputs, [output])
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def answers(path: Path) -> list[np.ndarray]:
    session, x = open_session(path), np.linspace(-1, 1, 40, dtype=np.float32).reshape(1, 40)
    return [run_session(session, {"x": x, "c": np.array(c)})[0] for c in (True, False)]


def test_branches_without_types_survive_a_raise(tmp_path: Path) -> None:
    before, after = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(branches(), before)
    model = Model.load(before)
    assert raise_opset(model, 21)
    model.save(after)
    raised = onnx.load(after)
    assert [o.version for o in raised.opset_import] == [21]
    assert raised.ir_version == 10
    outputs = [a.g.output[0] for a in raised.graph.node[0].attribute]
    assert all(not output.HasField("type") for output in outputs)  # as they were written
    for old, new in zip(answers(before), answers(after), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_new_enough_model_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    onnx.save(branches(opset=21, ir_version=10), path)
    model = Model.load(path)
    assert not raise_opset(model, 21)
    assert model.untouched


def test_a_model_that_cannot_be_raised_says_why() -> None:
    proto = branches()
    proto.graph.node[0].CopyFrom(helper.make_node("NoSuchOperator", ["x"], ["y"]))
    with pytest.raises(UnsupportedModel, match="opset 13 cannot be raised to 21"):
        raise_opset(Model.from_proto(proto), 21)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_hoisted_constants_are_initializers_of_the_main_graph(
    tmp_path: Path, ir_version: int
) -> None:
    before, after = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(branches(ir_version=ir_version), before)
    model = Model.load(before)
    assert hoist_constants(model, 1024) == 2
    model.save(after)
    hoisted = onnx.load(after)
    onnx.checker.check_model(hoisted)
    assert sorted(t.name for t in hoisted.graph.initializer) == ["a_w", "b_w"]
    assert [value.name for value in hoisted.graph.input] == ["x", "c"]
    assert all(len(a.g.node) == 1 for a in hoisted.graph.node[0].attribute)
    for old, new in zip(answers(before), answers(after), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_people_wrote_survives_a_raise() -> None:
    before = HARD["metadata"]().proto
    model = Model.from_proto(before)
    assert raise_opset(model, 19)
    after = model.to_proto()

    def written(proto: onnx.ModelProto) -> list[object]:
        def texts(thing: object) -> list[tuple[str, str]]:
            return [(entry.key, entry.value) for entry in thing.metadata_props]  # type: ignore[attr-defined]

        graph = proto.graph
        return [
            texts(proto), texts(graph), [(n.name, n.doc_string, texts(n)) for n in graph.node],
            [(t.name, t.doc_string, texts(t)) for t in graph.initializer], graph.doc_string,
        ]  # fmt: skip

    assert written(after) == written(before)


def test_models_that_the_converter_does_not_know() -> None:
    model = Model.from_proto(HARD["sparse"]().proto)
    with pytest.raises(UnsupportedModel, match=r"opset 17 cannot be raised to 21.*rare"):
        raise_opset(model, 21)


def test_dimensions_without_a_name_get_none() -> None:
    proto = text("g (float[?, 4] x) => (float[?, 4] y) { y = MatMul(x, w) }", w=weight(1, 4, 4))
    model = Model.from_proto(proto)
    assert raise_opset(model, 21)
    model.touch("y")
    assert model.to_proto().graph.output == proto.graph.output


def test_a_model_without_default_operators_just_imports_them() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["ai.onnx.ml": 1]>
        g (float[n, 4] x) => (float[n, 4] y) { y = ai.onnx.ml.Scaler<scale = [2.0]>(x) }""")
    model = Model.from_proto(proto)
    assert raise_opset(model, 21)
    after = model.to_proto()
    assert after.graph.node == proto.graph.node
    assert {o.domain: o.version for o in after.opset_import} == {"": 21, "ai.onnx.ml": 1}


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (17, 21, "raised from 17 to 21: needs ONNX Runtime 1.18 or newer"),
        (8, 11, "raised from 8 to 11"),
        (17, 25, "raised from 17 to 25: needs ONNX Runtime newer than 1.23"),
    ],
)
def test_what_a_raised_model_needs_is_said(before: int, after: int, says: str) -> None:
    model = Model.from_proto(branches(after))
    assert needs(before, model) == says


def test_the_operator_set_is_raised_only_so_far() -> None:
    model = Model.from_proto(branches(17))
    model.max_opset = 20
    with pytest.raises(UnsupportedModel, match="set 21, and --max-opset or --runtime allows 20"):
        raise_opset(model.clone(), 21)
    assert raise_opset(model, 20)


def newest(nodes: str = "y = MatMul(x, w)") -> Model:
    header = '<ir_version: 13, opset_import: ["" : 28]>'
    proto = text(f"{header} g (float[4, 64] x) => (float[4, 48] y) {{ {nodes} }}",
                 w=weight(1, 64, 48))  # fmt: skip
    return Model.from_proto(proto)


def test_a_set_that_the_runtime_cannot_quantize_is_lowered(worker: Worker) -> None:
    """onnx.helper writes 28 today, and ONNX Runtime 1.32 has no DequantizeLinear of it."""
    feeds = [{"x": weight(seed, 4, 64)} for seed in (2, 3)]
    result = run([QuantizeWeights(form="dq")], newest(), Settings(feeds=feeds), worker)
    (step,) = result.report.steps
    assert step.status == "done"
    assert 0 < step.outputs["y"]["relative_error"] < 0.01
    assert result.model.opset == 27
    (row,) = [row for row in step.changes if row.what == "opset"]
    assert row.note.startswith("lowered from 28 to 27")


def test_it_is_not_where_that_would_change_something() -> None:
    model = newest("a = MatMul(x, w)  y = Cast <to = 1> (a)")
    model.ir.graph[1].attributes.add(ir.AttrString("of_the_new_set", "x"))
    assert not raise_opset(model, 13)
    assert model.opset == 28


@pytest.mark.parametrize(
    ("runtime", "opset"), [("1.6", 13), ("1.16", 19), ("1.16.3", 19), ("1.18", 21), ("1.99", 23)]
)
def test_the_newest_operator_set_of_a_runtime(runtime: str, opset: int) -> None:
    assert newest_for(runtime) == opset


@pytest.mark.parametrize("runtime", ["1.2", "new", "1", "1.x"])
def test_a_runtime_that_is_not_known_is_told(runtime: str) -> None:
    with pytest.raises(RecipeError, match="--runtime"):
        newest_for(runtime)
