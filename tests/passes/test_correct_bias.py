"""correct-bias: after it every layer has the mean outputs of the original, by numpy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hard_models import HARD, text, weight
from onnx import numpy_helper

from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.options import build
from onnxshrink.passes.correct_bias import CorrectBias
from onnxshrink.pipeline import Pass, Result, run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.session import SessionOptions, open_session
from onnxshrink.runtime.worker import Worker

RNG = np.random.default_rng(0)
W, V, K = weight(1, 8, 6), weight(2, 6, 4), weight(3, 6, 8, 3, 3)
B = RNG.standard_normal(6).astype(np.float32)


def step(name: str, **options: object) -> Pass:
    return build(find_pass(name), {"max_error": 9.0, **options}, name)


PRUNE = step("prune-magnitude", ratio=0.5, scope="weight", min_size=2)

ROWS = "g (float[n, 8] x) => (float[n, 6] y)"
#: Layers with their bias in every place, and where it is not.
LAYERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "matmul": lambda: text(f"{ROWS} {{ y = MatMul(x, w) }}", w=W),
    "matmul-add": lambda: text(f"{ROWS} {{ p = MatMul(x, w)  y = Add(b, p) }}", w=W, b=B),
    "one-row": lambda: text(
        f"{ROWS} {{ p = MatMul(x, w)  y = Add(p, b) }}", w=W, b=B.reshape(1, 6)
    ),
    "one-number": lambda: text(f"{ROWS} {{ p = MatMul(x, w)  y = Add(p, b) }}", w=W, b=B[:1]),
    "gemm": lambda: text(f"{ROWS} {{ y = Gemm<transB = 1>(x, w) }}", w=np.ascontiguousarray(W.T)),
    "gemm-bias": lambda: text(f"{ROWS} {{ y = Gemm<beta = 0.5, alpha = 2.0>(x, w, b) }}", w=W, b=B),
    "conv": lambda: text(
        "g (float[n, 8, 5, 5] x) => (float[n, 6, 3, 3] y) { y = Conv(x, w) }", w=K
    ),
    "conv-bias": lambda: text(
        "g (float[n, 8, 5, 5] x) => (float[n, 6, 5, 5] y) {"
        " y = Conv<pads = [1, 1, 1, 1]>(x, w, b) }", w=K, b=B,
    ),
    "shared": lambda: text(
        "g (float[n, 8] x) => (float[n, 6] y, float[n, 6] z) {"
        " p = MatMul(x, w)  y = Add(p, b)  z = Sigmoid(b) }".replace(
            "float[n, 6] z", "float[6] z"
        ), w=W, b=B,
    ),
    "shared-half": lambda: text(
        "g (float[n, 8] x) => (float[n, 6] y, float[6] z) {"
        " c = Cast<to = 1>(b)  y = Gemm(x, w, c)  z = Sigmoid(c) }", w=W, b=B.astype(np.float16),
    ),
    "constant-node": lambda: text(
        '<ir_version: 3, opset_import: ["": 8]> g (float[n, 8] x, float[8, 6] w) => (float[n, 6] y)'
        " { y = MatMul(x, w) }", w=W,
    ),
}  # fmt: skip


def feeds(proto: onnx.ModelProto, count: int = 4) -> list[dict[str, np.ndarray]]:
    dims = [d.dim_value or 30 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(5)
    return [{"x": rng.uniform(0, 1, dims).astype(np.float32)} for _ in range(count)]


def corrected(
    proto: onnx.ModelProto, worker: Worker, *steps: Pass, real: bool = True, **options: object
) -> Result:
    settings = Settings(feeds=feeds(proto) if real else ())
    correct = CorrectBias(**{"add": True, **options})  # type: ignore[arg-type]
    return run([*(steps or (PRUNE,)), correct], Model.from_proto(proto), settings, worker)


def means(proto: onnx.ModelProto, name: str = "y", axis: int = 1) -> np.ndarray:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if name not in {value.name for value in proto.graph.output}:
        copy.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_session(copy.SerializeToString(), SessionOptions(optimization="disable"))
    found = [session.run([name], feed)[0] for feed in feeds(proto)]
    by_channel = np.concatenate(
        [np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in found], 1
    )
    return by_channel.mean(1, dtype=np.float64)  # type: ignore[no-any-return]


def arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


@pytest.mark.parametrize("name", LAYERS)
def test_means_are_those_of_the_original(name: str, worker: Worker, tmp_path: Path) -> None:
    proto = LAYERS[name]()
    result = corrected(proto, worker)
    rows = result.report.steps
    assert rows[1].status == "done", rows[1]
    result.model.save(tmp_path / "after.onnx")
    worker.check(tmp_path / "after.onnx")
    after = onnx.load(tmp_path / "after.onnx")
    scale = np.abs(means(proto)).max()
    np.testing.assert_allclose(means(after), means(proto), atol=2e-6 * scale)
    pruned = run([PRUNE], Model.from_proto(proto), Settings(check="off"), worker).model.to_proto()
    assert np.abs(means(pruned) - means(proto)).max() > 0.01 * scale
    assert rows[1].changes[0].error["mean_error"] == pytest.approx(
        np.linalg.norm(means(pruned) - means(proto)) / np.linalg.norm(means(proto)), rel=1e-4
    )
    if "z" in {value.name for value in proto.graph.output}:  # the other reader of the vector
        np.testing.assert_array_equal(arrays(after)["b"], arrays(proto)["b"])


def test_a_bias_in_place_is_numpy_s() -> None:
    """Old bias plus what the removed weights added on average."""
    proto = LAYERS["matmul-add"]()
    with Worker() as worker:
        result = corrected(proto, worker)
    after = arrays(result.model.to_proto())
    x = np.concatenate([feed["x"] for feed in feeds(proto)]).astype(np.float64)
    expected = B + x.mean(0) @ (W.astype(np.float64) - after["w"])
    np.testing.assert_allclose(after["b"], expected, rtol=1e-6, atol=1e-6)
    assert result.report.bytes_after == result.report.bytes_before
    (row,) = result.report.steps[1].changes
    assert (row.what, row.before, row.after) == ("b", 24, 24)


CHAIN = "g (float[n, 8] x) => (float[n, 4] y) { p = MatMul(x, w)  q = Relu(p)  y = MatMul(q, v) }"


def test_layers_are_corrected_one_behind_the_other(worker: Worker) -> None:
    """The second by what is still wrong once the first is right."""
    proto = text(CHAIN, w=W, v=V)
    result = corrected(proto, worker)
    after = result.model.to_proto()
    for name in ("p", "y"):
        np.testing.assert_allclose(means(after, name), means(proto, name), atol=2e-6)
    at_once = corrected(proto, worker, rounds=1).model.to_proto()
    np.testing.assert_allclose(means(at_once, "p"), means(proto, "p"), atol=2e-6)
    assert np.abs(means(at_once) - means(proto)).max() > 1e-3


@pytest.mark.parametrize(
    "compress",
    [
        step("quantize-weights", dtype="int4", rounding="rtn", min_size=16),
        step("quantize-weights", dtype="int4", form="dq", rounding="rtn", min_size=16),
        step("share-codebook", bits=2, min_size=16),
    ],
    ids=["cast-mul", "dq", "codebook"],
)
def test_any_form_of_compressed_weight(compress: Pass, worker: Worker) -> None:
    big, bias = weight(1, 64, 96), RNG.standard_normal(96).astype(np.float32)
    source = "g (float[n, 64] x) => (float[n, 96] y) { p = MatMul(x, w)  y = Add(p, b) }"
    proto = text(source, w=big, b=bias)
    result = corrected(proto, worker, compress)
    assert [row.status for row in result.report.steps] == ["done", "done"]
    after = result.model.to_proto()
    # A bias that was narrowed stays narrow.
    atol = 2e-3 if any(a.dtype == np.float16 for a in arrays(after).values()) else 5e-6
    np.testing.assert_allclose(means(after), means(proto), atol=atol)
    assert result.effect[0].relative_error < 1


def test_layers_that_are_as_they_were_are_left_alone(worker: Worker) -> None:
    proto = text(CHAIN, w=W, v=V)
    result = corrected(
        proto, worker, step("prune-magnitude", ratio=0.5, scope="weight", min_size=2, keep=("v",))
    )
    reasons = {skip.what: skip.reason for skip in result.report.steps[1].skips}
    assert reasons["v"] == "its weight is as in the original"
    np.testing.assert_allclose(means(result.model.to_proto(), "p"), means(proto, "p"), atol=2e-6)
    alone = run([CorrectBias()], Model.from_proto(proto), Settings(feeds=feeds(proto)), worker)
    assert alone.report.steps[0].status == "nothing to do"


def test_layers_that_no_input_reaches_are_left_alone(worker: Worker) -> None:
    """Those in the branch of an If that is never taken."""
    hard = HARD["untaken"]()
    prune = step("prune-magnitude", ratio=0.5, scope="weight", min_size=65)
    settings = Settings(feeds=hard.feeds)
    result = run([prune, CorrectBias(add=True)], Model.from_proto(hard.proto), settings, worker)
    row = result.report.steps[1]
    assert [change.what for change in row.changes] == ["b"]
    reasons = {skip.reason for skip in row.skips if "stays inside of LSTM" not in skip.reason}
    assert reasons == {"its output could not be observed"}


def test_the_file_grows_only_where_that_is_asked_for(worker: Worker) -> None:
    source = CHAIN.replace("MatMul(q, v)", "Gemm(q, v, b)")
    proto = text(source, w=W, v=V, b=np.zeros(V.shape[1], np.float32))
    before, after = corrected(proto, worker, add=False).report.steps
    assert [change.what for change in after.changes] == ["b"]
    assert {skip.what for skip in after.skips if "--add" in skip.reason} == {"w"}
    assert after.bytes_after <= before.bytes_after
    assert corrected(proto, worker).report.steps[1].bytes_after > before.bytes_after


def test_only_and_keep(worker: Worker) -> None:
    proto = text(CHAIN, w=W, v=V)
    kept = corrected(proto, worker, keep=("w",)).report.steps[1]
    assert {skip.what: skip.reason for skip in kept.skips} == {"w": "kept as asked"}
    only = corrected(proto, worker, only=("v",)).report.steps[1]
    assert {skip.what: skip.reason for skip in only.skips} == {"w": "not among those asked for"}
    with pytest.raises(RecipeError, match="no layer matches 'u'"):
        corrected(proto, worker, only=("u",))


def test_without_inputs_it_says_what_it_needs(worker: Worker) -> None:
    row = corrected(LAYERS["matmul"](), worker, real=False).report.steps[1]
    assert row.status == "rolled back"
    assert "measures means on real inputs: give --calibration" in row.reason


def test_the_original_may_be_a_file(worker: Worker, tmp_path: Path) -> None:
    proto = LAYERS["matmul"]()
    onnx.save(proto, tmp_path / "original.onnx")
    small = run([PRUNE], Model.from_proto(proto), Settings(feeds=feeds(proto)), worker).model
    done = run(
        [CorrectBias(add=True, reference=str(tmp_path / "original.onnx"))], small,
        Settings(feeds=feeds(proto)), worker,
    )  # fmt: skip
    assert done.report.steps[0].status == "done"
    np.testing.assert_allclose(means(done.model.to_proto()), means(proto), atol=2e-6)


def test_weights_on_the_left_are_a_reason(worker: Worker) -> None:
    proto = text("g (float[8, n] x) => (float[6, n] y) { y = MatMul(w, x) }",
                 w=np.ascontiguousarray(W.T))  # fmt: skip
    row = corrected(proto, worker).report.steps[1]
    assert [skip.reason for skip in row.skips] == ["its weight is multiplied from the left"]


def test_a_correction_that_does_harm_is_taken_back(worker: Worker) -> None:
    """Behind a step function only the sign of some values counts, not the mean of all."""
    source = """g (float[n, 2] x) => (float[n, 1] y) {
        p = MatMul(x, w)  c = Sign(p)  y = Add(c, b) }"""
    w = np.array([[1], [0.3]], np.float32)
    proto = text(source, w=w, b=np.zeros(1, np.float32))
    x = np.array([[-0.1, 0.1], [0.1, -0.1], [0.05, 40.0]], np.float32)
    steps = [PRUNE, CorrectBias(add=True)]
    result = run(steps, Model.from_proto(proto), Settings(feeds=[{"x": x}]), worker)
    row = result.report.steps[1]
    assert row.status == "nothing to do"
    assert [skip.reason for skip in row.skips] == ["corrections bring the outputs no closer"]


# ------------------------------------------------------------------------------------ analytic


def test_analytic_is_the_weights_error_times_the_mean_input(worker: Worker) -> None:
    proto = text(CHAIN, w=W, v=V)
    result = corrected(proto, worker, method="analytic")
    after = arrays(result.model.to_proto())
    x, q = means(proto, "x"), means(proto, "q")
    for mean, name, old, made in ((x, "w", W, "p"), (q, "v", V, "y")):
        (bias,) = (a for key, a in after.items() if key.startswith(f"{made}.bias"))
        expected = mean @ (old.astype(np.float64) - after[name])
        np.testing.assert_allclose(bias, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("groups", [1, 2])
def test_analytic_follows_kernels_and_groups(groups: int, worker: Worker) -> None:
    kernel = weight(3, 6, 8 // groups, 3, 3)
    source = "g (float[n, 8, 5, 5] x) => (float[n, 6, 3, 3] y) { y = Conv<group = %d>(x, w) }"
    result = corrected(text(source % groups, w=kernel), worker, method="analytic")
    after = arrays(result.model.to_proto())
    mean = means(text(source % groups, w=kernel), "x").reshape(groups, -1)
    wrong = (kernel.astype(np.float64) - after["w"]).sum((2, 3)).reshape(groups, -1, 8 // groups)
    expected = np.einsum("goi,gi->go", wrong, mean).ravel()
    (bias,) = (array for name, array in after.items() if name != "w")
    np.testing.assert_allclose(bias, expected, rtol=1e-4, atol=1e-6)


def test_analytic_needs_no_data_behind_a_normalization(worker: Worker) -> None:
    """Batch norm and Relu give the means; where nothing does, the layer says so."""
    source = """g (float[n, 8, 4, 4] x) => (float[n, 6, 4, 4] y) {
        p = Conv(x, k)  q = BatchNormalization(p, g, b, m, s)  r = Relu(q)  y = Conv(r, w) }"""
    gamma, beta = RNG.uniform(0.5, 2, 8).astype(np.float32), RNG.standard_normal(8)
    vectors = {"g": gamma, "b": beta.astype(np.float32), "m": np.zeros(8, np.float32),
               "s": np.ones(8, np.float32)}  # fmt: skip
    first, second = weight(3, 8, 8, 1, 1), weight(4, 6, 8, 1, 1)
    proto = text(source, k=first, w=second, **vectors)
    result = corrected(proto, worker, real=False, method="analytic")
    row = result.report.steps[1]
    assert row.status == "done"
    assert [s.reason for s in row.skips] == ["has no counterpart in the original"]
    z = np.random.default_rng(3).standard_normal((400_000, 8)) * gamma + vectors["b"]
    mean = np.maximum(z, 0).mean(0)
    after = arrays(result.model.to_proto())
    expected = (second.astype(np.float64) - after["w"])[:, :, 0, 0] @ mean
    np.testing.assert_allclose(after["y.bias"], expected, atol=0.01)


def test_a_vector_that_is_made_has_the_type_of_the_layer(worker: Worker) -> None:
    """Also behind factors of a split weight, of which the original knows nothing."""
    proto = text(
        "g (float16[n, 64] x) => (float16[n, 48] y) { y = MatMul(x, w) }",
        w=weight(1, 64, 48).astype(np.float16),
    )
    inputs = np.random.default_rng(5).uniform(0, 1, (4, 30, 64)).astype(np.float16)
    steps = [step("split-lowrank", ratio=0.5, min_size=2), CorrectBias(add=True)]
    settings = Settings(feeds=[{"x": x} for x in inputs])
    result = run(steps, Model.from_proto(proto), settings, worker)
    assert [row.status for row in result.report.steps] == ["done", "done"]
    assert {a.dtype for a in arrays(result.model.to_proto()).values()} == {np.dtype(np.float16)}
