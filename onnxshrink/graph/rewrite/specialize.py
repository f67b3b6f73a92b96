"""What is left of a graph when some inputs always have one value or one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.rewrite.clean import fold

_ROUNDS = 8  # each may find the shapes that the next needs


def specialize(
    model: Model, values: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Fold what follows from fixed inputs; branches that are never taken go.

    The inputs stay, as callers know them, but nothing reads those with a value any more.

    Args:
        model: The model, which is changed.
        values: Inputs by name, and what they always are.
        shapes: Inputs by name, and their shapes; all other axes stay open.
    """

    def change(graph: ir.Model) -> ir.Model:
        inputs = {value.name or "": value for value in graph.graph.inputs}
        declared = {name: inputs[name].shape for name in shapes}
        for name, shape in shapes.items():
            inputs[name].shape = ir.Shape(list(shape))
        for name, array in values.items():
            tensor = ir.Tensor(array, name=name)
            constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)])
            constant.outputs[0].name = model.unused_name(f"{name}.value")
            constant.outputs[0].shape = ir.Shape(array.shape)
            constant.outputs[0].dtype = tensor.dtype
            graph.graph.insert_before(graph.graph[0], constant)
            inputs[name].replace_all_uses_with(constant.outputs[0])
        count = -1
        for _ in range(_ROUNDS):
            fold(graph, shapes=True)
            if count == (count := sum(1 for _ in graph.graph.all_nodes())):
                break
        for name, before in declared.items():
            inputs[name].shape = before
        return graph

    model.rewrite(change)
