from __future__ import annotations

import channel_oracle as oracle
import numpy as np
import pytest

from onnxshrink.contract import Settings
from onnxshrink.errors import DataError, RecipeError
from onnxshrink.passes.prune_channels import PruneChannels
from onnxshrink.passes.specialize import Specialize
from onnxshrink.pipeline import run

_RATES = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[N,12] x, int64 rate) => (float[N,5] y) {'
    "c = Equal(rate, fast) y = If(c)<then_branch=t () => (float[N,5] p) "
    "{h = MatMul(x, a) r = Relu(h) p = MatMul(r, b)},"
    "else_branch=e () => (float[N,5] q) {i = MatMul(x, c2) q = Neg(i)}>}"
)
_LENGTHS = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[N,S] x) => (float[N,5] y) {'
    "sh = Shape(x) n = Gather(sh, one) c = Equal(n, twelve)"
    "y = If(c)<then_branch=t () => (float[N,5] p) {h = MatMul(x, a) r = Relu(h) p = MatMul(r, b)},"
    "else_branch=e () => (float[N,5] q) {f = ReduceMean<axes=[1]>(x) q = MatMul(f, d)}>}"
)
_X = np.random.default_rng(0).standard_normal((3, 12)).astype(np.float32)


def _rates():
    return oracle.build(_RATES, fast=np.array(16), a=(12, 32), b=(32, 5), c2=(12, 5))


def _lengths():
    return oracle.build(
        _LENGTHS, one=np.array(1), twelve=np.array(12), a=(12, 32), b=(32, 5), d=(1, 5)
    )


def _kinds(result):
    return [n.op_type for n in result.model.ir.graph if n.op_type != "Constant"]


def _answer(result, feed, worker, folder):
    path = folder / "model.onnx"
    result.model.save(path)
    return worker.run(path, [feed]).outputs[0][0]


@pytest.mark.parametrize(("rate", "kinds"), [(16, ["MatMul", "Relu", "MatMul"]), (8, None)])
def test_the_branch_of_a_value_is_inlined(rate, kinds, worker, tmp_path):
    feeds = [{"x": _X, "rate": np.array(r)} for r in (8, 16)]
    model = _rates()
    result = run([Specialize(values={"rate": rate})], model, Settings(feeds=feeds), worker)
    step = result.report.steps[0]
    assert (step.status, step.max_error) == ("done", 0.0)
    assert result.report.bytes_after < result.report.bytes_before
    assert _kinds(result) == (kinds or ["MatMul", "Neg"])
    assert result.model.signature == model.signature
    stored = {n: v.const_value.numpy() for n, v in model.ir.graph.initializers.items()}
    expected = np.maximum(_X @ stored["a"], 0) @ stored["b"] if rate == 16 else -_X @ stored["c2"]
    for other in (8, 16):  # what is fed is ignored
        actual = _answer(result, {"x": _X, "rate": np.array(other)}, worker, tmp_path)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_channels_of_the_branch_can_go(worker):
    feeds = [{"x": _X, "rate": np.array(16)}]
    steps = [Specialize(values={"rate": 16}), PruneChannels(ratio=0.25, max_error=10)]
    result = run(steps, _rates(), Settings(feeds=feeds), worker)
    assert [step.status for step in result.report.steps] == ["done", "done"]
    sizes = {
        tuple(v.const_value.shape.numpy()) for v in result.model.ir.graph.initializers.values()
    }
    assert sizes >= {(12, 24), (24, 5)}


def test_the_branch_of_a_shape_is_inlined(worker):
    feeds = [{"x": _X}, {"x": _X[:, :7]}]
    result = run([Specialize(shapes={"x": [3, 12]})], _lengths(), Settings(feeds=feeds), worker)
    assert result.report.steps[0].status == "done"
    assert _kinds(result) == ["MatMul", "Relu", "MatMul"]
    shape = result.model.ir.graph.inputs[0].shape
    assert [str(dim) for dim in shape] == ["N", "S"]


def test_inputs_of_other_shapes_only_are_refused(worker):
    with pytest.raises(DataError, match=r"no input has the shapes {'x': \(3, 12\)}"):
        run(
            [Specialize(shapes={"x": [3, 12]})], _lengths(), Settings(feeds=[{"x": _X[:2]}]), worker
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": {"rat": 1}}, "no input 'rat'; did you mean 'rate'"),
        ({"values": {"rate": "fast"}}, "values: 'rate': "),
        ({"values": {"rate": [1, 2]}}, "'rate' has 0 axes, not 1"),
        ({"shapes": {"x": [3]}}, "'x' has 2 axes, not 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, message, worker):
    with pytest.raises(RecipeError, match=message):
        run([Specialize(**options)], _rates(), Settings(), worker)


def test_shapes_are_lists_of_sizes():
    for wrong in (12, [0, 3], ["N"]):
        with pytest.raises(RecipeError, match="takes a list of sizes"):
            Specialize(shapes={"x": wrong})


def test_nothing_is_asked_for(worker):
    step = run([Specialize()], _rates(), Settings(), worker).report.steps[0]
    assert step.status == "nothing to do"
    assert [skip.reason for skip in step.skips] == ["no value or shape is given"]


def test_on_the_command_line(cli):
    _rates().save("model.onnx")
    done = cli("specialize", "model.onnx", "out.onnx", "--values", "{rate: 16}")
    assert done.code == 0, done.err
    assert "rate is 16" in done.out or "done" in done.out
