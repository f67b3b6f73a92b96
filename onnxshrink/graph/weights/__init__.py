"""Weights and their uses: one constant, wherever it lives and however it is reached."""

from onnxshrink.graph.operators import Axes
from onnxshrink.graph.read import constant
from onnxshrink.graph.weights.views import FLOATS, Use, WeightView, find

__all__ = ["FLOATS", "Axes", "Use", "WeightView", "constant", "find"]
