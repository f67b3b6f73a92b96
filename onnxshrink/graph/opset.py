"""Raising a model's operator set where a pass needs newer operators or types."""

from __future__ import annotations

import onnx
from onnx import version_converter

from onnxshrink.errors import UnsupportedModel
from onnxshrink.graph.hoist import separate_inputs
from onnxshrink.graph.model import Model

#: The IR version that came with an operator set, for the sets that passes ask for.
_IR_VERSIONS = {13: 7, 21: 10, 25: 12}


def raise_opset(model: Model, version: int) -> bool:
    """Convert a model to at least an operator set version, with ONNX's version converter.

    Args:
        model: Changed in place.
        version: The version needed.

    Returns:
        Whether anything was done.

    Raises:
        UnsupportedModel: The converter refuses the model.
    """
    if model.opset >= version:
        return False
    before = model.opset

    def convert(proto: onnx.ModelProto) -> onnx.ModelProto:
        try:
            return version_converter.convert_version(proto, version)
        except (RuntimeError, ValueError) as error:  # the converter's C++ exceptions
            raise UnsupportedModel(
                f"{model.label}: opset {before} cannot be raised to {version}, which this needs: "
                f"{str(error).splitlines()[0] if str(error) else 'the converter gives no reason'}"
            ) from error

    model.rewrite_proto(convert)
    if model.ir.ir_version < 4:
        separate_inputs(model)
    model.ir.ir_version = max(model.ir.ir_version, _IR_VERSIONS[version])
    return True
