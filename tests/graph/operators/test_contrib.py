"""Models that ONNX Runtime's optimizer wrote are as good as others."""

import numpy as np
import onnx
import onnxruntime as ort
from hard_models import rows, text, weight

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import run
from onnxshrink.runtime.worker import Worker


def test_norms_that_only_onnx_runtime_knows(worker: Worker) -> None:
    """SimplifiedLayerNormalization, in the default domain; int4 raises the operator set."""
    proto = text(
        """g (float[n, 64] x) => (float[n, 64] y) {
            h = SimplifiedLayerNormalization<axis = -1, epsilon = 1e-5>(x, s)  y = MatMul(h, w)
        }""",
        s=weight(1, 64), w=weight(2, 64, 64),
    )  # fmt: skip
    step = QuantizeWeights(dtype="int4", block_size=32)
    result = run([step], Model.from_proto(proto), Settings(feeds=rows(2, 64)), worker)
    (row,) = result.report.steps
    assert (row.status, result.model.opset) == ("done", 21)
    after = ort.InferenceSession(
        result.model.to_proto().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = rows(2, 64)[0]["x"]
    s, w = (onnx.numpy_helper.to_array(t) for t in proto.graph.initializer)
    norm = x / np.sqrt(np.square(x).mean(1, keepdims=True) + 1e-5) * s
    found = after.run(None, {"x": x})[0]
    assert np.linalg.norm(found - norm @ w) < 0.15 * np.linalg.norm(norm @ w)
