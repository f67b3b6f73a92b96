"""quantize-dynamic: ONNX Runtime must compute with the stored weights and rounded activations."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import integer_kernels
import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from weight_models import Case, homes, normal, operators, parsed

from onnxshrink.contract import Settings
from onnxshrink.graph import surgery, weights
from onnxshrink.graph.file import round_trip
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import dynamic
from onnxshrink.kernels import affine, saturation
from onnxshrink.options import build
from onnxshrink.passes.quantize_dynamic import QuantizeDynamic
from onnxshrink.passes.quantize_weights import storing
from onnxshrink.pipeline import Result, run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.session import SessionOptions
from onnxshrink.runtime.worker import Worker

LEVELS = [SessionOptions(optimization=level) for level in ("disable", "all")]
VARIANTS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8 per tensor": {"per_channel": False, "rounding": "rtn"},
    "int8 asymmetric": {"symmetric": False},
    "uint8": {"dtype": "uint8"},
    "uint8 asymmetric": {"weight_type": "QUInt8", "symmetric": False, "clip": "mse"},
    "7 bits": {"reduce_range": True},
    "7 bits asymmetric": {"dtype": "uint8", "symmetric": False, "reduce_range": True},
}


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, np.ndarray]]:
    """What integer operators store from now on, dequantized, in the shapes of the weights."""
    kept: dict[str, np.ndarray] = {}
    original = dynamic.layout
    layouts: dict[str, Any] = {}

    def remember(view: Any, **options: Any) -> Any:
        layouts[view.name] = original(view, **options)
        return layouts[view.name]

    monkeypatch.setattr(dynamic, "layout", remember)

    def keep(view: Any, codes: affine.Quantized) -> None:
        kept[view.name] = layouts[view.name].spread(affine.dequantize(codes))

    def spied(original: Any) -> Any:
        def spy(model: Any, view: Any, codes: Any, rest: Any) -> Any:
            keep(view, codes)
            return original(model, view, codes, rest)

        return spy

    for name in ("integer_products", "integer_conv"):
        monkeypatch.setattr(dynamic, name, spied(getattr(dynamic, name)))

    def lstm(model: Any, pair: Any, codes: Any, run: Any = dynamic.integer_lstm) -> Any:
        for view, numbers in zip(pair, codes, strict=True):
            keep(view, numbers)
        return run(model, pair, codes)

    monkeypatch.setattr(dynamic, "integer_lstm", lstm)
    return kept


def quantized(model: onnx.ModelProto, folder: Path, **options: Any) -> Result:
    path = folder / "before.onnx"
    path.write_bytes(model.SerializeToString())
    given = {"min_size": 0, "vectors": "keep", "others": "keep", **options}
    result = run(
        [build(QuantizeDynamic, given, "quantize-dynamic")], Model.load(path), Settings(check="off")
    )
    result.model.save(folder / "after.onnx")
    return result


def rounded(x: np.ndarray) -> np.ndarray:
    """What DynamicQuantizeLinear makes of an activation, as numbers again."""
    x = x.astype(np.float32)
    low, high = np.minimum(x.min(), 0), np.maximum(x.max(), 0)
    scale = (high - low) / np.float32(255)
    zero = np.rint(np.clip(-low / scale, 0, 255))
    codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    return ((codes - zero) * scale).astype(np.float32)


def reference(case: Case, stored: dict[str, np.ndarray], folder: Path) -> Path:
    """The float model with the stored weights in place of its own."""
    model = Model.from_proto(case.model)
    for view in weights.find(model):
        if view.name in stored:
            surgery.set_constant(model, view.value, stored[view.name])
    model.save(folder / "reference.onnx")
    return folder / "reference.onnx"


def holds(
    case: Case, stored: dict[str, np.ndarray], worker: Worker, folder: Path,
    tolerance: float = 2e-6, exact: bool = True,
) -> None:  # fmt: skip
    """The result answers what the float model makes of rounded inputs and the stored weights.

    Where sums overflow, the answer is instead what such kernels make of the file, and exact sums of
    the same file make what the float model makes.
    """
    feed = {"x": rounded(case.feed["x"]).astype(case.feed["x"].dtype)} if exact else case.feed
    wanted = worker.run(reference(case, stored, folder), [feed], LEVELS[0]).outputs[0]
    after = folder / "after.onnx"
    worker.check(after)
    if integer_kernels.saturates() and not counted(folder)["DynamicQuantizeLSTM"]:
        equal(integer_kernels.answers(after, case.feed, here=False), wanted, tolerance)
        wanted = integer_kernels.answers(after, case.feed, here=True)
    for options in LEVELS:
        equal(worker.run(after, [case.feed], options).outputs[0], wanted, tolerance)


def equal(found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float) -> None:
    for y, expected in zip(found, wanted, strict=True):
        assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
        error = y.astype(np.float64) - expected
        assert np.linalg.norm(error) <= tolerance * np.linalg.norm(expected.astype(np.float64))


def exact(worker: Worker, path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The file's answers with sums of 32 bits: this CPU's own, or those beside which they stand."""
    found = worker.run(path, [feed]).outputs[0]
    if not integer_kernels.saturates() or not all(array.size for array in feed.values()):
        return found  # of nothing the evaluator knows no range
    equal(found, integer_kernels.answers(path, feed, here=True), 5e-3)
    return integer_kernels.answers(path, feed, here=False)


def counted(folder: Path) -> Counter[str]:
    """Operators of the result, wherever they are."""
    proto = onnx.load(folder / "after.onnx")
    return Counter(node.op_type for nodes in round_trip.node_lists(proto) for node in nodes)


def fused(folder: Path) -> Counter[str]:
    """Operators that ONNX Runtime makes of the result."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(folder / "after.onnx", options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


PRODUCTS = [
    case for case in operators()
    if case.name.startswith(("MatMul", "Gemm")) and "left" not in case.name
    and case.name != "MatMul vector"
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_products_of_rounded_operands(
    case: Case, variant: str, stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    (step,) = quantized(case.model, tmp_path, **VARIANTS[variant]).report.steps
    assert [change.what for change in step.changes] == ["W"]
    holds(case, stored, worker, tmp_path)
    assert counted(tmp_path)["MatMulInteger"] == 1
    if "7 bits" in variant:
        codes = max(
            onnx.load(tmp_path / "after.onnx").graph.initializer, key=onnx.ModelProto.ByteSize
        )
        values = numpy_helper.to_array(codes).astype(int)
        assert values.min() >= -63
        assert values.max() <= 127


GEMM = """g (float[64, 3] x) => (float[3, 40] y)
    { y = Gemm<transA = 1, transB = 1, alpha = 0.5, beta = %s>(x, W, b) }"""


@pytest.mark.parametrize("beta", ["1.0", "2.5", "0.0"])
@pytest.mark.parametrize("shape", [(40,), (3, 1), (1, 40), ()])
def test_a_gemm_keeps_its_factors_and_its_bias(
    beta: str, shape: tuple[int, ...],
    stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path,
) -> None:  # fmt: skip
    model = parsed(GEMM % beta, W=normal(40, 64), b=normal(*shape, seed=3))
    case = Case("Gemm", model, ("W",), {"x": normal(64, 3, seed=1)})
    quantized(model, tmp_path)
    holds(case, stored, worker, tmp_path)


def test_float16_products(stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path) -> None:
    model = parsed(
        "g (float16[3, 64] x) => (float16[3, 40] y) { h = MatMul(x, W) y = Add(h, b) }",
        W=normal(64, 40).astype(np.float16), b=normal(40, seed=3).astype(np.float16),
    )  # fmt: skip
    case = Case("float16", model, ("W",), {"x": normal(3, 64, seed=1).astype(np.float16)})
    quantized(model, tmp_path)
    holds(case, stored, worker, tmp_path, 2e-3)
    chain = parsed(  # whose middle has no type in the file
        "g (float16[3, 64] x) => (float16[3, 40] y) { h = MatMul(x, V) y = MatMul(h, W) }",
        V=normal(64, 64).astype(np.float16), W=normal(64, 40, seed=2).astype(np.float16),
    )  # fmt: skip
    quantized(chain, tmp_path)
    holds(Case("chain", chain, ("V", "W"), case.feed), stored, worker, tmp_path, 3e-2)


@pytest.mark.parametrize(
    "options", [{}, {"per_channel": False}, {"dtype": "uint8", "symmetric": False}], ids=str
)
def test_a_table_that_is_looked_up_too(
    options: dict[str, Any], stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    model = parsed(
        """g (float[3, 64] x, int64[2, 2] i) => (float y, float e) {
            t = Transpose <perm = [1, 0]> (W)  y = MatMul(x, t)  e = Gather(W, i) }""",
        W=normal(80, 64),
    )
    case = Case(
        "tied", model, ("W",), {"x": normal(3, 64, seed=1), "i": np.array([[0, 79], [7, 7]])}
    )
    quantized(model, tmp_path, **options)
    assert counted(tmp_path)["MatMulInteger"] == 1
    codes = [t for t in onnx.load(tmp_path / "after.onnx").graph.initializer if len(t.dims) == 2]
    assert [(len(t.raw_data), tuple(t.dims)) for t in codes] == [(80 * 64, (80, 64))]
    feed = {**case.feed, "x": rounded(case.feed["x"])}
    wanted = worker.run(reference(case, stored, tmp_path), [feed], LEVELS[0]).outputs[0]
    if not integer_kernels.saturates():
        for level in LEVELS:
            found = worker.run(tmp_path / "after.onnx", [case.feed], level).outputs[0]
            equal(found, wanted, 2e-6)


def test_float_weights_where_products_are_left(tmp_path: Path) -> None:
    for kind, name in ((np.float64, "double"), (ml_dtypes.bfloat16, "bfloat16")):
        model = parsed(
            f"g ({name}[3, 64] x) => ({name}[3, 40] y) {{ y = MatMul(x, W) }}",
            W=normal(64, 40).astype(kind),
        )
        (step,) = quantized(model, tmp_path).report.steps
        assert [s.reason for s in step.skips] == [f"DynamicQuantizeLinear takes float, not {name}"]


@pytest.mark.parametrize("case", homes(), ids=str)
def test_every_home_of_a_weight(
    case: Case, stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    (step,) = quantized(case.model, tmp_path, others="int8").report.steps
    assert step.status == "done", step.reason
    assert {change.what for change in step.changes} - {"opset"} >= set(case.weights)
    holds(case, stored, worker, tmp_path, 4e-2, exact=False)
    for name in stored:  # the old floats are gone
        assert not [
            t for t in round_trip.tensors(onnx.load(tmp_path / "after.onnx")) if t.name == name
        ]


# ------------------------------------------------------------------------------------- fusion


def test_the_runtime_fuses_a_product_with_its_bias(worker: Worker, tmp_path: Path) -> None:
    model = parsed(
        "g (float[n, 5, 64] x) => (float[n, 5, 256] y) { h = MatMul(x, W) y = Add(h, b) }",
        W=normal(64, 256), b=normal(256, seed=3),
    )  # fmt: skip
    for variant in VARIANTS.values():
        quantized(model, tmp_path, **{**variant, "vectors": "float16"})
        assert fused(tmp_path) == {"DynamicQuantizeMatMul": 1}


def test_one_activation_is_quantized_once(worker: Worker, tmp_path: Path) -> None:
    model = parsed(
        """g (float[n, 64] x) => (float[n, 64] a, float[n, 64] b, float[n, 64] c) {
            h = MatMul(x, P) r = Relu(h)  a = MatMul(r, Q) b = MatMul(r, K) c = MatMul(r, V) }""",
        P=normal(64, 64), Q=normal(64, 64, seed=1), K=normal(64, 64, seed=2),
        V=normal(64, 64, seed=3),
    )  # fmt: skip
    quantized(model, tmp_path)
    assert counted(tmp_path)["DynamicQuantizeLinear"] == 2
    assert fused(tmp_path) == {
        "DynamicQuantizeMatMul": 1, "Relu": 1, "DynamicQuantizeLinear": 1,
        "MatMulIntegerToFloat": 3,
    }  # fmt: skip


def test_an_activation_that_a_product_makes_is_quantized_once(
    worker: Worker, tmp_path: Path
) -> None:
    """The largest weight goes first: one that reads the product, the product, then the others."""
    model = parsed(
        """g (float[3, 64] x) => (float[3, 90] a, float[3, 70] b) {
            h = MatMul(x, P)  a = MatMul(h, Q) b = MatMul(h, K) }""",
        P=normal(64, 80), Q=normal(80, 90, seed=1), K=normal(80, 60, seed=2)[:, :1].repeat(70, 1),
    )  # fmt: skip
    feed = {"x": normal(3, 64, seed=4)}
    (step,) = quantized(model, tmp_path).report.steps
    assert {c.what for c in step.changes} == {"P", "Q", "K"}
    assert counted(tmp_path)["DynamicQuantizeLinear"] == 2
    before = worker.run(tmp_path / "before.onnx", [feed]).outputs[0]
    for x, y in zip(before, exact(worker, tmp_path / "after.onnx", feed), strict=True):
        assert np.linalg.norm(x - y) <= 0.03 * np.linalg.norm(x)


def test_branches_quantize_for_themselves(worker: Worker, tmp_path: Path) -> None:
    """What is quantized for one branch cannot be seen in the other, nor outside."""
    body = "{name} () => (float[3, 40] {name}y) {{ {name}y = MatMul(x, {name}w) }}"
    model = parsed(
        f"""g (bool c, float[3, 64] x) => (float[3, 40] y, float[3, 40] z) {{
            y = If (c) <then_branch = {body.format(name="t")},
                        else_branch = {body.format(name="e")}>
            z = MatMul(x, w) }}""",
        w=normal(64, 40), tw=normal(64, 40, seed=1), ew=normal(64, 40, seed=2),
    )  # fmt: skip
    quantized(model, tmp_path)
    assert counted(tmp_path) == {"If": 1, "DynamicQuantizeLinear": 3, "MatMulInteger": 3,
                                 "Cast": 3, "Mul": 6}  # fmt: skip
    for c in (True, False):
        feed = {"c": np.array(c), "x": normal(3, 64, seed=4)}
        (x, _) = worker.run(tmp_path / "before.onnx", [feed]).outputs[0]
        (y, _) = exact(worker, tmp_path / "after.onnx", feed)
        assert np.linalg.norm(x - y) <= 0.03 * np.linalg.norm(x)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_activations_without_a_range(
    rows: int, value: float, worker: Worker, tmp_path: Path
) -> None:
    """No rows at all, nothing but zeros, nothing but one number."""
    model = parsed(
        "g (float[n, 64] x) => (float[n, 40] y) { h = MatMul(x, W) y = Add(h, b) }",
        W=np.full((64, 40), 2, np.float32), b=normal(40),
    )  # fmt: skip
    quantized(model, tmp_path)
    feed = {"x": np.full((rows, 64), value, np.float32)}
    (y,) = exact(worker, tmp_path / "after.onnx", feed)
    total = 128 * value  # balanced rounding keeps the sum
    np.testing.assert_allclose(y, np.full((rows, 40), total) + normal(40), rtol=1e-4)


def test_layers_that_share_a_weight_by_identities(worker: Worker, tmp_path: Path) -> None:
    """Exporters write tied weights so; each product becomes one of integers."""
    model = parsed(
        """g (float[3, 64] x) => (float[3, 64] y) {
            V = Identity(W)  U = Identity(V)
            a = MatMul(x, W)  b = MatMul(a, V)  y = MatMul(b, U) }""",
        W=normal(64, 64) / 8,
    )
    (step,) = quantized(model, tmp_path).report.steps
    assert [change.what for change in step.changes] == ["W"]
    ops = counted(tmp_path)
    assert (ops["MatMulInteger"], ops["MatMul"], ops["Identity"]) == (3, 0, 0)


# ---------------------------------------------------------------------------------- recurrent


def lstm(steps: int, extra: str = "", dirs: int = 1, attributes: str = "", **more: Any) -> Case:
    """Every second weight of a sum is 0: pairs of products fit 16 bits, as some CPUs add them."""
    way = "forward" if dirs == 1 else "bidirectional"
    text = f"""g (float[{steps}, 2, 60] x) => (float all, float y) {{
        all, y = LSTM<hidden_size = 10, direction = "{way}"{attributes}>(x, W, R{extra}) }}"""
    weights = normal(dirs, 40, 60) / 5, normal(dirs, 40, 10, seed=2) / 5
    for one in weights:
        one[..., 1::2] = 0
    arrays = {**dict(zip("WR", weights, strict=True)), **more}
    return Case("LSTM", parsed(text, **arrays), ("W", "R"), {"x": normal(steps, 2, 60, seed=1)})


@pytest.mark.parametrize("dirs", [1, 2])
@pytest.mark.parametrize("options", [{}, {"per_channel": False}, {"reduce_range": True}], ids=str)
def test_lstm_of_rounded_inputs(
    dirs: int, options: dict[str, Any],
    stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path,
) -> None:  # fmt: skip
    """Its first step starts from zeros, so that only inputs are rounded; later ones round h too."""
    bias = normal(dirs, 80, seed=5) / 3
    for steps, tolerance, exact in ((1, 3e-6, True), (4, 3e-2, False)):
        case = lstm(steps, ", b", dirs, b=bias)
        (step,) = quantized(case.model, tmp_path, **options).report.steps
        assert {change.what for change in step.changes} == {"W", "R"}
        assert counted(tmp_path)["DynamicQuantizeLSTM"] == 1
        assert counted(tmp_path)["LSTM"] == 0
        holds(case, stored, worker, tmp_path, tolerance, exact)
        if dirs == 1:
            (y,) = worker.run(tmp_path / "after.onnx", [case.feed]).outputs[0][1]
            wanted = by_hand(case.feed["x"], stored["W"][0], stored["R"][0], bias[0])
            np.testing.assert_allclose(y, wanted, atol=2e-6)
        scales = "1 scales" if options.get("per_channel") is False else f"{40 * dirs} scales"
        assert all(scales in change.note for change in step.changes)


def by_hand(x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The last state of an LSTM that rounds its input once, and its state at every step."""
    h = c = np.zeros((2, 10), np.float32)
    x = rounded(x)
    for t in range(len(x)):
        state = rounded(h) if h.any() else h
        gates = x[t] @ w.T + state @ r.T + b[:40] + b[40:]
        i, o, f, g = np.split(gates, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
    return h


def test_lstm_keeps_its_other_inputs(
    stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    case = lstm(  # exporters write attributes that have their default, too
        1, ", b, n, h, c, p", attributes=", layout = 0", b=normal(1, 80, seed=5) / 3,
        n=np.array([1, 1], np.int32),
        h=np.zeros((1, 2, 10), np.float32), c=normal(1, 2, 10, seed=7),
        p=normal(1, 30, seed=8) / 3,
    )  # fmt: skip
    quantized(case.model, tmp_path)
    assert counted(tmp_path)["DynamicQuantizeLSTM"] == 1
    holds(case, stored, worker, tmp_path, 3e-6)


def reasons(result: Result) -> dict[str, str]:
    return {skip.what: skip.reason for skip in result.report.steps[0].skips}


def test_recurrent_weights_that_stay(worker: Worker, tmp_path: Path) -> None:
    gru = next(case for case in operators() if case.name == "GRU").model
    said = "ONNX Runtime has no dynamically quantized GRU"
    assert reasons(quantized(gru, tmp_path)) == {"W": said, "R": said}
    batched = parsed(
        "g (float[2, 3, 60] x) => (float all) "
        "{ all = LSTM<hidden_size = 10, layout = 1>(x, W, R) }",
        W=normal(1, 40, 60), R=normal(1, 40, 10),
    )  # fmt: skip
    assert set(reasons(quantized(batched, tmp_path)).values()) == {
        "DynamicQuantizeLSTM has no layout"
    }
    case = lstm(3)
    kept = reasons(quantized(case.model, tmp_path, keep=["R"]))
    assert kept == {"R": "kept as asked", "W": "the other weight of its LSTM: kept as asked"}
    broken = normal(1, 40, 10)
    broken[0, 3, 3] = np.inf
    assert set(reasons(quantized(lstm(3, R=broken).model, tmp_path)).values()) >= {
        "holds NaN or infinity"
    }


# ------------------------------------------------------------------------------- convolutions


@pytest.mark.parametrize("case", [c for c in operators() if c.name.startswith("Conv ")], ids=str)
def test_convolutions_on_request(
    case: Case, stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    assert reasons(quantized(case.model, tmp_path)) == {"W": "convolutions stay in floating point"}
    result = quantized(case.model, tmp_path, convs=True)
    assert counted(tmp_path)["ConvInteger"] == 1
    assert result.report.warnings[-1].startswith("quantize-dynamic: ConvInteger is slow")
    holds(case, stored, worker, tmp_path)


def test_a_convolution_keeps_its_attributes_and_its_bias(
    stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    text = """g (float[2, 8, 9, 9] x) => (float[n, c, h, v] y) {
        y = Conv<group = 2, pads = [1, 2, 0, 1], strides = [2, 1], dilations = [1, 2]>(x, W, b) }"""
    model = parsed(text, W=normal(16, 4, 3, 3), b=normal(16, seed=3))
    case = Case("Conv", model, ("W",), {"x": normal(2, 8, 9, 9, seed=1)})
    quantized(model, tmp_path, convs=True, dtype="uint8", symmetric=False)
    assert counted(tmp_path)["ConvInteger"] == 1
    holds(case, stored, worker, tmp_path)


# ------------------------------------------------------------------------------ what is left


def test_others_are_stored_as_quantize_weights_does(worker: Worker, tmp_path: Path) -> None:
    model = parsed(
        """g (int64[3] i) => (float[3, 40] y) { x = Gather(E, i) y = MatMul(x, W) }""",
        E=normal(50, 64), W=normal(64, 40),
    )  # fmt: skip
    notes = {
        c.what: c.note for c in quantized(model, tmp_path, others="int8").report.steps[0].changes
    }
    assert notes == {
        "E": "int8, 50 scales, cast-mul (is used by Gather)",
        "W": "int8, 40 scales, MatMulInteger (coarser for CPUs without VNNI)",
    }  # fmt: skip
    result = quantized(model, tmp_path)
    assert reasons(result) == {"E": "is used by Gather"}


def test_what_cannot_be_a_product_says_why(tmp_path: Path) -> None:
    for name, said in (
        ("MatMul left", "is the left operand of its product"),
        ("MatMul vector", "is a vector"),
    ):
        case = next(case for case in operators() if case.name == name)
        assert reasons(quantized(case.model, tmp_path)) == {"W": said}
    bad = normal(64, 40)
    bad[0, 0] = np.nan
    model = parsed(
        "g (float[3, 64] x) => (float[3, 1] y) { h = MatMul(x, W) y = MatMul(h, V) }",
        W=bad, V=normal(40, 1),
    )  # fmt: skip
    for others in ("keep", "int8"):
        assert reasons(quantized(model, tmp_path, others=others)) == {
            "W": "holds NaN or infinity", "V": "would not be smaller as int8"
        }  # fmt: skip


def test_constant_weights(worker: Worker, tmp_path: Path) -> None:
    model = parsed(
        "g (float[3, 64] x) => (float[3, 40] y, float[3, 40] z) "
        "{ y = MatMul(x, W) z = MatMul(x, Z) }",
        W=np.full((64, 40), -0.3, np.float32), Z=np.zeros((64, 40), np.float32),
    )  # fmt: skip
    for variant in VARIANTS.values():
        quantized(model, tmp_path, **variant)
        x = rounded(normal(3, 64, seed=1))
        y, z = exact(worker, tmp_path / "after.onnx", {"x": normal(3, 64, seed=1)})
        np.testing.assert_allclose(y[:, 0], -0.3 * x.sum(1), rtol=1e-3, atol=1e-2)
        assert not z.any()


def test_old_models_are_raised(worker: Worker, tmp_path: Path) -> None:
    header = '<ir_version: 4, opset_import: ["": 8]>'
    text = "g (float[n, 64] x) => (float[n, 40] y) { y = MatMul(x, W) }"
    model = parsed(text, header, W=normal(64, 40))
    (step,) = quantized(model, tmp_path).report.steps
    assert next(c.note for c in step.changes if c.what == "opset") == "raised from 8 to 11"
    worker.check(tmp_path / "after.onnx")


def test_options_by_layer(tmp_path: Path) -> None:
    model = parsed(
        "g (float[3, 64] x) => (float[3, 30] y) { h = MatMul(x, W) y = MatMul(h, V) }",
        W=normal(64, 40), V=normal(40, 30),
    )  # fmt: skip
    layers = {"V": {"weight_type": "QUInt8", "per_channel": False}}
    changes = quantized(model, tmp_path, layers=layers).report.steps[0].changes
    assert {c.what: c.note for c in changes} == {
        "W": "int8, 40 scales, MatMulInteger (coarser for CPUs without VNNI)",
        "V": "uint8, 1 scales, MatMulInteger",
    }  # fmt: skip


@pytest.mark.parametrize("rounding", ["rtn", "balanced", "mse", "hqq", "gptq", "adaround"])
def test_every_rounding(
    rounding: str, stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    model = parsed(
        "g (float[8, 64] x) => (float[8, 40] y) { y = Gemm<transB = 1>(x, W) }", W=normal(40, 64)
    )
    path = tmp_path / "before.onnx"
    path.write_bytes(model.SerializeToString())
    given = {"rounding": rounding, "vectors": "keep"}
    mixing = normal(64, 64, seed=7) / 8
    feeds = [{"x": normal(8, 64, seed=seed) @ mixing} for seed in range(1, 40)]
    step = build(QuantizeDynamic, given, "quantize-dynamic")
    result = run([step], Model.load(path), Settings(feeds=feeds), worker)
    result.model.save(tmp_path / "after.onnx")
    (change,) = result.report.steps[0].changes
    fitted = f", {rounding}" if rounding not in ("rtn", "balanced") else ""
    fits = "coarser" if rounding in ("rtn", "balanced", "mse") else "7 bits,"
    cpus = f" ({fits} for CPUs without VNNI)"
    assert change.note == f"int8, 40 scales, MatMulInteger{fitted}{cpus}"
    holds(Case("rounded", model, ("W",), feeds[0]), stored, worker, tmp_path)


@pytest.mark.parametrize("then", ["quantize-dynamic", "quantize-weights"])
def test_a_model_is_not_quantized_again(
    then: str, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its codes, nor their scales, of products or of lookups."""
    monkeypatch.setattr(storing, "_LOOKED_UP", 0)
    model = parsed(
        "g (int64[3] i) => (float[3, 400] y) { x = Gather(E, i) h = MatMul(x, W) y = Add(h, b) }",
        E=normal(500, 64), W=normal(64, 400), b=normal(400),
    )  # fmt: skip
    quantized(model, tmp_path, others="int8", vectors="float16")
    assert counted(tmp_path)["Gather"] == 2  # of codes and of scales
    again = run([find_pass(then)()], Model.load(tmp_path / "after.onnx"), Settings(check="off"))
    assert again.report.steps[0].status == "nothing to do", again.report.steps[0].changes


@pytest.mark.parametrize("name", ["MatMul right", "LSTM"])
def test_codes_are_right_on_every_cpu(
    name: str, stored: dict[str, np.ndarray], worker: Worker, tmp_path: Path
) -> None:
    """No pair of codes that are multiplied side by side can overflow 16 bits, whatever comes."""
    case = next(case for case in [*operators(), lstm(3)] if case.name == name)
    for cpu, overflow in (("any", False), ("vnni", True)):
        quantized(case.model, tmp_path, cpu=cpu)
        codes = [
            onnx.numpy_helper.to_array(tensor)
            for tensor in onnx.load(tmp_path / "after.onnx").graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
        ]
        assert codes
        rows = [c.swapaxes(-1, -2).reshape(-1, c.shape[-2]) for c in codes]
        assert any(saturation.can_saturate(one).any() for one in rows) == overflow


def test_what_a_file_is_for_and_what_a_kernel_does_not_take_is_said(tmp_path: Path) -> None:
    step = quantized(lstm(5).model, tmp_path, dtype="uint8").report.steps[0]
    notes = {change.what: change.note for change in step.changes}
    assert all("(its kernel takes no uint8" in notes[name] for name in ("W", "R"))
    model = parsed("g (float[3, 64] x) => (float[3, 40] y) { y = MatMul(x, W) }", W=normal(64, 40))
    for options, note, count in (
        ({}, " (coarser for CPUs without VNNI)", 0),
        ({"cpu": "vnni"}, "", 1),
    ):
        step = quantized(model, tmp_path, **options).report.steps[0]
        assert [change.note for change in step.changes] == [f"int8, 40 scales, MatMulInteger{note}"]
        told = [line for line in step.warnings if line.startswith("the file is for CPUs with VNNI")]
        assert len(told) == count


def test_what_is_rounded_already_is_not_rounded_to_other_scales(tmp_path: Path) -> None:
    """As in a model that was trained with quantization; codes of a weight are no such thing."""
    rounded = """s = Constant<value = float {0.03}>() z = Constant<value = uint8 {128}>()
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"""
    model = parsed(
        f"g (float[3, 64] x) => (float[3, 40] y) {{ {rounded} t = Flatten(d) y = MatMul(t, W) }}",
        W=normal(64, 40),
    )
    assert reasons(quantized(model, tmp_path))["W"] == dynamic._ROUNDED
    assert counted(tmp_path)["DynamicQuantizeLinear"] == 0
