"""What activations are on average, read off the normalization that made them: no data needed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import operators, weights
from onnxshrink.graph.analysis import pointwise
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.operators import Elementwise, Norm
from onnxshrink.kernels.normal import clipped_mean


def means(model: Model) -> dict[str, npt.NDArray[np.float64]]:
    """The mean of every channel of what BatchNormalization makes, and of Relu and Clip behind it.

    Its factors and shifts are the deviations and means of normal values (1906.04721, section 4.2).
    """
    found: dict[ir.Value, npt.NDArray[np.float64]] = {}
    normal: dict[ir.Value, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]] = {}
    for node in model.nodes:
        source = node.inputs[0] if len(node.inputs) else None
        if source is None or node.domain or not len(node.outputs):
            continue
        made = node.outputs[0]
        norm, row = operators.of(node, Norm), operators.of(node, Elementwise)
        limits = pointwise.bounds(node)
        if norm is not None and norm.fixed:
            gamma, beta = (_vector(value) for value in node.inputs[1:3])
            if gamma is not None and beta is not None:
                normal[made] = beta, np.abs(gamma)
                found[made] = beta
        elif source in normal and limits is not None:
            found[made] = clipped_mean(*normal[source], *limits)
        elif source in found and (
            (row is not None and row.means) or operators.moves(node) in ("copies", "flattens")
        ):
            found[made] = found[source]
    return {value.name: mean for value, mean in found.items() if value.name}


def _vector(value: ir.Value | None) -> npt.NDArray[np.float64] | None:
    tensor = None if value is None else weights.constant(value)
    return None if tensor is None else tensor.numpy().astype(np.float64)
