"""Random tree ensembles of ai.onnx.ml, as converters write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

FEATURES = 5
Attributes = dict[str, Any]


def trees(
    role: str, depth: int, count: int, weighs: Sequence[int], *, seed: int = 0, low: float = -1.0,
    modes: Sequence[str] = ("BRANCH_LEQ",), missing: bool = False, values: int = 9,
) -> Attributes:  # fmt: skip
    """Random trees; every leaf weighs the targets of ``weighs``, each with one of few values."""
    rng = np.random.default_rng(seed)
    names = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids",
             "missing_value_tracks_true", "hitrates")  # fmt: skip
    nodes: dict[str, list[Any]] = {name: [] for name in names}
    leaves: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}

    def grow(tree: int, left: int, made: list[int]) -> int:
        own = made[0]
        made[0] += 1
        leaf = left == 0 or (left < depth and rng.random() < 0.2)
        at = len(nodes["nodeids"])
        row = (tree, own, int(rng.integers(FEATURES)), float(np.round(rng.standard_normal(), 1)),
               "LEAF" if leaf else str(rng.choice(modes)), 0, 0,
               int(missing and rng.random() < 0.5), 1.0)  # fmt: skip
        for name, value in zip(names, row, strict=True):
            nodes[name].append(value)
        if leaf:
            for target in weighs:
                weight = low + (1 - low) * rng.integers(values) / (values - 1)
                for name, value in zip(leaves, (tree, own, target, weight), strict=True):
                    leaves[name].append(value)
            return own
        nodes["truenodeids"][at] = grow(tree, left - 1, made)
        nodes["falsenodeids"][at] = grow(tree, left - 1, made)
        return own

    for tree in range(count):
        grow(tree, depth if tree else 0, [0])  # the first is a leaf by itself
    return {
        **{f"nodes_{name}": value for name, value in nodes.items()},
        **{f"{role}_{name}": value for name, value in leaves.items()},
    }


def ensemble(kind: str, dtype: int = TensorProto.FLOAT, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(
        f"TreeEnsemble{kind}", ["x"], ["label", "y"] if kind == "Classifier" else ["y"], "trees",
        domain="ai.onnx.ml", **attributes,
    )  # fmt: skip
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "targets"])]
    if kind == "Classifier":
        texts = "classlabels_strings" in attributes
        label = TensorProto.STRING if texts else TensorProto.INT64
        outputs.insert(0, helper.make_tensor_value_info("label", label, ["n"]))
    x = helper.make_tensor_value_info("x", dtype, ["n", FEATURES])
    graph = helper.make_graph([node], "g", [x], outputs)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)
