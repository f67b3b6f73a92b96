"""Tuning: what is off comes back, on inputs that were not fitted to; all else stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from weight_models import normal, parsed

from onnxshrink.contract import Settings
from onnxshrink.errors import InputsMissing
from onnxshrink.graph import surgery
from onnxshrink.graph.analysis import operands
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.read import array
from onnxshrink.passes.prune_magnitude import PruneMagnitude
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.passes.share_codebook import ShareCodebook
from onnxshrink.passes.tune import Tune
from onnxshrink.pipeline import Context, Pass, Result, run
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select
from onnxshrink.trials import Reference

_ALL = Select(min_size=1)


def net(seed: int = 0) -> Model:
    """Two layers with a norm between them."""
    return Model.from_proto(parsed(
        """g (float[N, 16] x) => (float[N, 8] y) {
            t = MatMul(x, w)  u = Add(t, b)  n = LayerNormalization(u, g, s)  h = Relu(n)
            v = MatMul(h, w2)  y = Add(v, b2)
        }""",
        w=normal(16, 32, seed=seed) / 4, b=normal(32, seed=1) / 4, g=1 + normal(32, seed=2) / 4,
        s=normal(32, seed=3) / 4, w2=normal(32, 8, seed=4) / 6, b2=normal(8, seed=5) / 4,
    ))  # fmt: skip


FEEDS = [{"x": normal(4, 16, seed=100 + number)} for number in range(16)]
UNSEEN = [{"x": normal(4, 16, seed=500 + number)} for number in range(16)]


def steps(
    passes: Sequence[Pass], model: Model, worker: Worker, feeds: list[dict[str, np.ndarray]] = FEEDS
) -> Result:
    return run(passes, model, Settings(feeds=feeds), worker)


def off(model: Model, original: Model, worker: Worker) -> float:
    return Reference(original, UNSEEN, worker).distance(model)


@dataclass(frozen=True, kw_only=True)
class Detune(Pass):
    """Multiplies floating-point numbers of vectors and matrices with others between .8 and 1.2."""

    @property
    def bound(self) -> float:
        return 9.0

    def apply(self, model: Model, ctx: Context) -> None:
        rng = np.random.default_rng(0)
        for value, tensor in list(operands.constants(model)):
            if tensor.dtype.is_floating_point():
                off = rng.uniform(0.8, 1.2, tuple(tensor.shape.numpy()))
                surgery.set_constant(model, value, tensor.numpy() * off)
                ctx.changed(value.name or "", tensor.nbytes)


@pytest.mark.parametrize(
    "compress",
    [
        QuantizeWeights(form="dq", weights=_ALL),
        QuantizeWeights(block_size=8, form="dq", weights=_ALL),
        QuantizeWeights(form="cast-mul", weights=_ALL),
        ShareCodebook(bits=6, weights=_ALL, max_error=9),
    ],
    ids=["dequantize", "blocks", "cast and mul", "palette"],
)
def test_what_went_astray_comes_back(compress: Pass, worker: Worker) -> None:
    """Scales, tables, gains and biases that were moved are found again; codes stay."""
    original = net()
    before = steps([compress, Detune()], original, worker)
    after = steps([compress, Detune(), Tune(steps=100, batch=8)], original, worker)
    step = after.report.steps[2]
    assert step.status == "done"
    assert step.chosen["error_after"] < step.chosen["error_before"]
    assert off(after.model, original, worker) < 0.6 * off(before.model, original, worker)
    assert after.model.nbytes() == before.model.nbytes()
    now = constants(after.model)
    for name, tensor in constants(before.model).items():
        if tensor.dtype.kind in "iu":
            np.testing.assert_array_equal(now[name], tensor)


def test_scales_that_must_be_constant_are_left_alone(worker: Worker) -> None:
    blocks = QuantizeWeights(dtype="uint4", block_size=16, form="nbits", weights=_ALL, max_error=9)
    done = steps([blocks, Detune(), Tune(steps=100, batch=8)], net(), worker).report.steps[2]
    assert done.chosen["error_after"] < done.chosen["error_before"]
    kept = {skip.reason for skip in done.skips}
    assert kept == {"ONNX Runtime computes MatMulNBits right only while its scales are constant"}


def test_pruned_weights_stay_zero(worker: Worker) -> None:
    prune = PruneMagnitude(ratio=0.3, weights=_ALL, max_error=9)
    before = steps([prune], net(), worker).model
    feeds = [{"x": normal(4, 16, seed=1000 + number)} for number in range(64)]
    done = steps([prune, Tune(free=("weights",), steps=30)], net(), worker, feeds)
    assert (
        done.report.steps[1].chosen["error_after"]
        < 0.9 * done.report.steps[1].chosen["error_before"]
    )
    for name, tensor in constants(before).items():
        now = constants(done.model)[name]
        np.testing.assert_array_equal(now[tensor == 0], 0)
        assert tensor.ndim < 2 or not np.array_equal(now, tensor)


def constants(model: Model) -> dict[str, np.ndarray]:
    made = [node.outputs[0] for node in model.nodes if node.op_type == "Constant"]
    values = [*model.ir.graph.initializers.values(), *made]
    return {v.name or "": found for v in values if (found := array(v)) is not None}


def test_the_same_inputs_make_the_same_bytes(worker: Worker) -> None:
    passes = [QuantizeWeights(dtype="int4", weights=_ALL, max_error=9), Tune(steps=12, batch=4)]
    first, second = (steps(passes, net(), worker).model.digest() for _ in range(2))
    assert first == second


def test_a_model_that_lost_nothing_is_left_alone(worker: Worker) -> None:
    done = steps([Tune()], net(), worker).report.steps[0]
    assert done.status == "nothing to do"
    assert ("model", "answers as it should") in {(s.what, s.reason) for s in done.skips}


def test_what_gradients_do_not_reach_is_said(worker: Worker) -> None:
    proto = net().to_proto()
    proto.graph.node.insert(4, onnx.helper.make_node("Round", ["h"], ["r"]))
    proto.graph.node[5].input[0] = "r"
    passes = [QuantizeWeights(dtype="int4", weights=_ALL, max_error=9), Tune(steps=10, batch=4)]
    skips = {
        s.what: s.reason
        for s in steps(passes, Model.from_proto(proto), worker).report.steps[1].skips
    }
    assert (
        skips["g"] == "no gradient reaches it: r (Round) is a function of steps, whose slope is 0"
    )
    assert "b2" not in skips


def test_it_needs_real_inputs(worker: Worker) -> None:
    with pytest.raises(InputsMissing, match="tune fits to one half of real inputs"):
        run([Tune()], net(), Settings(feeds=FEEDS[:1]), worker)


def test_inputs_that_do_not_judge_alike_change_nothing_for_the_worse(worker: Worker) -> None:
    """Fitted to zeros, judged by others: biases alone have a slope, and it misleads."""
    feeds = [{"x": np.zeros((1, 16), np.float32)} if number % 2 == 0 else feed
             for number, feed in enumerate(FEEDS)]  # fmt: skip
    passes = [QuantizeWeights(dtype="int4", weights=_ALL, max_error=9), Tune(steps=30, rate=0.3)]
    done = run(passes, net(), Settings(feeds=feeds), worker)
    step = done.report.steps[1]
    assert (
        step.status == "nothing to do" or step.chosen["error_after"] < step.chosen["error_before"]
    )
