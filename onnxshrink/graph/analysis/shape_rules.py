"""Shapes as plain tuples, and in types; rules for operators that only ONNX Runtime knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

#: Sizes along the axes; None where unknown. None altogether when even the rank is unknown.
Shape = tuple[int | None, ...] | None
Rule = Callable[[Sequence[Shape], Mapping[str, Any]], Shape]


def tensor_type(elem: int, shape: Shape) -> onnx.TypeProto:
    """A tensor's type; ``elem`` is 0 where unknown."""
    kind = onnx.TypeProto()
    kind.tensor_type.elem_type = elem
    if shape is not None:
        kind.tensor_type.shape.SetInParent()
        for size in shape:
            dim = kind.tensor_type.shape.dim.add()
            if size is not None:
                dim.dim_value = size
    return kind


def shape_of(kind: onnx.TypeProto | None) -> Shape:
    """The shape in a type, None when it has none."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else None for dim in kind.tensor_type.shape.dim
    )


def static(shape: Shape) -> tuple[int, ...] | None:
    """The shape if every size in it is known."""
    if shape is None or any(size is None for size in shape):
        return None
    return tuple(size for size in shape if size is not None)


def common(one: onnx.TypeProto, two: onnx.TypeProto) -> onnx.TypeProto:
    """What two types agree on."""
    if not (one.HasField("tensor_type") and two.HasField("tensor_type")):
        return one if one == two else onnx.TypeProto()
    a, b = shape_of(one), shape_of(two)
    elem = one.tensor_type.elem_type
    if elem != two.tensor_type.elem_type:
        elem = 0
    if a is None or b is None or len(a) != len(b):
        return tensor_type(elem, None)
    return tensor_type(elem, tuple(m if m == n else None for m, n in zip(a, b, strict=True)))


def filled(inferred: onnx.TypeProto, declared: onnx.TypeProto) -> onnx.TypeProto:
    """An inferred type, completed by what the file declares."""
    if not inferred.WhichOneof("value"):
        return declared
    a, b = shape_of(inferred), shape_of(declared)
    if not inferred.HasField("tensor_type") or b is None or (a is not None and len(a) != len(b)):
        return inferred
    elem = inferred.tensor_type.elem_type or declared.tensor_type.elem_type
    if a is None:
        return tensor_type(elem, b)
    return tensor_type(elem, tuple(n if m is None else m for m, n in zip(a, b, strict=True)))


#: Operators of other domains with the shapes of a standard one: its name, and which inputs it
#: would take.
LIKE: dict[str, tuple[str, slice]] = {
    **dict.fromkeys(
        ("BiasGelu", "FastGelu", "Gelu", "Imputer", "Normalizer", "QLinearLeakyRelu",
         "QLinearSigmoid", "QLinearSoftmax", "QuickGelu", "RotaryEmbedding", "Scaler",
         "SimplifiedLayerNormalization", "SkipLayerNormalization",
         "SkipSimplifiedLayerNormalization"), ("Identity", slice(1)),
    ),
    "DequantizeLinear": ("DequantizeLinear", slice(None)),
    "QuantizeLinear": ("QuantizeLinear", slice(None)),
    "FusedConv": ("Conv", slice(2)),
    "FusedGemm": ("Gemm", slice(2)),
    "GatherBlockQuantized": ("Gather", slice(2)),
    "MatMulIntegerToFloat": ("MatMul", slice(2)),
    "QGemm": ("Gemm", slice(0, 4, 3)),
    "QLinearAdd": ("Add", slice(0, 4, 3)),
    "QLinearAveragePool": ("AveragePool", slice(1)),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", slice(1)),
    "QLinearMul": ("Mul", slice(0, 4, 3)),
}  # fmt: skip


def _last(shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Shape:
    """[.., K] x [K, N]: the batch axes and N."""
    return None if shapes[0] is None else (*shapes[0][:-1], attributes.get("N"))


def _fused_matmul(shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Shape:
    a, b = (*shapes, None)[:2]
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    rows = a[-1 if attributes.get("transA") else -2]
    columns = b[-2 if attributes.get("transB") else -1]
    longer = a if len(a) >= len(b) else b
    return (*longer[:-2], rows, columns)


def _attention(shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Shape:
    if shapes[0] is None or len(shapes[0]) != 3:
        return None
    sizes, weight = attributes.get("qkv_hidden_sizes"), (*shapes, None)[1]
    hidden = sizes[2] if sizes else None
    if hidden is None and weight and weight[-1] is not None:
        hidden = weight[-1] // 3
    return (*shapes[0][:2], hidden)


def _same(shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Shape:
    return shapes[0]


def _query(shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Shape:
    return shapes[0] if shapes[0] is not None and len(shapes[0]) == 3 else None


def head_size(shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> int | None:
    """Of GroupQueryAttention, whose first input may hold queries, keys and values side by side."""
    queries, shared = (int(attributes.get(name, 0)) for name in ("num_heads", "kv_num_heads"))
    if queries < 1 or shared < 1:  # no valid model
        return None
    q, k = (*shapes, None)[:2]
    rows, heads = (q, queries + 2 * shared) if k is None else (k, shared)
    return None if rows is None or len(rows) != 3 or rows[-1] is None else rows[-1] // heads


def _grouped(shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Shape:
    size = head_size(shapes, attributes)
    rows = _query(shapes, attributes)
    if rows is None or size is None:
        return rows
    return (*rows[:2], int(attributes["num_heads"]) * size)


def _cache(shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Shape:
    """[batch, heads, past and new, head size]."""
    batch = None if shapes[0] is None else shapes[0][0]
    return (batch, attributes.get("kv_num_heads"), None, head_size(shapes, attributes))


def _quantized_lstm(shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Shape:
    x, weight = (*shapes, None)[:2]
    if x is None or weight is None or len(x) != 3:
        return None
    return (x[0], weight[0], x[1], attributes.get("hidden_size"))


RULES: dict[str, Rule] = {
    "Attention": _attention,
    "DynamicQuantizeLSTM": _quantized_lstm,
    "DynamicQuantizeMatMul": _fused_matmul,
    "FusedMatMul": _fused_matmul,
    "GroupQueryAttention": _grouped,
    "MatMulBnb4": _last,
    "MatMulNBits": _last,
    "MultiHeadAttention": _query,
    "QAttention": _attention,
}

#: Of outputs behind the first, by their number.
_FURTHER: dict[str, dict[int, Rule]] = {
    "GroupQueryAttention": dict.fromkeys((1, 2), _cache),
    "SkipLayerNormalization": {3: _same},
    "SkipSimplifiedLayerNormalization": {3: _same},
}


def further(
    node: ir.Node, shapes: Sequence[Shape], attributes: Mapping[str, Any]
) -> dict[int, Shape]:
    """Shapes of outputs behind the first, by their number, of operators of ONNX Runtime."""
    rules = _FURTHER.get(node.op_type, {}) if node.domain == "com.microsoft" else {}
    places = rules.keys() & range(len(node.outputs))
    return {place: rules[place](shapes, attributes) for place in places}
