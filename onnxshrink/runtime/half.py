"""Whole models in float16, by the converter that ONNX Runtime ships."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from onnxshrink.errors import UnsupportedModel

if TYPE_CHECKING:
    import onnx


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute in float16; inputs and outputs keep their types.

    Operators that have no float16 version get Casts around them.

    Args:
        model: A whole model with its weights; it is changed.

    Raises:
        UnsupportedModel: The converter fails on the model.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for every clipped tensor; the outputs are compared
        try:
            converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
        except Exception as error:  # it raises whatever its dictionaries and protobuf raise
            raise UnsupportedModel(
                f"ONNX Runtime's float16 converter fails on this model: {error}"
            ) from error
    return converted
