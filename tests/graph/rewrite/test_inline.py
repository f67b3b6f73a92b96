"""Functions put where they are called answer as before, whatever they are called and made of."""

import numpy as np
import onnx
import pytest
from hard_models import HARD
from onnx import parser

from onnxshrink.contract import Settings
from onnxshrink.errors import UnsupportedModel
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite.inline import inline_functions
from onnxshrink.graph.rewrite.opset import raise_opset
from onnxshrink.passes.prune_sparsegpt import PruneSparsegpt
from onnxshrink.passes.prune_wanda import PruneWanda
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.passes.to_float16 import ToFloat16
from onnxshrink.pipeline import run
from onnxshrink.runtime.session import SessionOptions, open_session
from onnxshrink.runtime.worker import Worker

#: Calls in bodies and in functions, attributes with and without defaults, inputs left out, and
#: names that the bodies of the graph use for values of their own.
NESTED = """<ir_version: 9, opset_import: ["": 18, "l": 1]>
g (float[n, 4] x, bool c) => (float[n, 4] y)
<float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}> {
    a = l.f<alpha = 0.5>(x, w)
    y = If (c) <
        then_branch = q () => (float[n, 4] u) { p = Relu(a)  r = l.f(p, w)  u = l.g(r) },
        else_branch = z () => (float[n, 4] v) { p = Abs(a)  v = l.f(p, w) }>
}
<domain: "l", opset_import: ["": VERSION]> f <alpha: float = 2.0> (x, w) => (y) {
    p = MatMul(x, w)  t = Constant<value_float: float = @alpha>()  y = Mul(p, t)
}
<domain: "l", opset_import: ["": 18, "l": 1]> g (x) => (y) {
    k = Constant<value = float[4] {1, 2, 3, 4}>()  z = Add(x, k)  y = l.h(z)
}
<domain: "l", opset_import: ["": 18]> h (x, m) => (y) { y = Clip(x, m) }
"""
W = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7], np.float32).reshape(4, 4)


def answers(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = open_session(proto.SerializeToString(), SessionOptions(optimization="disable"))
    return session.run(None, feed)  # type: ignore[no-any-return]


@pytest.mark.parametrize("taken", [True, False])
def test_calls_within_calls_and_bodies(taken: bool) -> None:
    model = Model.from_proto(parser.parse_model(NESTED.replace("VERSION", "18")))
    assert inline_functions(model) == 5  # f thrice, g, and h within g
    after = model.to_proto()
    onnx.checker.check_model(after)
    assert not after.functions
    assert [o.domain for o in after.opset_import] == [""]
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    a = x @ W * 0.5
    wanted = np.maximum(a, 0) @ W * 2 + [1, 2, 3, 4] if taken else np.abs(a) @ W * 2
    (found,) = answers(after, {"x": x, "c": np.array(taken)})
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_functions_of_another_version_with_the_same_operators() -> None:
    model = Model.from_proto(parser.parse_model(NESTED.replace("VERSION", "17")))
    assert inline_functions(model) == 5
    x = np.ones((1, 4), np.float32)
    (found,) = answers(model.to_proto(), {"x": x, "c": np.array(False)})
    np.testing.assert_allclose(found, np.abs(x @ W * 0.5) @ W * 2, rtol=1e-6)


def test_functions_of_other_operators_are_a_reason(worker: Worker) -> None:
    model = Model.from_proto(parser.parse_model(NESTED.replace("VERSION", "6")))
    with pytest.raises(UnsupportedModel, match=r"Opset mismatch .*f.* version 18 .* version 6"):
        inline_functions(model)


def test_constants_of_a_function_called_twice_are_stored_once() -> None:
    hard = HARD["function"]()
    model = Model.from_proto(hard.proto)
    assert inline_functions(model) == 2
    assert sorted(list(t.dims) for t in model.to_proto().graph.initializer) == [[64, 64]] * 3
    for feed in hard.feeds:
        before, after = answers(hard.proto, feed), answers(model.to_proto(), feed)
        np.testing.assert_array_equal(before[0], after[0])


def test_a_model_without_functions_stays_as_it_is() -> None:
    model = Model.from_proto(HARD["metadata"]().proto)
    assert inline_functions(model) == 0
    assert model.untouched


def test_a_function_that_calls_itself_is_a_reason() -> None:
    proto = parser.parse_model("""<ir_version: 9, opset_import: ["": 18, "l": 1]>
        g (float[n, 4] x) => (float[n, 4] y) { y = l.f(x) }
        <domain: "l", opset_import: ["": 18, "l": 1]> f (x) => (y) { y = l.f(x) }""")
    with pytest.raises(UnsupportedModel, match=r"functions cannot be inlined: Cyclic .* l::f"):
        inline_functions(Model.from_proto(proto))


def test_the_operator_set_of_a_model_with_functions_is_raised() -> None:
    hard = HARD["function"]()
    model = Model.from_proto(hard.proto)
    assert raise_opset(model, 21)
    assert model.opset == 21
    np.testing.assert_array_equal(
        answers(hard.proto, hard.feeds[0])[0], answers(model.to_proto(), hard.feeds[0])[0]
    )


@pytest.mark.parametrize(
    "step",
    [
        PruneSparsegpt(max_error=9), PruneWanda(max_error=9), ToFloat16(full=True),
        QuantizeWeights(dtype="int4", block_size=32, rounding="gptq"),
    ],
    ids=lambda step: step.name,
)  # fmt: skip
def test_passes_that_observe_values_see_them_inlined(step, worker: Worker) -> None:
    hard = HARD["function"]()
    result = run([step], Model.from_proto(hard.proto), Settings(feeds=hard.feeds), worker)
    (row,) = result.report.steps
    assert row.status == "done"
    assert not result.model.to_proto().functions
    if not isinstance(step, ToFloat16):
        assert {"own", "v", "u", "functions"} <= {change.what for change in row.changes}
        assert row.changes[-1].note == "2 calls inlined"


def test_a_pass_that_finds_nothing_leaves_functions_alone(worker: Worker) -> None:
    hard = HARD["function"]()
    step = PruneWanda(ratio=0)
    result = run([step], Model.from_proto(hard.proto), Settings(feeds=hard.feeds), worker)
    assert result.model.to_proto() == hard.proto
