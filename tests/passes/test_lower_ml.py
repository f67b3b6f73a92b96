"""Each lowered operator answers what ONNX Runtime's own kernel answers."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, parser

from onnxshrink.contract import Settings
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.lower_ml import LowerMl
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import Context, Result, run
from onnxshrink.report import Step

TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
TYPES = ("float32", "float64", "int32", "int64")
LABELS: dict[str, dict[str, Any]] = {
    "ints": {"classlabels_ints": [30, -7, 8, 5]},
    "ordered": {"classlabels_ints": [0, 1, 2, 3]},
    "strings": {"classlabels_strings": ["koala", "emu", "ünal", ""]},
}
FEATURES = 6


def model_of(
    op_type: str, attributes: dict[str, Any], x: np.ndarray, *, shape: Sequence[Any] | None,
    opset: int = 17, ir_version: int = 8,
) -> onnx.ModelProto:  # fmt: skip
    """A model of one node; ``shape`` None hides the rank of what the node reads."""
    outputs = {"y": onnx.TensorProto.FLOAT}
    nodes, inputs = [], {"x": (helper.np_dtype_to_tensor_dtype(x.dtype), shape or x.shape)}
    if op_type == "LinearClassifier":
        strings = "classlabels_strings" in attributes
        label = onnx.TensorProto.STRING if strings else onnx.TensorProto.INT64
        outputs = {"label": label, **outputs}
    if shape is None:
        inputs["shape"] = (onnx.TensorProto.INT64, ["dims"])
        nodes.append(helper.make_node("Reshape", ["x", "shape"], ["hidden"]))
    read = ["x" if shape is not None else "hidden"]
    nodes.append(helper.make_node(op_type, read, list(outputs), domain="ai.onnx.ml", **attributes))
    keeps_rank = op_type in ("Normalizer", "Scaler")
    ranks = {"label": 1, "y": x.ndim if keeps_rank else 2}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [
            helper.make_tensor_value_info(name, kind, [f"{name}{i}" for i in range(ranks[name])])
            for name, kind in outputs.items()
        ],
    )  # fmt: skip
    imports = [helper.make_opsetid("ai.onnx.ml", 1)]
    if opset:
        imports.append(helper.make_opsetid("", opset))
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def answers(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"x": x}
    if len(session.get_inputs()) > 1:
        feed["shape"] = np.array(x.shape, np.int64)
    found: list[np.ndarray] = session.run(None, feed)
    return found


def lowered(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Step]:
    model, step = Model.from_proto(proto), Step("lower-ml")
    LowerMl().apply(model, Context(step))
    result = model.to_proto()
    onnx.checker.check_model(result)
    return result, step


def reason(proto: onnx.ModelProto) -> str:
    """Why the only operator was left alone; the model must be as it was."""
    before = proto.SerializeToString()
    after, step = lowered(proto)
    assert not step.changes
    assert after.SerializeToString() == before
    return step.skips[0].reason


def assert_equal(proto: onnx.ModelProto, x: np.ndarray, *, keeps: Sequence[str] = ()) -> None:
    """Lower a model; it keeps no ai.onnx.ml operator but ``keeps``, and answers the same."""
    after, step = lowered(proto)
    assert not step.skips
    assert [node.op_type for node in after.graph.node if node.domain] == list(keeps)
    domains = {entry.domain for entry in after.opset_import}
    assert domains == ({"", "ai.onnx.ml"} if keeps else {""})
    for want, have in zip(answers(proto, x), answers(after, x), strict=True):
        assert (have.shape, have.dtype) == (want.shape, want.dtype)
        if want.dtype == np.float32:
            np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(have, want)


def linear(seed: int, targets: int, *, small: bool) -> dict[str, Any]:
    """Coefficients and intercepts; ``small``: scores lie between 0 and 1, where PROBIT lives."""
    rng = np.random.default_rng(seed)
    size = 0.01 if small else 1.0
    coefficients = rng.normal(size=(targets, FEATURES)).astype(np.float32) * size
    intercepts = rng.uniform(0.2, 0.8, targets).astype(np.float32)
    if not small and targets > 2:
        coefficients[1], intercepts[1] = 0, 0  # scores of zero, which SOFTMAX_ZERO sets apart
    return {"coefficients": coefficients.ravel().tolist(), "intercepts": intercepts.tolist()}


def features(seed: int, dtype: str, shape: Sequence[int]) -> np.ndarray:
    return (np.random.default_rng(seed + 1).normal(size=shape) * 2).astype(dtype)


@pytest.mark.parametrize(
    ("transform", "classes"),
    [pair for pair in product(TRANSFORMS, (1, 2, 3)) if pair != ("PROBIT", 1)],
)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", TYPES)
def test_classifier(transform: str, classes: int, labels: str, dtype: str) -> None:
    count = max(classes, 2)
    named = {name: values[:count] for name, values in LABELS[labels].items()}
    attributes = {
        **linear(3, classes, small=transform == "PROBIT"), **named,
        "post_transform": transform, "multi_class": classes % 2,
    }  # fmt: skip
    x = features(5, dtype, (40, FEATURES))
    keeps = ["LinearRegressor"] if transform == "PROBIT" else []
    proto = model_of("LinearClassifier", attributes, x, shape=["N", FEATURES])
    assert_equal(proto, x, keeps=keeps)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_single_row_without_labels_has_one_score(transform: str) -> None:
    x = features(5, "float32", (40, FEATURES))
    small = transform == "PROBIT"
    attributes = {**linear(2, 1, small=small), "post_transform": transform}
    proto = model_of("LinearClassifier", attributes, x, shape=["N", FEATURES])
    assert answers(proto, x)[1].shape == (40, 1)
    assert_equal(proto, x, keeps=["LinearRegressor"] if small else [])


def test_ties_and_zero_scores_take_the_first_label() -> None:
    x = np.zeros((3, FEATURES), np.float32)
    for classes in (1, 3):
        attributes = {
            "coefficients": [1.0] * classes * FEATURES, "intercepts": [0.0] * classes,
            "classlabels_ints": [30, -7, 8][: max(classes, 2)],
        }  # fmt: skip
        assert_equal(model_of("LinearClassifier", attributes, x, shape=[3, FEATURES]), x)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("targets", [1, 2, 3])
@pytest.mark.parametrize("with_intercepts", [True, False])
def test_regressor(transform: str, targets: int, with_intercepts: bool) -> None:
    small = transform == "PROBIT" and with_intercepts
    attributes = {**linear(9, targets, small=small), "targets": targets}
    if not with_intercepts:
        del attributes["intercepts"]
    attributes["post_transform"] = transform
    x = features(5, "float32", (40, FEATURES))
    proto = model_of("LinearRegressor", attributes, x, shape=["N", FEATURES])
    assert_equal(proto, x, keeps=["LinearRegressor"] if transform == "PROBIT" else [])


def test_intercepts_of_another_length_are_ignored_as_by_the_kernel() -> None:
    attributes = {**linear(9, 3, small=False), "targets": 3, "intercepts": [5.0]}
    x = features(5, "float32", (4, FEATURES))
    assert_equal(model_of("LinearRegressor", attributes, x, shape=["N", FEATURES]), x)


@pytest.mark.parametrize("shape", [(FEATURES,), (7, FEATURES), (0, FEATURES)])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("op_type", ["LinearClassifier", "LinearRegressor", "Normalizer", "Scaler"])
def test_ranks(op_type: str, shape: tuple[int, ...], known: bool) -> None:
    attributes: dict[str, Any] = {"norm": "L2"}
    if op_type == "Scaler":
        attributes = {"offset": [0.5], "scale": [3.0]}
    elif op_type != "Normalizer":
        attributes = linear(1, 3, small=False)
        named = {"targets": 3} if op_type == "LinearRegressor" else LABELS["ints"]
        attributes = {**attributes, **named}
    x = features(2, "float32", shape)
    assert_equal(model_of(op_type, attributes, x, shape=shape if known else None), x)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("count", [1, FEATURES])
@pytest.mark.parametrize("rank", [1, 2])
def test_scaler(dtype: str, count: int, rank: int) -> None:
    rng = np.random.default_rng(0)
    offset, scale = rng.normal(size=(2, count)).astype(np.float32)
    shape = (FEATURES,) if rank == 1 else (9, FEATURES)
    x = features(2, dtype, shape) * 1000
    attributes = {"offset": offset.tolist(), "scale": scale.tolist()}
    assert_equal(model_of("Scaler", attributes, x.astype(dtype), shape=shape), x.astype(dtype))


def test_scaler_rounds_float64_at_the_end() -> None:
    x = np.array([[2.0**24 + 1, 2.0**24 + 3]])  # neither is a float32
    proto = model_of("Scaler", {"offset": [2.0**24], "scale": [1.0]}, x, shape=["N", 2])
    np.testing.assert_array_equal(answers(proto, x)[0], [[1, 3]])
    assert_equal(proto, x)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
@pytest.mark.parametrize("opset", [9, 12, 13, 18])
def test_normalizer(dtype: str, norm: str, opset: int) -> None:
    x = features(2, dtype, (9, FEATURES)) * 10
    x[0] = 0
    x[1] = -np.abs(x[1])  # its largest value is negative
    x[2] = 0
    x[2, 3] = 1e-30  # its square is zero in float32, though it is not
    x = x.astype(dtype)
    proto = model_of("Normalizer", {"norm": norm}, x, shape=["N", FEATURES], opset=opset)
    assert_equal(proto, x)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(1, 4),
    labels=st.sampled_from(sorted(LABELS)),
    transform=st.sampled_from(TRANSFORMS[:4]),
    dtype=st.sampled_from(TYPES),
    rows=st.integers(1, 5),
    opset=st.sampled_from([9, 11, 13, 17, 18, 21]),
    known=st.booleans(),
    old=st.booleans(),
)
def test_any_classifier(
    seed: int, classes: int, labels: str, transform: str, dtype: str, rows: int, opset: int,
    known: bool, old: bool,
) -> None:  # fmt: skip
    named = {name: values[: max(classes, 2)] for name, values in LABELS[labels].items()}
    attributes = {**linear(seed, classes, small=False), **named, "post_transform": transform}
    x = features(seed, dtype, (rows, FEATURES))
    proto = model_of(
        "LinearClassifier", attributes, x, shape=[None, FEATURES] if known else None,
        opset=opset, ir_version=3 if old else 8,
    )  # fmt: skip
    assert_equal(proto, x)


def test_model_without_standard_operators_imports_them() -> None:
    attributes = {**linear(0, 3, small=False), "targets": 3, "post_transform": "SOFTMAX"}
    x = features(0, "float32", (2, FEATURES))
    proto = model_of("LinearRegressor", attributes, x, shape=["N", FEATURES], opset=0)
    after, _ = lowered(proto)
    assert [(entry.domain, entry.version) for entry in after.opset_import] == [("", 13)]
    np.testing.assert_allclose(answers(after, x)[0], answers(proto, x)[0], rtol=1e-6)


NESTED = """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 1, "own": 1]>
g (float[N,2] x, bool which) => (float[N,2] y) {
    s = own.standard (x)
    y = If (which) <
        then_branch = a () => (float[N,2] t) {
            t = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0, 3.0, 4.0], targets = 2> (s) },
        else_branch = b () => (float[N,2] e) {
            e = ai.onnx.ml.Normalizer <norm = "L1"> (x) }>
}
<domain: "own", opset_import: ["ai.onnx.ml": 1]>
standard (v) => (w) {
    w = ai.onnx.ml.LinearRegressor <coefficients = [0.5, 0.0, 0.0, 0.25], targets = 2> (v) }
"""


def test_subgraphs_and_functions() -> None:
    proto = parser.parse_model(NESTED)
    after, step = lowered(proto)
    assert [change.kind for change in step.changes] == [
        "LinearRegressor", "Normalizer", "LinearRegressor",
    ]  # fmt: skip
    assert {e.domain: e.version for e in after.functions[0].opset_import} == {"": 17}
    x = np.array([[1, -2], [3, 4]], np.float32)
    for which in (True, False):
        feed = {"x": x, "which": np.array(which)}
        want, have = (
            ort.InferenceSession(m.SerializeToString()).run(None, feed)[0] for m in (proto, after)
        )
        np.testing.assert_allclose(have, want, rtol=1e-6)


def test_zipmap_is_left_alone() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 1]>
    g (float[N,2] x) => (int64[N] label, float[N] z) {
        label, p = ai.onnx.ml.LinearClassifier <coefficients = [1.0, -2.0], intercepts = [0.5],
            classlabels_ints = [4, 9], post_transform = "LOGISTIC"> (x)
        z = ai.onnx.ml.ZipMap <classlabels_int64s = [4, 9]> (p)
    }"""
    proto = parser.parse_model(text)
    kind = helper.make_map_type_proto(
        onnx.TensorProto.INT64, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    )
    proto.graph.output[1].type.CopyFrom(helper.make_sequence_type_proto(kind))
    x = features(4, "float32", (3, 2))
    after, step = lowered(proto)
    assert len(step.changes) == 1
    assert [node.op_type for node in after.graph.node if node.domain] == ["ZipMap"]
    for want, have in zip(answers(proto, x)[1], answers(after, x)[1], strict=True):
        assert list(have) == [4, 9]
        np.testing.assert_allclose(list(have.values()), list(want.values()), rtol=1e-6)


def test_binary_probit_is_left_alone() -> None:
    attributes = {**linear(0, 1, small=True), "classlabels_ints": [0, 1]}
    attributes["post_transform"] = "PROBIT"
    x = features(0, "float32", (2, FEATURES))
    proto = model_of("LinearClassifier", attributes, x, shape=["N", FEATURES])
    assert "leaves scores unset" in reason(proto)


@pytest.mark.parametrize(
    ("op_type", "attributes", "words"),
    [
        ("Scaler", {"offset": [0.0], "scale": [1.0, 2.0]}, "1 offsets and 2 scales"),
        ("Scaler", {}, "0 offsets and 0 scales"),
        ("Normalizer", {"norm": "L3"}, "unknown norm 'L3'"),
        ("LinearRegressor", {"coefficients": [1.0] * 5, "targets": 2}, "5 coefficients for 2"),
        ("LinearRegressor", {"coefficients": [1.0], "post_transform": "SINUS"}, "'SINUS'"),
        ("LinearRegressor", {"coefficients": [1.0], "post_transform": "PROBIT"}, "but PROBIT"),
        ("LinearClassifier", {"coefficients": [1.0], "classlabels_ints": [1]}, "no intercepts"),
        (
            "LinearClassifier",
            {"coefficients": [1.0, 2.0], "intercepts": [0.0, 0.0], "classlabels_ints": [1]},
            "2 classes and 1 labels",
        ),
        (
            "LinearClassifier",
            {"coefficients": [1.0], "intercepts": [0.0], "classlabels_ints": [1]},
            "one row of coefficients and 1 labels",
        ),
    ],
)
def test_what_cannot_be_lowered_says_why(
    op_type: str, attributes: dict[str, Any], words: str
) -> None:
    x = np.zeros((1, 1), np.float32)
    assert words in reason(model_of(op_type, attributes, x, shape=["N", 1]))


def test_more_coefficients_than_features_are_left_to_the_runtime() -> None:
    """ONNX Runtime reads as many as the input has features, and ignores the others."""
    attributes = {
        "coefficients": [1.0] * 12,
        "intercepts": [0.0] * 3,
        "classlabels_ints": [0, 1, 2],
    }
    x = np.zeros((3, 2), np.float32)
    words = "has 12 coefficients for 3 targets of 2 features"
    assert words in reason(model_of("LinearClassifier", attributes, x, shape=["N", 2]))


def test_scaler_of_unknown_or_higher_rank_is_left_alone() -> None:
    attributes = {"offset": [0.0, 1.0], "scale": [1.0, 2.0]}
    x = np.zeros((1, 2), np.float32)
    assert "unknown dimensions" in reason(model_of("Scaler", attributes, x, shape=None))
    assert "3 dimensions" in reason(model_of("Scaler", attributes, x, shape=[1, 2, 2]))


def test_old_opset_says_what_it_needs() -> None:
    x = np.zeros((1, 2), np.float32)
    proto = model_of("Normalizer", {"norm": "L1"}, x, shape=["N", 2], opset=8)
    assert "needs opset 9" in reason(proto)


def test_lowering_twice_changes_nothing_more() -> None:
    attributes = {**linear(3, 3, small=True), **LABELS["ints"], "post_transform": "PROBIT"}
    x = features(0, "float32", (2, FEATURES))
    once, _ = lowered(model_of("LinearClassifier", attributes, x, shape=["N", FEATURES]))
    assert "nothing but PROBIT" in reason(once)


def small_file(result: Result) -> int:
    return len(result.model.to_proto().SerializeToString())


def test_logistic_regression_of_models() -> None:
    model = Model.load("models/logistic_regression/model.onnx")
    with np.load("models/logistic_regression/calibration.npz") as data:
        feeds = [{"features": data["features"][:64]}]
    result = run([LowerMl(), QuantizeWeights()], model, Settings(feeds=feeds))
    lower, quantize = result.report.steps
    assert (lower.status, quantize.status) == ("done", "done")
    assert lower.max_error is not None
    assert lower.max_error < 1e-6
    assert lower.bytes_after < lower.bytes_before  # a float of an attribute takes five bytes
    assert result.report.ratio > 4.3
    assert result.report.outputs["label"]["top1"] == 1.0
    found = {view.name: view.shape for view in weights.find(model)}
    assert not found  # the weights were in attributes, and the input model is as it was


@pytest.mark.e2e
def test_wide_logistic_regression_shrinks() -> None:
    """The target of the project for text features: 100,000 of them and 20 classes."""
    rng = np.random.default_rng(0)
    wide, classes = 100_000, 20
    coefficients = rng.normal(size=(classes, wide)).astype(np.float32)
    # Each text has 300 of the words; those that speak for its class appear four times as often.
    truth = rng.integers(0, classes, 200)
    x = np.zeros((len(truth), wide), np.float32)
    for row, klass in zip(x, truth, strict=True):
        odds = 1.0 + 3.0 * (coefficients[klass] > 0)
        row[rng.choice(wide, 300, replace=False, p=odds / odds.sum())] = 0.05
    attributes = {
        "coefficients": coefficients.ravel().tolist(), "intercepts": [0.1] * classes,
        "classlabels_ints": list(range(classes)), "post_transform": "SOFTMAX",
    }  # fmt: skip
    proto = model_of("LinearClassifier", attributes, x, shape=["N", wide])
    assert np.mean(answers(proto, x)[0] == truth) > 0.9
    result = run(
        [LowerMl(), QuantizeWeights()], Model.from_proto(proto), Settings(feeds=[{"x": x}])
    )
    before = proto.ByteSize()
    assert [step.status for step in result.report.steps] == ["done", "done"]
    assert result.report.bytes_before == before
    # Against the attribute, whose floats take five bytes each, and against float32 proper.
    assert before / small_file(result) > 4.9
    assert 4 * coefficients.size / small_file(result) > 3.8
    want, have = answers(proto, x), answers(result.model.to_proto(), x)
    np.testing.assert_array_equal(have[0], want[0])
    assert np.abs(have[1] - want[1]).max() < 0.03
