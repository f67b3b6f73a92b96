"""Rewriters that need a model with all its weights in memory."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir

from onnxshrink.errors import UnsupportedModel
from onnxshrink.graph.file import round_trip
from onnxshrink.graph.file.model import Model


def rewrite(model: Model, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """Replace a graph by what a function makes of the whole model, its nodes in any order.

    Raises:
        UnsupportedModel: What it makes is no valid graph.
    """
    try:
        changed = ir.from_proto(round_trip.readable(change(model.to_proto())))
        changed.graph.sort()
    except (ir.serde.SerdeError, ValueError) as error:
        raise UnsupportedModel(
            f"{model.label}: the rewritten graph is not valid: {error.__cause__ or error}"
        ) from error
    model.rewrite(lambda _: changed)
