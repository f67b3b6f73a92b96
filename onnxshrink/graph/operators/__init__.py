"""What each operator is, once: a table of rows by kind, and views that answer for one node."""

from onnxshrink.graph.operators.norms import Gains, gains
from onnxshrink.graph.operators.predicates import (
    adds,
    branches,
    carries,
    dequantizes,
    looked_up_in_blocks,
    looks_up,
    moves,
    multiplies,
    picks,
)
from onnxshrink.graph.operators.products import Product, product, sides
from onnxshrink.graph.operators.roles import role
from onnxshrink.graph.operators.table import (
    TABLE,
    Arithmetic,
    Axes,
    Choice,
    Control,
    Convolution,
    Deformed,
    Elementwise,
    Equation,
    Limit,
    Lookup,
    Matrices,
    Movement,
    Norm,
    OneHot,
    QuantizedRow,
    Random,
    Ranking,
    Recurrent,
    Reduction,
    Row,
    of,
    row,
)

__all__ = [
    "TABLE", "Arithmetic", "Axes", "Choice", "Control", "Convolution", "Deformed", "Elementwise",
    "Equation", "Gains", "Limit", "Lookup", "Matrices", "Movement", "Norm", "OneHot", "Product",
    "QuantizedRow", "Random", "Ranking", "Recurrent", "Reduction", "Row", "adds",
    "branches", "carries",
    "dequantizes", "gains", "looked_up_in_blocks",
    "looks_up", "moves", "multiplies", "of", "picks", "product", "role",
    "row", "sides",
]  # fmt: skip
