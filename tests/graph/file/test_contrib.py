"""Operators of ONNX Runtime in the default domain."""

import numpy as np
import onnx
import pytest
from hard_models import text

from onnxshrink.graph.file import contrib


def test_onnx_knows_them_once_they_are_declared() -> None:
    model = text(
        "g (float[n, 4] x) => (float[n, 4] y) { y = SimplifiedLayerNormalization(x, gain) }",
        gain=np.ones(4, np.float32),
    )
    contrib.declare()
    contrib.declare()  # once more is no error
    onnx.checker.check_model(model)
    del model.graph.node[0].input[:]
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
