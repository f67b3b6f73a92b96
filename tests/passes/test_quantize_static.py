"""quantize-static: ONNX Runtime forms integer kernels, and they answer what numpy answers."""

import collections
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import integer_kernels
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hard_models import HARD, text, weight
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper, numpy_helper

from onnxshrink.contract import Settings
from onnxshrink.errors import InputsMissing, RecipeError
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels import saturation
from onnxshrink.options import build
from onnxshrink.passes.quantize_static import QuantizeStatic
from onnxshrink.pipeline import Result, run
from onnxshrink.runtime.worker import Worker
from onnxshrink.select import Select

MODELS = Path(__file__).parents[2] / "models"
Feeds = list[dict[str, np.ndarray]]
#: What a DequantizeLinear reads: codes, scale and zero point.
Codes = tuple[np.ndarray, np.ndarray, np.ndarray]


def images(count: int = 4, shape: tuple[int, ...] = (2, 8, 9, 9), seed: int = 5) -> Feeds:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def vectors(count: int = 6, width: int = 64) -> Feeds:
    return images(count, (16, width))


@pytest.fixture
def quantized(worker: Worker, tmp_path: Path) -> Callable[..., Result]:
    """Runs the pass and saves what comes of it as ``after.onnx``."""

    def make(proto: onnx.ModelProto, feeds: Feeds, check: Any = "full", **options: Any) -> Result:
        path = tmp_path / "before.onnx"
        onnx.save(proto, path)
        step = build(QuantizeStatic, options, "here")
        result = run([step], Model.load(path), Settings(feeds=feeds, check=check), worker)
        result.model.save(tmp_path / "after.onnx", durable=False)
        onnx.checker.check_model(tmp_path / "after.onnx")
        return result

    return make


def integer_ops(path: Path) -> collections.Counter[str]:
    """What ONNX Runtime makes of a model."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    return collections.Counter(node.op_type for node in graph.node)


def answers(path: Path, feeds: Feeds, level: str = "ORT_ENABLE_ALL") -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in feeds]


# ---------------------------------------------------------------------- numpy's own answers


def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray, attributes: Mapping[str, Any]) -> np.ndarray:
    pads = attributes.get("pads", [0] * 4)
    group = attributes.get("group", 1)
    x = np.pad(x, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    windows = sliding_window_view(x, w.shape[2:], (2, 3))
    split = windows.reshape(x.shape[0], group, -1, *windows.shape[2:])
    kernels = w.reshape(group, -1, *w.shape[1:])
    found = np.einsum("ngchwij,gocij->ngohw", split, kernels)
    return found.reshape(x.shape[0], -1, *found.shape[3:]) + b.reshape(1, -1, 1, 1)


def quantize(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    limits = np.iinfo(zero.dtype)
    # QuantizeLinear divides in float32; what an integer kernel sums up it scales in float32 too.
    return np.clip(np.rint(x / scale.astype(np.float64)) + zero, limits.min, limits.max)


def dequantize(
    x: np.ndarray, scale: np.ndarray, zero: np.ndarray, attributes: Mapping[str, Any]
) -> np.ndarray:
    along = [1] * x.ndim
    if scale.ndim:
        along[attributes.get("axis", 1)] = -1
    return (x.astype(np.float64) - zero.reshape(along)) * scale.astype(np.float64).reshape(along)


def missing(op: str, x: Codes, w: Codes, attributes: Mapping[str, Any]) -> np.ndarray:
    """What integer kernels of this CPU leave out of a product of two quantized operands."""
    codes, zero = x[0], int(x[2])
    if codes.dtype == np.int8:  # ONNX Runtime makes uint8 of such activations
        codes, zero = codes.view(np.uint8) ^ np.uint8(128), zero + 128
    if op == "Conv":
        pads, group = attributes.get("pads", [0] * 4), attributes.get("group", 1)
        left_out = integer_kernels.lost_by_a_convolution(codes, zero, w[0], pads, group)
        return left_out * (x[1].astype(np.float64) * w[1]).reshape(-1, 1, 1)
    turned = w[0] if attributes.get("transB") else w[0].T
    left_out = integer_kernels.lost(codes.reshape(-1, codes.shape[-1]), turned)
    left_out = left_out * (x[1].astype(np.float64) * w[1])
    return left_out.reshape(*codes.shape[:-1], -1) if left_out.ndim > 1 else left_out


def computed(path: Path, feed: dict[str, np.ndarray], *, here: bool = False) -> np.ndarray:
    """A quantized model's answer, by numpy alone, with the codes that are in the file.

    Exactly, or as integer kernels of this CPU have it.
    """
    graph = onnx.load(path).graph
    known: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    known |= {name: array.astype(np.float64) for name, array in feed.items()}
    coded: dict[str, Codes] = {}
    for node in graph.node:
        a = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        x = [known.get(name) for name in node.input]
        if node.op_type == "QuantizeLinear":
            out = quantize(x[0], x[1], x[2]).astype(x[2].dtype)
        elif node.op_type == "DequantizeLinear":
            out = dequantize(x[0], x[1], x[2], a)
            coded[node.output[0]] = (x[0], x[1], x[2])
        elif node.op_type == "Conv":
            out = conv(x[0], x[1], np.zeros(len(x[1])) if len(x) < 3 else x[2], a)
        elif node.op_type == "Gemm":
            out = x[0] @ (x[1].T if a.get("transB") else x[1]) + (0 if len(x) < 3 else x[2])
        elif node.op_type == "MaxPool":
            out = sliding_window_view(x[0], a["kernel_shape"], (2, 3)).max((-1, -2))
        else:
            out = {
                "Add": lambda x=x: x[0] + x[1],
                "Mul": lambda x=x: x[0] * x[1],
                "MatMul": lambda x=x: x[0] @ x[1],
                "Relu": lambda x=x: np.maximum(x[0], 0),
                "Concat": lambda x=x, a=a: np.concatenate(x, a["axis"]),
                "Reshape": lambda x=x: x[0].reshape(x[1]),
                "GlobalAveragePool": lambda x=x: x[0].mean((2, 3), keepdims=True),
            }[node.op_type]()
        if here and node.op_type in ("Conv", "Gemm", "MatMul"):
            out = out - missing(node.op_type, *(coded[name] for name in node.input[:2]), a)
        known[node.output[0]] = out
    answer: np.ndarray = known[graph.output[0].name]
    return answer


def last_scale(path: Path) -> float:
    """The step of the model's output."""
    graph = onnx.load(path).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    (node,) = [n for n in graph.node if n.output[0] == graph.output[0].name]
    return float(stored[node.input[1]]) if node.op_type == "DequantizeLinear" else 0.0


CONV = text(
    """g (float[n, 8, 9, 9] x) => (float[n, 16, 9, 9] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w, b)  c = Relu(a)
        y = Conv<pads = [1, 1, 1, 1], group = 4>(c, v)
    }""",
    w=weight(1, 16, 8, 3, 3), b=weight(2, 16), v=weight(3, 16, 4, 3, 3),
)  # fmt: skip
DEPTHWISE = text(
    """g (float[n, 64, 5, 5] x) => (float[n, 64, 5, 5] y) {
        y = Conv<pads = [2, 2, 2, 2], group = 64>(x, w, b)
    }""",
    w=weight(4, 64, 1, 5, 5), b=weight(5, 64),
)  # fmt: skip
MATMUL = text(
    """g (float[n, 64] x) => (float[n, 32] y) {
        a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v)
    }""",
    w=weight(6, 64, 64), v=weight(7, 64, 32),
)  # fmt: skip
GEMM = text(
    """g (float[n, 64] x) => (float[n, 32] y) {
        a = Gemm<transB = 1>(x, w, b)  c = Relu(a)  y = Gemm(c, v, d)
    }""",
    w=weight(8, 64, 64), b=weight(9, 64), v=weight(10, 64, 32), d=weight(11, 32),
)  # fmt: skip
RESIDUAL = text(
    """g (float[n, 8, 9, 9] x) => (float[n, 8, 9, 9] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w)  c = Relu(a)
        d = Conv<pads = [1, 1, 1, 1]>(c, v)  e = Add(c, d)  f = Relu(e)
        y = Conv<pads = [1, 1, 1, 1]>(f, u)
    }""",
    w=weight(12, 8, 8, 3, 3), v=weight(13, 8, 8, 3, 3), u=weight(14, 8, 8, 3, 3),
)  # fmt: skip
CONCAT = text(
    """g (float[n, 8, 9, 9] x) => (float[n, 8, 6, 6] y) {
        a = Conv(x, w)  c = Conv(x, v)  d = Concat<axis = 1>(a, c)  e = Relu(d)
        f = MaxPool<kernel_shape = [2, 2]>(e)  y = Conv(f, u)
    }""",
    w=weight(15, 4, 8, 3, 3), v=3 * weight(16, 4, 8, 3, 3), u=weight(17, 8, 8, 1, 1),
)  # fmt: skip
CASES: dict[str, tuple[onnx.ModelProto, Feeds, dict[str, int]]] = {
    "conv": (CONV, images(), {"QLinearConv": 2, "Relu": 0}),
    "depthwise": (DEPTHWISE, images(4, (2, 64, 5, 5)), {"QLinearConv": 1}),
    "matmul": (MATMUL, vectors(), {"QLinearMatMul": 1, "MatMulIntegerToFloat": 1, "Relu": 0}),
    "gemm": (GEMM, vectors(), {"QGemm": 2, "Relu": 0}),
    "residual": (RESIDUAL, images(), {"QLinearConv": 3, "QLinearAdd": 1, "Relu": 0}),
    "concat": (
        CONCAT,
        images(),
        {"QLinearConv": 3, "QLinearConcat": 1, "NhwcMaxPool": 1, "Relu": 0},
    ),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "per tensor": {"per_channel": False},
    "int8 activations": {"activations": "int8"},
    "uint8 weights": {"dtype": "uint8", "symmetric": False},
    "seven bits": {"reduce_range": True},
}


def fitting() -> dict[str, Any]:
    """Options with which no sum overflows on this CPU: kernels of uint8 weights add in 32 bits."""
    return {"dtype": "uint8"} if integer_kernels.saturates() else {}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_integer_kernels_answer_what_numpy_answers(
    case: str, variant: str, quantized: Callable[..., Result], tmp_path: Path
) -> None:
    proto, feeds, expected = CASES[case]
    # ONNX Runtime makes uint8 of int8 pair by pair, and then finds mixed types at branches.
    mixed = variant == "int8 activations" and case in ("residual", "concat")
    fits = {"reduce_range": mixed and integer_kernels.saturates()}  # which kernel, nobody says
    result = quantized(proto, feeds, **{**fits, **VARIANTS[variant]})
    assert result.report.steps[0].status == "done", result.report.steps[0].reason
    after = tmp_path / "after.onnx"
    found = integer_ops(after)
    if not mixed:
        assert {op: found[op] for op in expected} == expected
        assert found["QuantizeLinear"] == 1  # the input, and nothing in between
    step = last_scale(after)
    for feed, y in zip(feeds, answers(after, feeds), strict=True):
        wanted = computed(after, feed, here=True)
        assert y.shape == wanted.shape
        if step:  # on its grid: the same code, or the next one where numpy is close to a tie
            off = np.rint(np.abs(y - wanted) / step)
            assert off.max() <= 1
            assert (off > 0).mean() < 0.01
        else:
            assert np.linalg.norm(y - wanted) <= 1e-3 * np.linalg.norm(wanted)
    # Without optimization the same nodes are computed one by one, in floats.
    for feed, y in zip(feeds, answers(after, feeds, "ORT_DISABLE_ALL"), strict=True):
        wanted = computed(after, feed)
        assert np.linalg.norm(y - wanted) <= 3e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("case", CASES)
def test_pairs_are_not_duplicated(
    case: str, quantized: Callable[..., Result], tmp_path: Path
) -> None:
    proto, feeds, _ = CASES[case]
    quantized(proto, feeds)
    nodes = onnx.load(tmp_path / "after.onnx").graph.node
    sources = [node.input[0] for node in nodes if node.op_type == "QuantizeLinear"]
    codes = [node.input[0] for node in nodes if node.op_type == "DequantizeLinear"]
    assert len(sources) == len(set(sources))
    assert len(codes) == len(set(codes))


def test_concat_and_pool_share_a_grid(quantized: Callable[..., Result], tmp_path: Path) -> None:
    quantized(*CASES["concat"][:2])
    graph = onnx.load(tmp_path / "after.onnx").graph
    made = {node.output[0]: node for node in graph.node}
    read = {node.op_type: node for node in graph.node}
    sides = [made[name].input[1:] for name in (*read["Concat"].input, *read["MaxPool"].input)]
    assert all(list(side) == list(sides[0]) for side in sides)


def test_the_integer_answer_is_close_to_the_floats(quantized: Callable[..., Result]) -> None:
    for case in ("conv", "gemm", "residual"):
        proto, feeds, _ = CASES[case]
        full = {"cpu": "vnni", **fitting()}
        error = quantized(proto, feeds, **full).report.steps[0].max_error
        assert error is not None
        assert error < 0.02
        safe = quantized(proto, feeds).report.steps[0].max_error
        assert safe is not None
        assert safe < 2 * error  # a bit is the worst that codes for every CPU lose


# ---------------------------------------------------------------------------------- options


@pytest.mark.parametrize("method", ["mse", "minmax", "moving-average", "percentile", "entropy"])
def test_every_method_gives_its_range(
    method: str, quantized: Callable[..., Result], tmp_path: Path
) -> None:
    feeds = images(4, (64, 64))
    quantized(MATMUL, feeds, method=method, percentile=99.0, max_error=9.0)
    graph = onnx.load(tmp_path / "after.onnx").graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    node = next(n for n in graph.node if n.op_type == "QuantizeLinear")
    scale, zero = (stored[name] for name in node.input[1:])
    low, high = -float(zero) * float(scale), (255 - float(zero)) * float(scale)
    values = np.concatenate([feed["x"] for feed in feeds])
    if method == "minmax":
        assert low == pytest.approx(values.min(), abs=float(scale))
        assert high == pytest.approx(values.max(), abs=float(scale))
    elif method == "moving-average":
        ends = [(feed["x"].min(), feed["x"].max()) for feed in feeds]
        expected = np.mean(ends, axis=0)
        assert [low, high] == pytest.approx(expected, abs=float(scale))
    elif method == "percentile":
        expected = np.quantile(values, [0.005, 0.995])
        assert [low, high] == pytest.approx(expected, abs=2 * float(scale))
    else:
        assert values.min() - scale <= low < -1.5
        assert 1.5 < high <= values.max() + scale


def test_symmetric_activations_keep_relu(quantized: Callable[..., Result], tmp_path: Path) -> None:
    quantized(*CASES["conv"][:2], symmetric_activations=True)
    graph = onnx.load(tmp_path / "after.onnx").graph
    assert "Relu" in {node.op_type for node in graph.node}
    zeros = [numpy_helper.to_array(t) for t in graph.initializer if t.data_type == 2]
    assert zeros
    assert all((zero == 128).all() for zero in zeros)


def test_types_without_kernels_answer_too(quantized: Callable[..., Result], tmp_path: Path) -> None:
    for options in ({"activations": "int16"}, {"activations": "uint16"}, {"dtype": "int4"}):
        result = quantized(*CASES["gemm"][:2], max_error=0.3, **options)
        assert result.report.steps[0].status == "done", result.report.steps[0].reason
        assert result.model.opset == 21
    wide = quantized(*CASES["gemm"][:2], activations="uint16").report.steps[0].max_error
    usual = quantized(*CASES["gemm"][:2]).report.steps[0].max_error
    assert wide is not None
    assert usual is not None
    assert wide < usual


def test_bias_correction_leaves_no_mean(quantized: Callable[..., Result], tmp_path: Path) -> None:
    proto = text("g (float[n, 64] x) => (float[n, 32] y) { y = Gemm(x, w) }", w=weight(18, 64, 32))
    rng = np.random.default_rng(19)
    feeds = [{"x": rng.uniform(0, 4, (64, 64)).astype(np.float32)} for _ in range(4)]
    shifts = []
    for correct in (False, True):
        options = {"correct_bias": correct, "symmetric": False, "per_channel": False}
        quantized(proto, feeds, **options, **fitting())
        exact = answers(tmp_path / "before.onnx", feeds)
        found = answers(tmp_path / "after.onnx", feeds)
        shifts.append(np.abs(np.mean(np.subtract(found, exact), axis=(0, 1))).max())
    assert shifts[1] < shifts[0] / 5


def test_patterns_name_nodes_types_and_weights(
    quantized: Callable[..., Result], tmp_path: Path
) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(RESIDUAL)
    for number, node in enumerate(proto.graph.node):
        node.name = f"node{number}"
    feeds = CASES["residual"][1]
    for keep in ({"keep": ["node2"]}, {"keep": ["v"]}, {"nodes_to_exclude": ["d"]},
                 {"layers": {"node2": "skip"}}):  # fmt: skip
        result = quantized(proto, feeds, **keep)
        assert integer_ops(tmp_path / "after.onnx")["QLinearConv"] == 2
        assert "kept as asked" in {skip.reason for skip in result.report.steps[0].skips}
        weights = {t.name for t in onnx.load(tmp_path / "after.onnx").graph.initializer}
        assert "v" in weights  # as it was
    for only_products in ({"op_types_to_quantize": ["Conv"]}, {"keep": ["Add"]}):
        quantized(proto, feeds, **only_products)
        ops = [node.op_type for node in onnx.load(tmp_path / "after.onnx").graph.node]
        assert ops.count("Relu") == 1  # behind Add
    quantized(proto, feeds, layers={"node0": {"per_channel": False}})
    stored = onnx.load(tmp_path / "after.onnx").graph.initializer
    sizes = {t.name: numpy_helper.to_array(t).size for t in stored if t.name.endswith(".s")}
    assert sorted(sizes.values()) == [1, 8, 8]


def test_a_matmul_with_a_bias_is_a_gemm_that_still_answers_to_its_name(
    quantized: Callable[..., Result], tmp_path: Path
) -> None:
    proto = text(
        """g (float[n, 64] x) => (float[n, 32] y) {
            a = MatMul(x, w)  b = Add(a, c)  d = MatMul(b, v)  y = Add(d, e)
        }""",
        w=weight(30, 64, 64), c=weight(31, 64), v=weight(32, 64, 32), e=weight(33, 32),
    )  # fmt: skip
    quantized(proto, vectors())
    assert integer_ops(tmp_path / "after.onnx")["QGemm"] == 2
    quantized(proto, vectors(), keep=["d"])
    assert integer_ops(tmp_path / "after.onnx")["QGemm"] == 1
    assert not quantized(proto, vectors(), keep=["MatMul"]).report.changed


def test_a_pattern_without_a_match_is_an_error(quantized: Callable[..., Result]) -> None:
    with pytest.raises(RecipeError, match="nothing matches 'conv9'"):
        quantized(*CASES["conv"][:2], nodes_to_exclude=["conv9"])


def test_nodes_that_are_asked_for(quantized: Callable[..., Result], tmp_path: Path) -> None:
    """A product of two activations stays in float, unless it is named."""
    proto = text(
        """g (float[n, 16, 64] x) => (float[n, 16, 16] y) {
            a = MatMul(x, w)  b = MatMul(x, v)  t = Transpose<perm = [0, 2, 1]>(b)
            c = MatMul(a, t)  y = Mul(c, half)
        }""",
        w=weight(28, 64, 64), v=weight(29, 64, 64), half=np.array(0.5, np.float32),
    )  # fmt: skip
    feeds = images(3, (2, 16, 64))
    result = quantized(proto, feeds)
    assert "multiplies two activations" in reason_of(result, "c")
    assert integer_ops(tmp_path / "after.onnx")["MatMulIntegerToFloat"] == 2
    result = quantized(proto, feeds, only=["MatMul", "Mul"], **fitting())
    found = integer_ops(tmp_path / "after.onnx")
    assert (found["QLinearMatMul"], found["QLinearMul"]) == (3, 1)
    assert {"c", "y"} <= {row.what for row in result.report.steps[0].changes}
    assert (result.report.steps[0].max_error or 1) < 0.03


def test_onnxruntimes_spellings() -> None:
    given = {
        "weight_type": "QInt8", "activation_type": "QUInt8", "calibrate_method": "Percentile",
        "op_types_to_quantize": ["Conv"], "nodes_to_exclude": ["head"], "reduce_range": True,
    }  # fmt: skip
    assert build(QuantizeStatic, given, "here") == QuantizeStatic(
        method="percentile", reduce_range=True,
        weights=Select(only=("Conv",), keep=("head",), min_size=64),
    )  # fmt: skip
    assert build(QuantizeStatic, {"reduce_range": False}, "here") == QuantizeStatic()


def test_other_weights_are_rebuilt_at_load(quantized: Callable[..., Result]) -> None:
    proto, feeds = HARD["recurrent"]().proto, HARD["recurrent"]().feeds
    rows = quantized(proto, feeds).report.steps[0].changes
    assert {row.what for row in rows} == {"w", "r"}
    kept = quantized(proto, feeds, others="keep").report.steps[0]
    assert not kept.changes
    assert "no integer kernel takes it" in {skip.reason for skip in kept.skips}


# ------------------------------------------------------------------------ CPUs without VNNI


def codes_of(model: Model) -> list[np.ndarray]:
    """The 8-bit codes of the weights, the largest first."""
    tensors = [value.const_value for value in model.ir.graph.initializers.values()]
    arrays = [t.numpy() for t in tensors if t is not None and t.size > 64]
    return sorted((a for a in arrays if a.dtype.itemsize == 1), key=lambda a: -a.size)


def test_codes_are_right_on_every_cpu(quantized: Callable[..., Result]) -> None:
    """Large inputs times large weights of one sign: 16-bit sums could not hold them."""
    rng = np.random.default_rng(20)
    lonely = weight(21, 64, 32) / 10
    lonely[::8] = rng.choice([-1.0, 1.0], (8, 32))  # large beside small: 8 bits do
    proto = text(
        """g (float[n, 64] x) => (float[n, 64] y, float[n, 32] z) {
            y = MatMul(x, w)  z = MatMul(x, v) }""",
        w=rng.uniform(0.9, 1, (64, 64)).astype(np.float32), v=lonely.astype(np.float32),
    )  # fmt: skip
    feeds = [{"x": rng.uniform(0.8, 1, (16, 64)).astype(np.float32)} for _ in range(3)]
    result = quantized(proto, feeds)
    notes = {row.what: row.note for row in result.report.steps[0].changes}
    assert notes["w"] == "int8 with uint8, coarser for CPUs without VNNI"
    w, v = codes_of(result.model)
    assert not saturation.can_saturate(w.T).any()
    assert not saturation.can_saturate(v.T).any()
    assert (w[::2].astype(int) + w[1::2]).max() == 128  # and no less than can be
    assert np.abs(v.astype(int)).max() > 90
    full = quantized(proto, feeds, cpu="vnni", max_error=9.0)  # here it may be one of the others
    assert np.abs(codes_of(full.model)[0].astype(int)).max() == 127
    said = full.report.steps[0].warnings  # and perhaps that so small a model is not faster
    (warned,) = (each for each in said if "not faster on this machine" not in each)
    assert warned.startswith("the file is for CPUs with VNNI: others would get ")
    narrow = codes_of(quantized(proto, feeds, reduce_range=True).model)
    assert all(np.abs(c.astype(int)).max() <= 63 for c in narrow)


def test_neighbours_in_a_convolution_are_channels(quantized: Callable[..., Result]) -> None:
    """Taps of one channel are not added up in 16 bits; the channels of one tap are."""
    kernel = np.zeros((8, 16, 3, 3), np.float32)
    kernel[:4, 3] = 1.0  # all taps of one channel
    kernel[4:, 2:4, 1, 1] = 1.0  # one tap of two channels
    proto = text("g (float[n, 16, 8, 8] x) => (float[n, 8, 6, 6] y) { y = Conv(x, w) }", w=kernel)
    rng = np.random.default_rng(22)
    feeds = [{"x": rng.uniform(0, 1, (2, 16, 8, 8)).astype(np.float32)} for _ in range(3)]
    result = quantized(proto, feeds)
    (codes,) = codes_of(result.model)
    assert codes[:4].max() == 127
    assert codes[4:].max() == 64


def test_weights_that_would_be_too_coarse_become_uint8(quantized: Callable[..., Result]) -> None:
    """Two large neighbours: the sum of both takes bits from all others.

    Sums of uint8 and uint8 are never of 16 bits.
    """
    rng = np.random.default_rng(24)
    w = rng.standard_normal((256, 32)).astype(np.float32)
    w[:2] = 12
    proto = text("g (float[n, 256] x) => (float[n, 32] y) { y = MatMul(x, w) }", w=w)
    feeds = [{"x": rng.standard_normal((16, 256)).astype(np.float32)} for _ in range(3)]
    (row,) = (r for r in quantized(proto, feeds).report.steps[0].changes if r.what == "w")
    assert row.note == "uint8 with uint8, for CPUs without VNNI"
    full = quantized(proto, feeds, cpu="vnni", max_error=9.0)  # here it may be one of the others
    (kept,) = (r for r in full.report.steps[0].changes if r.what == "w")
    assert kept.note == "int8 with uint8"


def test_sums_of_this_cpu(quantized: Callable[..., Result], tmp_path: Path) -> None:
    """Without VNNI large codes overflow as predicted, with it they do not; seven bits never do."""
    rng = np.random.default_rng(21)
    w = rng.uniform(0.9, 1, (64, 32)).astype(np.float32)
    proto = text("g (float[n, 64] x) => (float[n, 32] y) { y = Gemm(x, w) }", w=w)
    feeds = [{"x": rng.uniform(0.8, 1, (16, 64)).astype(np.float32)} for _ in range(2)]
    after = tmp_path / "after.onnx"
    for seven_bits in (False, True):
        quantized(proto, feeds, reduce_range=seven_bits, cpu="vnni", check="off")
        for feed, y in zip(feeds, answers(after, feeds), strict=True):
            exact, predicted = computed(after, feed), computed(after, feed, here=True)
            np.testing.assert_allclose(y, predicted, atol=1.5 * last_scale(after) + 1e-3)
            overflow = np.linalg.norm(y - exact) > 0.1 * np.linalg.norm(exact)
            assert overflow == (integer_kernels.saturates() and not seven_bits)


# ------------------------------------------------------------------------- homes of weights


@pytest.mark.parametrize("case", ["branches", "loop", "old_ir", "unnamed", "external"])
def test_weights_everywhere(case: str, worker: Worker, tmp_path: Path) -> None:
    hard = HARD[case]()
    result = run(
        [QuantizeStatic(**fitting())], Model.load(hard.save(tmp_path)),
        Settings(feeds=hard.feeds), worker,
    )  # fmt: skip
    assert result.report.steps[0].status == "done", result.report.steps[0].reason
    result.model.save(tmp_path / "after.onnx")
    rows = [row for row in result.report.steps[0].changes if row.kind in ("MatMul", "Gemm")]
    notes = [row.note for row in rows if not row.note.startswith("int32")]  # no biases
    assert notes
    assert all("with uint8" in note for note in notes)
    assert (result.report.steps[0].max_error or 1) < 0.05


def test_a_body_computes_with_integers(worker: Worker, tmp_path: Path) -> None:
    hard = HARD["loop"]()
    result = run(
        [QuantizeStatic()], Model.load(hard.save(tmp_path)), Settings(feeds=hard.feeds), worker
    )
    result.model.save(tmp_path / "after.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(tmp_path / "after.onnx", options, providers=["CPUExecutionProvider"])
    (loop,) = [n for n in onnx.load(tmp_path / "optimized.onnx").graph.node if n.op_type == "Loop"]
    ops = {node.op_type for node in loop.attribute[0].g.node}
    assert "MatMulIntegerToFloat" in ops
    assert "MatMul" not in ops


# -------------------------------------------------------------------------------- bad input


def test_it_needs_real_inputs(worker: Worker, tmp_path: Path) -> None:
    onnx.save(CONV, tmp_path / "m.onnx")
    for settings in (Settings(), Settings(feeds=images(), generated=True)):
        with pytest.raises(InputsMissing, match="give --calibration DATA"):
            run([QuantizeStatic()], Model.load(tmp_path / "m.onnx"), settings, worker)


@pytest.mark.parametrize(
    ("method", "feeds", "said"),
    [
        ("percentile", [{"x": np.ones((2, 64), np.float32) * np.arange(64)}], "79 inputs"),
        ("entropy", [{"x": np.ones((2, 64), np.float32) * np.arange(64)}], "8 inputs"),
        ("moving-average", [{"x": np.ones((2, 64), np.float32)}], "two inputs or more"),
    ],
)
def test_too_few_inputs_for_the_method(
    method: str, feeds: Feeds, said: str, quantized: Callable[..., Result]
) -> None:
    feeds = [{"x": feed["x"].astype(np.float32)} for feed in feeds]
    result = quantized(MATMUL, feeds, method=method)
    assert result.report.steps[0].status == "rolled back"
    assert said in result.report.steps[0].reason


def spoil(array: np.ndarray, value: float) -> np.ndarray:
    copy = array.copy()
    copy.reshape(-1)[7] = value
    return copy


def reason_of(result: Result, what: str) -> str:
    (found,) = {skip.reason for skip in result.report.steps[0].skips if skip.what == what}
    return found


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value: float, quantized: Callable[..., Result]) -> None:
    feeds = vectors()
    feeds[1]["x"] = spoil(feeds[1]["x"], value)
    result = quantized(MATMUL, feeds, check="off", others="keep")
    assert "NaN or infinite" in reason_of(result, "a")


def test_constant_values(quantized: Callable[..., Result]) -> None:
    feeds = [{"x": np.full((4, 64), 2, np.float32)} for _ in range(3)]
    result = quantized(MATMUL, feeds, others="keep", keep=["v"])
    assert "is always 2 with the calibration inputs" in reason_of(result, "a")
    feeds = [{"x": np.zeros((4, 64), np.float32)} for _ in range(3)]
    assert "is always 0" in reason_of(quantized(MATMUL, feeds, others="keep"), "a")


def test_hopeless_values_stay_in_float(quantized: Callable[..., Result]) -> None:
    """One value in a thousand is a thousand times larger than the rest, and all of them count."""
    rng = np.random.default_rng(22)
    feeds = vectors(4)
    for feed in feeds:
        feed["x"][rng.random(feed["x"].shape) < 0.01] *= 1000
    assert quantized(MATMUL, feeds, max_error=9.0).report.changed
    result = quantized(MATMUL, feeds, least_sqnr=60.0, others="keep")
    assert "uint8 would keep" in reason_of(result, "a")


def test_weights_of_every_odd_kind(quantized: Callable[..., Result], tmp_path: Path) -> None:
    w = weight(23, 16, 8, 3, 3)
    w[3], w[4], w[5] = 0, 0.25, 1e-40  # dead, all equal, denormal
    b = np.linspace(-1, 1, 16).astype(np.float32)
    b[2] = 1e6  # far more than its weights ever make
    proto = text(
        """g (float[n, 8, 9, 9] x) => (float[n, 16, 7, 7] y) { y = Conv(x, w, b) }""", w=w, b=b
    )
    result = quantized(proto, images(), method="minmax", least_sqnr=-99.0, max_error=9.0)
    assert result.report.steps[0].status == "done"
    for feed, y in zip(images(), answers(tmp_path / "after.onnx", images()), strict=True):
        assert np.isfinite(y).all()
        wanted = computed(tmp_path / "after.onnx", feed)
        assert np.abs(y - wanted).max() <= 1.01 * last_scale(tmp_path / "after.onnx")


def test_dead_channels_keep_their_bias(quantized: Callable[..., Result], tmp_path: Path) -> None:
    w = weight(24, 8, 64)
    w[3] = 0
    proto = text(
        "g (float[n, 64] x) => (float[n, 8] y) { y = Gemm<transB = 1>(x, w, b) }",
        w=w, b=np.linspace(-1, 1, 8).astype(np.float32),
    )  # fmt: skip
    quantized(proto, vectors())
    (y, *_) = answers(tmp_path / "after.onnx", vectors())
    assert y[:, 3] == pytest.approx(np.linspace(-1, 1, 8)[3], abs=1e-5)


def test_infinite_weights_are_left_alone(quantized: Callable[..., Result]) -> None:
    proto = text(
        "g (float[n, 64] x) => (float[n, 32] y) { a = MatMul(x, w)  y = MatMul(a, v) }",
        w=weight(25, 64, 64), v=spoil(weight(26, 64, 32), np.inf),
    )  # fmt: skip
    result = quantized(proto, vectors(), check="off")
    assert "holds NaN or infinity" in reason_of(result, "y")
    assert {row.what for row in result.report.steps[0].changes} == {"w"}


def test_an_operator_without_a_kernel_says_so(quantized: Callable[..., Result]) -> None:
    proto = text(
        "g (float[n, 64] x) => (float[n, 64] y) { a = Tanh(x)  y = MatMul(a, w) }",
        w=weight(27, 64, 64),
    )
    result = quantized(proto, vectors(), only=["Tanh", "MatMul"])
    assert "has no integer kernel" in reason_of(result, "a")
    assert result.report.changed


# ---------------------------------------------------------------------------------- a real one


def test_vision_cnn(worker: Worker, tmp_path: Path) -> None:
    with np.load(MODELS / "vision_cnn" / "calibration.npz") as data:
        name = data.files[0]
        feeds = [{name: data[name][i : i + 16]} for i in range(0, 64, 16)]
    model = Model.load(MODELS / "vision_cnn" / "model.onnx")
    result = run([QuantizeStatic(**fitting())], model, Settings(feeds=feeds), worker)
    step = result.report.steps[0]
    assert step.status == "done", step.reason
    result.model.save(tmp_path / "after.onnx")
    assert step.bytes_before / step.bytes_after > 3.5
    assert (step.max_error or 1) < 0.05
    found = integer_ops(tmp_path / "after.onnx")
    assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & set(found)


def test_fewer_weights_are_tried_on_what_one_calibration_showed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four layers side by side one is ruined by an outlier that meets zeros only."""
    weights = {f"w{i}": weight(i, 64, 64) for i in range(4)}
    weights["w1"][0] = 1e5
    model = Model.from_proto(
        text(
            "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w0)  b = MatMul(x, w1)"
            " c = MatMul(x, w2)  d = MatMul(x, w3)  y = Sum(a, b, c, d) }",
            **weights,
        )
    )
    feeds = [{"x": feed["x"] * (np.arange(64) > 0).astype(np.float32)} for feed in vectors()]
    watched, watch = [], Worker.watch
    monkeypatch.setattr(Worker, "watch", lambda *a: (watched.append(a), watch(*a))[1])
    step = QuantizeStatic(others="keep", correct_bias=False)
    result = run([step], model, Settings(feeds=feeds), worker)
    (row,) = result.report.steps
    assert {change.what for change in row.changes if change.before} == {"w0", "w2", "w3"}
    assert len(watched) == 1
    again = build(QuantizeStatic, row.options, "again")
    direct = run([again], model, Settings(feeds=feeds), worker)
    assert direct.model.digest() == result.model.digest()
