"""What each operator is, once: a table of rows by kind, and views that answer for one node."""

from onnxshrink.graph.operators.norms import Gains, gains
from onnxshrink.graph.operators.products import Product, product, sides
from onnxshrink.graph.operators.roles import role
from onnxshrink.graph.operators.table import (
    TABLE,
    Arithmetic,
    Axes,
    Choice,
    Convolution,
    Deformed,
    Elementwise,
    Equation,
    Lookup,
    Matrices,
    Movement,
    Norm,
    QuantizedRow,
    Random,
    Recurrent,
    Reduction,
    Row,
    looks_up,
    moves,
    multiplies,
    of,
)

__all__ = [
    "TABLE", "Arithmetic", "Axes", "Choice", "Convolution", "Deformed", "Elementwise", "Equation",
    "Gains", "Lookup", "Matrices", "Movement", "Norm", "Product", "QuantizedRow", "Random",
    "Recurrent", "Reduction", "Row", "gains", "looks_up", "moves", "multiplies", "of", "product",
    "role", "sides",
]  # fmt: skip
