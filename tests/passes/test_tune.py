"""Tuning: what is off comes back, on inputs that were not fitted to; all else stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
from onnxshrink.passes.distill import Distill
from onnxshrink.passes.prune_magnitude import PruneMagnitude
from onnxshrink.passes.quantize_static import QuantizeStatic
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.passes.share_codebook import ShareCodebook
from onnxshrink.passes.to_float16 import ToFloat16
from onnxshrink.passes.tune import Tune
from onnxshrink.pipeline import Context, Pass, Result, run
from onnxshrink.report import Step
from onnxshrink.runtime.decoding.steps import DecodingStep
from onnxshrink.runtime.session import open_session, run_session
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

    integers: bool = False

    @property
    def bound(self) -> float:
        return 9.0

    def apply(self, model: Model, ctx: Context) -> None:
        rng = np.random.default_rng(0)
        for value, tensor in list(operands.constants(model)):
            wide = tensor.dtype.name == "INT32"
            if wide if self.integers else tensor.dtype.is_floating_point():
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
    ids=["dequantize", "blocks", "cast and mul", "codebook"],
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


def test_steps_that_lead_astray_are_taken_back_and_said(worker: Worker) -> None:
    passes = [QuantizeWeights(dtype="int4", weights=_ALL, max_error=9), Tune(rate=1.0, steps=60)]
    step = steps(passes, net(), worker).report.steps[1]
    assert step.status in ("done", "nothing to do")
    if step.status == "done":
        assert step.chosen["error_after"] < step.chosen["error_before"]
    assert any("led astray and were taken back" in each for each in step.warnings)


def test_answers_that_are_no_floats_have_no_slope(worker: Worker) -> None:
    proto = net().to_proto()
    proto.graph.node.append(onnx.helper.make_node("ArgMax", ["y"], ["z"], axis=1))
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("z", 7, ["N", 1]))
    model = Model.from_proto(proto)
    prune = PruneMagnitude(ratio=0.2, weights=_ALL, max_error=9)
    step = steps([prune, Tune(steps=5)], model, worker).report.steps[1]
    reason = "has no output of floating-point numbers that are not all zero"
    assert ("model", reason) in {(skip.what, skip.reason) for skip in step.skips}


@pytest.mark.parametrize("step", [Tune(), Distill(steps=60)], ids=lambda step: step.name)
def test_in_front_of_a_tail_that_ranks_values_are_held_to_what_they_were(
    step: Pass, worker: Worker
) -> None:
    """Of what is picked there are no gradients, and every change makes it other in number."""
    made = net().to_proto()
    made.graph.node.extend(
        onnx.helper.make_node(*each)
        for each in (
            ("Greater", ["y", "least"], ["over"]), ("NonZero", ["over"], ["places"]),
            ("Transpose", ["places"], ["at"]), ("GatherND", ["y", "at"], ["picked"]),
        )
    )  # fmt: skip
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "least"))
    made.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("picked", 1, ["m"]))
    original = Model.from_proto(made)
    row = steps([Detune(), step], original, worker).report.steps[-1]
    assert row.status == "done"
    assert row.chosen["error_after"] < 0.8 * row.chosen["error_before"]


_AS_LONG_AS_SAID = """
    r = Ceil(v)  sum = ReduceSum <keepdims = 0> (r)  long = Cast <to = 7> (sum)
    one = Constant <value = int64[1] {1}> ()  first = Reshape(long, one)
    shape = Concat <axis = 0> (first, one)
    zero = Constant <value = int64[1] {0}> ()  h = ReduceMax(v, zero)
    rows = Expand(h, shape)  y = MatMul(rows, w2)
"""


@pytest.mark.parametrize(
    ("graph", "what", "reason"),
    [
        ("e = RandomNormalLike(v)  y = Add(v, e)", "model", "draws random numbers"),
        (_AS_LONG_AS_SAID, "y", "has another shape than the original's"),
    ],
    ids=["noise", "length"],
)
def test_answers_that_cannot_be_held_against_each_other_are_said(
    graph: str, what: str, reason: str, worker: Worker, tmp_path: Path
) -> None:
    def made(bias: np.ndarray) -> Model:
        return Model.from_proto(parsed(
            f"""g (float[N, 16] x) => (float[M, K] y) {{
                t = MatMul(x, w)  b = Add(t, bias)  v = Relu(b)  {graph}
            }}""", w=normal(16, 16), w2=normal(16, 16, seed=1), bias=bias,
        ))  # fmt: skip

    made(normal(16, seed=2)).save(tmp_path / "original.onnx")
    tune = Tune(reference=str(tmp_path / "original.onnx"))
    row = steps([tune], made(normal(16, seed=2) + 1), worker).report.steps[0]
    assert row.status == "nothing to do"
    assert any(skip.what == what and skip.reason.startswith(reason) for skip in row.skips)


def test_numbers_in_branches_are_left_alone_and_named(worker: Worker) -> None:
    model = Model.from_proto(parsed(
        """g (float[N, 4] x, bool c) => (float[N, 4] y) {
            t = Mul(x, k)
            u = If(c) <then_branch = a () => (float[N, 4] p) { p = Add(t, b) },
                       else_branch = d () => (float[N, 4] q) { q = Identity(t) }>
            y = Add(u, e)
        }""", k=normal(4), b=normal(4, seed=1), e=normal(4, seed=2)))  # fmt: skip
    feeds = [{"x": normal(3, 4, seed=number), "c": np.asarray(True)} for number in range(8)]
    done = run([Detune(), Tune(steps=30)], model, Settings(feeds=feeds), worker).report.steps[1]
    skips = {skip.what: skip.reason for skip in done.skips}
    assert skips["b"].startswith("is used in the body of an If")
    assert skips["k"] == "no gradient reaches it: u (If) runs a graph of its own"
    assert {change.what for change in done.changes} == {"e"}


def test_numbers_in_and_before_loops_are_left_alone_and_named(worker: Worker) -> None:
    model = Model.from_proto(parsed(
        """g (float[N, 4] x, int64 n, bool c) => (float[N, 4] y) {
            t = Mul(x, k)
            u = Loop(n, c, t) <body = a (int64 i, bool d, float[N, 4] p) => (bool d2, float[N, 4] q)
                { d2 = Identity(d)  q = Add(p, b) }>
            y = Add(u, e)
        }""", k=normal(4), b=normal(4, seed=1), e=normal(4, seed=2)))  # fmt: skip
    more = {"n": np.asarray(3), "c": np.asarray(True)}
    feeds = [{"x": normal(3, 4, seed=number), **more} for number in range(8)]
    done = run([Detune(), Tune(steps=30)], model, Settings(feeds=feeds), worker).report.steps[1]
    skips = {skip.what: skip.reason for skip in done.skips}
    assert skips["b"].startswith("is used in the body of an If, a Loop")
    assert skips["k"] == "no gradient reaches it: u (Loop) runs a graph of its own"
    assert {change.what for change in done.changes} == {"e"}


def test_a_step_of_a_recurrent_net_is_tuned_on_the_states_that_the_original_had(
    worker: Worker,
) -> None:
    """What is judged goes on from states of its own, so that errors may build up, and do not."""
    model = Model.from_proto(parsed(
        """g (float[1, 8] x, float[1, 8] s) => (float[1, 4] y, float[1, 8] s_next) {
            t = MatMul(x, w)  r = MatMul(s, v)  a = Add(t, r)  p = Add(a, b)  s_next = Tanh(p)
            y = MatMul(s_next, o)
        }""", w=normal(8, 8) / 4, v=normal(8, 8, seed=1) / 4, b=normal(8, seed=2) / 4,
        o=normal(8, 4, seed=3) / 4))  # fmt: skip
    session = open_session(model.to_proto().SerializeToString())
    feeds: list[DecodingStep] = []
    for number in range(40):
        before = feeds[-1] if feeds else None
        state = np.zeros((1, 8), np.float32) if before is None else run_session(session, before)[1]
        fed = {"x": normal(1, 8, seed=200 + number), "s": state}
        feeds.append(DecodingStep(fed, before, {"s": "s_next"}))
    tune = Tune(free=("weights", "biases"), steps=60)
    settings = Settings(feeds=feeds)
    off, tuned = (run(each, model, settings, worker) for each in ([Detune()], [Detune(), tune]))
    chosen = tuned.report.steps[1].chosen
    assert chosen["error_after"] < 0.7 * chosen["error_before"]
    for before, after in zip(off.effect, tuned.effect, strict=True):
        assert after.relative_error < 0.7 * before.relative_error


def test_float16_is_tuned_or_left_alone(worker: Worker) -> None:
    """Gradients in float16 may vanish or overflow: then nothing changes for the worse."""
    half = ToFloat16(full=True, max_error=9)
    done = steps([half, Detune(), Tune(steps=20)], net(), worker).report.steps[2]
    errors = done.chosen or {"error_before": 1, "error_after": 0}
    assert errors["error_after"] < errors["error_before"]


def test_a_model_of_float16_throughout_is_tuned(worker: Worker) -> None:
    """Its losses are float16, too, and so are what their gradients begin with."""
    w, b = (normal(*shape, seed=6).astype(np.float16) / 4 for shape in ((16, 8), (8,)))
    model = Model.from_proto(
        parsed("g (float16[N, 16] x) => (float16[N, 8] y) { y = Gemm(x, w, b) }", w=w, b=b)
    )
    feeds = [{"x": feed["x"].astype(np.float16)} for feed in FEEDS]
    tune = Tune(free=("weights", "biases"), steps=60)
    step = steps([Detune(), tune], model, worker, feeds).report.steps[1]
    assert step.chosen["error_after"] < 0.9 * step.chosen["error_before"]


def test_biases_in_integers_are_tuned_through_quantized_activations(worker: Worker) -> None:
    """Rounding lets gradients through; codes of weights and all scales stay."""
    original = Model.from_proto(parsed(
        """g (float[N, 3, 6, 6] x) => (float[N, 16] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w, b)  h = Relu(a)  p = GlobalAveragePool(h)
            f = Flatten(p)  y = Gemm(f, w2, b2)
        }""",
        w=normal(64, 3, 3, 3) / 4, b=normal(64, seed=1) / 4, w2=normal(64, 16, seed=2),
        b2=normal(16, seed=3) / 4,
    ))  # fmt: skip
    feeds = [{"x": normal(2, 3, 6, 6, seed=100 + number)} for number in range(16)]
    static = QuantizeStatic(weights=_ALL, max_error=9)
    before = run([static, Detune(integers=True)], original, Settings(feeds=feeds), worker)
    passes = [static, Detune(integers=True), Tune(steps=60, batch=8)]
    done = run(passes, original, Settings(feeds=feeds), worker)
    step = done.report.steps[2]
    assert step.chosen["error_after"] < 0.7 * step.chosen["error_before"]
    now, old = constants(done.model), constants(before.model)
    moved = {name for name in old if not np.array_equal(now[name], old[name])}
    assert {old[name].dtype.name for name in moved} == {"int32"}


def test_the_original_may_be_a_file_and_time_may_be_short(worker: Worker, tmp_path: Path) -> None:
    net().save(tmp_path / "original.onnx")
    quantized = QuantizeWeights(form="dq", weights=_ALL)
    small = steps([quantized, Detune()], net(), worker).model
    small.save(tmp_path / "small.onnx")
    given = Model.load(tmp_path / "small.onnx")
    tune = Tune(reference=str(tmp_path / "original.onnx"), steps=30, batch=8)
    done = steps([tune], given, worker)
    assert off(done.model, net(), worker) < off(given, net(), worker)
    late = Tune(reference=str(tmp_path / "original.onnx"), time_limit=0)
    step = steps([late], given, worker).report.steps[0]
    assert step.status == "nothing to do"
    assert step.warnings == ["ended by its time limit after 0 steps"]


def test_scales_that_are_one_number_stay_one(worker: Worker) -> None:
    """A few steps that many rows have are coded in few bytes, before and after."""
    rng = np.random.default_rng(3)
    codes = rng.integers(-7, 8, (32, 16)).astype(np.int8)
    scale = np.where(np.arange(32) % 4, 0.02, 0.03).astype(np.float32)[:, None]
    exact = codes * scale * np.where(np.arange(32) % 4, 1.2, 0.9)[:, None]
    graph = "g (float[N, 32] x) => (float[N, 16] y) { %s y = MatMul(x, w) }"
    original = Model.from_proto(parsed(graph % "", w=exact.astype(np.float32)))
    rebuilt = "f = Cast<to = 1>(q)  w = Mul(f, s)"
    small = Model.from_proto(parsed(graph % rebuilt, q=codes, s=scale))
    inputs = [{"x": normal(4, 32, seed=100 + number)} for number in range(16)]
    done = run_tuned(small, original, inputs, worker)
    now = constants(done)["s"]
    assert np.unique(now).size == 2
    np.testing.assert_allclose(np.unique(now), [0.024, 0.027], rtol=0.02)


def run_tuned(
    small: Model, original: Model, inputs: list[dict[str, np.ndarray]], worker: Worker
) -> Model:
    model = small.clone()
    tune = Tune(steps=200, batch=8)
    tune.apply(model, Context(Step("tune"), inputs, original=original, worker=worker))
    return model


def test_gradients_that_are_no_numbers_are_said(worker: Worker) -> None:
    """The slope of a square root at 0 is infinite, and times 0 it is no number."""
    model = Model.from_proto(parsed(
        """g (float[N, 16] x) => (float[N, 8] y) {
            t = MatMul(x, w)  d = Sub(t, t)  r = Sqrt(d)  u = Add(t, r)  y = Add(u, b)
        }""", w=normal(16, 8), b=normal(8)))  # fmt: skip
    passes = [PruneMagnitude(ratio=0.5, max_error=9, weights=_ALL), Tune(free=("weights",))]
    done = steps(passes, model, worker)
    step = done.report.steps[1]
    assert any("gradients of 'w' are infinite or no numbers" in line for line in step.warnings)
    assert "no step brought the error" in step.skips[-1].reason
