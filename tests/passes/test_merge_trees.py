"""Forests in fewer numbers: ONNX Runtime answers as it does for the older operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from forests import FEATURES, Attributes, ensemble, trees
from onnx import TensorProto, helper

from onnxshrink.graph.file.model import Model
from onnxshrink.pipeline import Settings, run
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.worker import Worker


def _answers(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: list[np.ndarray] = session.run(None, {"x": x})
    return found


def _one_class_a_tree(count: int, classes: int) -> Attributes:
    found = trees("class", 5, count, (0,), missing=True)
    return {**found, "class_ids": [tree % classes for tree in found["class_treeids"]]}


LABELS = {"classlabels_int64s": [3, 1, 4]}
CASES: dict[str, onnx.ModelProto] = {
    "forest": ensemble("Classifier", **trees("class", 5, 7, (0, 1, 2), low=0.0), **LABELS),
    "forest of texts": ensemble(
        "Classifier", **trees("class", 6, 6, (0, 1, 2), modes=("BRANCH_LT", "BRANCH_GTE")),
        classlabels_strings=["a", "b", "c"], post_transform="SOFTMAX",
        base_values=[0.5, 0.0, -0.25],
    ),
    "boosted": ensemble("Classifier", **_one_class_a_tree(9, 3), **LABELS,
                        post_transform="LOGISTIC"),
    **{
        f"binary, {low}, {transform}": ensemble(
            "Classifier", **trees("class", 5, 8, (0,), low=low), classlabels_int64s=[5, 7],
            post_transform=transform,
        )
        for low in (-1.0, 0.0) for transform in ("NONE", "LOGISTIC")
    },
    "regression": ensemble(
        "Regressor", **trees("target", 6, 9, (0,), modes=("BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")),
        n_targets=1, base_values=[2.0],
    ),
    "targets, averaged": ensemble(
        "Regressor", **trees("target", 5, 6, (0, 1, 2), missing=True), n_targets=3,
        aggregate_function="AVERAGE",
    ),
    "whole numbers": ensemble("Classifier", TensorProto.INT64, **_one_class_a_tree(6, 3), **LABELS),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_answers_stay_and_the_bytes_go(name: str, worker: Worker) -> None:
    proto = CASES[name]
    x = np.random.default_rng(1).standard_normal((300, FEATURES)).round(1)
    if name == "whole numbers":
        x = x.astype(np.int64)
    else:
        x = x.astype(np.float32)
        x[::7, 1], x[::11, 3] = np.nan, np.inf
    feeds = [{"x": part} for part in np.split(np.nan_to_num(x, posinf=9), 2)]
    result = run(
        (find_pass("merge-trees")(),), Model.from_proto(proto), Settings(feeds=feeds), worker
    )
    (step,) = result.report.steps
    assert step.status == "done", step.reason
    assert [change.kind for change in step.changes] == [proto.graph.node[0].op_type]
    assert 2 * step.bytes_after < step.bytes_before
    merged = result.model.to_proto()
    onnx.checker.check_model(merged)
    for before, after in zip(_answers(proto, x), _answers(merged, x), strict=True):
        if before.dtype.kind == "f":
            np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
        else:
            assert (before == after).all()


def test_splits_with_equal_sides_go_and_leaves_are_shared(worker: Worker) -> None:
    proto = ensemble("Regressor", **trees("target", 7, 5, (0,), values=2), n_targets=1)
    result = run((find_pass("merge-trees")(),), Model.from_proto(proto), Settings(), worker)
    (node,) = (n for n in result.model.to_proto().graph.node if n.op_type == "TreeEnsemble")
    found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    assert sorted(onnx.numpy_helper.to_array(found["leaf_weights"]).tolist()) == [-1, 1]
    before = sum(mode != "LEAF" for mode in trees("target", 7, 5, (0,), values=2)["nodes_modes"])
    assert len(found["nodes_featureids"]) < 0.8 * before


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (ensemble("Regressor", TensorProto.DOUBLE, **trees("target", 5, 3, (0,)), n_targets=1),
         "reads float64"),
        (ensemble("Regressor", **trees("target", 5, 3, (0,)), n_targets=1,
                  aggregate_function="MIN"),
         "aggregates by MIN"),
        (ensemble("Classifier", **trees("class", 5, 3, (0, 1)), classlabels_int64s=[0, 1]),
         "two classes, weights of 2"),
        (ensemble("Classifier", **{**trees("class", 4, 3, (0,)),
                                 "class_ids": [n % 3 for n in range(len(trees(
                                     "class", 4, 3, (0,))["class_ids"]))]}, **LABELS),
         "a class for which no tree votes"),
    ],
)  # fmt: skip
def test_what_is_left_alone_says_why(proto: onnx.ModelProto, reason: str, worker: Worker) -> None:
    result = run((find_pass("merge-trees")(),), Model.from_proto(proto), Settings(), worker)
    (step,) = result.report.steps
    assert step.status == "nothing to do"
    assert [skip for skip in step.skips if reason in skip.reason]


def test_other_operators_with_long_lists_have_a_row(worker: Worker) -> None:
    node = helper.make_node(
        "SVMRegressor", ["x"], ["y"], "svm", domain="ai.onnx.ml", coefficients=[0.5] * 200,
        support_vectors=[0.1] * 1000, n_supports=200, kernel_type="RBF",
        kernel_params=[0.1, 0.0, 3.0], rho=[0.0],
    )  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    proto = helper.make_model(
        helper.make_graph([node], "g", [x], [y]), opset_imports=imports, ir_version=8
    )
    result = run((find_pass("merge-trees")(),), Model.from_proto(proto), Settings(), worker)
    assert "SVMRegressor has 4,8" in result.report.steps[0].skips[0].reason
