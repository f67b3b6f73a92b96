"""The table: one frozen row for each operator that passes know, by kind.

An operator that computes what another one does gets a row of the same kind, and every pass knows
it. What one node of it is, its attributes read, answer the views beside this.
"""

from __future__ import annotations

from typing import TypeVar

import onnx
import onnx_ir as ir

from onnxshrink.graph.operators.one_by_one import (
    Arithmetic,
    Choice,
    Elementwise,
    Movement,
    Norm,
    Repetition,
    Scatter,
)
from onnxshrink.graph.operators.rows import (
    Control,
    Convolution,
    Deformed,
    DynamicQuantizer,
    Equation,
    Fill,
    Limit,
    Logic,
    Lookup,
    Matrices,
    OneHot,
    QuantizedRow,
    Random,
    Ranking,
    Recurrent,
    Reduction,
    Relation,
    Rotary,
    Rounding,
    Row,
    RunningSum,
    Selection,
    Series,
    ShapeOf,
)

_CONTRIB = "com.microsoft"

#: Rows by (domain, operator). Products come first: they decide over a weight with several uses.
TABLE: dict[tuple[str, str], Row] = {
    ("", "MatMul"): Matrices(),
    ("", "Gemm"): Matrices(bias=2),
    ("", "Conv"): Convolution(),
    ("", "ConvTranspose"): Convolution(transposed=True),
    ("", "DeformConv"): Deformed(),
    (_CONTRIB, "FusedMatMul"): Matrices(),
    (_CONTRIB, "FusedGemm"): Matrices(bias=2),
    (_CONTRIB, "FusedConv"): Convolution(added=3),
    (_CONTRIB, "Attention"): Matrices(sides=(1,), bias=2, inside=True),
    ("", "Gather"): Lookup(),
    ("", "LSTM"): Recurrent(4),
    ("", "GRU"): Recurrent(3, resets=True),
    ("", "RNN"): Recurrent(1),
    ("", "Einsum"): Equation(),
    (_CONTRIB, "EmbedLayerNormalization"): Lookup(((2, None), (3, None), (4, None))),
    ("", "Add"): Arithmetic(),
    ("", "Sub"): Arithmetic(inverse=True),
    ("", "Mul"): Arithmetic(scales=True),
    ("", "Div"): Arithmetic(scales=True, inverse=True),
    ("", "Where"): Choice(),
    ("", "BatchNormalization"): Norm(1, 2, channels=1, fixed=(3, 4)),
    ("", "GroupNormalization"): Norm(1, 2, channels=1, grouped=True),
    ("", "InstanceNormalization"): Norm(1, 2, channels=1),
    ("", "LayerNormalization"): Norm(1, 2),
    ("", "RMSNormalization"): Norm(1, None),
    ("", "SimplifiedLayerNormalization"): Norm(1, None),
    (_CONTRIB, "SkipLayerNormalization"): Norm(2, 3, sums=(0, 1, 4)),
    (_CONTRIB, "SkipSimplifiedLayerNormalization"): Norm(2, None, sums=(0, 1, 3)),
    ("", "Abs"): Elementwise(factors=True),
    ("", "Dropout"): Elementwise(factors=True, means=True, trains=2),
    ("", "LeakyRelu"): Elementwise(factors=True),
    ("", "PRelu"): Elementwise(factors=True, slope=1),
    ("", "Relu"): Elementwise(factors=True, positive=True),
    ("", "AveragePool"): Elementwise(factors=True, means=True, places=True),
    ("", "GlobalAveragePool"): Elementwise(factors=True, means=True, places=True),
    ("", "GlobalMaxPool"): Elementwise(factors=True, places=True),
    ("", "MaxPool"): Elementwise(factors=True, places=True),
    ("", "Resize"): Elementwise(factors=True, places=True),
    ("", "Upsample"): Elementwise(factors=True, places=True),
    ("", "Clip"): Limit((1, 2)),
    ("", "Max"): Limit(),
    ("", "Min"): Limit(),
    ("", "If"): Control(),
    ("", "Loop"): Control(repeats=True),
    ("", "Scan"): Control(repeats=True, slices=True),
    ("", "NonMaxSuppression"): Ranking(),
    ("", "TopK"): Ranking(),
    ("", "OneHot"): OneHot(),
    ("", "ReduceMax"): Reduction(),
    ("", "ReduceMean"): Reduction(),
    ("", "ReduceSum"): Reduction(),
    ("", "Bernoulli"): Random(),
    ("", "Multinomial"): Random(),
    ("", "RandomNormal"): Random(),
    ("", "RandomNormalLike"): Random(like=True),
    ("", "RandomUniform"): Random(),
    ("", "RandomUniformLike"): Random(like=True),
    ("", "Cast"): Movement("converts"),
    ("", "Concat"): Movement("joins"),
    ("", "Flatten"): Movement("flattens"),
    ("", "Identity"): Movement("copies"),
    ("", "Pad"): Movement("pads"),
    ("", "Reshape"): Movement("reshapes"),
    ("", "Slice"): Movement("parts"),
    ("", "Split"): Movement("parts"),
    ("", "Squeeze"): Movement("squeezes"),
    ("", "Transpose"): Movement("permutes"),
    ("", "Unsqueeze"): Movement("unsqueezes"),
    ("", "ConvInteger"): QuantizedRow((0, 1), zero_behind=True),
    ("", "DequantizeLinear"): QuantizedRow((0,)),
    ("", "MatMulInteger"): QuantizedRow((0, 1), zero_behind=True),
    ("", "QuantizeLinear"): QuantizedRow((0,), floats=True),
    ("", "QLinearConv"): QuantizedRow((3, 8), zero_behind=True),
    ("", "QLinearMatMul"): QuantizedRow((0, 3), zero_behind=True),
    (_CONTRIB, "DequantizeLinear"): QuantizedRow((0,)),
    (_CONTRIB, "DynamicQuantizeLSTM"): QuantizedRow((1, 2, 3, 7)),
    (_CONTRIB, "DynamicQuantizeMatMul"): QuantizedRow((1, 4), gain=2, shift=4),
    (_CONTRIB, "GatherBlockQuantized"): QuantizedRow((0,)),
    (_CONTRIB, "MatMulBnb4"): QuantizedRow((1, 5)),
    (_CONTRIB, "MatMulIntegerToFloat"): QuantizedRow((0, 1, 6)),
    (_CONTRIB, "MatMulNBits"): QuantizedRow((1, 5)),
    (_CONTRIB, "QAttention"): QuantizedRow((1, 2)),
    (_CONTRIB, "QGemm"): QuantizedRow((0, 3, 6), zero_behind=True),
    (_CONTRIB, "QLinearConv"): QuantizedRow((3, 8), zero_behind=True),
    (_CONTRIB, "QuantizeLinear"): QuantizedRow((0,), floats=True),
    (_CONTRIB, "QMoE"): QuantizedRow((2, 4, 5, 7, 8, 10)),
    ("", "DynamicQuantizeLinear"): DynamicQuantizer(),
    ("", "Shape"): ShapeOf(),
    ("", "Size"): ShapeOf(product=True),
    ("", "Compress"): Selection(),
    ("", "NonZero"): Selection(),
    ("", "Unique"): Selection(),
    (_CONTRIB, "Unique"): Selection(),
    ("", "Equal"): Relation(equal=True),
    ("", "Greater"): Relation(orders=True),
    ("", "GreaterOrEqual"): Relation(orders=True, equal=True),
    ("", "Less"): Relation(orders=True),
    ("", "LessOrEqual"): Relation(orders=True, equal=True),
    ("", "And"): Logic(),
    ("", "Or"): Logic(),
    ("", "Not"): Logic(negates=True),
    ("", "Ceil"): Rounding(),
    ("", "Floor"): Rounding(),
    ("", "Round"): Rounding(),
    ("", "ScatterElements"): Scatter(),
    ("", "ScatterND"): Scatter(),
    ("", "TensorScatter"): Scatter(places=2),
    ("", "Expand"): Repetition(),
    ("", "Tile"): Repetition(),
    ("", "CumSum"): RunningSum(),
    ("", "ConstantOfShape"): Fill(),
    ("", "Range"): Series(),
    ("", "RotaryEmbedding"): Rotary(places=3),
    (_CONTRIB, "RotaryEmbedding"): Rotary(places=1),
}

K = TypeVar("K", bound=Row)


def row(node: ir.Node | onnx.NodeProto) -> Row | None:
    """The row of a node; None where passes do not know its operator."""
    return TABLE.get((node.domain, node.op_type))


def of(node: ir.Node | onnx.NodeProto | None, kind: type[K]) -> K | None:
    """The row of a node, where it is of this kind."""
    found = None if node is None else row(node)
    return found if isinstance(found, kind) else None
