"""What ONNX Runtime answers to a model as it is written, without its optimizer."""

import numpy as np
import onnx
import onnxruntime as ort

from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.weights.views import WeightView


def answers(model: Model, **feed: np.ndarray) -> list[np.ndarray]:
    """Outputs of a model that passes the checker."""
    proto = model.to_proto()
    onnx.checker.check_model(proto)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def view_of(model: Model, name: str) -> WeightView:
    """One weight of a model."""
    return next(view for view in weights.find(model) if view.name == name)


def kinds(model: Model) -> list[str]:
    """The operators of the main graph, in order."""
    return [node.op_type for node in model.ir.graph]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
