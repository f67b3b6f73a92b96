"""What each operator is, once: a table of rows by kind, and views that answer for one node."""

from onnxshrink.graph.operators.norms import Gains, gains
from onnxshrink.graph.operators.products import Product, product, sides
from onnxshrink.graph.operators.table import (
    TABLE,
    Arithmetic,
    Axes,
    Convolution,
    Equation,
    Lookup,
    Matrices,
    Norm,
    Quantized,
    Recurrent,
    Row,
    of,
)

__all__ = [
    "TABLE", "Arithmetic", "Axes", "Convolution", "Equation", "Gains", "Lookup", "Matrices", "Norm",
    "Product", "Quantized", "Recurrent", "Row", "gains", "of", "product",
    "sides",
]  # fmt: skip
