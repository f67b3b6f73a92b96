"""Weights and their uses: one constant, wherever it lives and however it is reached."""

from onnxshrink.graph.weights.views import (
    FLOATS,
    OPERATORS,
    Axes,
    Use,
    WeightView,
    constant,
    find,
)

__all__ = ["FLOATS", "OPERATORS", "Axes", "Use", "WeightView", "constant", "find"]
