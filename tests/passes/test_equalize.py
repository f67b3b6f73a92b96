"""equalize: other ranges, the same answers, on every kind of pair and past every operator."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hard_models import text, weight

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.layers import scalable
from onnxshrink.passes.equalize import Equalize
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.session import SessionOptions, open_session
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

IMAGE = "(float[n, 4, 6, 6] x) => (float[n, %s] y)"
ROWS = "(float[n, 5, 8] x) => (float[n, 5, 6] y)"


def spread_out(seed: int, *shape: int, axis: int = 0) -> np.ndarray:
    """Weights whose channels differ a hundredfold."""
    rng = np.random.default_rng(seed)
    along = [1] * len(shape)
    along[axis] = shape[axis]
    return (weight(seed, *shape) * 10 ** rng.uniform(-1, 1, along)).astype(np.float32)


def vector(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


W1, W2 = spread_out(1, 8, 4, 3, 3), spread_out(2, 6, 8, 1, 1, axis=1)
M1, M2 = spread_out(3, 8, 12, axis=1), spread_out(4, 12, 6)
CONV = {"w1": W1, "b1": vector(5, 8), "w2": W2, "b2": vector(6, 6)}
MATMUL = {"w1": M1, "b1": vector(5, 12), "w2": M2}
NORM = {"a": vector(1, 8), "c": vector(2, 8), "m": vector(3, 8), "v": vector(4, 8) ** 2 + 0.1}


def conv(between: str, dims: str = "6, h, w", **more: np.ndarray) -> onnx.ModelProto:
    """Two convolutions, the second of kernel 1."""
    source = f"g {IMAGE % dims} {{ p = Conv(x, w1, b1) {between} y = Conv(q, w2, b2) }}"
    return text(source, **{**CONV, **more})


def matmul(between: str, **more: np.ndarray) -> onnx.ModelProto:
    source = f"g {ROWS} {{ t = MatMul(x, w1)  p = Add(t, b1) {between} y = MatMul(q, w2) }}"
    return text(source, **{**MATMUL, **more})


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


#: A model for every operator that factors can pass, and every kind of weight on either side.
SCALED: dict[str, Callable[[], onnx.ModelProto]] = {
    "relu": lambda: conv("q = Relu(p)"),
    "leaky": lambda: conv("q = LeakyRelu<alpha = 0.3>(p)"),
    "prelu": lambda: conv("q = PRelu(p, s)", s=vector(7, 8).reshape(8, 1, 1)),
    "nothing": lambda: conv("q = Identity(p)"),
    "clip-at-zero": lambda: conv("q = Clip(p, low)", low=np.zeros((), np.float32)),
    "no-limit": lambda: conv(
        "q = Clip(p, low, high)", low=np.float32(0).reshape(()), high=np.float32(3e38).reshape(())
    ),
    "pool": lambda: conv("r = Relu(p)  q = MaxPool<kernel_shape = [2, 2]>(r)"),
    "average": lambda: conv("r = Relu(p)  q = GlobalAveragePool(r)"),
    "mean": lambda: conv("r = Relu(p)  q = ReduceMean<axes = [2, 3]>(r)"),
    "pad": lambda: conv("r = Relu(p)  q = Pad(r, s)", s=ints(0, 0, 1, 1, 0, 0, 1, 1)),
    "norm": lambda: conv("r = BatchNormalization(p, a, c, m, v)  q = Relu(r)", **NORM),
    "shift": lambda: conv(
        "r = Add(p, s)  t = Sub(u, r)  q = Relu(t)", s=vector(7, 8).reshape(8, 1, 1),
        u=vector(8, 8).reshape(1, 8, 1, 1),
    ),
    "factor": lambda: conv("r = Mul(p, s)  q = Div(r, s)", s=np.float32(3).reshape(())),
    "factors": lambda: conv("r = Mul(s, p)  q = Relu(r)", s=vector(7, 8).reshape(8, 1, 1)),
    "two-readers": lambda: text(
        f"g {IMAGE % '6, h, w'} {{ p = Conv(x, w1, b1)  q = Relu(p)"
        " k = Conv(q, w2, b2)  l = Conv(q, w3)  y = Add(k, l) }",
        **CONV, w3=spread_out(9, 6, 8, 1, 1, axis=1),
    ),
    "depthwise": lambda: conv(
        "r = Relu(p)  s = Conv<group = 8, pads = [1, 1, 1, 1]>(r, d, e)  q = Relu(s)",
        d=spread_out(7, 8, 1, 3, 3), e=vector(8, 8),
    ),
    "grouped": lambda: conv(
        "r = Relu(p)  s = Conv<group = 2>(r, d)  q = Relu(s)", d=spread_out(7, 8, 4, 3, 3)
    ),
    "transposed": lambda: conv(
        "r = Relu(p)  s = ConvTranspose<group = 2>(r, d, e)  q = Relu(s)",
        d=spread_out(7, 8, 4, 2, 2), e=vector(8, 8),
    ),
    "flatten": lambda: text(
        f"g {IMAGE % 6} {{ p = Conv(x, w1, b1)  q = Flatten(p)  r = Relu(q)"
        " y = Gemm<transB = 1>(r, w2, b2) }",
        **{**CONV, "w2": spread_out(2, 6, 8 * 16, axis=1)},
    ),
    "reshape": lambda: text(
        f"g {IMAGE % 6} {{ p = Conv(x, w1, b1)  q = Reshape(p, s)  y = MatMul(q, w2) }}",
        **{**CONV, "w2": spread_out(2, 8 * 16, 6)}, s=ints(0, -1),
    ),
    "squeeze": lambda: text(
        f"g {IMAGE % 6} {{ p = Conv(x, w1, b1)  q = GlobalAveragePool(p)  r = Squeeze(q, s)"
        " y = Gemm(r, w2, b2) }",
        **{**CONV, "w2": spread_out(2, 8, 6)}, s=ints(2, 3),
    ),
    "channels-last": lambda: text(
        "g (float[n, 4, 6, 6] x) => (float[n, h, w, 6] y) { p = Conv(x, w1, b1)"
        " q = Transpose<perm = [0, 2, 3, 1]>(p)  r = Relu(q)  y = MatMul(r, w2) }",
        **{**CONV, "w2": spread_out(2, 8, 6)},
    ),
    "matmul": lambda: matmul("q = Relu(p)"),
    "gemm": lambda: text(
        "g (float[n, 8] x) => (float[n, 6] y) {"
        " p = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w1, b1)  q = Relu(p)"
        " y = Gemm(q, w2) }",
        **{**MATMUL, "w1": np.ascontiguousarray(M1.T)},
    ),
    "turned": lambda: text(
        f"g {ROWS} {{ p = MatMul(x, w1)  q = Relu(p)  v = Transpose(w2)  y = MatMul(q, v) }}",
        w1=M1, w2=np.ascontiguousarray(M2.T),
    ),
    "gated": lambda: matmul(
        "k = MatMul(x, w3)  l = Sigmoid(k)  q = Mul(l, p)", w3=weight(9, 8, 12)
    ),
    "tokens": lambda: matmul("r = Reshape(p, s)  u = Relu(r)  q = Reshape(u, v)",
                             s=ints(-1, 12), v=ints(-1, 5, 12)),
    "zero-bias": lambda: matmul("k = Add(p, z)  q = Add(k, z)", z=np.zeros(12, np.float32)),
}  # fmt: skip
#: Models where the pair must stay as it is, and what is said about the second weight.
LEFT: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "sigmoid": (lambda: conv("q = Sigmoid(p)"), "Sigmoid, which does not keep factors"),
    "relu6": (
        lambda: conv("q = Clip(p, a, c)", a=np.zeros((), np.float32),
                     c=np.full((), 6, np.float32)),
        "clipped at 6; 'ceiling: split' scales it",
    ),
    "hard-tanh": (
        lambda: conv("q = Clip(p, a, c)", a=np.full((), -1, np.float32),
                     c=np.ones((), np.float32)),
        "Clip, which does not keep factors",
    ),
    "residual": (
        lambda: text(
            f"g {IMAGE % '8, h, w'} {{ p = Conv(x, w1, b1)  q = Relu(p)"
            "  k = Conv(q, w2)  y = Add(k, q) }",
            w1=W1, b1=vector(5, 8), w2=spread_out(2, 8, 8, 1, 1, axis=1),
        ),
        "also read by Add",
    ),
    "two-branches": (
        lambda: conv("k = Relu(p)  r = Conv(x, w3)  q = Add(k, r)", w3=weight(9, 8, 4, 3, 3)),
        "the sum of two branches",
    ),
    "output": (
        lambda: text(
            "g (float[n, 8] x) => (float[n, 12] q, float[n, 6] y) {"
            " p = MatMul(x, w1)  q = Relu(p)  y = MatMul(q, w2) }", w1=M1, w2=M2,
        ),
        "an output of a graph",
    ),
    "tied": (
        lambda: text("g (float[n, 8] x) => (float[n, 8] y) { p = MatMul(x, w)  q = Relu(p)"
                     "  y = MatMul(q, w) }", w=weight(1, 8, 8)),
        "'w' is used more than once",
    ),
    "shared-bias": (
        lambda: text(
            "g (float[n, 8] x) => (float[n, 12] y) { s = MatMul(x, w1)  p = Add(s, b)"
            "  q = Relu(p)  t = MatMul(q, w2)  y = Add(t, b) }",
            w1=M1, w2=weight(2, 12, 12), b=vector(1, 12),
        ),
        "'b' is used more than once",
    ),
    "one-number": (
        lambda: matmul("r = Add(p, s)  q = Relu(r)", s=np.ones(1, np.float32)),
        "spans channels",
    ),
    "input": (
        lambda: text("g (float[n, 8] x) => (float[n, 12] y) { q = Relu(x)  y = MatMul(q, w) }",
                     w=M1),
        "comes from outside its graph",
    ),
    "layer-norm": (
        lambda: matmul("q = LayerNormalization(p, a)", a=vector(7, 12)), "not from a weight"
    ),
}  # fmt: skip


def equalized(proto: onnx.ModelProto, worker: Worker | None = None, **options: object) -> Result:
    """Scaled without the contract's checks: the tests check, and more strictly."""
    return run([Equalize(**options)], Model.from_proto(proto), Settings(check="off"), worker)  # type: ignore[arg-type]


def answers(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = open_session(proto.SerializeToString(), SessionOptions(optimization="disable"))
    return session.run(["y"], {"x": x})[0]  # type: ignore[no-any-return]


def inputs(proto: onnx.ModelProto) -> np.ndarray:
    dims = [d.dim_value or 3 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(0).standard_normal(dims).astype(np.float32)


def ranges(model: Model) -> list[tuple[np.ndarray, np.ndarray]]:
    """What each pair has on its two sides."""
    found = []
    for site in scalable.find(model, norms=False)[0]:
        if not site.why_not and site.source is not None:
            sides = [
                np.abs(part.channels.apart(part.view.array())).max(1)
                for part in (site.source, *site.readers)
            ]
            found.append((sides[0], np.max(sides[1:], axis=0)))
    return found


@pytest.mark.parametrize("name", SCALED)
def test_answers_stay_and_ranges_meet(name: str, worker: Worker) -> None:
    proto = SCALED[name]()
    result = equalized(proto, worker, iterations=200)
    changed = {change.what for change in result.report.steps[0].changes}
    assert {"w1", "w2"} <= changed
    x = inputs(proto)
    before, after = answers(proto, x), answers(result.model.to_proto(), x)
    assert np.linalg.norm(after - before) <= 1e-6 * np.linalg.norm(before)
    for made, read in ranges(Model.from_proto(result.model.to_proto())):
        np.testing.assert_allclose(made, read, rtol=2e-3)
    spread = max(float(made.max() / read.max()) for made, read in ranges(Model.from_proto(proto)))
    assert spread > 1.05 or spread < 0.95  # they did not before
    assert result.report.bytes_after == result.report.bytes_before


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_scaled_is_left_with_a_reason(name: str, worker: Worker) -> None:
    build, said = LEFT[name]
    model = Model.from_proto(build())
    row = run([Equalize()], model, Settings(check="off"), worker).report.steps[0]
    assert row.status == "nothing to do"
    assert any(said in skip.reason for skip in row.skips), [skip.reason for skip in row.skips]


def test_depthwise_equals_numpy() -> None:
    """Pointwise, depthwise, pointwise: the fixed point has one range along each channel."""
    result = equalized(SCALED["depthwise"](), iterations=500)
    arrays = {t.name: onnx.numpy_helper.to_array(t)
              for t in result.model.to_proto().graph.initializer}  # fmt: skip
    first, middle = np.abs(W1).max((1, 2, 3)), np.abs(spread_out(7, 8, 1, 3, 3)).max((1, 2, 3))
    common = np.cbrt(first * middle * np.abs(W2).max((0, 2, 3)))
    np.testing.assert_allclose(np.abs(arrays["w1"]).max((1, 2, 3)), common, rtol=2e-3)
    np.testing.assert_allclose(np.abs(arrays["d"]).max((1, 2, 3)), common, rtol=2e-3)
    np.testing.assert_allclose(np.abs(arrays["w2"]).max((0, 2, 3)), common, rtol=2e-3)
    np.testing.assert_allclose(arrays["b1"] * first / common, CONV["b1"] * 1.0, rtol=2e-3)


def test_a_pair_is_exact() -> None:
    result = equalized(SCALED["relu"]())
    arrays = {t.name: onnx.numpy_helper.to_array(t)
              for t in result.model.to_proto().graph.initializer}  # fmt: skip
    s = np.sqrt(np.abs(W1).max((1, 2, 3)).astype(np.float64) / np.abs(W2).max((0, 2, 3)))
    np.testing.assert_allclose(arrays["w1"], W1 / s.reshape(8, 1, 1, 1), rtol=1e-6)
    np.testing.assert_allclose(arrays["b1"], CONV["b1"] / s, rtol=1e-6)
    np.testing.assert_allclose(arrays["w2"], W2 * s.reshape(8, 1, 1), rtol=1e-6)
    np.testing.assert_array_equal(arrays["b2"], CONV["b2"])


@pytest.mark.parametrize("attributes", [False, True])
def test_a_split_ceiling_is_exact(attributes: bool, worker: Worker, tmp_path: Path) -> None:
    """Every channel is clipped where it was; opset 10 has the limits as attributes."""
    if attributes:
        proto = text(
            '<ir_version: 8, opset_import: ["": 10]> '
            f"g {IMAGE % '6, h, w'} {{ p = Conv(x, w1, b1)  q = Clip<min = 0.0, max = 0.5>(p)"
            "  y = Conv(q, w2, b2) }",
            **CONV,
        )
    else:
        proto = conv("q = Clip(p, a, c)", a=np.zeros((), np.float32),
                     c=np.full((), 0.5, np.float32))  # fmt: skip
    x = inputs(proto)
    result = equalized(proto, worker, ceiling="split")
    assert "Clip" not in {node.op_type for node in result.model.nodes}
    assert result.report.steps[0].status == "done"
    names = {tensor.name for tensor in result.model.to_proto().graph.initializer}
    assert not names & {"a", "c"}
    before, after = answers(proto, x), answers(result.model.to_proto(), x)
    assert np.linalg.norm(after - before) <= 1e-6 * np.linalg.norm(before)
    assert (np.maximum(x, 0) > 0.5).any()  # the limit was felt
    result.model.save(tmp_path / "split.onnx")
    worker.check(tmp_path / "split.onnx")


def test_narrow_types_get_powers_of_two(worker: Worker) -> None:
    """So that not one bit of an answer changes."""
    source = "g (float16[n, 8] x) => (float16[n, 6] y) { p = MatMul(x, w1)  q = Relu(p)  y = MatMul(q, w2) }"  # noqa: E501
    proto = text(source, w1=M1.astype(np.float16), w2=M2.astype(np.float16))
    x = inputs(proto).astype(np.float16)
    result = equalized(proto, worker)
    array = onnx.numpy_helper.to_array(
        next(t for t in result.model.to_proto().graph.initializer if t.name == "w1")
    )
    factors = M1.astype(np.float16) / array
    np.testing.assert_array_equal(factors, np.exp2(np.rint(np.log2(factors))))
    assert (factors != 1).any()
    np.testing.assert_array_equal(answers(result.model.to_proto(), x), answers(proto, x))


def test_the_selection_holds_for_both_sides(worker: Worker) -> None:
    for keep in ("w1", "w2"):
        row = equalized(SCALED["relu"](), worker, weights=Select(min_size=0, keep=(keep,)))
        reasons = {skip.what: skip.reason for skip in row.report.steps[0].skips}
        assert reasons[keep] == "kept as asked"
        assert not row.report.changed
    assert "tied to 'w1', which is left alone" in reasons["w2"] or keep == "w2"


def test_dead_channels_stay(worker: Worker) -> None:
    dead = W1.copy()
    dead[3] = 0
    unread = W2.copy()
    unread[:, 5] = 0
    proto = conv("q = Relu(p)", w1=dead, w2=unread)
    result = equalized(proto, worker)
    arrays = {t.name: onnx.numpy_helper.to_array(t)
              for t in result.model.to_proto().graph.initializer}  # fmt: skip
    assert all(np.isfinite(array).all() for array in arrays.values())
    np.testing.assert_array_equal(arrays["w1"][[3, 5]], dead[[3, 5]])
    np.testing.assert_array_equal(arrays["w2"][:, [3, 5]], unread[:, [3, 5]])


def test_it_repairs_weights_of_one_scale(worker: Worker) -> None:
    """What it is for: int8 with one scale for each tensor, on channels a hundredfold apart."""
    from onnxshrink.passes.quantize_weights import QuantizeWeights

    proto = SCALED["depthwise"]()
    x = inputs(proto)
    coarse = QuantizeWeights(per_channel=False, weights=Select(min_size=8), max_error=9)
    errors = []
    for steps in ([coarse], [Equalize(), coarse]):
        done = run(steps, Model.from_proto(proto), Settings(check="off"), worker)
        exact = answers(proto, x)
        found = answers(done.model.to_proto(), x)
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert errors[1] < 0.5 * errors[0]
