"""Fused products spelled out: the same answers, the same names, nothing left of the fused ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from spellings import NETS
from weight_models import normal, parsed

from onnxshrink.graph import surgery
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite import plain
from onnxshrink.runtime.session import open_session, run_session

_HEADER = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'
_KERNEL, _IMAGES = normal(6, 4, 3, 3, seed=1) / 6, normal(2, 4, 8, 8, seed=2)


def convolution(options: str, *more: str) -> onnx.ModelProto:
    inputs = ", ".join(("x", "w", "b", *more))
    return parsed(
        f"""g (float[2, 4, 8, 8] x) => (float[2, 6, 6, 6] y, float[2, 6, 6, 6] t) {{
            y = com.microsoft.FusedConv<{options}>({inputs})  t = Neg(y)
        }}""",
        _HEADER, w=_KERNEL, b=normal(6, seed=3), z=normal(2, 6, 6, 6, seed=4),
    )  # fmt: skip


MODELS = {
    **{f"{net}: {name}": (net, name) for net in ("dense", "convolutions")
       for name in NETS[net]().spellings},
}  # fmt: skip
FUSED = {
    "Clip": convolution('activation = "Clip", activation_params = [-0.25, 0.5]'),
    "HardSigmoid": convolution('activation = "HardSigmoid", activation_params = [0.3, 0.4]'),
    "LeakyRelu": convolution('activation = "LeakyRelu", activation_params = [0.2]'),
    "added": convolution('activation = "Relu"', "z"),
}


def answers(model: Model, x: np.ndarray) -> list[np.ndarray]:
    return run_session(open_session(model.to_proto().SerializeToString()), {"x": x})


def spelled_out(proto: onnx.ModelProto, x: np.ndarray) -> Model:
    """The model spelled out, which answers as it did."""
    before, after = Model.from_proto(proto), Model.from_proto(proto)
    plain.spell_out(after)
    onnx.checker.check_model(after.to_proto())
    for one, other in zip(answers(before, x), answers(after, x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    return after


def test_a_turned_matrix_behind_a_batch_of_rows_is_no_gemm() -> None:
    """Which takes two axes and no more."""
    source = """g (float[2, 3, 8] x) => (float[2, 3, 5] y) {
        y = com.microsoft.FusedMatMul<transB = 1>(x, w)
    }"""
    model = spelled_out(parsed(source, _HEADER, w=normal(5, 8)), normal(2, 3, 8, seed=1))
    assert [node.op_type for node in model.ir.graph] == ["Transpose", "MatMul"]


@pytest.mark.parametrize("name", MODELS)
def test_every_spelling_becomes_plain(name: str) -> None:
    net = NETS[MODELS[name][0]]()
    proto = net.spellings[MODELS[name][1]]
    model = spelled_out(proto, net.feeds[0]["x"])
    types = {(node.domain, node.op_type) for node in model.nodes}
    assert not any(domain for domain, _ in types)
    assert ("", "Einsum") not in types
    if all(not node.domain and node.op_type != "Einsum" for node in proto.graph.node):
        assert model.to_proto() == Model.from_proto(proto).to_proto()


@pytest.mark.parametrize("name", FUSED)
def test_what_was_done_with_the_sums_is_done_behind(name: str) -> None:
    model = spelled_out(FUSED[name], _IMAGES)
    types = [node.op_type for node in model.nodes]
    assert types == [
        "Conv",
        {"added": "Add"}.get(name, name),
        *(["Relu"] * (name == "added")),
        "Neg",
    ]
    assert [value.name for value in model.ir.graph.outputs] == ["y", "t"]
    names = {value.name for node in model.nodes for value in node.outputs}
    assert "y.sum" in names


def test_what_cannot_be_spelled_out_stays() -> None:
    text = """g (float[2, 3, 6] x) => (float[2, 3, 5] y) {
        y = com.microsoft.FusedMatMul<transBatchA = 1, transBatchB = 1>(x, w)
    }"""
    text = text.replace("[2, 3, 6] x", "[3, 2, 6] x")
    proto = parsed(text, _HEADER, w=normal(6, 2, 5, seed=5))
    model = Model.from_proto(proto)
    assert plain.spell_out(model) == 0
    assert [node.op_type for node in model.nodes] == ["FusedMatMul"]


def test_only_what_hides_its_sums() -> None:
    net = NETS["dense"]()
    model = Model.from_proto(net.spellings["FusedMatMul"])
    assert plain.spell_out(model, hiding=True) == 0
    assert plain.seen_through(model) is model
    fused = Model.from_proto(net.spellings["FusedGemm"])
    seen = plain.seen_through(fused)
    assert seen is not fused
    assert [node.op_type for node in fused.nodes] == ["FusedGemm", "Gemm"]
    assert [node.op_type for node in seen.nodes] == ["Gemm", "Relu", "Gemm"]
    doubled = seen.ir.graph.initializers["w1"]
    surgery.set_constant(seen, doubled, 2 * doubled.const_value.numpy())  # type: ignore[union-attr]
    plain.take_over(fused, seen, {"w1"})
    taken = fused.ir.graph.initializers["w1"].const_value
    assert taken is not None
    assert np.array_equal(taken.numpy(), doubled.const_value.numpy())  # type: ignore[union-attr]
