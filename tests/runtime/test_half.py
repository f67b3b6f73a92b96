"""Float16 by ONNX Runtime's converter, with what it leaves wrong put right."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hard_models import text, weight
from onnx_ir.passes.common import TopologicalSortPass

from onnxshrink.errors import UnsupportedModel
from onnxshrink.runtime import half
from onnxshrink.runtime.session import SessionOptions, open_session, run_session

EXACT = SessionOptions(optimization="disable")
FEED = {"x": np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64)}


def layers() -> onnx.ModelProto:
    return text(
        """g (float[n, 64] x) => (float[n, 64] y) {
            a = MatMul(x, w)  b = Exp(a)  c = Log(b)  y = MatMul(c, v)
        }""",
        w=weight(1, 64, 64), v=weight(2, 64, 64),
    )  # fmt: skip


def to_float16(model: onnx.ModelProto, **kept: Any) -> onnx.ModelProto:
    """Its nodes in order, which the converter's are not."""
    converted = ir.from_proto(half.to_float16(model, **kept))
    return ir.to_proto(TopologicalSortPass()(converted).model)


def answer(model: onnx.ModelProto, feed: dict[str, Any] = FEED) -> np.ndarray:
    onnx.checker.check_model(model)
    (y,) = run_session(open_session(model.SerializeToString(), EXACT), feed)
    return np.asarray(y)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_it_computes_in_float16_between_inputs_and_outputs_of_their_types() -> None:
    wanted, made = answer(layers()), to_float16(layers())
    assert {t.data_type for t in made.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert operators(made) == ["Cast", "MatMul", "Exp", "Log", "MatMul", "Cast"]
    found = answer(made)
    assert found.dtype == np.float32
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 2e-3  # some, as half precision has


@pytest.mark.parametrize("kept", [{"made": ["b", "c"]}, {"types": ["Exp", "Log"]}], ids=str)
def test_neighbours_in_float32_hand_on_their_values_as_they_are(kept: dict[str, Any]) -> None:
    made = to_float16(layers(), **kept)
    assert operators(made) == ["Cast", "MatMul", "Cast", "Exp", "Log", "Cast", "MatMul", "Cast"]
    by_output = {node.output[0]: node for node in made.graph.node}
    (log,) = [node for node in made.graph.node if node.op_type == "Log"]
    assert by_output[log.input[0]].op_type == "Exp"
    wanted = answer(layers())
    assert np.linalg.norm(answer(made) - wanted) < 2e-3 * np.linalg.norm(wanted)


def test_neighbours_in_the_body_of_a_branch() -> None:
    model = text(
        """g (float[3, 64] x, bool t) => (float[3, 64] y) {
            y = If(t) <
                then_branch = a () => (float[3, 64] p) { e = Exp(x)  f = Log(e)  p = MatMul(f, w) },
                else_branch = b () => (float[3, 64] q) { q = MatMul(x, w) }>
        }""",
        w=weight(3, 64, 64),
    )
    feed = {**FEED, "t": np.array(True)}
    wanted = answer(model, feed)
    made = to_float16(model, types=["Exp", "Log"])
    (branch,) = [node for node in made.graph.node if node.op_type == "If"]
    body = next(a.g for a in branch.attribute if a.name == "then_branch")
    ops = [node.op_type for node in body.node]
    assert ops[ops.index("Exp") + 1] == "Log"
    assert np.linalg.norm(answer(made, feed) - wanted) < 2e-3 * np.linalg.norm(wanted)


def test_what_an_earlier_conversion_named_is_out_of_the_way() -> None:
    """A model in float16 with a layer of floats behind it has Casts by the converter's names."""
    made = to_float16(layers())
    for tensor in made.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name
        ))  # fmt: skip
    for node in made.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to":
                attribute.i = onnx.TensorProto.FLOAT
    del made.graph.value_info[:]
    wanted = answer(made)
    again = to_float16(made)
    names = [node.name for node in again.graph.node if node.name]
    assert len(names) == len(set(names))
    assert np.linalg.norm(answer(again) - wanted) < 2e-3 * np.linalg.norm(wanted)


def test_a_converter_that_fails_makes_the_model_unsupported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("some value")

    monkeypatch.setattr("onnxruntime.transformers.float16.convert_float_to_float16", fail)
    with pytest.raises(UnsupportedModel, match="converter fails on this model: 'some value'"):
        to_float16(layers())
