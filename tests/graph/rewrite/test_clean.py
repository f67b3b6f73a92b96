"""Rewriters leave answers alone, and nodes that they do not fully know."""

import numpy as np
import onnx
import pytest
from answers import answers, kinds, normal
from hard_models import text
from onnx import parser

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite import clean, fold

NORM = """g (float[2, 4, 8, 8] x) => (float[2, 6, n, m] y) {
    a = %s(x, w%s)  y = BatchNormalization <epsilon = 0.01> (a, s, b, m, v)
}"""


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose <group = 2>"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_is_multiplied_into_its_convolution(op_type: str, bias: bool) -> None:
    shape = (6, 4, 3, 3) if op_type == "Conv" else (4, 3, 3, 3)
    stored = {"w": normal(*shape), "c": normal(6, seed=1)} if bias else {"w": normal(*shape)}
    parameters = {name: normal(6, seed=seed) for seed, name in enumerate("sbm", 2)}
    proto = text(NORM % (op_type, ", c" * bias), **stored, **parameters, v=np.abs(normal(6)))
    model, x = Model.from_proto(proto), normal(2, 4, 8, 8, seed=9)
    before = answers(model, x=x)[0]
    clean.fold_batch_norms(model)
    assert kinds(model) == [op_type.split()[0]]
    assert len(model.to_proto().graph.initializer) == 2
    np.testing.assert_allclose(answers(model, x=x)[0], before, rtol=2e-5, atol=2e-5)


def test_equal_initializers_and_copies_are_read_once() -> None:
    proto = text(
        """g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) {
            k = Identity(u)  a = MatMul(x, w)  b = MatMul(x, k)  y = Add(a, b)  z = Identity(a)
        }""",
        w=normal(4, 4), u=normal(4, 4),
    )  # fmt: skip
    model, x = Model.from_proto(proto), normal(2, 4, seed=1)
    before = answers(model, x=x)
    clean.share_duplicates(model)
    clean.forward_constants(model)
    assert kinds(model) == ["MatMul", "MatMul", "Add", "Identity"]  # an output keeps its own
    assert [t.name for t in model.to_proto().graph.initializer] == ["w"]
    for old, new in zip(before, answers(model, x=x), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_a_caller_of_a_function_decides_is_not_folded() -> None:
    """The default is not what it is: each of these would compute something else with it."""
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "f": 1]>
        g (float[1, 4, 8] x, float[6, 2, 3] w, float[6] s) => (float[1, 6, n] y) {
            y = f.layer <group: int = 2, mode: string = "edge", eps: float = 0.5> (x, w, s)
        }
        <domain: "f", opset_import: ["": 21]>
        layer <group, mode, eps> (x, w, s) => (y) {
            pads = Constant <value = int64[6] {0, 0, 1, 0, 0, 1}> ()
            p = Pad <mode: string = @mode> (x, pads)
            a = Conv <group: int = @group> (p, w)
            y = BatchNormalization <epsilon: float = @eps> (a, s, s, s, s)
        }"""
    )
    model = Model.from_proto(proto)
    clean.fold_batch_norms(model)
    fold.fold_pads(model)
    fold.fold_biases(model)
    assert model.to_proto().functions[0] == proto.functions[0]
    onnx.checker.check_model(model.to_proto())


def test_shapes_inferred_on_the_way_are_not_written_into_bodies() -> None:
    """A body whose If has another name now is not found in the original: nothing is put back."""
    branch = "a = Mul(x, two)  four = Constant <value = float {4.0}> ()  b = Add(a, four)"
    proto = text(
        f"""g (float[2, 4] x, bool c) => (float[2, 4] y) {{
            two = Constant <value = float {{2.0}}> ()
            k = If (c) <then_branch = t () => (float[2, 4] b) {{ {branch} }},
                        else_branch = e () => (float[2, 4] d) {{ d = Neg(x) }}>
            y = Identity(k)
        }}"""
    )
    model = Model.from_proto(proto)
    clean.fold_constants(model)
    clean.drop_identities(model)
    graph = model.to_proto().graph
    (chosen,) = (node for node in graph.node if node.op_type == "If")
    assert list(chosen.output) == ["y"]
    assert not any(attribute.g.value_info for attribute in chosen.attribute)
