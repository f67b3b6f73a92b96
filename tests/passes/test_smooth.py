"""smooth: the same answers from activations of even channels, wherever the factors can go."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hard_models import text, weight
from onnx import numpy_helper

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.smooth import Smooth
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.session import SessionOptions, open_session
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

ROWS = "(float[n, 5, 8] x) => (float[n, 5, 6] y)"
IMAGE = "(float[n, 8, 4, 4] x) => (float[n, 6, h, w] y)"
RNG = np.random.default_rng(0)
GAMMA = np.array([1, 1, 1, 40, 1, 1, 0.1, 1], np.float32)
BETA = RNG.standard_normal(8).astype(np.float32)
W, K = weight(1, 8, 6), weight(2, 6, 8, 3, 3)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


#: Whatever can take the factors, and what its constants are divided by.
TAKEN: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[str, ...]]] = {
    "layer-norm": (
        lambda: text(f"g {ROWS} {{ a = LayerNormalization(x, g, b)  y = MatMul(a, w) }}",
                     g=GAMMA, b=BETA, w=W),
        ("g", "b"),
    ),
    "several-readers": (
        lambda: text(
            f"g {ROWS} {{ a = LayerNormalization(x, g, b)  q = MatMul(a, w)  k = MatMul(a, v)"
            " y = Mul(q, k) }",
            g=GAMMA, b=BETA, w=W, v=weight(3, 8, 6),
        ),
        ("g", "b"),
    ),
    "root-mean-square": (
        lambda: text(
            f"g {ROWS} {{ p = Mul(x, x)  m = ReduceMean<axes = [-1]>(p)  r = Sqrt(m)"
            " z = Div(x, r)  a = Mul(z, g)  y = MatMul(a, w) }",
            g=GAMMA, w=W,
        ),
        ("g",),
    ),
    "skip-norm": (
        lambda: text(
            '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> '
            f"g {ROWS} {{ a = com.microsoft.SkipLayerNormalization(x, x, g, b)"
            " y = MatMul(a, w) }",
            g=GAMMA, b=BETA, w=W,
        ),
        ("g", "b"),
    ),
    "factor-and-shift": (
        lambda: text(f"g {ROWS} {{ t = Tanh(x)  p = Mul(g, t)  a = Add(b, p)  y = MatMul(a, w) }}",
                     g=GAMMA, b=BETA, w=W),
        ("g", "b"),
    ),
    "weight": (
        lambda: text(f"g {ROWS} {{ p = MatMul(x, v)  q = Add(p, b)  a = Relu(q)"
                     " y = MatMul(a, w) }", v=weight(3, 8, 8) * GAMMA, b=BETA, w=W),
        ("v", "b"),
    ),
    "norm-of-images": (
        lambda: text(
            f"g {IMAGE} {{ q = BatchNormalization(x, g, b, m, s)  a = Relu(q)  y = Conv(a, w) }}",
            g=GAMMA, b=BETA, m=BETA, s=BETA**2 + 0.5, w=K,
        ),
        ("g", "b"),
    ),
    "grouped": (
        lambda: text(
            f"g {IMAGE} {{ a = InstanceNormalization(x, g, b)  y = Conv<group = 2>(a, w) }}",
            g=GAMMA, b=BETA, w=weight(2, 6, 4, 3, 3),
        ),
        ("g", "b"),
    ),
}  # fmt: skip
#: Where nothing can, and what is said.
LEFT: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "residual": (
        lambda: text(
            "g (float[n, 5, 8] x) => (float[n, 5, 8] y) { a = LayerNormalization(x, g, b)"
            " q = MatMul(a, w)  y = Add(q, a) }",
            g=GAMMA, b=BETA, w=weight(1, 8, 8),
        ),
        "also read by Add",
    ),
    "input": (
        lambda: text(f"g {ROWS} {{ y = MatMul(x, w) }}", w=W), "from outside its graph"
    ),
    "softmax": (
        lambda: text(f"g {ROWS} {{ a = Softmax(x)  y = MatMul(a, w) }}", w=W), "from Softmax"
    ),
    "axes": (
        lambda: text(
            f"g {ROWS} {{ a = LayerNormalization<axis = 1>(x, g)  y = MatMul(a, w) }}",
            g=weight(1, 5, 8), w=W,
        ),
        "over several axes",
    ),
    "image-input": (
        lambda: text(f"g {IMAGE} {{ y = Conv(x, w) }}", w=K), "from outside its graph"
    ),
    "relu6": (
        lambda: text(
            f"g {ROWS} {{ p = MatMul(x, v)  a = Clip(p, l, h)  y = MatMul(a, w) }}",
            v=weight(3, 8, 8), l=np.zeros((), np.float32), h=np.full((), 6, np.float32), w=W,
        ),
        "clipped at 6; 'insert' multiplies it",
    ),
}  # fmt: skip


def feeds(proto: onnx.ModelProto, count: int = 6) -> list[dict[str, np.ndarray]]:
    dims = [d.dim_value or 3 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(5)
    return [{"x": rng.standard_normal(dims).astype(np.float32)} for _ in range(count)]


def smoothed(proto: onnx.ModelProto, worker: Worker, **options: object) -> Result:
    options.setdefault("weights", Select(min_size=0))
    settings = Settings(feeds=feeds(proto))
    return run([Smooth(**options)], Model.from_proto(proto), settings, worker)  # type: ignore[arg-type]


def answers(proto: onnx.ModelProto, feed: dict[str, np.ndarray], name: str = "y") -> np.ndarray:
    session = open_session(proto.SerializeToString(), SessionOptions(optimization="disable"))
    return session.run([name], feed)[0]  # type: ignore[no-any-return]


def arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def watched(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


@pytest.mark.parametrize("alpha", [None, 0.7])
@pytest.mark.parametrize("name", TAKEN)
def test_answers_stay_and_constants_are_the_papers(
    name: str, alpha: float | None, worker: Worker
) -> None:
    build, above = TAKEN[name]
    proto = build()
    result = smoothed(proto, worker, alpha=alpha)
    row = result.report.steps[0]
    assert row.status == "done", [skip.reason for skip in row.skips]
    after = result.model.to_proto()
    for feed in feeds(proto, 2):
        exact = answers(proto, feed)
        assert np.linalg.norm(answers(after, feed) - exact) <= 1e-6 * np.linalg.norm(exact)
    assert result.report.bytes_after == result.report.bytes_before
    if alpha is None:
        return
    seen = [answers(watched(proto, "a"), feed, "a") for feed in feeds(proto)]
    channel = 1 if proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 6 else -1
    x = np.max([np.abs(np.moveaxis(a, channel, 0)).reshape(8, -1).max(1) for a in seen], axis=0)
    old, new = arrays(proto), arrays(after)
    readers = [old[key] for key in ("w", "v") if key in old and key not in above]
    sides = [np.abs(_by_channel(w, name)).max(1) for w in readers]
    factors = x.astype(np.float64) ** alpha / np.max(sides, axis=0) ** (1 - alpha)
    for key in above:
        np.testing.assert_allclose(new[key], old[key] / factors, rtol=1e-6)
    ratio = _by_channel(new["w"], name) / _by_channel(old["w"], name)
    np.testing.assert_allclose(ratio, np.broadcast_to(factors[:, None], ratio.shape), rtol=1e-6)


def _by_channel(array: np.ndarray, name: str) -> np.ndarray:
    """Weights by input channel, written out by hand for the test."""
    if name == "grouped":
        return np.concatenate([array[:3], array[3:]], axis=1).swapaxes(0, 1).reshape(8, -1)
    if array.ndim == 4:
        return array.swapaxes(0, 1).reshape(8, -1)
    return array


@pytest.mark.parametrize("name", LEFT)
def test_where_nothing_takes_the_factors(name: str, worker: Worker) -> None:
    """It is said, or a multiplication is inserted; the other reader sees the old values."""
    build, said = LEFT[name]
    proto = build()
    row = smoothed(proto, worker).report.steps[0]
    assert row.status == "nothing to do"
    assert any(said in skip.reason for skip in row.skips), [skip.reason for skip in row.skips]
    result = smoothed(proto, worker, insert=True, alpha=0.9)
    assert result.report.steps[0].status == "done", result.report.steps[0]
    for feed in feeds(proto, 2):
        exact = answers(proto, feed)
        found = answers(result.model.to_proto(), feed)
        assert np.linalg.norm(found - exact) <= 1e-6 * np.linalg.norm(exact)
    assert any(node.op_type == "Mul" for node in result.model.nodes)


def test_a_fixed_share_needs_no_second_moments() -> None:
    model = Model.from_proto(TAKEN["layer-norm"][0]())
    every = Select(min_size=0)
    assert len(list(Smooth(alpha=0.5, weights=every).needs(model))) == 1
    assert len(list(Smooth(weights=every).needs(model))) == 2
    assert not list(Smooth(weights=Select(min_size=10**6)).needs(model))


def test_without_inputs_nothing_is_done(worker: Worker) -> None:
    model = Model.from_proto(TAKEN["layer-norm"][0]())
    step = Smooth(weights=Select(min_size=0))
    row = run([step], model, Settings(), worker).report.steps[0]
    assert row.status == "nothing to do"
    assert "there were no calibration inputs" in {skip.reason for skip in row.skips}


def test_constant_inputs_are_a_reason(worker: Worker) -> None:
    proto = TAKEN["weight"][0]()
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(8, np.float32), "b"))
    zeros = [{"x": np.zeros((3, 5, 8), np.float32)}]
    step = Smooth(weights=Select(min_size=0))
    row = run([step], Model.from_proto(proto), Settings(feeds=zeros), worker).report.steps[0]
    assert row.status == "nothing to do"
    assert any("zero or not finite throughout" in skip.reason for skip in row.skips)


def test_infinite_weights_are_a_reason(worker: Worker) -> None:
    proto = TAKEN["layer-norm"][0]()
    bad = W.copy()
    bad[2, 3] = np.inf
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(bad, "w"))
    step = Smooth(weights=Select(min_size=0))
    done = run([step], Model.from_proto(proto), Settings(feeds=feeds(proto), check="off"), worker)
    assert any("NaN or infinity" in skip.reason for skip in done.report.steps[0].skips)


def test_a_kept_reader_keeps_the_others(worker: Worker) -> None:
    proto = TAKEN["several-readers"][0]()
    result = smoothed(proto, worker, weights=Select(min_size=0, keep=("v",)))
    reasons = {skip.what: skip.reason for skip in result.report.steps[0].skips}
    assert "also read by 'v', which is left alone" in reasons["w"]
    inserted = smoothed(
        text("g (float[n, 5, 8] x) => (float[n, 5, 6] y) { q = MatMul(x, w)  k = MatMul(x, v)"
             " y = Mul(q, k) }", w=W, v=weight(3, 8, 6)),
        worker, weights=Select(min_size=0, keep=("v",)), insert=True, alpha=0.5,
    )  # fmt: skip
    assert [change.what for change in inserted.report.steps[0].changes] == ["w"]
    np.testing.assert_array_equal(arrays(inserted.model.to_proto())["v"], weight(3, 8, 6))


def test_it_repairs_8_bit_activations(worker: Worker) -> None:
    """What it is for: one channel forty times the others, both sides rounded to 8 bits."""
    proto = TAKEN["layer-norm"][0]()
    after = smoothed(proto, worker).model.to_proto()
    errors = []
    for model in (proto, after):
        wrong = right = 0.0
        for feed in feeds(proto):
            a = answers(watched(model, "a"), feed, "a").astype(np.float64)
            w = arrays(model)["w"].astype(np.float64)
            step, scale = (a.max() - a.min()) / 255, np.abs(w).max(0) / 127
            y = np.rint(a / step) * step @ (np.rint(w / scale) * scale)
            wrong += np.square(y - answers(proto, feed)).sum()
            right += np.square(answers(proto, feed)).sum()
        errors.append((wrong / right) ** 0.5)
    assert errors[1] < 0.5 * errors[0]
